"""What lowering a stage gives: a graph in another precision, and how it came about."""

from dataclasses import dataclass, field

import onnx_ir as ir

from edgediff.bundle import Precision


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A stage in another precision. `plan`: weight → what it is stored as ("int8", "fp16", "fp32").

    session_config: entries that onnxruntime needs to run it as intended. widened: bytes that the
    weights take beyond the file's once loaded, None where that is not known."""

    model: ir.Model
    precision: Precision
    plan: dict[str, str]
    session_config: dict[str, str] = field(default_factory=dict)
    widened: int | None = None
