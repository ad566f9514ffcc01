"""`edgediff generate`."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
from click.core import ParameterSource

from edgediff.cli.batch import make_all
from edgediff.cli.control import parse_controls
from edgediff.cli.flags import (
    SectionedCommand,
    SpellingCommand,
    file_of,
    flag,
    flags,
    interval_form,
    json_flag,
    parse_interval,
    parse_size,
    provider_flags,
)
from edgediff.cli.report import steps_of, tell_inputs, tell_notes
from edgediff.cli.running import finish, progress_bar

MAX_COUNT = 1000
"""Images of one call, which are kept in memory until all are made."""

if TYPE_CHECKING:
    from edgediff.bundle.folder import Bundle
    from edgediff.pipeline import Pipeline
    from edgediff.request.options import Options
    from edgediff.request.record import Recorded
    from edgediff.result import Result


# What a call may ask for, flag by flag. A flag whose parameter has the name of one of
# `edgediff.Options` is handed on under that name where it is given, and its default is the
# bundle's: a new option is one new line here, under a heading of `flags.SECTIONS`. click takes the
# parameter's name from the flag (--clip-skip: clip_skip) unless one stands beside it.
IMAGE_FLAGS = (
    flag(
        "Prompt",
        *("--negative", "negative_prompt"),
        metavar="TEXT",
        help="What to steer away from; has an effect where guidance is above 1.",
    ),
    flag(
        "Prompt",
        "--prompt-weights",
        is_flag=True,
        help="Brackets weigh words: (word:1.3), (word) for 1.1, [word] for 1/1.1; from -100 to 100."
        " \\( is text, as is what is no plain number, such as 1e9.",
    ),
    flag(
        "Prompt",
        "--long-prompts",
        is_flag=True,
        help="Encode what does not fit in further chunks; the word BREAK starts a new one.",
    ),
    flag(
        "Prompt",
        "--clip-skip",
        type=int,
        metavar="N",
        help="Leave out the text encoder's last N layers, counted as diffusers does.",
    ),
    flag("Image", "--steps", type=int, help="Denoising steps."),
    flag(
        "Image",
        "--size",
        metavar="WxH",
        callback=parse_size,
        help="Width x height in pixels, such as 512x512.",
    ),
    flag("Image", *("--guidance", "guidance_scale"), type=float, help="Classifier-free guidance."),
    flag(
        "Image",
        "--sampler",
        help="euler, euler_a, heun, ddim, pndm, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, dpmpp_sde,"
        " unipc, deis, lcm or tcd.",
    ),
    flag(
        "Image",
        "--spacing",
        help="How the sampler's noise levels are spread: karras, exponential or beta.",
    ),
    flag(
        "Image",
        "--guidance-rescale",
        type=float,
        metavar="SHARE",
        help="Scale guided predictions back to their own deviation, from 0 (off) to 1.",
    ),
    flag(
        "Image",
        "--guidance-interval",
        metavar="START-END",
        callback=parse_interval,
        form=interval_form,
        help="Guidance on part of the steps alone: 0-0.8 leaves it out of the last fifth.",
    ),
    flag(
        "Image",
        "--seed",
        type=int,
        multiple=True,
        help="The image's random numbers; repeat for more images.  [default: drawn, and told]",
    ),
    flag(
        "Image",
        "--variation-seed",
        type=int,
        help="Vary the image of a seed: its noise goes towards this one's.",
    ),
    flag(
        "Image",
        "--variation-strength",
        type=float,
        metavar="SHARE",
        help="How far: from 0 (the seed's image) to 1 (the variation seed's).",
    ),
    flag(
        "Image to image",
        *("--init", "init_image"),
        metavar="IMAGE",
        type=click.Path(),
        help="An image to change; without --size, its own size is taken where that is near the"
        " bundle's, and said where it is not.",
    ),
    flag(
        "Image to image",
        "--strength",
        type=float,
        help="How much of it is made anew, above 0 and up to 1.  [default: 0.8; with --mask 1]",
    ),
    flag(
        "Image to image",
        "--mask",
        metavar="IMAGE",
        type=click.Path(),
        help="White where --init is to be painted anew, black where it is kept.",
    ),
    flag(
        "Image to image",
        "--keep-unmasked",
        is_flag=True,
        help="Give back what lies outside the mask as it was, pixel for pixel.",
    ),
    flag(
        "Image to image",
        "--hires",
        type=float,
        metavar="FACTOR",
        help="Make the image so much larger, or as near to that as it can be, and work it over at"
        " that size.",
    ),
    flag(
        "Image to image",
        "--hires-strength",
        type=float,
        help="How much of it is made anew then; much of it loses the composition with models of few"
        " steps.  [default: 0.25]",
    ),
    flag(
        "Image to image",
        "--hires-steps",
        type=int,
        help="Steps of a whole run, of which the strength leaves the last.  [default: --steps, 4 at"
        " least]",
    ),
    flag(
        "Image to image",
        "--hires-mode",
        help="What is made larger: pixel, which needs an encoder, or latent, quicker and blurred."
        "  [default: pixel where there is an encoder]",
    ),
    flag(
        "Control",
        "--control",
        metavar="NAME=IMAGE[:SCALE[:START-END]]",
        multiple=True,
        callback=parse_controls,
        help="Let a control network of the bundle follow an image: the map that it knows, resized"
        " to the image. NAME=edges:IMAGE makes one of the edges of a photo, NAME=invert:IMAGE"
        " one of dark lines on white. SCALE (1) says how strongly, START-END (0-1) on which part"
        " of the steps, such as canny=edges:photo.jpg:0.8:0-0.5. Once for each network.",
    ),
)


def _options(context: click.Context) -> "Options":
    """The flags that were given, of those that are options of a call."""
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
    """`count` consecutive seeds from the one that was given, or a drawn one, on; 0 follows the
    last that there is."""
    from edgediff.request.request import resolve_seeds

    first, *others = resolve_seeds(seeds)
    if others:
        raise click.UsageError(
            f"--count {count} with {len(others) + 1} seeds: give one --seed to count from, or every"
            " seed without --count"
        )
    end = 2**64  # beyond it, what was given is no seed, and said to be none
    return [s if s < end or first >= end else s - end for s in range(first, first + count)]


def _start_from(
    source: Path, prompt: str | None, options: "Options", context: click.Context
) -> tuple["Recorded", str, "Options"]:
    """What an image's PNG says, and the prompt and options to make it again: those that were
    given, and its own for the others."""
    from edgediff.request.record import describe_given, recorded

    with file_of("source"):
        made = recorded(source)
    absent = {name: record for name, record in made.given.items() if name not in options}
    if absent:
        flag_of = {p.name: p.opts[0] for p in context.command.params}
        raise click.UsageError(
            f"{source} was made from {describe_given([*absent.values()])}, not in it: give that"
            f" again, with {' and '.join(flag_of.get(name, name) for name in absent)}"
        )
    if made.ignored:
        click.echo(f"Warning: {source} also says, ignored: {'; '.join(made.ignored)}", err=True)
    merged = cast("Options", {**made.options, **options})
    return made, made.prompt if prompt is None else prompt, merged


@click.command(cls=SectionedCommand)
@click.argument("prompt", required=False)
@flag(
    "Prompt",
    *("--from", "source"),
    metavar="PNG",
    type=click.Path(path_type=Path),
    help="Make an image again from what its PNG says, or each of a --grid sheet's, one by one; the"
    " flags beside it come first.",
)
@flags(IMAGE_FLAGS)
@flag(
    "Many images",
    "--count",
    type=click.IntRange(1, MAX_COUNT),
    metavar="N",
    help="As many images, of consecutive seeds from --seed on.",
)
@flag(
    "Many images",
    "--grid",
    is_flag=True,
    help="Write one sheet of all images with their seeds, instead of single ones; with --prompts"
    " beside them, as sheet.png.",
)
@flag(
    "Many images",
    "--prompts",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help='JSON Lines: "a fox", or {"prompt": "a fox", "seed": 7, "output": "fox.png"}, with'
    " options as in Python; flags are for lines that do not say otherwise. What is there already"
    " is not made again: run it again to go on.",
)
@flag(
    "Many images",
    "--out-dir",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the images of --prompts go: to 0001.png for line 1, and so on.",
)
@flag("Where it runs", "-m", "--model", default="emoji", help="A bundle.  [default: built-in]")
@provider_flags
@flag(
    "Where it runs",
    "--tile",
    type=int,
    metavar="PIXELS",
    help="Decode and encode in tiles of this side, for large images and small memories.",
)
@flag(
    "Where it runs",
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where a compiling provider keeps its result.  [default: in the user's cache]",
)
@flag(
    "Where it runs",
    "--no-cache",
    is_flag=True,
    stands_for=("cache_dir", False),
    help="Keep nothing that a provider compiles.",
)
@flag(
    "Where it runs",
    "--deadline",
    type=float,
    metavar="SECONDS",
    help="Stop with an error if the image (each of --prompts) is not finished by then; loading does"
    " not count.",
)
@flag(
    "Output",
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The PNG to write.  [--from: NAME-again.png]",
)
@json_flag
@click.pass_context
def generate(
    context: click.Context,
    /,
    prompt: str | None,
    source: Path | None,
    count: int | None,
    grid: bool,
    prompts: Path | None,
    out_dir: Path | None,
    model: str,
    output: Path | None,
    provider: str,
    threads: int | None,
    provider_options: dict[str, str],
    max_memory: str | None,
    tile: int | None,
    cache_dir: Path | None,
    no_cache: bool,
    deadline: float | None,
    as_json: bool,
    **_: Any,  # IMAGE_FLAGS
) -> None:
    """Make an image of PROMPT, or several.

    What is left unset comes from the bundle: `edgediff info` shows its defaults.
    """
    from edgediff.backend.cancellation import check_deadline
    from edgediff.bundle.folder import Bundle
    from edgediff.pipeline import find_bundle, load

    def open_pipeline() -> "Pipeline":
        started = time.perf_counter()
        pipe = load(
            model,
            provider=provider,
            threads=threads,
            cache_dir=False if no_cache else cache_dir,
            provider_options=provider_options,
            max_memory=max_memory,
            tile=tile,
        )
        for reason in pipe.skipped_providers:
            click.echo(f"Skipped: {reason}", err=True)
        loaded = time.perf_counter() - started
        click.echo(f"{pipe.name} on {pipe.provider}, loaded in {loaded:.2f} s", err=True)
        return pipe

    if deadline is not None:
        check_deadline(deadline)
    options = _options(context)
    if prompts is not None or out_dir is not None:
        _check_many(prompts, out_dir, {"PROMPT": prompt, "--from": source, "--output": output})
        if count is not None:
            if "seed" not in options:
                raise click.UsageError("--count with --prompts needs the first --seed")
            options["seed"] = _count_seeds(options["seed"], count)
        make_all(
            cast(Path, prompts),
            cast(Path, out_dir),
            options,
            bundle=Bundle.open(find_bundle(model)),
            load=open_pipeline,
            spell=cast(SpellingCommand, context.command).spell,
            deadline=deadline,
            grid=grid,
            as_json=as_json,
        )
        return
    made = None
    if source is not None:
        made, prompt, options = _start_from(source, prompt, options, context)
        output = Path(f"{source.stem}-again.png") if output is None else output
    if prompt is None:
        raise click.UsageError(
            'give a prompt: edgediff generate "a red apple" -o apple.png; or an image to make'
            " again: --from apple.png; or many: --prompts prompts.jsonl --out-dir images"
        )
    if output is None:
        raise click.UsageError("give the PNG to write: -o image.png")
    if count is not None:
        options["seed"] = _count_seeds(options.get("seed"), count)
    bundle = Bundle.open(find_bundle(model))
    _make_one(bundle, prompt, options, output, made, open_pipeline, deadline, grid, as_json)


def _check_many(prompts: Path | None, out_dir: Path | None, for_one: dict[str, object]) -> None:
    """Raise UsageError unless --prompts and --out-dir go together, without arguments for one."""
    if prompts is None or out_dir is None:
        raise click.UsageError("--prompts FILE and --out-dir FOLDER belong together")
    for name, value in for_one.items():
        if value is not None:
            raise click.UsageError(f"{name} is for one image: leave it out with --prompts")


def _make_one(
    bundle: "Bundle",
    prompt: str,
    options: "Options",
    output: Path,
    made: "Recorded | None",
    open_pipeline: Callable[[], "Pipeline"],
    deadline: float | None,
    grid: bool,
    as_json: bool,
) -> None:
    """One call: its images to files, its report to the terminal. made: the image to make again."""
    from edgediff.images.png import check_output
    from edgediff.request.request import resolve

    with file_of("output"):
        check_output(output)
    # A wrong request is refused before the model loads.
    request = resolve(bundle, prompt, options)
    started = time.perf_counter()
    pipe = open_pipeline()
    loaded = time.perf_counter() - started
    with progress_bar(request.steps) as on_progress:
        run = pipe.run(request, deadline=deadline, on_progress=on_progress)
        if made is not None:
            for difference in made.differences(run.settings):
                click.echo(f"Warning: the image may differ: {difference}", err=True)
        result = finish(run)
    tell_notes(pipe.load_notes)
    paths = [result.save_grid(output)] if grid else result.save(output)
    tell_inputs(result)
    _report(result, paths, loaded, grid=grid, as_json=as_json)


def _report(
    result: "Result", paths: list[Path], loaded: float, *, grid: bool, as_json: bool
) -> None:
    settings, timings = result.settings, result.timings
    if as_json:
        images: list[dict[str, Any]] = (
            [{"path": str(paths[0]), "seeds": result.seeds}]
            if grid
            else [{"path": str(p), "seed": s} for p, s in zip(paths, result.seeds, strict=True)]
        )
        answer: dict[str, Any] = {
            "images": images,
            "settings": dataclasses.asdict(settings),
            "prompt": dataclasses.asdict(result.prompt),
            "notes": list(result.notes),
            "seconds": {
                "load": loaded,
                **timings.stages,
                "steps": timings.steps,
                "total": timings.total,
            },
        }
        click.echo(json.dumps(answer, indent=2))
        return
    for path in paths:
        click.echo(path)
    width, height = result.images[0].size
    click.echo(
        f"{width}x{height}, {steps_of(len(timings.steps), settings.sampler)},"
        f" guidance {settings.guidance_scale:g}, {_tell_seeds(result.seeds)}:"
        f" {timings.total:.2f} s",
        err=True,
    )


def _tell_seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if len(seeds) > 2 and all(b == a + 1 for a, b in itertools.pairwise(seeds)):
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
