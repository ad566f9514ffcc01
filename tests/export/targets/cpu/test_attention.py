"""Attention that is fused, and lookalikes that are not."""

from typing import Any

import numpy as np
import pytest
from edgediff_export.targets.cpu.attention import fuse_attention

HEADS, SIZE = 2, 6
WIDTH = HEADS * SIZE


def projections(net: Any, tokens: Any = "s", context: Any = "t") -> tuple[Any, Any, Any]:
    x = net.input("x", ("b", tokens, WIDTH))
    y = net.input("y", ("b", context, 10))
    return (
        net.op("MatMul", x, net.weight(WIDTH, WIDTH)),
        net.op("MatMul", y, net.weight(10, WIDTH)),
        net.op("MatMul", y, net.weight(10, WIDTH)),
    )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("tokens", "context"), [(64, 77), (15, 1), (1, 5)])
@pytest.mark.parametrize("scale", [SIZE**-0.5, 0.3])
def test_cross_attention_is_fused(
    batch: int, tokens: int, context: int, scale: float, net: Any, assert_unchanged: Any, ops: Any
) -> None:
    model = net.model(net.attention(*projections(net), HEADS, SIZE, scale=scale))
    assert_unchanged(model, fuse_attention, b=batch, s=tokens, t=context)
    (fused,) = ops(model, "MultiHeadAttention")
    assert fused.attributes.get_int("num_heads") == HEADS
    assert fused.attributes.get_float("scale") == pytest.approx(scale)
    assert not ops(model, "Softmax") + ops(model, "Transpose") + ops(model, "Mul")


def test_every_attention_is_counted(net: Any, assert_unchanged: Any) -> None:
    x = net.input("x", ("b", "s", WIDTH))
    once = net.attention(x, x, x, HEADS, SIZE)
    model = net.model(net.op("Add", net.attention(once, x, once, HEADS, SIZE), x))
    counts = []
    assert_unchanged(model, lambda m: counts.append(fuse_attention(m)))
    assert counts == [2]


def test_a_scale_on_one_side_or_none(net: Any, assert_unchanged: Any, ops: Any) -> None:
    q, k, v = projections(net)
    cut = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    outputs = []
    for scales in ({}, {"q": 0.4}, {"k": 0.4}):
        parts = {}
        for name, value in zip("qkv", (q, k, v), strict=True):
            heads = net.op("Reshape", value, [0, -1, HEADS, SIZE])
            parts[name] = net.op("Transpose", heads, perm=cut[name])
            if name in scales:
                parts[name] = net.op("Mul", scales[name], parts[name])
        weights = net.op("Softmax", net.op("MatMul", parts["q"], parts["k"]), axis=-1)
        swapped = net.op("Transpose", net.op("MatMul", weights, parts["v"]), perm=[0, 2, 1, 3])
        outputs.append(net.op("Reshape", swapped, [0, -1, WIDTH]))
    model = net.model(*outputs)
    assert_unchanged(model, fuse_attention)
    assert len(ops(model, "MultiHeadAttention")) == 3


def attention(net: Any, case: str) -> Any:
    """An attention that differs from the fused operator in one thing."""
    x = net.input("x", (2, 6, WIDTH))
    y = net.input("y", (1, 6, WIDTH)) if case == "batches differ" else x
    shape = [0, -1, HEADS, SIZE]
    perm = [0, 2, 1, 3]
    if case == "tokens as batch":
        shape = [6, 2, HEADS, SIZE]
    if case == "heads inside":
        q, k, v = (net.op("Reshape", i, [0, -1, SIZE, HEADS]) for i in (x, y, y))
        q, v = (net.op("Transpose", i, perm=[0, 3, 1, 2]) for i in (q, v))
        k = net.op("Transpose", k, perm=[0, 3, 2, 1])
    else:
        q, k, v = (net.op("Reshape", i, shape) for i in (x, y, y))
        q, v = (net.op("Transpose", i, perm=perm) for i in (q, v))
        k = net.op("Transpose", k, perm=[0, 2, 3, 1])
    if case == "scale by head":
        q = net.op("Mul", q, np.array([0.2, 0.7]).reshape(1, HEADS, 1, 1))
    scores = net.op("MatMul", net.op("Mul", q, 0.0 if case == "scale of zero" else 0.5), k)
    if case == "mask":
        scores = net.op("Add", scores, np.triu(np.full((6, 6), -1e4), 1))
    weights = net.op("Softmax", scores, axis={"axis 2": 2, "axis -2": -2, "axis 1": 1}.get(case, 3))
    if case == "weights are read":
        return net.op("Reshape", net.op("MatMul", weights, v), [0, -1, WIDTH]), weights
    if case == "value first":
        weights, v = v, weights
        v = net.op("Transpose", v, perm=[0, 1, 3, 2])
        mixed = net.op("MatMul", net.op("Transpose", weights, perm=[0, 1, 3, 2]), v)
        return (net.op("Reshape", mixed, [0, -1, WIDTH]),)
    mixed = net.op("MatMul", weights, v)
    if case == "heads outside":
        return (net.op("Reshape", mixed, [0, -1, WIDTH]),)
    swapped = net.op("Transpose", mixed, perm=perm)
    joined = {"tokens joined": [-1, WIDTH], "width joined": [0, -1], "heads kept": [0, 0, -1, 3]}
    return (net.op("Reshape", swapped, joined.get(case, [0, -1, WIDTH])),)


@pytest.mark.parametrize(
    "case",
    [
        "mask", "axis 2", "axis -2", "axis 1", "scale by head", "weights are read", "value first",
        "heads outside", "heads inside", "tokens joined", "width joined", "heads kept",
        "tokens as batch", "batches differ",
    ],
)  # fmt: skip
def test_what_only_looks_like_attention_stays(
    case: str, net: Any, assert_unchanged: Any, ops: Any
) -> None:
    model = net.model(*attention(net, case))
    assert_unchanged(model, fuse_attention)
    assert len(ops(model, "Softmax")) == 1


def test_a_scale_of_zero_attends_to_all_alike(net: Any, assert_unchanged: Any) -> None:
    assert_unchanged(net.model(*attention(net, "scale of zero")), fuse_attention)
