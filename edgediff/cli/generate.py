"""`edgediff generate`."""

import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from edgediff.cli.batch import make_all
from edgediff.cli.flags import (
    SectionedCommand,
    SpellingCommand,
    file_of,
    flag,
    flags,
    json_flag,
    provider_flags,
)
from edgediff.cli.image_flags import IMAGE_FLAGS
from edgediff.cli.report import print_notes, print_path, print_prompt_notes, steps_of
from edgediff.cli.running import Output, Runtime, finish, progress_bar
from edgediff.errors import one_line, printable

STDOUT = Path("-")
MAX_COUNT = 1000
"""Images of one call; all stay in memory until the last one is finished."""

if TYPE_CHECKING:
    from edgediff.request.options import Options
    from edgediff.request.record import Recorded
    from edgediff.result import Result


# The options of a call. A flag whose parameter is named as a key of `edgediff.Options` is passed on
# under that name if it is given; the bundle has the default. A new option is one new entry here,
# under a heading of `flags.SECTIONS`. click derives the parameter's name from the flag
# (--clip-skip: clip_skip) unless the next argument gives one.
def _options(context: click.Context) -> "Options":
    """The options of a call whose flags were given."""
    from edgediff.request.options import Options

    given: dict[str, Any] = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        if (
            name in Options.__annotations__
            and context.get_parameter_source(name) is not ParameterSource.DEFAULT
        ):
            value = context.params[name]
            given[name] = list(value) if isinstance(value, tuple) and parameter.multiple else value
    return cast("Options", given)


def _count_seeds(seeds: int | Sequence[int] | None, count: int) -> list[int]:
    """`count` consecutive seeds, from the given one or a random one. After the largest seed comes
    0."""
    from edgediff.request.request import resolve_seeds

    first, *others = resolve_seeds(seeds)
    if others:
        raise click.UsageError(
            f"--count {count} with {len(others) + 1} seeds: give only the first --seed, or every"
            " seed without --count"
        )
    end = 2**64
    # A given seed beyond the end stays as it is: a later check refuses it.
    return [s if s < end or first >= end else s - end for s in range(first, first + count)]


def _again(
    source: Path, prompt: str | None, options: "Options", context: click.Context
) -> tuple["Recorded", str, "Options"]:
    """The record in a PNG, and the prompt and options to generate its image again: the given ones,
    and the recorded ones for the rest."""
    from edgediff.request.record import describe_given, recorded

    with file_of("source"):
        original = recorded(source)
    absent = {name: record for name, record in original.given.items() if name not in options}
    if absent:
        flag_of = {p.name: p.opts[0] for p in context.command.params}
        raise click.UsageError(
            f"{source} was generated from {one_line(describe_given([*absent.values()]))}, which it"
            " does not contain: give that again, with"
            f" {' and '.join(flag_of.get(name, name) for name in absent)}"
        )
    if original.ignored:
        ignored = one_line("; ".join(original.ignored))
        click.echo(
            f"Warning: some settings in {printable(str(source))} are ignored: {ignored}", err=True
        )
    merged = cast("Options", {**original.options, **options})
    return original, original.prompt if prompt is None else prompt, merged


