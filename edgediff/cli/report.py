"""How figures, tables and warnings look on a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgediff.bundle.manifest import Provenance
    from edgediff.result import Result


def count_formats(formats: Mapping[str, int]) -> str:
    """Format → how many weights, as text, the most frequent first."""
    most = sorted(formats.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} in {name}" for name, count in most)


def decibels(psnr: float | None) -> str:
    """A PSNR, None where the images are equal."""
    return "equal" if psnr is None else f"{psnr:.1f} dB"


def merged(provenance: "Provenance") -> list[str]:
    """A line for each LoRA and textual inversion in the weights."""
    loras = [f"{m.file}, scale {m.scale:g}, sha256 {m.sha256[:16]}" for m in provenance.loras]
    words = [f"{m.file} as {m.token!r}, sha256 {m.sha256[:16]}" for m in provenance.embeddings]
    return loras + words


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: float) -> str:
    """A time in the two units that matter: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def tell_notes(notes: Iterable[str]) -> None:
    """Say on stderr what one might not expect."""
    for note in notes:
        click.echo(f"Note: {note}", err=True)


def tell_inputs(result: "Result", where: str = "") -> None:
    """Say on stderr what was cut off the prompts, into how many chunks one went, and what was done
    to images that were given.

    `where` names the call, where there are many."""
    report = result.prompt
    if report.truncated:
        click.echo(
            f"Warning: {where}the prompt has {report.tokens} tokens and {report.limit} fit"
            f" (--long-prompts takes all); cut: {_shorten(report.truncated)}",
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
            f"Note: {where}the prompt's {report.tokens} tokens: {report.chunks} chunks of"
            f" {report.limit}",
            err=True,
        )
    tell_notes(f"{where}{note}" for note in result.notes)


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def steps_of(count: int, sampler: str) -> str:
    """How many of which: 4 steps of euler, 1 step of lcm."""
    return f"{count} step{'' if count == 1 else 's'} of {sampler}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
