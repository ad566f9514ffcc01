"""`edgediff bench`, `bench compare` and `bench report`."""

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgediff.cli.flags import SpellingCommand, json_flag, parse_size
from edgediff.cli.report import megabytes, print_notes, steps_of, table
from edgediff.cli.running import is_terminal, local_bundle
from edgediff.errors import one_line

if TYPE_CHECKING:
    from edgediff.bench.compare import Comparison
    from edgediff.bench.intervals import Interval
    from edgediff.bench.results import Result, Run


class _DefaultGroup(click.Group):
    """A command group that passes its arguments to `run` unless the first one names a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        helps = any(a in ctx.help_option_names for a in args[:1])
        if not args or (args[0] not in self.commands and not helps):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure a bundle's latency, memory use and image quality.

    \b
    edgediff bench [BUNDLE...] --json OUT.json   measure (all flags: edgediff bench run --help)
    edgediff bench compare A.json B.json         compare devices, providers or versions
    edgediff bench report *.json -o report.html  write a page with plots and images

    For a folder named `compare`, `report` or `run`, write ./compare.
    """


def _parse_sizes(
    context: click.Context, flag: click.Parameter, values: tuple[str, ...]
) -> tuple[tuple[int, int], ...]:
    return tuple(s for s in (parse_size(context, flag, value) for value in values) if s is not None)


@bench.command(cls=SpellingCommand)
@click.argument("bundles", nargs=-1)
@click.option(
    "--provider", "providers", multiple=True, help="As for `edgediff generate`.  [default: auto]"
)
@click.option("--threads", type=int, multiple=True, help="CPU threads.  [default: one per core]")
@click.option(
    "--size",
    "sizes",
    metavar="WxH",
    multiple=True,
    callback=_parse_sizes,
    help="Width x height in pixels.  [default: the bundle's]",
)
@click.option("--steps", type=int, multiple=True, help="Denoising steps.  [default: the bundle's]")
@click.option("--batch", "batches", type=int, multiple=True, help="Images per call.  [default: 1]")
@click.option(
    "--json", "out", type=click.Path(path_type=Path), help="Write the full results to this file."
)
@click.option(
    "--width",
    type=float,
    default=0.05,
    show_default=True,
    help="Measure until the 95 % interval of the median is this narrow, relative to the median.",
)
@click.option("--runs", type=int, default=50, show_default=True, help="At most this many images.")
@click.option(
    "--seconds",
    type=float,
    default=600.0,
    show_default=True,
    help="Stop after about this long, even if the interval is wider.",
)
@click.option(
    "--cold",
    type=int,
    default=3,
    show_default=True,
    help="Process starts to time, with the files in the system's cache.",
)
@click.option(
    "--ort-profile",
    "operators",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also list the N slowest operators of each stage, from a separate run; on a GPU these are"
    " launch times.",
)
def run(
    bundles: tuple[str, ...],
    providers: tuple[str, ...],
    threads: tuple[int, ...],
    sizes: tuple[tuple[int, int], ...],
    steps: tuple[int, ...],
    batches: tuple[int, ...],
    out: Path | None,
    width: float,
    runs: int,
    seconds: float,
    cold: int,
    operators: int,
) -> None:
    """Measure every combination of the given settings.

    Each combination has its own process, and they take turns (A B A B …). BUNDLE is a folder, or
    hf:owner/name on the hub; the default is the built-in model. --provider, --threads, --size,
    --steps and --batch may be repeated. Exit status 1 if a combination failed. On Windows, and on
    macOS for memory over time, measuring memory needs psutil: pip install "edgediff[bench]".
    """
    from edgediff.bench.grid import Grid, jobs, versions
    from edgediff.bench.runner import Bench, Budget
    from edgediff.errors import InputError

    if getattr(sys, "frozen", False):
        raise click.ClickException(
            "bench starts a Python for each run, and a packaged app has none: use an edgediff that"
            " pip installed"
        )
    grid = Grid(
        bundles=tuple(map(_fetched, bundles)) or ("emoji",),
        providers=providers,
        threads=threads,
        sizes=sizes,
        steps=steps,
        batches=batches,
    )
    budget = Budget(width=width, warm=min(5, runs), most=runs, cold=cold, seconds=seconds)
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder: create it first")
    with tempfile.TemporaryDirectory() as folder, _progress() as progress:
        result = Bench(
            jobs=jobs(grid),
            budget=budget,
            out=out or Path(folder) / "bench.json",
            versions=versions(),
            progress=progress,
            operators=operators,
        ).run()
    click.echo(_table(result))
    print_notes((*result.missing, *_notes(result)))
    if any(r.status == "failed" for r in result.runs):
        raise click.exceptions.Exit(1)


