"""Results that are the same whatever the inputs become constants."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from edgediff_export.graph.build import constant_of, elements, initializer, replace, sweep

_SMALL = 64
"""Elements of a constant that may be a shape, an axis or a padding, and is not a weight."""


def fold_constants(model: ir.Model) -> None:
    """Fold arithmetic on known dimensions, and on a few whole numbers; in place.

    Weights are not touched: values computed from them would be stored a second time."""
    graph, opsets = model.graph, dict(model.opset_imports)
    for node in list(graph):
        if len(node.outputs) != 1 or node.domain or node.outputs[0].is_graph_output():
            continue
        found = _of_dimensions(node.outputs[0])
        if found is None:
            found = _of_whole_numbers(node, opsets)
        if found is not None:
            replace(node, initializer(graph, f"{node.name}.folded", found))
    sweep(graph)


def _of_dimensions(value: ir.Value) -> npt.NDArray[Any] | None:
    """A number or a vector that is computed from known dimensions and constants."""
    dtype = {ir.DataType.INT64: np.int64, ir.DataType.FLOAT: np.float32}.get(
        value.dtype or ir.DataType.UNDEFINED
    )
    if dtype is None or value.shape is None or len(value.shape) > 1:
        return None
    known = elements(value)
    if known is None or any(e is None for e in known):
        return None
    return np.asarray(known, dtype).reshape(() if len(value.shape) == 0 else (-1,))


def _of_whole_numbers(node: ir.Node, opsets: dict[str, int]) -> npt.NDArray[Any] | None:
    """The result of any operator on a few constant whole numbers, such as the pads of a Pad."""
    constants = {v.name or "": constant_of(v) for v in node.inputs if v is not None}
    if not constants or any(
        c is None or c.size > _SMALL or c.dtype.kind != "i" for c in constants.values()
    ):
        return None
    proto = ir.serde.serialize_node(node)
    (result,) = ReferenceEvaluator(proto, opsets=opsets).run(None, constants)
    found = np.asarray(result)
    return found if found.size <= _SMALL and found.dtype.kind == "i" else None
