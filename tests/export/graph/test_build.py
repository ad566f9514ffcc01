"""Facts about a value that are known before anything runs, and exchanged nodes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.graph.build import Builder, dims, elements, replace, scalar, sweep

NUMBERS = [3, -7, 2]


def node(op_type: str, *inputs: Any, **attributes: Any) -> Callable[[Any], ir.Value]:
    return lambda net: net.op(op_type, *inputs, **attributes)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (node("Add", NUMBERS, 1), [4, -6, 3]),
        (node("Sub", 1, NUMBERS), [-2, 8, -1]),
        (node("Mul", NUMBERS, NUMBERS), [9, 49, 4]),
        (node("Div", NUMBERS, 2), [1, -3, 1]),
        (node("Div", [3.0, 1.0], 2.0), [1.5, 0.5]),
        (node("Sqrt", [4.0, 9.0]), [2.0, 3.0]),
        (node("Gather", NUMBERS, [2, -3], axis=0), [2, 3]),
        (node("Slice", NUMBERS, [1], [3], [0]), [-7, 2]),
        (node("Slice", NUMBERS, [2], [-10], [0], [-2]), [2, 3]),
        (node("Slice", NUMBERS, [-2], [2**63 - 1]), [-7, 2]),
        (node("Concat", NUMBERS, [1], axis=0), [3, -7, 2, 1]),
        (node("Unsqueeze", NUMBERS, [0]), NUMBERS),
        (node("Squeeze", [[3], [4]], [1]), [3, 4]),
        (node("Cast", [2.9, -2.9], to=7), [2, -2]),
        (node("Cast", NUMBERS, to=1), [3.0, -7.0, 2.0]),
    ],
)
def test_elements_are_what_onnxruntime_computes(
    make: Callable[[Any], ir.Value], expected: list[float], net: Any, run: Any
) -> None:
    value = make(net)
    model = net.model(value)
    assert elements(value) == expected
    assert run(model, {})[0].reshape(-1).tolist() == expected


@pytest.mark.parametrize(
    "make",
    [
        node("Div", NUMBERS, [1, 0, 2]),
        node("Gather", [[1, 2], [3, 4], [5, 6]], 1, axis=0),
        node("Gather", [[1, 2], [3, 4], [5, 6]], [1], axis=1),
        node("Slice", [[1, 2], [3, 4], [5, 6]], [1], [2], [1]),
        node("Slice", [[1, 2], [3, 4], [5, 6]], [1], [2], [0]),
        node("Concat", [[1], [2]], [[3], [4]], axis=1),
        node("Add", [[1], [2]], [[3, 4]]),
        node("Add", [[1, 2], [3, 4]], [5, 6]),
        node("Sqrt", [-1.0]),
        node("Cast", [0.0, 3.0], to=9),
        node("Cast", [float("inf")], to=7),
        node("TopK", NUMBERS, [2], outputs=2),
        node("Concat", np.zeros(65), axis=0),
    ],
)
def test_elements_are_right_or_unknown(make: Callable[[Any], Any], net: Any, run: Any) -> None:
    made = make(net)
    value = made if isinstance(made, ir.Value) else made[0]
    model = net.model(value)
    known = elements(value)
    if known is not None and None not in known:
        assert known == run(model, {})[0].reshape(-1).tolist()


def test_elements_of_a_shape_are_the_fixed_dimensions(net: Any) -> None:
    shape = net.op("Shape", net.input("x", ("b", 4, "h", 8)))
    picked, doubled = net.op("Gather", shape, [1, 3], axis=0), net.op("Mul", shape, 2)
    batch = net.op("Gather", shape, [0], axis=0)
    net.model(picked, doubled, batch)
    assert elements(shape) == [None, 4, None, 8]
    assert elements(picked) == [4, 8]
    assert elements(doubled) == [None, 8, None, 16]
    assert scalar(batch) is None


@pytest.mark.parametrize("bounds", [{"start": 1, "end": 3}, {"start": -1}, {"end": 2}])
def test_elements_of_a_part_of_a_shape(bounds: dict[str, int], net: Any, run: Any) -> None:
    shape = net.op("Shape", net.input("x", (2, 3, 4, 5)), **bounds)
    model = net.model(shape)
    expected = run(model, {"x": np.zeros((2, 3, 4, 5), np.float32)})[0].tolist()
    assert elements(shape) == expected


def test_elements_of_inputs_are_unknown(net: Any) -> None:
    x = net.input("x", (1,), ir.DataType.INT64)
    more = net.op("Add", x, [1])
    net.model(more)
    assert elements(x) is None
    assert elements(more) is None
    assert elements(None) is None


def test_dims_of_reshapes_and_transposes(net: Any) -> None:
    x = net.input("x", ("b", 8, "h", "w"))
    tokens = net.op("Reshape", x, [0, 2, 4, -1])
    swapped = net.op("Transpose", tokens, perm=[0, 3, 1, 2])
    net.model(swapped)
    assert dims(x) == [None, 8, None, None]
    tokens.shape = swapped.shape = None  # as after a pass that infers no shapes
    assert dims(tokens) == [None, 2, 4, None]
    assert dims(swapped) == [None, None, 2, 4]
    assert dims(None) is None


def test_a_replaced_output_keeps_its_name_and_shape(net: Any, run: Any) -> None:
    x = net.input("x", (2, 3))
    model = net.model(net.op("Neg", net.op("Abs", x)))
    (out,) = model.graph.outputs
    name, shape = out.name, out.shape
    last = out.producer()
    replace(last, Builder(model.graph, last).op("Exp", [x]))
    sweep(model.graph)
    assert [n.op_type for n in model.graph] == ["Exp"]
    assert (model.graph.outputs[0].name, model.graph.outputs[0].shape) == (name, shape)
    x = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(run(model, {"x": x})[0], np.ones((2, 3), np.float32))


def test_equal_constants_are_shared_and_others_are_not(net: Any) -> None:
    model = net.model(net.op("Abs", net.input("x", (1,))))
    builder = Builder(model.graph, model.graph[0])
    one = builder.constant([1], np.int64)
    assert builder.constant([1], np.int64) is one
    others = [
        builder.constant(v, d) for v, d in [(1, np.int64), ([1], np.float32), ([2], np.int64)]
    ]
    assert len({id(v) for v in [one, *others]}) == 4


def test_what_nothing_reads_is_swept_away(net: Any) -> None:
    x = net.input("x", ("b", 4))
    net.linear(net.op("Abs", x), 4, 3)
    model = net.model(net.op("Neg", x))
    sweep(model.graph)
    assert [n.op_type for n in model.graph] == ["Neg"]
    assert not model.graph.initializers
