"""Neutral operations that go, and products that are split; the results stay the same."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.graph.folding import fold_constants
from edgediff_export.targets.cpu.simplify import simplify, split_products

LAST = 2**63 - 1


@pytest.mark.parametrize(
    ("op_type", "neutral", "first"),
    [
        ("Mul", 1.0, False), ("Mul", 1.0, True), ("Mul", [1.0], False), ("Mul", [[[1.0]]], True),
        ("Div", 1.0, False), ("Add", 0.0, False), ("Add", [0.0], True), ("Sub", 0.0, False),
    ],
)  # fmt: skip
def test_neutral_operations_go(
    op_type: str, neutral: Any, first: bool, net: Any, assert_unchanged: Any
) -> None:
    x = net.op("Abs", net.input("x", ("b", 4, 3)))
    y = net.op(op_type, neutral, x) if first else net.op(op_type, x, neutral)
    model = net.model(net.op("Neg", y))
    assert_unchanged(model, simplify)
    assert [n.op_type for n in model.graph] == ["Abs", "Neg"]


@pytest.mark.parametrize(
    ("op_type", "other", "first"),
    [
        ("Div", 1.0, True), ("Sub", 0.0, True), ("Mul", 0.0, False), ("Add", 1.0, False),
        ("Mul", [1.0, 1.0, 1.0], False), ("Mul", [[[[1.0]]]], False), ("Add", [[[[0.0]]]], True),
        ("Mul", [[[1.0]], [[1.0]]], False),
    ],
)  # fmt: skip
def test_other_operations_stay(
    op_type: str, other: Any, first: bool, net: Any, assert_unchanged: Any
) -> None:
    x = net.op("Abs", net.input("x", ("b", 1, 3)))
    y = net.op(op_type, other, x) if first else net.op(op_type, x, other)
    model = net.model(net.op("Neg", y))
    assert_unchanged(model, simplify)
    assert [n.op_type for n in model.graph] == ["Abs", op_type, "Neg"]


def fold_and_simplify(model: ir.Model) -> None:
    fold_constants(model)
    simplify(model)


@pytest.mark.parametrize(
    ("op_type", "a", "b"),
    [("Mul", 5.0, 1.0), ("Mul", 1.0, 5.0), ("Div", [3.0, 2.0], 1.0), ("Add", [[2.0, 3.0]], 0.0)],
)
def test_two_constants_give_the_right_one(
    op_type: str, a: Any, b: Any, net: Any, assert_unchanged: Any
) -> None:
    x = net.input("x", ("b", 2))
    model = net.model(net.op("Add", x, net.op(op_type, a, b)))
    assert_unchanged(model, fold_and_simplify)
    assert [n.op_type for n in model.graph] == ["Add"]


def test_a_neutral_operation_that_is_an_output_stays(net: Any, assert_unchanged: Any) -> None:
    assert_unchanged(net.model(net.op("Mul", net.input("x", ("b", 2)), 1.0)), simplify)


def timestep_embedding(net: Any, n: int = 4, axis: int = -1) -> tuple[ir.Value, ir.Value]:
    """As in diffusers with flip_sin_to_cos: (angles, [sin, cos])."""
    angles = net.op("Mul", net.input("t", ("b", 1)), np.linspace(0.1, 1, n)[None])
    both = net.op("Concat", net.op("Sin", angles), net.op("Cos", angles), axis=axis)
    return angles, both


@pytest.mark.parametrize("stop", [LAST, 8])
def test_sine_and_cosine_are_joined_in_the_end_order(
    stop: int, net: Any, assert_unchanged: Any
) -> None:
    _, both = timestep_embedding(net)
    swapped = (net.op("Slice", both, [4], [stop], [-1]), net.op("Slice", both, [0], [4], [-1]))
    model = net.model(net.op("Neg", net.op("Concat", *swapped, axis=-1)))
    assert_unchanged(model, simplify)
    assert [n.op_type for n in model.graph] == ["Mul", "Sin", "Cos", "Concat", "Neg"]


@pytest.mark.parametrize(
    ("sizes", "axis", "first", "last"),
    [
        ((4, 12), 1, ([4], [8], [1]), ([0], [4], [1])),  # a part of the second
        ((4, 4), 1, ([3], [8], [1]), ([0], [3], [1])),  # not at their joint
        ((4, 4), 1, ([4], [8], [1]), ([1], [4], [1])),
        ((4, 4), 1, ([4], [8], [1], [2]), ([0], [4], [1])),  # every second
        ((4, 4), 0, ([4], [99], [0]), ([0], [4], [0])),  # along another axis
    ],
)
def test_other_cuts_of_what_was_joined_stay(
    sizes: tuple[int, int], axis: int, first: Any, last: Any, net: Any, assert_unchanged: Any
) -> None:
    rows = 6
    dims = [(rows, n) if axis == 1 else (rows, 4) for n in sizes]
    a, b = (net.input(name, d) for name, d in zip("ab", dims, strict=True))
    both = net.op("Concat", a, b, axis=axis)
    swapped = [net.op("Slice", both, *cut) for cut in (first, last)]
    assert_unchanged(net.model(net.op("Concat", *swapped, axis=axis)), simplify)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("cut", [8, 3])
def test_a_geglu_becomes_two_products(
    biased: bool, cut: int, net: Any, assert_unchanged: Any, ops: Any
) -> None:
    x = net.input("x", ("b", "s", 5))
    whole = net.linear(x, 5, 16) if biased else net.op("MatMul", x, net.weight(5, 16))
    value = net.op("Slice", whole, [0], [cut], [-1])
    gate = net.op("Slice", whole, [cut], [LAST], [2])
    model = net.model(net.op("Tanh", value), net.op("Erf", gate))
    assert_unchanged(model, split_products)
    assert len(ops(model, "MatMul")) == 2
    assert not ops(model, "Slice")
    assert sum(v.shape.numpy()[-1] for v in model.graph.initializers.values()) == 16 * (1 + biased)


def test_pieces_may_overlap_or_be_the_same(net: Any, assert_unchanged: Any) -> None:
    whole = net.linear(net.input("x", ("b", "s", 5)), 5, 8)
    cuts = [net.op("Slice", whole, [a], [b], [-1]) for a, b in [(0, 4), (2, 8), (0, 4)]]
    assert_unchanged(net.model(*(net.op("Neg", c) for c in cuts)), split_products)


def test_products_that_share_a_weight_are_split(net: Any, assert_unchanged: Any) -> None:
    weight, bias = net.weight(5, 8), net.weight(8)
    outputs = []
    for name in "xy":
        whole = net.op("Add", bias, net.op("MatMul", net.input(name, ("b", "s", 5)), weight))
        outputs += [net.op("Slice", whole, [a], [a + 4], [-1]) for a in (0, 4)]
    assert_unchanged(net.model(*outputs), split_products)


@pytest.mark.parametrize(
    "case", ["output", "other reader", "other axis", "step", "negative", "one cut", "residual"]
)
def test_other_products_stay_whole(case: str, net: Any, assert_unchanged: Any, ops: Any) -> None:
    x = net.input("x", ("b", 8, 8))
    whole = net.linear(x, 8, 8)
    whole = net.op("Add", whole, x) if case == "residual" else whole
    bounds = {
        "other axis": [([0], [4], [1]), ([4], [8], [1])],
        "step": [([0], [8], [2], [2]), ([1], [8], [2], [2])],
        "negative": [([0], [-4], [2]), ([-4], [8], [2])],
        "one cut": [([0], [4], [2])],
    }
    cuts = bounds.get(case, [([0], [4], [2]), ([4], [8], [2])])
    outputs = [net.op("Slice", whole, *cut) for cut in cuts]
    outputs += [whole] if case == "output" else []
    outputs += [net.op("Neg", whole)] if case == "other reader" else []
    model = net.model(*outputs)
    assert_unchanged(model, split_products)
    assert len(ops(model, "MatMul")) == 1
