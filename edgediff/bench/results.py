"""The JSON file that `edgediff bench` writes: this module is its only schema.

Written anew after every round, so that what stands is valid whenever the run ends; `missing` says
what it lacks.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgediff.backend.compile_cache import Outcome
from edgediff.bench.machine import Conditions, Machine
from edgediff.bundle.schema import load_json, parse
from edgediff.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Model:
    """The bundle that ran. `plan`: weights by format; `bytes`: its files on disk."""

    name: str
    id: str
    source: str
    target: str
    precision: str
    plan: dict[str, int]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """One point of the grid. threads None: one per core. `label` tells it from the others."""

    label: str
    model: Model
    provider: str
    threads: int | None
    width: int
    height: int
    steps: int
    sampler: str
    guidance_scale: float
    batch: int
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Cold:
    """Seconds from the start of a process: `first_image`, and what it is made of."""

    first_image: float
    interpreter: float
    imports: float
    load: float
    stages: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TimedImage:
    """Seconds of one call in a process that is warm, and its joules where the system tells."""

    total: float
    text_encoder: float
    steps: tuple[float, ...]
    vae_decoder: float
    joules: float | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How much of a graph a provider took: nodes, and the pieces that it got them in."""

    nodes: int
    partitions: int


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator's share of a stage's time, by onnxruntime's profile."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The timed run's own image against the float model's in the bundle's fixtures.

    psnr_db: None where they are equal, or where there is nothing to compare, which `reason` tells.
    """

    psnr_db: float | None
    equal: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What was measured of one Config. `status` "failed": `error` says how it ended.

    gpu_peak_bytes: by how much the memory in use on the first GPU grew. caches: stage → kind →
    what became of it in the first process ("hit", "miss" or "unused"), for providers that keep what
    they compile; later processes find what that one left. cache: "hit" where no stage missed.
    notes: what was asked for and is not so, such as a UNet that runs without a CUDA graph."""

    config: Config
    status: Literal["pending", "measured", "failed"] = "pending"
    error: str = ""
    cold: tuple[Cold, ...] = ()
    warm: tuple[TimedImage, ...] = ()
    narrow: bool = False
    peak_bytes: int | None = None
    gpu_peak_bytes: int | None = None
    memory: tuple[tuple[float, ...], ...] = ()
    placement: dict[str, dict[str, Placement]] = field(default_factory=dict)
    cache: str | None = None
    caches: dict[str, dict[str, Outcome]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    quality: Quality | None = None
    operators: dict[str, tuple[Operator, ...]] = field(default_factory=dict)
    image_png: str | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """A whole benchmark. interleaved: whether the warm runs took turns. Times in `started` are UTC.

    versions: edgediff, onnxruntime, numpy and the packages of plug-in providers."""

    format_version: int = FORMAT_VERSION
    started: str
    complete: bool
    missing: tuple[str, ...]
    interleaved: bool
    machine: Machine
    conditions: Conditions | None
    versions: dict[str, str]
    runs: tuple[Run, ...]


def write(path: Path, result: "DataclassInstance") -> None:
    """Write a result, this or another benchmark's, whole or not at all.

    Raises InputError where it cannot be written."""
    text = json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False, allow_nan=False)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as e:
        beside.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({e.strerror})") from e


def read(path: Path) -> Result:
    """Read what `write` wrote. Raises InputError, naming the place and value."""
    result: Result = read_as(Result, path, version=FORMAT_VERSION, maker="`edgediff bench`")
    return result


def read_as(kind: type, path: Path, *, version: int, maker: str) -> Any:
    """A file of that format version as the dataclass `kind`; `maker` is what writes such files.

    Raises InputError, naming the place and value."""
    try:
        raw = load_json(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise InputError(f"{path}: not JSON ({e}): give a file that {maker} wrote") from e
    found = raw.get("format_version") if isinstance(raw, dict) else None
    if found != version:
        raise InputError(
            f"{path}: format_version is {found!r}, expected {version}: give a file that {maker} of"
            " this version wrote"
        )
    return parse(kind, raw, str(path), InputError)
