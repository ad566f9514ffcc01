"""The CPU target: a traced float32 graph → one for ONNX Runtime's CPU provider, in int8."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from edgediff_export.fidelity import Case
from edgediff_export.lower.calibration import Seen, calibrate
from edgediff_export.lower.dense import Format, Kernel, Layer, Range
from edgediff_export.lower.passes import Choices, layers, restructure, write_out
from edgediff_export.lower.smoothing import smooth
from edgediff_export.lowered import Lowered
from edgediff_export.quantize import SESSION_CONFIG, quantize_embeddings

SMALL = 4096
"""Weights of fewer elements stay float: they cost next to nothing."""
FEW = 8
"""Channels; the layers that read the input and write the output have few weights, and are the most
sensitive."""
ACTIVATION_LIMIT = 0.01
"""`Seen.error` beyond which a layer's activations stay float. Evenly spread values give 0.004 to
0.01; a few large ones, which the scale must cover, give more."""
SMOOTH_ABOVE = 0.007
"""`Seen.error` from which smoothing is tried."""


def to_int8(
    source: Path,
    cases: Sequence[Case],
    *,
    kernel: Kernel | None = None,
    plan: Mapping[str, Format] | None = None,
) -> Lowered:
    """The float32 graph at `source`, lowered.

    kernel: what convolutions of more than one pixel run on; see `default_kernel`. plan: weight →
    format, which is otherwise int8 wherever the activations bear it, after smoothing."""
    model = restructured(source, cases)
    found = layers(model)
    kernel = kernel or default_kernel(model)
    direct = {layer.name for layer in found if kernel == "direct" and not layer.pointwise}
    wanted = None if plan is None else {k for k in direct if plan.get(k) == "int8"}
    seen = calibrate(model, source, cases, wanted)
    formats = plan_int8(found, seen) if plan is None else dict(plan)
    ranges = {
        k: Range(low=s.low, high=s.high, output=s.output) for k, s in seen.items() if k in direct
    }
    write_out(
        model,
        Choices(
            formats=formats,
            kernel=lambda layer: "direct" if layer.name in direct else "gather",
            ranges=ranges,
        ),
    )
    stored: dict[str, str] = {layer.name: formats.get(layer.name, "fp32") for layer in found}
    stored |= dict.fromkeys(quantize_embeddings(model.graph), "int8")
    return Lowered(
        model=model, precision="int8", plan=stored, session_config=dict(SESSION_CONFIG)
    )


def restructured(source: Path, cases: Sequence[Case]) -> ir.Model:
    """The float32 graph at `source` after the passes that change no result, smoothed."""
    model = ir.load(source)
    restructure(model)
    seen = calibrate(model, source, cases)
    smooth(model, seen, {k for k, s in seen.items() if s.error > SMOOTH_ABOVE})
    return model


def default_kernel(model: ir.Model) -> Kernel:
    """"direct" for decoders with group norms, "gather" otherwise.

    At the decoder's resolutions gathering costs more than multiplying. Writing bytes adds an error
    of its own, which a decoder bears once but a UNet at every step; and it needs ranges that hold
    for any picture, which only normalized activations have."""
    decodes = any(v.name == "latent_sample" for v in model.graph.inputs)
    normalized = any(node.op_type == "GroupNorm" for node in model.graph)
    return "direct" if decodes and normalized else "gather"


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
