"""The inputs and outputs of each layer: a restructured graph, observed on examples."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff_export.fidelity.cases import Case
from edgediff_export.graph.build import Builder
from edgediff_export.graph.observe import session
from edgediff_export.targets.cpu.dense import Layer
from edgediff_export.targets.cpu.group_norm import DOMAIN
from edgediff_export.targets.cpu.passes import Choices, layers, write_out


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A layer on the examples; layers that share a weight are one.

    low, high: its input's extremes. channels: max |x| of each input channel, (c) float32.
    output: max |y − bias| of each output channel, (n) float32, for an input as large as the
    largest seen; smaller ones count as if scaled to it. rows: how many vectors of channels
    the input has at most, a measure of the layer's work.
    error: ‖(Q(x) − x)·w‖ / ‖x·w‖ at worst, Q rounding to bytes as DynamicQuantizeLinear does."""

    low: float
    high: float
    channels: npt.NDArray[np.float32]
    output: npt.NDArray[np.float32]
    error: float
    rows: int


def calibrate(
    restructured: ir.Model,
    source: Path,
    cases: Sequence[Case],
    names: Collection[str] | None = None,
    observed: Callable[[], None] = lambda: None,
) -> dict[str, Seen]:
    """Watch the named layers, or all, of a restructured graph, which is left as it is.

    source: the file that it was read from, beside which its weights lie. observed: called after
    each case."""
    model = restructured.clone()
    watched = [
        layer
        for layer in layers(model)
        if (names is None or layer.name in names) and layer.node.outputs[0].uses()
    ]
    if not watched:
        return {}
    order = {node: k for k, node in enumerate(model.graph)}
    # A graph's output → "weight:kind"; layers may share a weight.
    outputs: dict[str, str] = {}
    for k, layer in enumerate(watched):
        for kind, value in _watch(model.graph, layer, order).items():
            value.name = f"{k}:{layer.name}:{kind}"
            outputs[value.name] = f"{layer.name}:{kind}"
            model.graph.outputs.append(value)
    write_out(model, Choices())
    found: dict[str, npt.NDArray[np.float32]] = {}
    with session(model, source) as running:
        for case in cases:
            values = running.run(list(outputs), dict(case.inputs))
            for name, value in zip(outputs.values(), values, strict=True):
                smaller = np.minimum if name.endswith(":low") else np.maximum
                found[name] = smaller(found.get(name, value), value)
            observed()
    return {
        layer.name: Seen(
            low=float(found[f"{layer.name}:low"]),
            high=float(found[f"{layer.name}:high"]),
            channels=np.asarray(found[f"{layer.name}:channels"]),
            output=np.asarray(found[f"{layer.name}:output"])
            * np.float32(max(found[f"{layer.name}:high"], -found[f"{layer.name}:low"])),
            error=float(found[f"{layer.name}:error"]),
            rows=round(float(found[f"{layer.name}:rows"])),
        )
        for layer in watched
    }


def rounding_error(builder: Builder, x: ir.Value) -> ir.Value:
    """Q(x) − x, Q as in `Seen`."""
    rounded = builder.op("DequantizeLinear", builder.ops("DynamicQuantizeLinear", [x], outputs=3))
    error = builder.op("Sub", [rounded, x])
    error.type, error.shape = x.type, x.shape
    return error


def _watch(graph: ir.Graph, layer: Layer, order: dict[ir.Node, int]) -> dict[str, ir.Value]:
    """Add nodes that measure a layer; returns low, high, channels, output, rows and error."""
    y = layer.node.outputs[0]
    # Before the first reader, which comes after the layer itself.
    builder = Builder(graph, min((use.node for use in y.uses()), key=order.__getitem__))
    rank = len(layer.x.shape or ())
    but_last = builder.constant(list(range(rank - 1)), np.int64)

    def largest(value: ir.Value) -> ir.Value:
        return builder.op("ReduceMax", [builder.op("Abs", [value]), but_last], {"keepdims": 0})

    def norm(value: ir.Value) -> ir.Value:
        return builder.op("Sqrt", [builder.op("ReduceSumSquare", [value], {"keepdims": 0})])

    product = y if layer.bias is None else builder.op("Sub", [y, layer.bias])
    off = builder.op(
        "Dense",
        [rounding_error(builder, layer.x), layer.node.inputs[1]],
        dict(layer.node.attributes),
        domain=DOMAIN,
    )
    tiny = builder.constant(1e-20, np.float32)
    low = builder.op("ReduceMin", [layer.x], {"keepdims": 0})
    high = builder.op("ReduceMax", [layer.x], {"keepdims": 0})
    reach = builder.op("Max", [high, builder.op("Neg", [low]), tiny])
    seen = {
        "low": low,
        "high": high,
        "channels": largest(layer.x),
        "output": builder.op("Div", [largest(product), reach]),
        "rows": builder.op(
            "Div",
            [
                builder.op("Cast", [builder.op("Size", [layer.x])], {"to": ir.DataType.FLOAT}),
                builder.constant(layer.channels[0], np.float32),
            ],
        ),
        "error": builder.op("Div", [norm(off), builder.op("Add", [norm(product), tiny])]),
    }
    for value in seen.values():
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return seen
