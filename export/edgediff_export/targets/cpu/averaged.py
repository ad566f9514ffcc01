"""Averaged keys and values (token downsampling, Smith et al. 2024, arXiv:2402.13573): in the most
expensive self-attentions, each 2×2 neighbourhood of tokens is averaged before keys and values are
made of it. These attentions then cost a quarter; images change, so it is off unless asked for."""

import numpy as np
import onnx_ir as ir

from edgediff_export.graph.build import Builder, constant_of, dims
from edgediff_export.targets.cpu.group_norm import DOMAIN


def average_keys_and_values(model: ir.Model) -> int:
    """Average the source of the keys and values of the self-attentions at the highest resolution,
    in a restructured graph, in place. Returns the number of attentions changed."""
    found = [node for node in model.graph if _is_self_attention(node)]
    widths = {node: (dims(node.inputs[0]) or [0])[-1] or 0 for node in found}
    finest = min(widths.values(), default=0)  # the fewer channels, the higher the resolution
    changed = 0
    for node in found:
        tokens = _made_of(node.inputs[1])
        grid = _grid(tokens)
        if widths[node] != finest or tokens is None or grid is None:
            continue
        builder = Builder(model.graph, _first(node))
        averaged = _average(builder, tokens, grid)
        for value in node.inputs[1:3]:
            dense = None if value is None else value.producer()
            if dense is not None:
                dense.replace_input_with(0, averaged)
                dense.outputs[0].shape = None
        changed += 1
    if changed:
        model.graph.sort()
    return changed


def _is_self_attention(node: ir.Node) -> bool:
    if node.op_type != "MultiHeadAttention" or node.inputs[0] in node.inputs[1:3]:
        return False  # averaging the keys would average the queries as well
    sources = {_made_of(v) for v in node.inputs[:3]}
    return len(sources) == 1 and None not in sources


def _made_of(value: ir.Value | None) -> ir.Value | None:
    """The input of the linear layer that gives `value`."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Dense" or constant_of(node.inputs[1]) is None:
        return None
    return node.inputs[0]


def _first(node: ir.Node) -> ir.Node:
    """A node to insert before: the linear layer of the keys."""
    key = node.inputs[1]
    before = None if key is None else key.producer()
    return before or node


def _grid(tokens: ir.Value | None) -> ir.Value | None:
    """The value (b, h, w, c) that tokens (b, h·w, c) were laid out from, up the residual path."""
    seen: set[ir.Value] = set()
    pending = [tokens]
    while pending:
        value = pending.pop(0)
        node = None if value is None else value.producer()
        if value is None or node is None or value in seen:
            continue
        seen.add(value)
        if node.op_type == "Reshape":
            if len(dims(node.inputs[0]) or ()) == 4:
                return node.inputs[0]
        elif node.op_type in ("LayerNormalization", "Add") or (
            node.op_type == "Dense" and node.domain == DOMAIN
        ):
            pending += [v for v in node.inputs if v is not None and constant_of(v) is None]
    return None


def _average(builder: Builder, tokens: ir.Value, grid: ir.Value) -> ir.Value:
    """tokens (b, h·w, c) → (b, ⌈h/2⌉·⌈w/2⌉, c), an odd last row or column repeated."""
    channels = (dims(tokens) or [None])[-1] or 0
    shape = builder.op("Shape", [grid])

    def ints(*values: int) -> ir.Value:
        return builder.constant(list(values), np.int64)

    def at(axis: int) -> ir.Value:
        return builder.op("Gather", [shape, ints(axis)], {"axis": 0})

    # The grid may have other channels: a linear layer may come after it.
    sides = builder.op("Slice", [shape, ints(0), ints(3)])
    x = builder.op("Reshape", [tokens, builder.op("Concat", [sides, ints(channels)], {"axis": 0})])
    odd = [builder.op("Mod", [at(axis), ints(2)]) for axis in (1, 2)]
    zero = ints(0)
    pads = builder.op("Concat", [zero, zero, zero, zero, zero, *odd, zero], {"axis": 0})
    x = builder.op("Pad", [x, pads], {"mode": "edge"})
    whole = np.iinfo(np.int64).max
    corners = [
        builder.op("Slice", [x, ints(i, j), ints(whole, whole), ints(1, 2), ints(2, 2)])
        for i in (0, 1)
        for j in (0, 1)
    ]
    rows = [builder.op("Add", corners[:2]), builder.op("Add", corners[2:])]
    mean = builder.op("Mul", [builder.op("Add", rows), builder.constant(0.25, np.float32)])
    out = builder.op("Reshape", [mean, ints(0, -1, channels)])
    out.type, out.shape = tokens.type, ir.Shape([None, None, channels])
    return out
