"""The input and the output of a converter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from edgediff.bundle.manifest import Precision
from edgediff_export.fidelity.cases import Case
from edgediff_export.targets.cpu.kernels import Profile


@dataclass(frozen=True, kw_only=True)
class FloatStage:
    """A stage as it was traced, to be converted.

    source: its float32 graph on disk. cases: examples of its inputs, to calibrate on.
    The rest matters only to int8 for the CPU. profile: the processor that it is for. area_ratio:
    pixels of an image of the default size, relative to the largest example. average_attention:
    whether to average keys and values, which changes the results. observed: called after each
    evaluation of an example."""

    source: Path
    cases: Sequence[Case]
    profile: Profile = "auto"
    area_ratio: float = 1.0
    average_attention: bool = False
    observed: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A stage in another precision.

    formats: weight → the format that it is stored in ("int8", "fp16", "fp32"…).
    session_config: entries that onnxruntime needs to run it as intended.
    widened: bytes that the weights take beyond the file's once loaded, None if that is not known.
    direct, reduced_range: as in the bundle's `Quantization`."""

    model: ir.Model
    precision: Precision
    formats: dict[str, str]
    session_config: dict[str, str] = field(default_factory=dict)
    widened: int | None = None
    direct: tuple[str, ...] = ()
    reduced_range: bool = False
