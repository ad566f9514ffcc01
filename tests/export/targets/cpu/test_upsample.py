"""Upsampling merged into the convolution after it: the same result, or no merge."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.targets.cpu.dense import Range
from edgediff_export.targets.cpu.passes import Choices, layers, restructure, write_out
from edgediff_export.targets.cpu.upsample import merge_upsampling

NEAREST = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
DOUBLE = np.array([1.0, 1.0, 2.0, 2.0])
SIZES = [(1, 1), (3, 5), (8, 8)]


def doubled(net: Any, x: ir.Value, **how: Any) -> ir.Value:
    return net.op("Resize", x, None, DOUBLE, **{**NEAREST, **how})


def plain(net: Any, *, bias: bool = True) -> ir.Model:
    """conv → ×2 → conv → + 1."""
    y = doubled(net, net.conv(net.input("x", ("b", 3, "h", "w")), (3, 12)))
    if bias:
        y = net.conv(y, (12, 10))
    else:
        y = net.op("Conv", y, net.weight(10, 12, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)
    return net.model(net.op("Add", y, 1.0))


def merged(model: ir.Model) -> int:
    restructure(model)
    return merge_upsampling(model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_float_results_are_unchanged(
    h: int, w: int, bias: bool, net: Any, assert_unchanged: Any, ops: Any
) -> None:
    model = plain(net, bias=bias)

    def change(model: ir.Model) -> None:
        assert merged(model) == 1
        assert not ops(model, "Resize")
        assert [layer.kernel for layer in layers(model)] == [(3, 3), *[(2, 2)] * 4]
        write_out(model, Choices())

    assert_unchanged(model, change, 1e-5, b=2, h=h, w=w)


def test_one_after_another(net: Any, assert_unchanged: Any) -> None:
    y = net.conv(net.input("x", ("b", 3, "h", "w")), (3, 8))
    for _ in range(3):
        y = net.conv(doubled(net, y), (8, 8))
    model = net.model(net.silu(y))

    def change(model: ir.Model) -> None:
        assert merged(model) == 3
        write_out(model, Choices())

    assert_unchanged(model, change, 1e-5, b=2, h=3, w=2)


def test_convolutions_may_share_a_weight(net: Any, assert_unchanged: Any) -> None:
    weight, bias = net.weight(8, 8, 3, 3), net.weight(8)
    y = net.conv(net.input("x", ("b", 3, "h", "w")), (3, 8))
    for _ in range(2):
        y = net.op("Conv", doubled(net, y), weight, bias, kernel_shape=[3, 3], pads=[1] * 4)
    model = net.model(net.silu(y))

    def change(model: ir.Model) -> None:
        assert merged(model) == 2
        write_out(model, Choices())

    assert_unchanged(model, change, 1e-5, b=2, h=3, w=2)


@pytest.mark.parametrize("kernel", ["gather", "direct"])
@pytest.mark.parametrize(("h", "w"), SIZES)
def test_int8_keeps_near(
    h: int, w: int, kernel: Any, net: Any, example: Any, run: Any, assert_close: Any, ops: Any
) -> None:
    model = plain(net)
    inputs = example(model, b=2, h=h, w=w)
    expected = run(model, inputs)
    merged(model)
    names = [layer.name for layer in layers(model)]
    assert len(set(names)) == 5
    ranges = dict.fromkeys(names, Range(low=-4, high=4, output=np.full(10, 8, np.float32)))
    ranges[names[0]] = Range(low=-4, high=4, output=np.full(12, 8, np.float32))
    choices = Choices(formats=dict.fromkeys(names, "int8"), kernel=lambda _: kernel, ranges=ranges)
    write_out(model, choices)
    assert len(ops(model, "QLinearConv")) == (5 if kernel == "direct" else 0)
    assert_close(run(model, inputs), expected, 0.05 if kernel == "direct" else 0.025)


def two_readers(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    y = doubled(net, x)
    return net.conv(y, (8, 4)), net.conv(y, (8, 6))


def given_as_well(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    y = doubled(net, x)
    return net.conv(y, (8, 4)), y


def to_a_size(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    shape = net.op("Shape", x)
    ends = [net.op("Gather", shape, np.array([i])) for i in range(4)]
    sizes = [ends[0], ends[1], net.op("Mul", ends[2], [2]), net.op("Mul", ends[3], [2])]
    whole = net.op("Concat", *sizes, axis=0)
    return (net.conv(net.op("Resize", x, None, None, whole, **NEAREST), (8, 4)),)


def resized(**how: Any) -> Any:
    return lambda net, x: (net.conv(doubled(net, x, **how), (8, 4)),)


def scaled(*scales: float) -> Any:
    return lambda net, x: (
        net.conv(net.op("Resize", x, None, np.array(scales, np.float32), **NEAREST), (8, 4)),
    )


def convolved(kernel: int = 3, **how: Any) -> Any:
    return lambda net, x: (net.conv(doubled(net, x), (8, 4), kernel, **how),)


@pytest.mark.parametrize(
    "rest",
    [
        two_readers,
        given_as_well,
        to_a_size,
        scaled(1, 1, 3, 3),
        scaled(1, 1, 2, 1),
        scaled(1, 1, 4, 4),
        scaled(1, 1, 1.5, 2),
        resized(mode="linear"),
        resized(coordinate_transformation_mode="align_corners"),
        resized(nearest_mode="ceil"),
        convolved(strides=[2, 2]),
        convolved(pads=[0, 0, 0, 0]),
        convolved(pads=[1, 1, 0, 0]),
        convolved(pads=[2, 2, 2, 2]),
        convolved(1),
        convolved(5),
    ],
)
def test_anything_else_stays(rest: Any, net: Any, assert_unchanged: Any, ops: Any) -> None:
    x = net.conv(net.input("x", ("b", 3, "h", "w")), (3, 8))
    model = net.model(*[net.op("Abs", y) for y in rest(net, x)])

    def change(model: ir.Model) -> None:
        assert merged(model) == 0
        assert ops(model, "Resize")
        write_out(model, Choices())

    assert_unchanged(model, change, 1e-5)


def test_a_result_that_is_given_out(net: Any, assert_unchanged: Any) -> None:
    x = net.conv(net.input("x", ("b", 3, "h", "w")), (3, 8))
    model = net.model(net.conv(doubled(net, x), (8, 4)))

    def change(model: ir.Model) -> None:
        assert merged(model) == 1
        write_out(model, Choices())

    assert_unchanged(model, change, 1e-5, b=1, h=3, w=2)
