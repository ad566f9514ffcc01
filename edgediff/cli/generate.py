"""`edgediff generate`."""

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from edgediff.cli.flags import SectionedCommand, flag, flags, json_flag, parse_size, provider_flags

if TYPE_CHECKING:
    from edgediff.result import Result
    from edgediff.samplers import Step
    from edgediff.settings import Options


# What a call may ask for, flag by flag. A flag whose parameter has the name of one of
# `edgediff.Options` is handed on under that name where it is given, and its default is the
# bundle's: a new option is one new line here, under a heading of `flags.SECTIONS`. click takes the
# parameter's name from the flag (--clip-skip: clip_skip) unless one stands beside it.
PICTURE_FLAGS = (
    flag(
        "Prompt",
        *("--negative", "negative_prompt"),
        metavar="TEXT",
        help="What to steer away from; has an effect where guidance is above 1.",
    ),
    flag("Picture", "--steps", type=int, help="Denoising steps."),
    flag(
        "Picture",
        "--size",
        metavar="WxH",
        callback=parse_size,
        help="Width x height in pixels, such as 512x512.",
    ),
    flag(
        "Picture", *("--guidance", "guidance_scale"), type=float, help="Classifier-free guidance."
    ),
    flag(
        "Picture",
        "--sampler",
        help="euler, euler_a, ddim, dpmpp_2m, dpmpp_2m_karras or lcm.",
    ),
    flag(
        "Picture",
        "--seed",
        type=int,
        multiple=True,
        help="The picture's random numbers; repeat for more pictures.  [default: drawn, and told]",
    ),
)


def _options(context: click.Context) -> "Options":
    """The flags that were given, of those that are options of a call."""
    from edgediff.settings import Options

    given: dict[str, Any] = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        if (
            name in Options.__annotations__
            and context.get_parameter_source(name) is not ParameterSource.DEFAULT
        ):
            value = context.params[name]
            given[name] = list(value) if parameter.multiple else value
    return cast("Options", given)


@click.command(cls=SectionedCommand)
@click.argument("prompt", required=False)
@flags(PICTURE_FLAGS)
@flag("Where it runs", "-m", "--model", default="emoji", help="A bundle.  [default: built-in]")
@provider_flags
@flag(
    "Where it runs",
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where a compiling provider keeps its result.  [default: in the user's cache]",
)
@flag("Where it runs", "--no-cache", is_flag=True, help="Keep nothing of what a provider compiles.")
@flag("Output", "-o", "--output", type=click.Path(path_type=Path), help="The PNG to write.")
@json_flag
@click.pass_context
def generate(
    context: click.Context,
    /,
    prompt: str | None,
    model: str,
    output: Path | None,
    provider: str,
    threads: int | None,
    provider_options: dict[str, str],
    max_memory: str | None,
    cache_dir: Path | None,
    no_cache: bool,
    as_json: bool,
    **_: Any,  # PICTURE_FLAGS
) -> None:
    """Make a picture of PROMPT.

    What is left unset comes from the bundle: `edgediff info` shows its defaults.
    """
    from edgediff.bundle import Bundle
    from edgediff.image import check_output
    from edgediff.pipeline import find_bundle, load
    from edgediff.settings import resolve

    if prompt is None:
        raise click.UsageError('give a prompt: edgediff generate "a red apple" -o apple.png')
    if output is None:
        raise click.UsageError("give the PNG to write: -o picture.png")
    options = _options(context)
    check_output(output)
    # What is wrong with the request is said before the model loads.
    settings = resolve(Bundle.open(find_bundle(model)), prompt, options)
    started = time.perf_counter()
    pipe = load(
        model,
        provider=provider,
        threads=threads,
        cache_dir=False if no_cache else cache_dir,
        provider_options=provider_options,
        max_memory=max_memory,
    )
    loaded = time.perf_counter() - started
    for reason in pipe.passed_over:
        click.echo(f"Passed over: {reason}", err=True)
    click.echo(f"{pipe.name} on {pipe.provider}, loaded in {loaded:.2f} s", err=True)
    with _progress(settings.steps) as on_step:
        result = pipe.generate(prompt, on_step=on_step, **options)
    paths = result.save(output)
    _warn_of_truncation(result)
    _report(result, paths, loaded, as_json)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[["Step"], None]]:
    """A progress bar on stderr, for a person at a terminal; yields what to call after a step."""
    # hidden: elsewhere a bar is only noise.
    with click.progressbar(
        length=total, label="denoising", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        yield lambda _: bar.update(1)


def _warn_of_truncation(result: "Result") -> None:
    report = result.prompt
    if report.truncated:
        click.echo(
            f"Warning: the prompt has {report.tokens} tokens and {report.limit} fit; cut:"
            f" {_shorten(report.truncated)}",
            err=True,
        )
    if report.negative_truncated:
        click.echo(
            f"Warning: the negative prompt has more than {report.limit} tokens; cut:"
            f" {_shorten(report.negative_truncated)}",
            err=True,
        )


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _report(result: "Result", paths: list[Path], loaded: float, as_json: bool) -> None:
    settings, timings = result.settings, result.timings
    if as_json:
        answer = {
            "images": [
                {"path": str(p), "seed": s} for p, s in zip(paths, result.seeds, strict=True)
            ],
            "settings": dataclasses.asdict(settings),
            "prompt": dataclasses.asdict(result.prompt),
            "seconds": {"load": loaded, **dataclasses.asdict(timings)},
        }
        click.echo(json.dumps(answer, indent=2))
        return
    for path in paths:
        click.echo(path)
    seeds = ", ".join(map(str, result.seeds))
    click.echo(
        f"{settings.width}x{settings.height}, {settings.steps} steps of {settings.sampler},"
        f" guidance {settings.guidance_scale:g}, seed {seeds}: {timings.total:.2f} s",
        err=True,
    )
