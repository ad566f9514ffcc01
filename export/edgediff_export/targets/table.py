"""The targets: the precisions that each is exported in, and how a stage gets into them."""

from collections.abc import Callable, Mapping
from typing import Literal

from edgediff.bundle.manifest import Precision
from edgediff_export.targets.conversion import Converted, FloatStage
from edgediff_export.targets.cpu.prepare import Prepared, prepare
from edgediff_export.targets.float16 import to_float16
from edgediff_export.targets.qdq import to_qdq

Target = Literal["cpu", "openvino", "gpu"]
"""The device that a bundle is made for: ONNX Runtime's own CPU provider, OpenVINO's plug-in, or a
GPU."""

Converter = Callable[[FloatStage], Converted | Prepared]
"""Converts a stage. A `Prepared` leaves the format of each layer open until it is written."""

CONVERTERS: Mapping[tuple[Target, Precision], Converter | None] = {
    ("cpu", "fp32"): None,
    ("cpu", "int8"): prepare,
    ("openvino", "fp32"): None,
    ("openvino", "int8"): to_qdq,
    ("gpu", "fp32"): None,
    ("gpu", "fp16"): to_float16,
}
"""None leaves every stage as it was traced."""

PROVIDERS: Mapping[tuple[Target, Precision], tuple[str, ...]] = {
    ("cpu", "fp32"): ("cpu", "openvino", "coreml"),
    ("cpu", "int8"): ("cpu",),
    ("openvino", "fp32"): ("openvino", "cpu"),
    ("openvino", "int8"): ("openvino", "cpu"),
    ("gpu", "fp32"): ("cuda", "tensorrt", "coreml", "cpu"),
    ("gpu", "fp16"): ("cuda", "tensorrt", "coreml", "cpu"),
}
"""The providers that a bundle is made for, fastest first: `auto` takes the first installed."""
