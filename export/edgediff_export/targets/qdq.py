"""A float32 graph → int8 for providers that compile: OpenVINO, CoreML, TensorRT.

They look for QuantizeLinear → DequantizeLinear in front of a layer, with a scale that is known
beforehand, and for its weights behind DequantizeLinear; they turn the three into one int8 kernel
(the static scheme of Jacob et al. 2017, arXiv:1712.05877, with one scale for each output channel,
Krishnamoorthi 2018, arXiv:1806.08342). Activations become unsigned bytes, with the range that they
have on the fixtures; a layer that loses too much by that keeps float ones. Without such a kernel,
a provider computes the same step by step, as the CPU provider does for convolutions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgediff.backend.create import PRECISE
from edgediff_export.fidelity.cases import Case
from edgediff_export.graph import observe
from edgediff_export.graph.build import initializer
from edgediff_export.targets.conversion import Converted, FloatStage
from edgediff_export.targets.weights import (
    activation_scale,
    dequantize_weight,
    first_and_last_conv,
    output_axis,
    quantize_embedding,
    settle,
    weight_to_quantize,
)

ACTIVATION_LIMIT = 0.02
"""‖(Q(x) − x)·w‖ / ‖x·w‖ beyond which a layer's activations stay float. Evenly spread values give
0.01; a few large ones, which the scale must cover, give more."""

Ranges = Mapping[str, tuple[float, float]]
"""Value → the smallest and the largest that it is on the fixtures."""

# The CPU provider runs these bundles if the one that they are made for cannot. Without VNNI it
# adds pairs of products in 16 bits, which overflow; this avoids it.
SESSION_CONFIG = {PRECISE: "1"}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A product of an activation and a constant weight. axis: of the weight, output channels."""

    node: ir.Node
    x: ir.Value
    weight: ir.Value
    axis: int

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name or ""


def to_qdq(stage: FloatStage) -> Converted:
    """A float32 stage with int8 weights, and int8 activations for the layers that tolerate them."""
    source, cases = stage.source, stage.cases
    model = ir.load(source)
    graph = model.graph
    formats: dict[str, str] = {}
    kept = first_and_last_conv(graph)
    ranges = activation_ranges(source, cases)
    errors = activation_errors(source, cases, ranges)
    quantized: dict[ir.Value, ir.Value] = {}  # value → itself in 256 levels
    for node in list(graph):
        weight = weight_to_quantize(node)
        if weight is None or node in kept:
            continue
        layer = as_layer(node)
        if layer is None:
            quantize_embedding(graph, node)
        else:
            if errors[layer.name] <= ACTIVATION_LIMIT and not _joins_tokens(layer):
                if layer.x not in quantized:
                    quantized[layer.x] = _quantize(graph, layer, ranges[layer.x.name or ""])
                node.replace_input_with(0, quantized[layer.x])
            dequantize_weight(graph, node, 1, axis=layer.axis)
        formats[weight.name or ""] = "int8"
    settle(graph, formats)
    return Converted(
        model=model, precision="int8", formats=formats, session_config=dict(SESSION_CONFIG)
    )


def as_layer(node: ir.Node) -> Layer | None:
    """The linear layer or convolution that a node is, or None; its weight is a constant."""
    weight = weight_to_quantize(node)
    x = node.inputs[0] if node.inputs else None
    if x is None or weight is None:
        return None
    if node.op_type == "Conv":
        return Layer(node=node, x=x, weight=weight, axis=0)
    axis = output_axis(node)
    return None if axis is None else Layer(node=node, x=x, weight=weight, axis=axis)


def activation_ranges(source: Path, cases: Sequence[Case]) -> Ranges:
    """The range on the fixtures of every activation that a layer takes."""
    names = {layer.x.name or "" for layer in _layers(ir.load(source).graph)}
    return observe.extremes(source, sorted(names), [case.inputs for case in cases])


def activation_errors(source: Path, cases: Sequence[Case], ranges: Ranges) -> dict[str, float]:
    """Layer's weight → the worst error of its output on the fixtures if only its activations are
    quantized, ‖(Q(x) − x)·w‖ / ‖x·w‖.

    Computed inside the graph, since the activations of all layers together fill the memory."""
    model = ir.load(source)
    graph = model.graph
    layers = _layers(graph)
    if not layers:
        return {}
    noise: dict[ir.Value, ir.Value] = {}  # x → Q(x) − x
    outputs: list[str] = []
    for k, layer in enumerate(layers):
        if layer.x not in noise:
            rounded = _rounded(graph, layer.x, ranges[layer.x.name or ""])
            difference = ir.node("Sub", [rounded[-1].outputs[0], layer.x])
            graph.extend([*rounded, difference])
            noise[layer.x] = difference.outputs[0]
        signal = layer.node.outputs[0]
        if len(layer.node.inputs) > 2:  # with a bias, which would hide a small x·w
            signal = _product(graph, layer, layer.x)
        for kind, y in (("noise", _product(graph, layer, noise[layer.x])), ("signal", signal)):
            norm = ir.node("ReduceL2", [y], {"keepdims": 0}, name=f"{k}/{kind}")
            outputs.append(observe.add_output(graph, norm))
    errors = {layer.name: 0.0 for layer in layers}
    for seen in observe.run(model, source, outputs, [case.inputs for case in cases]):
        for k, layer in enumerate(layers):
            error, norm_of_xw = float(seen[f"{k}/noise"]), float(seen[f"{k}/signal"])
            error = error / norm_of_xw if norm_of_xw else error
            # np.maximum keeps a nan, which no limit passes.
            errors[layer.name] = float(np.maximum(errors[layer.name], error))
    return errors


def _product(graph: ir.Graph, layer: Layer, x: ir.Value) -> ir.Value:
    """x·w by a layer's weight, without its bias."""
    node = ir.node(layer.node.op_type, [x, layer.weight], layer.node.attributes)
    graph.append(node)
    return node.outputs[0]


def _layers(graph: ir.Graph) -> list[Layer]:
    kept = first_and_last_conv(graph)
    found = [as_layer(node) for node in graph if node not in kept]
    return [layer for layer in found if layer is not None]


def _joins_tokens(layer: Layer) -> bool:
    """Whether a linear layer takes the output of a Concat. OpenVINO (2026.4) quantizes each part by
    itself, with a zero point for each token, and then cannot compile the product."""
    producer = layer.x.producer()
    return layer.node.op_type != "Conv" and producer is not None and producer.op_type == "Concat"


def _quantize(graph: ir.Graph, layer: Layer, extremes: tuple[float, float]) -> ir.Value:
    """A layer's activation in 256 levels, for it and all later layers that take the same."""
    nodes = _rounded(graph, layer.x, extremes)
    graph.insert_before(layer.node, nodes)
    rounded = nodes[-1].outputs[0]
    rounded.type, rounded.shape = layer.x.type, layer.x.shape
    return rounded


def _rounded(
    graph: ir.Graph, value: ir.Value, extremes: tuple[float, float]
) -> tuple[ir.Node, ir.Node]:
    """QuantizeLinear → DequantizeLinear of a value, not yet in the graph."""
    scale, zero = activation_scale(*extremes)
    name = f"{value.name}/quantized"
    parameters = [
        initializer(graph, f"{name}.scale", np.array(scale, np.float32)),
        initializer(graph, f"{name}.zero", np.array(zero, np.uint8)),
    ]
    quantize = ir.node("QuantizeLinear", [value, *parameters], name=name)
    dequantize = ir.node(
        "DequantizeLinear", [quantize.outputs[0], *parameters], name=f"{value.name}/dequantized"
    )
    return quantize, dequantize
