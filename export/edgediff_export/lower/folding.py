"""What need not be computed at run time: results that are the same whatever the inputs."""

import numpy as np
import onnx_ir as ir

from edgediff_export.lower.graph import (
    constant_of,
    elements,
    initializer,
    only_user,
    producer,
    replace,
    scalar,
    sweep,
)


def fold_constants(model: ir.Model) -> None:
    """Shape arithmetic whose result is known becomes a constant; x·1, x/1 and x+0 become x; a sine
    and a cosine that are joined and then swapped are joined the other way round."""
    graph = model.graph
    for node in list(graph):
        if _is_identity(node):
            x = node.inputs[0] if constant_of(node.inputs[0]) is None else node.inputs[1]
            if x is not None and not node.outputs[0].is_graph_output():
                replace(node, x)
            continue
        _fold_shape_arithmetic(graph, node)
        _unswap(node)
    sweep(graph)


def _fold_shape_arithmetic(graph: ir.Graph, node: ir.Node) -> None:
    out = node.outputs[0]
    if out.dtype not in (ir.DataType.INT64, ir.DataType.FLOAT) or out.is_graph_output():
        return
    rank = 0 if out.shape is None else len(out.shape)
    if out.shape is None or rank > 1:
        return
    known = elements(out)
    if known is None or any(e is None for e in known):
        return
    dtype = np.int64 if out.dtype == ir.DataType.INT64 else np.float32
    values = np.asarray(known, dtype).reshape(() if rank == 0 else (-1,))
    replace(node, initializer(graph, f"{node.name}.folded", values))


def _is_identity(node: ir.Node) -> bool:
    neutral = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}.get(node.op_type)
    if neutral is None or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    sides = (1,) if node.op_type in ("Div", "Sub") else (0, 1)
    return any(_is_all(node.inputs[i], neutral, node.outputs[0]) for i in sides)


def _is_all(value: ir.Value | None, number: float, result: ir.Value) -> bool:
    """Whether a value is one constant number that adds no dimensions to the result."""
    if value is None or constant_of(value) is None or scalar(value) != number:
        return False
    return len(value.shape or ()) <= len(result.shape or ())


def _unswap(node: ir.Node) -> None:
    """Concat(x[n:], x[:n]) of x = Concat(a, b), a of size n → Concat(b, a)."""
    if node.op_type != "Concat" or len(node.inputs) != 2:
        return
    last, first = (producer(v, "Slice") for v in node.inputs)
    if last is None or first is None or last.inputs[0] is not first.inputs[0]:
        return
    joined = producer(first.inputs[0], "Concat")
    if joined is None or len(joined.inputs) != 2 or joined.attributes != node.attributes:
        return
    a, b = joined.inputs
    n = None if a is None or a.shape is None else a.shape[-1]
    starts = scalar(last.inputs[1]), scalar(first.inputs[1])
    stops = scalar(last.inputs[2]), scalar(first.inputs[2])
    if isinstance(n, int) and starts == (n, 0) and stops[1] == n and (stops[0] or 0) >= 2 * n:
        node.replace_input_with(0, b)
        node.replace_input_with(1, a)


def split_products(model: ir.Model) -> None:
    """A product whose result is only cut in pieces along its last axis → a product for each piece,
    so that nothing is copied: the two halves of a GEGLU (Shazeer 2020, arXiv:2002.05202)."""
    graph = model.graph
    for node in list(graph):
        if node.op_type != "MatMul":
            continue
        weight = constant_of(node.inputs[1])
        if weight is None or weight.ndim != 2:
            continue
        biased = only_user(node.outputs[0], "Add")
        bias = None
        if biased is not None:
            bias = next((c for v in biased.inputs if (c := constant_of(v)) is not None), None)
            if bias is None or bias.shape != weight.shape[1:]:
                continue
        whole = (biased or node).outputs[0]
        cuts = {use.node for use in whole.uses()}
        bounds = [_last_axis_cut(cut, whole) for cut in cuts]
        if len(cuts) < 2 or whole.is_graph_output() or any(b is None for b in bounds):
            continue
        for cut, (start, stop) in zip(cuts, (b for b in bounds if b), strict=True):
            _piece(graph, node, biased, cut, slice(start, stop))
    sweep(graph)


def _last_axis_cut(node: ir.Node, whole: ir.Value) -> tuple[int, int] | None:
    """The bounds of a Slice of the last axis by one."""
    if node.op_type != "Slice" or node.inputs[0] is not whole or whole.shape is None:
        return None
    numbers = [scalar(v) for v in node.inputs[1:]]
    if len(numbers) < 3 or any(n is None for n in numbers):
        return None
    start, stop, axis = (int(n or 0) for n in numbers[:3])
    if axis not in (-1, len(whole.shape) - 1) or start < 0 or stop < 0:
        return None
    return (start, stop) if len(numbers) < 4 or numbers[3] == 1 else None


def _piece(
    graph: ir.Graph, node: ir.Node, biased: ir.Node | None, cut: ir.Node, columns: slice
) -> None:
    weight, bias = node.inputs[1], None
    for v in () if biased is None else biased.inputs:
        bias = v if constant_of(v) is not None else bias
    values = constant_of(weight)
    if weight is None or values is None:
        return
    suffix = f"{columns.start}-{columns.stop}"
    part = initializer(graph, f"{weight.name}.{suffix}", np.ascontiguousarray(values[:, columns]))
    product = ir.node("MatMul", [node.inputs[0], part], name=f"{node.name}.{suffix}")
    graph.insert_before(cut, product)
    result = product.outputs[0]
    values = constant_of(bias)
    if bias is not None and values is not None:
        shift = initializer(graph, f"{bias.name}.{suffix}", np.ascontiguousarray(values[columns]))
        add = ir.node("Add", [shift, result], name=f"{node.name}.{suffix}/bias")
        graph.insert_before(cut, add)
        result.type = node.outputs[0].type
        result = add.outputs[0]
    replace(cut, result)
