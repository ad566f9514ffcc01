"""How figures and tables look on a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgediff.bundle import Provenance


def count_formats(formats: Mapping[str, int]) -> str:
    """Format → how many weights, as text, the most frequent first."""
    most = sorted(formats.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} in {name}" for name, count in most)


def decibels(psnr: float | None) -> str:
    """A PSNR, None where the pictures are equal."""
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


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