def _fetched(bundle: str) -> str:
    """A bundle on the hub → its folder; others as they are."""
    from edgediff.bundle.hub_name import is_hub_name

    return str(local_bundle(bundle)) if is_hub_name(bundle) else bundle


class _progress:  # noqa: N801 (used as a context manager's name)
    """A progress line on stderr with the estimated time left, if stderr is a terminal."""

    def __enter__(self) -> Callable[[str, float, float | None], None]:
        self._shown = 0.0
        return self._show

    def __exit__(self, *exception: object) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)

    def _show(self, activity: str, share: float, left: float | None) -> None:
        if is_terminal() and time.monotonic() - self._shown > 0.1:
            self._shown = time.monotonic()
            until = "" if left is None else f", about {left:.0f} s left"
            click.echo(f"\r\x1b[K{share:4.0%} {activity}{until}", nl=False, err=True)


def _table(result: "Result") -> str:
    from edgediff.bench.compare import BUSY, against, first_comparable, stages
    from edgediff.bench.intervals import median_interval
    from edgediff.bench.page import quality

    machine = result.machine
    flags = " ".join(machine.cpu_flags)
    lines = [
        f"{machine.cpu} ({flags}), {machine.cores} cores; {machine.system};"
        f" onnxruntime {result.versions.get('onnxruntime', '?')}",
    ]
    conditions = result.conditions
    if conditions is not None and (conditions.others or 0) > BUSY:
        lines.append(
            f"Other processes used {conditions.others:.0%} of the CPU time: trust ratios, not"
            " seconds."
        )
    firsts = [first_comparable(r, result.runs) if r.warm else None for r in result.runs]
    compared = any(firsts)
    gpu = any(r.gpu_peak_bytes is not None for r in result.runs)
    header = (
        *("configuration", "image", "95 % interval", "per minute", "text", "step", "decode"),
        *("first image", "peak memory", *(("GPU memory",) if gpu else ()), "on disk", "quality"),
        *(("ratio to the first",) if compared else ()),
    )
    rows: list[tuple[str, ...]] = [header]
    for r, first in zip(result.runs, firsts, strict=True):
        if not r.warm:
            rows.append((r.config.label, r.status, *[""] * (len(header) - 2)))
            continue
        found = {name: median_interval(v) for name, v in stages(r.warm).items() if v}
        starts = [c.first_image for c in r.cold]
        ratio = ""
        if first is not None:
            ratio = _ratio(against(first, r, interleaved=result.interleaved).ratios["image"])
        rows.append(
            (
                r.config.label,
                f"{found['image'].median:.3g} s",
                f"{found['image'].low:.3g} … {found['image'].high:.3g}",
                f"{60 * r.config.batch / found['image'].median:.3g}",
                f"{found['text_encoder'].median:.3g} s",
                f"{found['step'].median:.3g} s" if "step" in found else "",
                f"{found['decoder'].median:.3g} s",
                f"{median_interval(starts).median:.3g} s" if starts else "",
                "unknown" if r.peak_bytes is None else megabytes(r.peak_bytes),
                *((megabytes(r.gpu_peak_bytes or 0),) if gpu else ()),
                megabytes(r.config.model.bytes),
                quality(r),
                *((ratio,) if compared else ()),
            )
        )
    return "\n".join([*lines, table(rows), *_operator_lines(result)])


def _notes(result: "Result") -> list[str]:
    """Notes on the figures, besides the missing ones."""
    lines = []
    for r in result.runs:
        label = r.config.label
        lines += [f"{label}: {note}" for note in r.notes]
        if r.cache is not None:
            compiled = (
                "used compiled graphs from the cache" if r.cache == "hit" else "compiled graphs"
            )
            lines.append(f"{label}: the first process, which is not timed, {compiled}")
        if r.quality is not None and r.quality.reason:
            lines.append(f"{label}: quality is unknown: {r.quality.reason}")
    if any(r.warm and r.peak_bytes is None for r in result.runs):
        lines.append(
            'memory cannot be measured on this system without pip install "edgediff[bench]"'
        )
    return lines


