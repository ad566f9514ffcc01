"""The CPU target: a traced float32 graph → one for ONNX Runtime's CPU provider, in int8."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from edgediff_export.fidelity import Case
from edgediff_export.lower.calibration import Seen, calibrate
from edgediff_export.lower.dense import Format, Kernel, Layer, Range
from edgediff_export.lower.passes import Choices, layers, restructure, write_out
from edgediff_export.lowered import Lowered
from edgediff_export.quantize import SESSION_CONFIG, quantize_embeddings

SMALL = 4096
"""Weights of fewer elements stay float: they cost next to nothing."""
FEW = 8
"""Channels; the layers that read the input and write the output have few weights, and are the most
sensitive."""
ACTIVATION_LIMIT = 0.02
"""`Seen.error` beyond which a layer's activations stay float. Evenly spread values give 0.01; a few
large ones, which the scale must cover, give more."""


def to_int8(
    source: Path,
    cases: Sequence[Case],
    *,
    kernel: Kernel = "gather",
    plan: Mapping[str, Format] | None = None,
) -> Lowered:
    """The float32 graph at `source`, lowered.

    kernel: what convolutions of more than one pixel run on; see `dense`. plan: weight → format,
    which is otherwise int8 wherever the activations bear it. Smaller weights stay float."""
    model = ir.load(source)
    restructure(model)
    found = layers(model)
    kernels = {layer.name: kernel if not layer.pointwise else "gather" for layer in found}
    seen: Mapping[str, Seen] = {}
    if plan is None or "direct" in kernels.values():
        seen = calibrate(source, cases, None if plan is None else _direct(kernels, plan))
    formats = plan_int8(found, seen) if plan is None else dict(plan)
    ranges = {k: Range(low=s.low, high=s.high, output=s.output) for k, s in seen.items()}
    write_out(
        model, Choices(formats=formats, kernel=lambda layer: kernels[layer.name], ranges=ranges)
    )
    embeddings = quantize_embeddings(model.graph)
    stored: dict[str, str] = {layer.name: formats.get(layer.name, "fp32") for layer in found}
    stored |= dict.fromkeys(embeddings, "int8")
    return Lowered(
        model=model, precision="int8", plan=stored, session_config=dict(SESSION_CONFIG)
    )


def plan_int8(found: Sequence[Layer], seen: Mapping[str, Seen]) -> dict[str, Format]:
    """Plain int8: every layer of some size, but for activations that do not bear it."""
    plan: dict[str, Format] = {}
    for layer in found:
        if not quantizable(layer):
            plan[layer.name] = "fp32"
        elif layer.name in seen and seen[layer.name].error > ACTIVATION_LIMIT:
            plan[layer.name] = "int8-weights"
        else:
            plan[layer.name] = "int8"
    return plan


def quantizable(layer: Layer) -> bool:
    """Whether a layer's weights are worth fewer bits than float32."""
    return layer.weight.size >= SMALL and min(layer.channels) > FEW


def _direct(kernels: Mapping[str, Kernel], plan: Mapping[str, Format]) -> set[str]:
    return {k for k, kernel in kernels.items() if kernel == "direct" and plan.get(k) == "int8"}
