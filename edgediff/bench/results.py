"""The JSON file that `edgediff bench` writes; this module is its schema.

The file is rewritten after every round, so that it is valid even if the run ends early; `missing`
lists the figures that it lacks.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgediff.backend.compile_cache import Outcome
from edgediff.bench.machine import Conditions, Machine
from edgediff.bundle.schema import load_json, parse
from edgediff.errors import InputError
from edgediff.files import write_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Model:
    """The bundle that ran. plan: number of weights by format. bytes: size of its files."""

    name: str
    id: str
    source: str
    target: str
    precision: str
    plan: dict[str, int]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Config:
    """One point of the grid. threads: None = one per core. label: its name in this benchmark."""

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
    """Seconds from process start to the first image, and their parts."""

    first_image: float
    interpreter: float
    imports: float
    load: float
    stages: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class TimedImage:
    """Seconds of one call in a warm process. joules: None if the system does not report energy."""

    total: float
    text_encoder: float
    steps: tuple[float, ...]
    decoder: float
    joules: float | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The part of a graph that a provider runs, as numbers of nodes and of partitions."""

    nodes: int
    partitions: int


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator's share of a stage's time, from onnxruntime's profile."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The timed image compared with the float model's in the bundle's fixtures.

    psnr_db: None if they are equal, or if there is nothing to compare it with; `reason` says why.
    """

    psnr_db: float | None
    equal: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The measurements of one Config. error: the reason, if status is "failed".

    gpu_peak_bytes: growth of the memory in use on the first GPU. caches: stage → kind → "hit",
    "miss" or "unused" in the first process, for providers that cache compiled models; later
    processes use the files of the first. cache: "hit" if no stage missed. notes: requests that were
    not met, such as a UNet that runs without a CUDA graph."""

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
    """A whole benchmark. started: UTC. interleaved: whether the warm runs took turns.

    versions: of edgediff, onnxruntime, numpy and the packages of plug-in providers."""

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
    """Write a result of this or another benchmark atomically.

    Raises InputError if it cannot be written."""
    text = json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        write_whole(path, (text + "\n").encode())
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from e


def read(path: Path) -> Result:
    """Read a file of `write`. Raises InputError, which names the place and value."""
    result: Result = read_as(Result, path, version=FORMAT_VERSION, maker="`edgediff bench`")
    return result


def read_as(kind: type, path: Path, *, version: int, maker: str) -> Any:
    """Read a file of this format version as the dataclass `kind`. maker: the command that writes
    such files.

    Raises InputError, which names the place and value."""
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