def _operator_lines(result: "Result") -> list[str]:
    rows = [
        (r.config.label, stage, o.name, f"{o.seconds * 1e3:.3g} ms", f"{o.share:.0%}")
        for r in result.runs
        for stage, operators in r.operators.items()
        for o in operators
    ]
    header = ("configuration", "stage", "operator", "per image", "share")
    return ["", table([header, *rows])] if rows else []


def _ratio(found: "Interval") -> str:
    noise = ", within noise" if found.holds_one else ""
    return f"{found.median:.3g} ({found.low:.3g} … {found.high:.3g}{noise})"


@bench.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--exports", is_flag=True, help="A and B measure two exports of one model.")
@json_flag
def compare(a: Path, b: Path, exports: bool, as_json: bool) -> None:
    """Compare two results, A and B.

    Prints the ratios of B's times to A's, with 95 % intervals. Fails if the two did not measure the
    same model and settings.
    """
    from edgediff.bench.compare import compare as run_compare
    from edgediff.bench.compare import differences
    from edgediff.bench.results import read

    first, second = read(a), read(b)
    pairs = run_compare(first, second, exports=exports)
    differing = differences(first, second)
    if as_json:
        click.echo(
            json.dumps({"pairs": [_record(p) for p in pairs], "differs": differing}, indent=2)
        )
        return
    for pair in pairs:
        for path, run in ((a, pair.a), (b, pair.b)):
            click.echo(one_line(f"{path.name}: {_describe(run)}"))
        rows = [("", "B / A", "95 % interval", "")]
        for name, found in pair.ratios.items():
            noise = "within noise" if found.holds_one else ""
            rows.append(
                (
                    name.replace("_", " "),
                    f"{found.median:.3g}",
                    f"{found.low:.3g} … {found.high:.3g}",
                    noise,
                )
            )
        if pair.cold is not None:
            bounds = f"{pair.cold.low:.3g} … {pair.cold.high:.3g}"
            # With few starts, the interval of a median has less than 95 % confidence.
            starts = "1 start" if pair.cold.count == 1 else f"{pair.cold.count} starts"
            caveat = "" if pair.cold.confidence > 0.9 else f"only {starts}"
            rows.append(("first image", f"{pair.cold.median:.3g}", bounds, caveat))
        click.echo(table(rows))
        click.echo(
            "No significant difference: it is within the noise."
            if pair.within_noise
            else f"B takes {pair.ratios['image'].median:.3g} times as long as A."
        )
    for line in differing:
        click.echo(f"differs: {one_line(line)}", err=True)


def _describe(run: "Run") -> str:
    from edgediff.bench.page import quality

    c = run.config
    threads = "" if c.threads is None else f", {c.threads} threads"
    measured = f", {quality(run)}" if run.quality is not None else ""
    return (
        f"{c.model.name} {c.model.precision} ({c.model.id[:8]}) on {c.provider}{threads},"
        f" {c.width}x{c.height}, {steps_of(c.steps, c.sampler)}, batch {c.batch}{measured}"
    )


def _record(pair: "Comparison") -> dict[str, Any]:
    return {
        "a": pair.a.config.label,
        "b": pair.b.config.label,
        "ratios": {name: dataclasses.asdict(found) for name, found in pair.ratios.items()},
        "from_start": None if pair.cold is None else dataclasses.asdict(pair.cold),
        "within_noise": pair.within_noise,
        "quality": [
            None if run.quality is None else dataclasses.asdict(run.quality)
            for run in (pair.a, pair.b)
        ],
    }


@bench.command()
@click.argument(
    "results", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RESULT.json..."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="HTML file to write."
)
def report(results: tuple[Path, ...], output: Path) -> None:
    """Write one HTML page of results, with plots and images.

    The page needs no network and no other file.
    """
    from edgediff.bench.page import write
    from edgediff.bench.results import read

    names: dict[str, Result] = {}
    for path in results:
        name = path.stem if path.stem not in names else str(path)
        names[name] = read(path)
    write(output, names)
    click.echo(output)
