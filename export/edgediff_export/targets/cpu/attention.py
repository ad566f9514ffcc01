"""Attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2) → the fused operator, whose CPU
kernel never holds the whole matrix of scores (Dao et al. 2022, arXiv:2205.14135)."""

from dataclasses import dataclass

import onnx_ir as ir

from edgediff_export.graph.build import (
    Builder,
    dims,
    keeps_batch,
    only_user,
    producer,
    replace,
    scalar,
    sweep,
)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """softmax(scale · q kᵀ) v by heads. q (b, s, heads·d), k and v (b, t, heads·d) before they are
    cut into heads; `node` gives the heads joined again, (b, s, heads·d)."""

    node: ir.Node
    q: ir.Value
    k: ir.Value
    v: ir.Value
    heads: int
    scale: float


def fuse_attention(model: ir.Model) -> int:
    """Replace every unmasked attention by MultiHeadAttention; return how many there were."""
    graph = model.graph
    found = [a for node in list(graph) if (a := match_attention(node)) is not None]
    for a in found:
        builder = Builder(graph, a.node)
        fused = builder.op(
            "MultiHeadAttention",
            [a.q, a.k, a.v],
            {"num_heads": a.heads, "scale": a.scale},
            domain="com.microsoft",
        )
        replace(a.node, fused)
    if found:
        graph.opset_imports["com.microsoft"] = 1
    sweep(graph)
    return len(found)


def match_attention(node: ir.Node) -> Attention | None:
    """The attention whose softmax `node` is, or None."""
    if node.op_type != "Softmax" or node.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    scores = producer(node.inputs[0], "MatMul")
    mixed = only_user(node.outputs[0], "MatMul")
    if scores is None or mixed is None or mixed.inputs[0] is not node.outputs[0]:
        return None
    swapped = only_user(mixed.outputs[0], "Transpose")
    if swapped is None or _perm(swapped) != (0, 2, 1, 3):
        return None
    joined = only_user(swapped.outputs[0], "Reshape")
    q, q_scale = _unscaled(scores.inputs[0])
    k, k_scale = _unscaled(scores.inputs[1])
    parts = [
        _before_heads(q, (0, 2, 1, 3)),
        _before_heads(k, (0, 2, 3, 1)),
        _before_heads(mixed.inputs[1], (0, 2, 1, 3)),
    ]
    if joined is None or q_scale is None or k_scale is None or any(p is None for p in parts):
        return None
    (q3, heads), (k3, k_heads), (v3, v_heads) = (p for p in parts if p is not None)
    before, after = dims(q3), dims(joined.outputs[0])
    # Products broadcast over the batch and the fused operator does not.
    outer = [[(dims(x) or [None])[i] for x in (q3, k3, v3)] for i in (0, -1)]
    if len({heads, k_heads, v_heads}) != 1 or any(len(set(o)) != 1 for o in outer):
        return None
    if before is None or after is None or len(after) != 3 or not keeps_batch(joined):
        return None
    scale = q_scale * k_scale
    if after[2] not in (None, before[2]) or scale == 0:  # 0 is the operator's word for 1/√d
        return None
    return Attention(node=joined, q=q3, k=k3, v=v3, heads=heads, scale=scale)


def _unscaled(value: ir.Value | None) -> tuple[ir.Value | None, float | None]:
    """x·s → (x, s); s is None if it is not a constant."""
    scale = 1.0
    while (node := producer(value, "Mul")) is not None:
        factors = [scalar(v) for v in node.inputs]
        at = next((i for i, f in enumerate(factors) if f is not None), None)
        if at is None:
            return value, None
        scale *= factors[at] or 0.0
        value = node.inputs[1 - at]
    return value, scale


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints("perm") or ())


def _before_heads(value: ir.Value | None, perm: tuple[int, ...]) -> tuple[ir.Value, int] | None:
    """The value (b, s, c) before a Reshape to (b, s, heads, d) and a Transpose by `perm`; heads."""
    swapped = producer(value, "Transpose")
    if swapped is None or _perm(swapped) != perm:
        return None
    cut = producer(swapped.inputs[0], "Reshape")
    x = None if cut is None else cut.inputs[0]
    if cut is None or x is None:
        return None
    before, after = dims(x), dims(cut.outputs[0])
    if before is None or after is None or len(before) != 3 or len(after) != 4:
        return None
    if not keeps_batch(cut):
        return None
    width = before[2]
    heads, size = after[2], after[3]
    if width is None:
        return None
    if heads is None and size:
        heads = width // size
    if not heads or width % heads or (size is not None and size * heads != width):
        return None
    return x, heads
