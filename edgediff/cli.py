"""The `edgediff` command. Results on stdout, progress on stderr; exit status 0, 1, 2 or 130.

Heavy modules are imported inside the commands, so that `edgediff --help` answers at once.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgediff import __version__
from edgediff.errors import EdgediffError, InputError

if TYPE_CHECKING:
    from edgediff.bundle import Bundle, Quantization
    from edgediff.pipeline import Result
    from edgediff.samplers import Step
    from edgediff.verification import Check


def main() -> None:
    """Run the command line; every expected failure is one line on stderr and an exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that cannot show a character shows a ?
            stream.reconfigure(errors="replace")
    try:
        status = edgediff.main(standalone_mode=False)
    except click.ClickException as e:
        e.show()
        status = e.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nInterrupted: nothing was left half-written.", err=True)
        status = 130
    except InputError as e:
        click.echo(f"Error: {e}", err=True)
        status = 2
    except EdgediffError as e:
        click.echo(f"Error: {e}", err=True)
        status = 1
    except BrokenPipeError:
        sys.stderr.close()
        status = 1
    except OSError as e:
        click.echo(f"Error: the answer cannot be written ({e.strerror or e})", err=True)
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edgediff")
def edgediff() -> None:
    """Text-to-image diffusion on the edge: export a pipeline once, make pictures anywhere."""


