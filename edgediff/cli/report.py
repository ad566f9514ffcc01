"""Format figures, tables, notes and warnings for a terminal."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgediff.errors import one_line, printable

if TYPE_CHECKING:
    from edgediff.bundle.manifest import Manifest, Preset, Provenance
    from edgediff.result import Result


def count_formats(formats: Mapping[str, int]) -> str:
    """Weights per format, as text, most frequent first."""
    most = sorted(formats.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} in {name}" for name, count in most)


def decibels(psnr: float | None) -> str:
    """A PSNR as text; None means that the images are equal."""
    return "equal" if psnr is None else f"{psnr:.1f} dB"


def merged(provenance: "Provenance") -> list[str]:
    """One line for each LoRA and textual inversion in the weights."""
    loras = [f"{m.file}, scale {m.scale:g}, sha256 {m.sha256[:16]}" for m in provenance.loras]
    words = [f"{m.file} as {m.token!r}, sha256 {m.sha256[:16]}" for m in provenance.embeddings]
    return loras + words


def describe_preset(preset: "Preset") -> str:
    """The choices of a preset, as in fast: 8 steps, dpmpp_2m_karras, int8."""
    steps = preset.steps
    chosen = [
        *([f"{steps} step{'' if steps == 1 else 's'}"] if steps is not None else []),
        *([preset.sampler] if preset.sampler is not None else []),
        *([f"VAE {preset.vae}"] if preset.vae is not None else []),
        *([preset.precision] if preset.precision is not None else []),
        *(["averaged attention"] if preset.averaged_attention else []),
    ]
    return f"{preset.name}: {', '.join(chosen) or 'nothing that a flag or the weights left open'}"


def describe_fidelity(manifest: "Manifest") -> str:
    """The level of an export's comparison of images, and its result for the bundle's own."""
    images, defaults = manifest.fidelity.images, manifest.defaults
    if not images:
        return (
            "none: nothing was measured on images: how close they are to the float model's is not"
            " known; stages were compared on fixed inputs"
        )
    first, many = images[0], "s" if len(images) > 1 else ""
    said = f"{manifest.fidelity.level}: {len(images)} image{many} of {first.width}x{first.height}"
    said += f", {steps_of(first.steps, first.sampler)}"
    if manifest.quantization.precision == "fp32":
        return f"{said}, for edgediff verify; this is the float model itself"
    own = (defaults.width, defaults.height, defaults.steps)
    if (first.width, first.height, first.steps) == own:
        return f"{said}, compared with the float model's, as the bundle makes them"
    return (
        f"{said}, compared with the float model's; {defaults.width}x{defaults.height} and"
        f" {defaults.steps} steps, as the bundle makes them, only with --fidelity full"
    )


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart."""
    rows = [tuple(one_line(c) for c in row) for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """A duration in one or two units: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def print_path(path: Path) -> None:
    """Print a path on stdout: as it is for a program, as `printable` writes it on a terminal."""
    shown = sys.stdout is not None and sys.stdout.isatty()
    click.echo(printable(str(path)) if shown else path)


def print_notes(notes: Iterable[str]) -> None:
    """Print notes on stderr."""
    for note in notes:
        click.echo(f"Note: {printable(note)}", err=True)


def print_prompt_notes(result: "Result", where: str = "") -> None:
    """Warn on stderr if a prompt was cut, and print how it was split and how images were prepared.

    where: text that identifies the call, if there are several."""
    report, where = result.prompt, printable(where)
    if report.truncated:
        click.echo(
            f"Warning: {where}the prompt has {report.tokens} tokens, but only {report.limit} fit"
            f" (--long-prompts encodes all of them); cut: {_shorten(report.truncated)}",
            err=True,
        )
    if report.negative_truncated:
        click.echo(
            f"Warning: {where}the negative prompt has more than {report.limit} tokens; cut:"
            f" {_shorten(report.negative_truncated)}",
            err=True,
        )
    if report.chunks > 1:
        click.echo(
            f"Note: {where}the prompt's {report.tokens} tokens are encoded in {report.chunks}"
            f" chunks of {report.limit}",
            err=True,
        )
    print_notes(f"{where}{note}" for note in result.notes)


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def steps_of(count: int, sampler: str) -> str:
    """4 steps of euler, 1 step of lcm."""
    return f"{count} step{'' if count == 1 else 's'} of {sampler}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
