"""The JSON file of a run: this module is its only schema.

It is written after every round, so that it is valid whenever the run ends.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgediff.bench.machine import Conditions, Machine
from edgediff.bench.results import read_as

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of every peer. Sampler: Euler, without guidance. shape: of the model.

    rounds: in each, every peer generates one cold image and then `warm` more in that process.
    clear: peers that take more than this many times the fastest peer's time run once only."""

    shape: str
    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    rounds: int
    warm: int
    clear: float


@dataclass(frozen=True, kw_only=True)
class Cold:
    """Seconds from the start of a process to its first image as PNG, and parts of that. round:
    its number, from 1."""

    round: int
    first_image: float
    imports: float
    load: float


@dataclass(frozen=True, kw_only=True)
class Warm:
    """Seconds of a later image; None or empty: not reported by the peer. round: as in Cold."""

    round: int
    total: float
    text_encoder: float | None = None
    steps: tuple[float, ...] = ()
    decoder: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A peer. `reason`: why it was left out. psnr_db: its image against that of diffusers in
    float32; None if they are equal (`equal`), if one is missing, or if noise or tokens differ."""

    name: str
    status: Literal["pending", "measured", "left out"] = "pending"
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    installed_bytes: int | None = None
    model_bytes: int | None = None
    peak_bytes: int | None = None
    psnr_db: float | None = None
    equal: bool = False
    cold: tuple[Cold, ...] = ()
    warm: tuple[Warm, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole run. Times in `started` are UTC."""

    format_version: int = FORMAT_VERSION
    started: str
    complete: bool
    settings: Settings
    machine: Machine
    conditions: Conditions
    peers: tuple[Measured, ...]


def read(path: Path) -> Result:
    """Read a file of `edgediff.bench.results.write`. Raises InputError with place and value."""
    result: Result = read_as(
        Result, path, version=FORMAT_VERSION, maker="`python -m benchmarks.peers`"
    )
    return result
