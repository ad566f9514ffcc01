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
    model = load_typed(source)
    graph = model.graph
    reduced: dict[str, str] = {}
    for node in list(graph):
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT or value.name is None:
                continue
            absolute = ir.node("Abs", [value], name=f"{value.name}/abs")
            largest = ir.node(
                "ReduceMax", [absolute.outputs[0]], {"keepdims": 0}, name=f"{value.name}/max"
            )
            largest.outputs[0].name = f"{value.name}/largest"
            graph.extend([absolute, largest])
            largest.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            largest.outputs[0].shape = ir.Shape([])
            reduced[f"{value.name}/largest"] = value.name
            graph.outputs.append(largest.outputs[0])
    found: dict[str, float] = {}
    for outputs in _run(model, source, list(reduced), cases):
        for name, array in outputs.items():
            magnitude = float(array) if np.isfinite(array) else float("inf")
            found[reduced[name]] = max(magnitude, found.get(reduced[name], 0.0))
    return found


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
    return _run(model, source, names, cases)


def _run(
    model: ir.Model, source: Path, names: Sequence[str], cases: Sequence[Case]
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Run a changed copy of the graph at `source`; it must lie beside the weights it shares."""
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
