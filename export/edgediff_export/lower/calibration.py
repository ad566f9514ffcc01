"""What each layer sees and gives: the ranges of a restructured graph on example inputs."""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgediff_export.fidelity import Case
from edgediff_export.lower.dense import Range
from edgediff_export.lower.graph import Builder
from edgediff_export.lower.passes import Choices, layers, restructure, write_out


def calibrate(source: Path, cases: Sequence[Case], names: Collection[str]) -> dict[str, Range]:
    """Ranges of the named layers of the float32 graph at `source`, over all cases."""
    if not names:
        return {}
    model = ir.load(source)
    restructure(model)
    watched = [layer for layer in layers(model) if layer.name in names]
    outputs: list[ir.Value] = []
    for layer in watched:
        y = layer.node.outputs[0]
        after = [use.node for use in y.uses()]
        if not after:
            continue
        # Before the first reader, which comes after the layer itself.
        builder = Builder(model.graph, min(after, key=_position(model.graph)))
        rank = len(layer.x.shape or ())
        without = y if layer.bias is None else builder.op("Sub", [y, layer.bias])
        axes = builder.constant(list(range(rank - 1)), np.int64)
        seen = (
            builder.op("ReduceMin", [layer.x], {"keepdims": 0}),
            builder.op("ReduceMax", [layer.x], {"keepdims": 0}),
            builder.op("ReduceMax", [builder.op("Abs", [without]), axes], {"keepdims": 0}),
        )
        for kind, value in zip(("low", "high", "output"), seen, strict=True):
            value.name = f"{layer.name}:{kind}"
            value.type = ir.TensorType(ir.DataType.FLOAT)
            outputs.append(value)
    model.graph.outputs.extend(outputs)
    write_out(model, Choices())
    names_out = [v.name or "" for v in outputs]
    session = _session(model, source)
    found: dict[str, np.ndarray] = {}
    for case in cases:
        for name, value in zip(names_out, session.run(names_out, dict(case.inputs)), strict=True):
            smaller = np.minimum if name.endswith(":low") else np.maximum
            found[name] = smaller(found.get(name, value), value)
    return {
        layer.name: Range(
            low=float(found[f"{layer.name}:low"]),
            high=float(found[f"{layer.name}:high"]),
            output=np.asarray(found[f"{layer.name}:output"], np.float32),
        )
        for layer in watched
        if f"{layer.name}:low" in found
    }


def _position(graph: ir.Graph):  # type: ignore[no-untyped-def]
    order = {node: i for i, node in enumerate(graph)}
    return order.__getitem__


def _session(model: ir.Model, source: Path) -> ort.InferenceSession:
    """A session of a changed graph, whose large weights still lie beside `source`."""
    with tempfile.NamedTemporaryFile(dir=source.parent, suffix=".onnx") as file:
        ir.save(model, file.name)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        return ort.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
