"""The intermediate values of a float32 graph, on examples."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes import common

Inputs = Mapping[str, npt.NDArray[Any]]
"""Input → the array that a graph is evaluated on."""
_LARGE = 1 << 16  # bytes


def load_typed(source: Path) -> ir.Model:
    """A graph from disk, with the types of its intermediate values, which the file leaves out."""
    model = ir.load(source)
    common.ShapeInferencePass()(model)
    return model


def magnitudes(source: Path, examples: Sequence[Inputs]) -> dict[str, float]:
    """Name → the largest |value| over the examples, of every float32 value that a node computes.

    inf stands for one that is not finite."""
    names = [
        value.name
        for node in load_typed(source).graph
        for value in node.outputs
        if value.dtype == ir.DataType.FLOAT and value.name is not None
    ]
    largest = {k: max(-low, high) for k, (low, high) in extremes(source, names, examples).items()}
    return {k: v if np.isfinite(v) else float("inf") for k, v in largest.items()}


def extremes(
    source: Path, names: Sequence[str], examples: Sequence[Inputs]
) -> dict[str, tuple[float, float]]:
    """Name → the smallest and the largest over the examples, of float32 inputs and values that
    nodes compute. Not finite if one of the values is not."""
    if not names:  # which onnxruntime would take for all
        return {}
    model = ir.load(source)
    graph = model.graph
    known = {v.name: v for v in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    first = graph[0]
    outputs = []
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            node = ir.node(op, [known[name]], {"keepdims": 0}, name=f"{name}/{op}")
            outputs.append(add_output(graph, node))
            # Right after the value: at the end, all values would still be in memory.
            producer = known[name].producer()
            graph.remove(node)
            if producer is None:
                graph.insert_before(first, node)
            else:
                graph.insert_after(producer, node)
    found = dict.fromkeys(names, (np.inf, -np.inf))
    for seen in run(model, source, outputs, examples):
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


def run(
    model: ir.Model, source: Path, names: Sequence[str], examples: Sequence[Inputs]
) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
    """Named values of a changed copy of the graph at `source`, one example at a time."""
    with session(model, source) as running:
        for inputs in examples:
            yield dict(zip(names, running.run(list(names), dict(inputs)), strict=True))


@contextlib.contextmanager
def session(
    model: ir.Model, source: Path, config: Mapping[str, str] | None = None
) -> Iterator[ort.InferenceSession]:
    """A session of a changed graph, whose large weights still lie beside `source`; those that are
    in memory are written beside it, as a file of graphs cannot be larger than 2 GB."""
    path = source.with_name(f"{source.stem}.observed.onnx")
    data = path.with_name(path.name + ".data")
    store(model, data)
    try:
        ir.save(model, path)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        # In the file's order, in which each value is reduced as soon as it is computed.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        for key, entry in (config or {}).items():
            options.add_session_config_entry(key, entry)
        yield ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    finally:
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)


def store(model: ir.Model, data: Path) -> None:
    """Write the large weights that are in memory to a file, which then stands for them."""
    inside = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and not isinstance(value.const_value, ir.ExternalTensor)
        and value.const_value.nbytes >= _LARGE
    ]
    moved = ir.external_data.convert_tensors_to_external(
        [v.const_value for v in inside if v.const_value is not None], data.parent, data.name
    )
    for value, tensor in zip(inside, moved, strict=True):
        value.const_value = tensor
