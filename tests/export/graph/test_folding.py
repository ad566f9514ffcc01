"""Constants that are folded; the results stay the same."""

from typing import Any

import numpy as np
from edgediff_export.graph.folding import fold_constants


def test_arithmetic_on_fixed_dimensions_is_folded(net: Any, assert_unchanged: Any) -> None:
    x = net.input("x", ("b", 6, "h"))
    size = net.op("Gather", net.op("Shape", x), [1], axis=0)
    half = net.op("Div", size, [2])
    root = net.op("Sqrt", net.op("Cast", half, to=1))
    cut = net.op("Slice", x, [0], half, [1])
    model = net.model(net.op("Mul", cut, root))
    assert_unchanged(model, fold_constants)
    assert [n.op_type for n in model.graph] == ["Slice", "Mul"]


def test_arithmetic_on_free_dimensions_is_not_folded(net: Any, assert_unchanged: Any) -> None:
    x = net.input("x", ("b", 6, "h"))
    height = net.op("Gather", net.op("Shape", x), [2], axis=0)
    model = net.model(net.op("Reshape", x, net.op("Concat", [-1, 2], height, axis=0)))
    assert_unchanged(model, fold_constants, h=5)
    assert len(model.graph) == 4


def test_a_row_of_a_table_is_not_one_number(net: Any, assert_unchanged: Any) -> None:
    row = net.op("Gather", np.arange(12.0).reshape(4, 3), 2, axis=0)
    assert_unchanged(net.model(net.op("Add", net.input("x", ("b", 3)), row)), fold_constants)


def test_whole_numbers_are_folded_by_any_operator(net: Any, assert_unchanged: Any) -> None:
    pads = net.op("Transpose", net.op("Reshape", net.constant([0, 1, 0, 2], np.int64), [2, 2]))
    model = net.model(net.op("Pad", net.input("x", ("b", 3)), net.op("Reshape", pads, [-1])))
    assert_unchanged(model, fold_constants)
    assert [n.op_type for n in model.graph] == ["Pad"]


def test_weights_are_not_folded(net: Any, assert_unchanged: Any) -> None:
    whole = net.constant(np.arange(100), np.int64)
    table = net.op("Cast", net.op("Neg", whole), to=1)
    halves = net.op("Mul", net.weight(100, 2), 0.5)
    y = net.op(
        "Add", net.op("MatMul", net.input("x", ("b", 100)), halves), net.op("ReduceMax", table)
    )
    model = net.model(y)
    before = len(model.graph)
    assert_unchanged(model, fold_constants)
    assert len(model.graph) == before