def parse_size(
    _context: click.Context, _flag: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """WxH in pixels → (width, height)."""
    if value is None:
        return None
    match = re.fullmatch(r"(-?\d+)[xX×](-?\d+)", value)
    if match is None:
        raise click.BadParameter(f"{value!r}: give width x height, such as 512x512")
    return int(match[1]), int(match[2])


def _parse_pairs(
    _context: click.Context, _flag: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """KEY=VALUE, repeated → a dict."""
    pairs = [value.partition("=") for value in values]
    for key, equals, _ in pairs:
        if not key or not equals:
            raise click.BadParameter(f"{key!r}: give KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _provider_flags(command: Any) -> Any:
    """The flags that say where and how a bundle runs."""
    flags = [
        click.option(
            "--provider",
            default="auto",
            show_default=True,
            help="auto (the first that runs of those in the bundle's list), cpu, cuda, tensorrt,"
            " coreml or openvino.",
        ),
        click.option("--threads", type=int, help="CPU threads.  [default: one per core]"),
        click.option(
            "--provider-option",
            "provider_options",
            metavar="KEY=VALUE",
            multiple=True,
            callback=_parse_pairs,
            help="Handed to the provider as it is; repeatable.",
        ),
        click.option(
            "--max-memory",
            metavar="SIZE",
            help="Memory to aim for, such as 1.4GB: stages are loaded and released one by one.",
        ),
    ]
    for flag in reversed(flags):
        command = flag(command)
    return command


_json_flag = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@edgediff.command()
@click.argument("prompt")
@click.option("-m", "--model", default="emoji", help="A bundle's folder.  [default: built-in]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The PNG to write."
)
@click.option("--steps", type=int, help="Denoising steps.")
@click.option("--seed", "seeds", type=int, multiple=True, help="Repeat for more pictures.")
@click.option(
    "--size", metavar="WxH", callback=parse_size, help="Width x height in pixels, such as 512x512."
)
@click.option("--guidance", type=float, help="Classifier-free guidance scale.")
@click.option("--negative", metavar="TEXT", help="What to steer away from.")
@click.option("--sampler", help="euler, euler_a, ddim, dpmpp_2m, dpmpp_2m_karras or lcm.")
@_provider_flags
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where a compiling provider keeps its result.  [default: in the user's cache]",
)
@click.option("--no-cache", is_flag=True, help="Keep nothing of what a provider compiles.")
@_json_flag
def generate(
    prompt: str,
    model: str,
    output: Path,
    steps: int | None,
    seeds: tuple[int, ...],
    size: tuple[int, int] | None,
    guidance: float | None,
    negative: str | None,
    sampler: str | None,
    provider: str,
    threads: int | None,
    provider_options: dict[str, str],
    max_memory: str | None,
    cache_dir: Path | None,
    no_cache: bool,
    as_json: bool,
) -> None:
    """Make a picture of PROMPT.

    What is left unset comes from the bundle: `edgediff info` shows its defaults.
    """
    from edgediff.bundle import Bundle
    from edgediff.image import check_output
    from edgediff.pipeline import find_bundle, load
    from edgediff.settings import resolve

    check_output(output)
    resolve(  # what is wrong with the request is said before the model loads
        Bundle.open(find_bundle(model)),
        prompt,
        negative_prompt=negative,
        steps=steps,
        guidance_scale=guidance,
        size=size,
        sampler=sampler,
    )
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
    total = pipe.defaults.steps if steps is None else steps
    with _progress(total) as on_step:
        result = pipe.generate(
            prompt,
            negative_prompt=negative,
            steps=steps,
            guidance_scale=guidance,
            seed=list(seeds) or None,
            size=size,
            sampler=sampler,
            on_step=on_step,
        )
    paths = result.save(output)
    _warn_of_truncation(result)
    _report(result, paths, loaded, as_json)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[["Step"], None]]:
    """A progress bar on stderr, for a person at a terminal; yields what to call after a step."""
    # hidden: elsewhere a bar is only noise. A total below 1 is an error that `generate` explains.
    with click.progressbar(
        length=max(total, 1), label="denoising", file=sys.stderr, hidden=not sys.stderr.isatty()
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


@edgediff.command()
@click.argument("bundle", default="emoji")
@_json_flag
def info(bundle: str, as_json: bool) -> None:
    """Say what a bundle is: model, licence, sizes, defaults, and what its export cost.

    BUNDLE is a folder; without one, the built-in model.
    """
    from edgediff.bundle import Bundle
    from edgediff.pipeline import find_bundle

    opened = Bundle.open(find_bundle(bundle))
    if as_json:
        manifest = dataclasses.asdict(opened.manifest)
        click.echo(json.dumps({"id": opened.id, **manifest}, indent=2))
        return
    click.echo(_describe(opened))


def _describe(opened: "Bundle") -> str:
    manifest = opened.manifest
    defaults, latent, schedule = manifest.defaults, manifest.latent, manifest.schedule
    total = sum(f.size for f in manifest.files.values())
    rows = [
        ("model", f"{manifest.name} ({manifest.pipeline})"),
        ("id", opened.id[:16]),
        ("source", manifest.provenance.source),
        ("licence", manifest.provenance.license or "not stated"),
        *(("", line) for line in manifest.provenance.attribution),
        ("made for", f"{manifest.target}; providers {', '.join(manifest.providers)}"),
        ("size", megabytes(total)),
        (
            "defaults",
            f"{defaults.width}x{defaults.height}, {defaults.steps} steps of {defaults.sampler},"
            f" guidance {defaults.guidance_scale:g}",
        ),
        (
            "latents",
            f"{latent.channels} channels, 1/{latent.downscale} of the picture's size;"
            f" predicts {schedule.prediction_type.removesuffix('_prediction')}",
        ),
    ]
    for name, graph in manifest.graphs.items():
        size = sum(manifest.files[f].size for f in (graph.file, *graph.data))
        fidelity = manifest.fidelity.stages.get(name)
        error = f", {fidelity.error:.1e} from float" if fidelity else ""
        rows.append((name, f"{graph.precision}, {megabytes(size)}{error}"))
    rows += _plan_rows(manifest.quantization)
    psnrs = [p.psnr_db for p in manifest.fidelity.pictures]
    if psnrs:
        worst = min((p for p in psnrs if p is not None), default=None)
        text = decibels(worst) + ("" if worst is None else " at worst")
        rows.append(("pictures", f"{len(psnrs)} against the float model: {text}"))
    versions = ", ".join(f"{k} {v}" for k, v in manifest.provenance.versions.items())
    rows.append(("made with", versions))
    return table(rows)


def _plan_rows(quantization: "Quantization") -> list[tuple[str, str]]:
    """What the weights are stored as, and the budget that this was searched for."""
    formats = Counter(f for plan in quantization.tensors.values() for f in plan.values())
    if not formats:
        return []
    rows = [("weights", count_formats(formats))]
    if quantization.averaged_attention:
        rows.append(("attention", "keys and values averaged 2x2 at the highest resolution"))
    found = quantization.search
    if found is not None:
        asked = [
            *([f"{found.min_psnr_db:g} dB"] if found.min_psnr_db is not None else []),
            *([megabytes(found.max_bytes)] if found.max_bytes is not None else []),
        ]
        reached = decibels(found.unseen_psnr_db)
        rows.append(
            (
                "budget",
                f"{', '.join(asked)}; reached {reached} on {found.unseen_pictures} unseen pictures",
            )
        )
    return rows


def count_formats(formats: Mapping[str, int]) -> str:
    """Format → how many weights, as text, the most frequent first."""
    most = sorted(formats.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} in {name}" for name, count in most)


def decibels(psnr: float | None) -> str:
    """A PSNR, None where the pictures are equal."""
    return "equal" if psnr is None else f"{psnr:.1f} dB"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


@edgediff.command()
@click.argument("bundle", default="emoji")
@_provider_flags
@_json_flag
def verify(
    bundle: str,
    provider: str,
    threads: int | None,
    provider_options: dict[str, str],
    max_memory: str | None,
    as_json: bool,
) -> None:
    """Check a bundle's files, and replay its fixtures on this device against the float model.

    BUNDLE is a folder; without one, the built-in model. Exit status 1 where a check fails.
    """
    from edgediff.verification import verify as run_verify

    outcome = run_verify(
        bundle,
        provider=provider,
        threads=threads,
        provider_options=provider_options,
        max_memory=max_memory,
    )
    if as_json:
        answer = {"ok": outcome.ok, **dataclasses.asdict(outcome)}
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(table([_check_row(check) for check in outcome.checks]))
        failed = sum(not check.ok for check in outcome.checks)
        verdict = f"{failed} of {len(outcome.checks)} checks failed" if failed else "all checks ok"
        where = f" on {outcome.provider}" if outcome.provider else ""
        click.echo(f"{outcome.model}{where}: {verdict}")
    if not outcome.ok:
        raise click.exceptions.Exit(1)


def _check_row(check: "Check") -> tuple[str, str, str]:
    if check.unit == "dB":
        measured = "equal" if check.measured is None else f"{check.measured:.1f} dB"
        ran = check.ok or check.measured is not None
        detail = f"{measured} (at least {check.limit:.1f})" if ran else ""
    elif check.unit and check.measured is not None:
        detail = f"{check.measured:.1e} from float (at most {check.limit:.1e})"
    else:
        detail = "" if check.unit else ("sha256 matches" if check.ok else "")
    text = "; ".join(part for part in (detail, check.problem) if part)
    return ("ok  " if check.ok else "FAIL", check.name, text)


@edgediff.command()
@_json_flag
def providers(as_json: bool) -> None:
    """List the execution providers: which can run here, and how to get the others."""
    from edgediff.session import PROVIDERS, why_missing

    missing = {name: why_missing(name) for name in PROVIDERS}
    if as_json:
        answer = {
            name: {
                "installed": reason is None,
                "reason": reason,
                "install": PROVIDERS[name].install,
            }
            for name, reason in missing.items()
        }
        click.echo(json.dumps(answer, indent=2))
        return
    rows = [(name, "yes" if r is None else "no", r or "") for name, r in missing.items()]
    click.echo(table(rows))


@edgediff.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export(arguments: tuple[str, ...]) -> int | None:
    """Turn a diffusers pipeline into a bundle (on a dev machine; needs edgediff[export])."""
    # Found by entry point: the runtime never imports the export stage by name.
    (entry,) = importlib.metadata.entry_points(group="edgediff.commands", name="export")
    try:
        command = entry.load()
        status: int | None = command.main(
            args=list(arguments), prog_name="edgediff export", standalone_mode=False
        )
    except ModuleNotFoundError as e:
        raise click.ClickException(
            f'`edgediff export` needs {e.name}: pip install "edgediff[export]"'
        ) from e
    return status