@click.command(cls=SectionedCommand)
@click.argument("prompt", required=False)
@flag(
    "Prompt",
    *("--from", "source"),
    metavar="PNG",
    type=click.Path(path_type=Path),
    help="Generate an image again from the settings in its PNG, or every image of a --grid sheet;"
    " flags that are given override these settings.",
)
@flags(IMAGE_FLAGS)
@flag(
    "Many images",
    "--count",
    type=click.IntRange(1, MAX_COUNT),
    metavar="N",
    help="Generate N images with consecutive seeds, starting from --seed.",
)
@flag(
    "Many images",
    "--grid",
    is_flag=True,
    help="Write one sheet of all images, labelled with their seeds, instead of single files; with"
    " --prompts, write it as sheet.png in addition to them.",
)
@flag(
    "Many images",
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='JSON Lines: "a fox", or {"prompt": "a fox", "seed": 7, "output": "fox.png"}, with'
    " options as in Python; in a .txt file each line is a prompt. Flags apply to lines that do not"
    " set the option themselves. Finished images are kept: to resume, run the same command again.",
)
@flag(
    "Many images",
    "--out-dir",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the images of --prompts: 0001.png for line 1, and so on.",
)
@flag(
    "Where it runs",
    "-m",
    "--model",
    default="emoji",
    help="Folder of a bundle, or hf:owner/name on the hub.  [default: the built-in model]",
)
@provider_flags
@flag(
    "Where it runs",
    "--tile",
    type=int,
    metavar="PIXELS",
    help="Encode and decode in tiles with sides of this length, to save memory on large images.",
)
@flag(
    "Where it runs",
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for models that a provider compiles.  [default: in the user's cache]",
)
@flag(
    "Where it runs",
    "--no-cache",
    is_flag=True,
    stands_for=("cache_dir", False),
    help="Do not keep models that a provider compiles.",
)
@flag(
    "Where it runs",
    "--deadline",
    type=float,
    metavar="SECONDS",
    help="Stop with an error if the image is not finished in time; with --prompts, for each line."
    " Loading does not count.",
)
@flag(
    "Output",
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write: .png, .jpg or .webp; - writes a PNG to stdout.  [default with --from:"
    " NAME-again.png]",
)
@json_flag
@click.pass_context
def generate(
    context: click.Context,
    /,
    prompt: str | None,
    source: Path | None,
    output: Path | None,
    count: int | None,
    prompts: Path | None,
    out_dir: Path | None,
    **_: Any,  # read from the context: IMAGE_FLAGS by `_options`, the others by Runtime and Output
) -> None:
    """Generate one or more images from a prompt.

    Options that are not given take the bundle's defaults, which `edgediff info` shows.
    """
    from edgediff.backend.cancellation import check_deadline

    runtime, form = Runtime.given(context), Output.given(context)
    if runtime.deadline is not None:
        check_deadline(runtime.deadline)
    if runtime.no_cache and runtime.cache_dir is not None:
        raise click.UsageError("--cache-dir and --no-cache exclude each other: leave one out")
    options = _options(context)
    if prompts is not None or out_dir is not None:
        if prompts is None or out_dir is None:
            raise click.UsageError("--prompts FILE and --out-dir FOLDER must be given together")
        for name, value in {"PROMPT": prompt, "--from": source, "--output": output}.items():
            if value is not None:
                raise click.UsageError(f"{name} is for one image: leave it out with --prompts")
        if count is not None:
            if "seed" not in options:
                raise click.UsageError("--count with --prompts needs the first --seed")
            options["seed"] = _count_seeds(options["seed"], count)
        spell = cast(SpellingCommand, context.command).spell
        make_all(prompts, out_dir, options, runtime, form, spell)
        return
    original = None
    if source is not None:
        original, prompt, options = _again(source, prompt, options, context)
        output = Path(f"{source.stem}-again.png") if output is None else output
    if prompt is None:
        raise click.UsageError(
            'give a prompt (edgediff generate "a red apple" -o apple.png), an image to generate'
            " again (--from apple.png), or a file of prompts (--prompts prompts.jsonl --out-dir"
            " images)"
        )
    if output is None:
        raise click.UsageError("give the file to write, such as -o image.png; -o - is stdout")
    if count is not None:
        options["seed"] = _count_seeds(options.get("seed"), count)
    _make_one(prompt, options, output, runtime, form, original)


def _make_one(
    prompt: str,
    options: "Options",
    path: Path,
    runtime: Runtime,
    form: Output,
    original: "Recorded | None",
) -> None:
    """Run one call, write its images and report it. original: the record that the options come
    from, to warn if the new image may differ."""
    from edgediff.images.png import check_output
    from edgediff.request.request import resolve
    from edgediff.result import check_grid, check_outputs, output_paths

    bundle = runtime.bundle()
    to_stdout = path == STDOUT
    if not to_stdout:
        with file_of("output"):
            check_output(path)
    # An invalid request is refused before the model loads.
    request = resolve(bundle, prompt, options)
    if to_stdout:
        _check_stdout(len(request.seeds), form)
    else:
        with file_of("output"):
            if form.grid:
                check_grid(path, request.seeds, request.settings)
            else:
                paths = output_paths(path, request.seeds)
                check_outputs(paths, request.seeds, request.settings)
    started = time.perf_counter()
    pipe = runtime.load()
    load_seconds = time.perf_counter() - started
    with progress_bar(request.steps) as on_progress:
        run = pipe.run(request, deadline=runtime.deadline, on_progress=on_progress)
        if original is not None:
            for difference in original.differences(run.settings):
                click.echo(f"Warning: the image may differ: {one_line(difference)}", err=True)
        result = finish(run)
    print_notes(pipe.load_notes)
    if to_stdout:
        sys.stdout.buffer.write(result.png(grid=form.grid))
        paths = []
    else:
        paths = [result.save_grid(path)] if form.grid else result.save(path)
    print_prompt_notes(result)
    if form.as_json:
        answer = _as_json(result, paths, load_seconds, grid=form.grid)
        click.echo(json.dumps(answer, indent=2))
    else:
        for written in paths:
            print_path(written)
        click.echo(_summary(result), err=True)


def _check_stdout(images: int, form: Output) -> None:
    """Raise UsageError unless one image, and nothing else, can go to stdout."""
    if form.as_json:
        raise click.UsageError("--json and -o - both write to stdout: give -o a file's path")
    if images > 1 and not form.grid:
        raise click.UsageError(f"-o - takes one image, not {images}: give --grid, or a file's path")
    if sys.stdout is None or sys.stdout.isatty():
        raise click.UsageError("-o - writes a PNG to stdout: redirect it, or give a file's path")


def _as_json(
    result: "Result", paths: list[Path], load_seconds: float, *, grid: bool
) -> dict[str, Any]:
    images: list[dict[str, Any]] = (
        [{"path": str(paths[0]), "seeds": result.seeds}]
        if grid
        else [{"path": str(p), "seed": s} for p, s in zip(paths, result.seeds, strict=True)]
    )
    return {
        "images": images,
        "settings": dataclasses.asdict(result.settings),
        "prompt": dataclasses.asdict(result.prompt),
        "notes": list(result.notes),
        "seconds": {
            "load": load_seconds,
            **result.timings.stages,
            "steps": result.timings.steps,
            "total": result.timings.total,
        },
    }


def _summary(result: "Result") -> str:
    settings, timings = result.settings, result.timings
    width, height = result.images[0].size
    return (
        f"{width}x{height}, {steps_of(len(timings.steps), settings.sampler)},"
        f" guidance {settings.guidance_scale:g}, {_seeds_text(result.seeds)}:"
        f" {timings.total:.2f} s"
    )


def _seeds_text(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if len(seeds) > 2 and all(b == a + 1 for a, b in itertools.pairwise(seeds)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
