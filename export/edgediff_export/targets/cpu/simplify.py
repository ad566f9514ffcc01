"""Work that is not needed at run time: neutral operations, copies and padding."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgediff_export.graph.build import (
    constant_of,
    dims,
    elements,
    initializer,
    only_user,
    producer,
    replace,
    scalar,
    sweep,
)


def simplify(model: ir.Model) -> None:
    """x·1, x/1 and x+0 become x; a sine and a cosine that are joined and then swapped are joined
    the other way round."""
    for node in list(model.graph):
        x = _unchanged(node)
        if x is None:
            _unswap(node)
        elif not node.outputs[0].is_graph_output():
            replace(node, x)
    sweep(model.graph)


def _unchanged(node: ir.Node) -> ir.Value | None:
    """x, if a node gives x·1, x/1, x+0 or x-0; else None."""
    neutral = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}.get(node.op_type)
    if neutral is None or node.outputs[0].dtype != ir.DataType.FLOAT:
        return None
    for i in (1,) if node.op_type in ("Div", "Sub") else (0, 1):
        constant, x = constant_of(node.inputs[i]), node.inputs[1 - i]
        # A constant of higher rank would add dimensions.
        if constant is not None and constant.size == 1 and constant.ndim <= len(dims(x) or ()):
            return x if constant.item() == neutral else None
    return None


def _unswap(node: ir.Node) -> None:
    """Concat(x[n:], x[:n]) of x = Concat(a, b), a of size n → Concat(b, a)."""
    if node.op_type != "Concat" or len(node.inputs) != 2:
        return
    last, first = (producer(v, "Slice") for v in node.inputs)
    if last is None or first is None or last.inputs[0] is not first.inputs[0]:
        return
    joined = producer(first.inputs[0], "Concat")
    if joined is None or len(joined.inputs) != 2:
        return
    sizes = [dims(v) for v in joined.inputs]
    if any(s is None for s in sizes):
        return
    rank = len(sizes[0] or ())
    axis = joined.attributes.get_int("axis", 0) % rank
    n, m = ((s or [])[axis] for s in sizes)
    if n is None or m is None or node.attributes.get_int("axis", 0) % rank != axis:
        return
    cuts = [_cut(cut) for cut in (last, first)]
    if cuts[0] is None or cuts[1] is None or any(c[2] % rank != axis for c in cuts if c):
        return
    (start, stop, _), (zero, middle, _) = cuts[0], cuts[1]
    if (zero, middle, start) == (0, n, n) and stop >= n + m:
        a, b = joined.inputs
        node.replace_input_with(0, b)
        node.replace_input_with(1, a)


def absorb_padding(model: ir.Model) -> None:
    """Zeros around a value that only convolutions read become their pads: before strided ones,
    torch pads only one side."""
    for node in list(model.graph):
        pads = _zeros_around(node)
        if pads is None:
            continue
        convs = [use.node for use in node.outputs[0].uses()]
        if not convs or not all(c.op_type == "Conv" and _pads_itself(c) for c in convs):
            continue
        for conv in convs:
            own = conv.attributes.get_ints("pads", [0, 0, 0, 0])
            both = [a + b for a, b in zip(own, pads, strict=True)]
            conv.attributes["pads"] = ir.AttrInt64s("pads", both)
            conv.replace_input_with(0, node.inputs[0])
    sweep(model.graph)


def _zeros_around(node: ir.Node) -> list[int] | None:
    """[top, left, bottom, right] of a Pad of (b, c, h, w) with zeros; None for another node."""
    if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
        return None
    if len(node.inputs) > 3 or node.outputs[0].is_graph_output():
        return None
    pads = elements(node.inputs[1])
    fill = None if len(node.inputs) < 3 else node.inputs[2]
    if pads is None or len(pads) != 8 or (fill is not None and scalar(fill) != 0):
        return None
    known = [int(p) for p in pads if p is not None]
    if len(known) != 8 or min(known) < 0 or any(known[i] for i in (0, 1, 4, 5)):
        return None
    return [known[i] for i in (2, 3, 6, 7)]


def _pads_itself(conv: ir.Node) -> bool:
    return conv.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"


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
        if len(set(bounds)) < len(bounds):
            continue
        for cut, (start, stop) in zip(cuts, (b for b in bounds if b), strict=True):
            _piece(graph, node, biased, cut, slice(start, stop))
    sweep(graph)


def _last_axis_cut(node: ir.Node, whole: ir.Value) -> tuple[int, int] | None:
    """The bounds of a Slice of the last axis by one."""
    if node.op_type != "Slice" or node.inputs[0] is not whole or whole.shape is None:
        return None
    cut = _cut(node)
    if cut is None or cut[2] not in (-1, len(whole.shape) - 1) or cut[0] < 0 or cut[1] < 0:
        return None
    return cut[:2]


def _cut(node: ir.Node) -> tuple[int, int, int] | None:
    """Start, stop and axis of a Slice of one axis by steps of one."""
    numbers = [scalar(v) for v in node.inputs[1:]]
    if len(numbers) < 3 or any(n is None for n in numbers):
        return None
    start, stop, axis = (int(n or 0) for n in numbers[:3])
    return (start, stop, axis) if len(numbers) < 4 or numbers[3] == 1 else None


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
    part = _columns(graph, weight, values, columns)
    product = ir.node("MatMul", [node.inputs[0], part], name=f"{node.name}.{suffix}")
    graph.insert_before(cut, product)
    result = product.outputs[0]
    values = constant_of(bias)
    if bias is not None and values is not None:
        shift = _columns(graph, bias, values, columns)
        add = ir.node("Add", [shift, result], name=f"{node.name}.{suffix}/bias")
        graph.insert_before(cut, add)
        result.type = node.outputs[0].type
        result = add.outputs[0]
    replace(cut, result)


def _columns(
    graph: ir.Graph, value: ir.Value, values: npt.NDArray[Any], columns: slice
) -> ir.Value:
    """A part of a constant's last axis; products that share the constant share the part."""
    name = f"{value.name}.{columns.start}-{columns.stop}"
    found = graph.initializers.get(name)
    part = np.ascontiguousarray(values[..., columns])
    return initializer(graph, name, part) if found is None else found
