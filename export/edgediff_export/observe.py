"""What goes on inside a float32 graph: its intermediate values on the fixtures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common

from edgediff_export.fidelity import Case


def load_typed(source: Path) -> ir.Model:
    """A graph from disk, with the types of its intermediate values, which the file leaves out."""
    model = ir.load(source)
    common.ShapeInferencePass()(model)
    return model


def magnitudes(source: Path, cases: Sequence[Case]) -> dict[str, float]:
    """Name → the largest |value| over the cases, of every float32 value that a node computes.

    inf stands for one that is not finite."""
    names = [
        value.name
        for node in load_typed(source).graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.name is not None
    ]
    largest = {k: max(-low, high) for k, (low, high) in extremes(source, names, cases).items()}
    return {k: v if np.isfinite(v) else float("inf") for k, v in largest.items()}


def extremes(
    source: Path, names: Sequence[str], cases: Sequence[Case]
) -> dict[str, tuple[float, float]]:
    """Name → the smallest and the largest over the cases, of float32 inputs and values that nodes
    compute. Not finite where one of the values is not."""
    if not names:  # which onnxruntime would take for all
        return {}
    model = ir.load(source)
    graph = model.graph
    known = {v.name: v for v in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    outputs = []
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            node = ir.node(op, [known[name]], {"keepdims": 0}, name=f"{name}/{op}")
            outputs.append(add_output(graph, node))
    found = dict.fromkeys(names, (np.inf, -np.inf))
    for seen in run(model, source, outputs, cases):
        for name in names:
            low, high = found[name]
            # np.minimum keeps a nan, which min() may lose.
            found[name] = (
                float(np.minimum(low, seen[f"{name}/ReduceMin"])),
                float(np.maximum(high, seen[f"{name}/ReduceMax"])),
            )
    return found


def add_output(graph: ir.Graph, node: ir.Node) -> str:
    """Append a node that computes a float32 scalar, and give that out under the node's name."""
    value = node.outputs[0]
    value.name = node.name
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape([])
    graph.append(node)
    graph.outputs.append(value)
    return node.name or ""


def values(
    source: Path, names: Sequence[str], cases: Sequence[Case]
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """The named values of a graph, one case at a time."""
    if not names:  # which onnxruntime would take for all
        return iter([{} for _ in cases])
    model = ir.load(source)
    graph = model.graph
    known = {o.name: o for node in graph for o in node.outputs}
    present = {o.name for o in graph.outputs}
    for name in names:
        value = known[name]
        if name not in present:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(value)
    return run(model, source, names, cases)


def run(
    model: ir.Model, source: Path, names: Sequence[str], cases: Sequence[Case]
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Named values of a changed copy of the graph at `source`, one case at a time."""
    # It must lie beside the weights that it shares with `source`.
    path = source.with_name(f"{source.stem}.observed.onnx")
    ir.save(model, path)
    try:
        options: Any = ort.SessionOptions()
        options.log_severity_level = 3
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    finally:
        path.unlink()
    for case in cases:
        inputs: Mapping[str, Any] = case.inputs
        yield dict(zip(names, session.run(list(names), dict(inputs)), strict=True))
