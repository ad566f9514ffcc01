"""Channels last: values that move, nodes that read copies, and results that stay."""

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.targets.cpu.layout import attach_biases, channels_last
from edgediff_export.targets.cpu.passes import layers, restructure


def between(model: ir.Model) -> list[str | None]:
    """The Transposes that neither read an input nor give an output."""
    return [
        n.name
        for n in model.graph
        if n.op_type == "Transpose"
        and not n.inputs[0].is_graph_input()
        and not n.outputs[0].is_graph_output()
    ]


def restructured(model: ir.Model) -> ir.Model:
    copy = model.clone()
    restructure(copy)
    return copy


def image(net: Any, channels: int = 4) -> ir.Value:
    """A convolution's result, which moves."""
    return net.conv(net.input("x", ("b", 4, "h", "w")), (4, channels), 3)


@pytest.mark.parametrize("size", [(8, 8), (8, 24), (5, 7)])
@pytest.mark.parametrize(
    ("kernel", "strides", "pads"),
    [
        (1, [1, 1], [0, 0, 0, 0]),
        (1, [2, 2], [0, 0, 0, 0]),
        (3, [1, 1], [1, 1, 1, 1]),
        (3, [2, 2], [1, 1, 1, 1]),
        (3, [2, 2], [0, 0, 1, 1]),
        (3, [1, 2], [0, 2, 1, 0]),
        (2, [2, 1], [1, 0, 0, 0]),
        (5, [1, 1], [0, 0, 0, 0]),
    ],
)
def test_convolutions(
    kernel: int, strides: list[int], pads: list[int], size: tuple[int, int], net: Any,
    assert_unchanged: Any, lower: Any,
) -> None:  # fmt: skip
    x = net.input("x", ("b", 4, "h", "w"))
    y = net.conv(x, (4, 12), kernel, strides=strides, pads=pads)
    model = net.model(net.conv(net.silu(y), (12, 4), 1))
    assert not between(restructured(model))
    assert_unchanged(model, lower, h=size[0], w=size[1])


def test_a_block_moves_as_a_whole(net: Any, assert_unchanged: Any, lower: Any) -> None:
    """Norm, activation, time embedding, skip connection, up- and downsampling, padding."""
    y = image(net, 8)
    time = net.linear(net.input("time", ("b", 6)), 6, 8)
    y = net.op("Add", net.conv(net.silu(net.group_norm(y, 8, 4)), (8, 8)),
               net.op("Unsqueeze", net.op("Unsqueeze", time, [2]), [3]))  # fmt: skip
    down = net.conv(y, (8, 8), strides=[2, 2])
    up = net.op("Resize", down, None, np.array([1.0, 1, 2, 2]), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    model = net.model(net.conv(net.op("Concat", up, y, axis=1), (16, 4)))
    moved = restructured(model)
    assert len(between(moved)) == 1  # the time embedding, a number for each channel
    assert len(layers(moved)) == 5
    assert_unchanged(model, lower, h=8, w=24)


def test_a_transformer_moves_as_a_whole(net: Any, assert_unchanged: Any, lower: Any) -> None:
    """Convolution → tokens → attention → convolution, as in diffusers' Transformer2DModel."""
    y = image(net, 8)
    shape = net.op("Shape", y)
    tokens = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 3, 1]), [0, -1, 8])
    q, k, v = (net.op("MatMul", tokens, net.weight(8, 8)) for _ in range(3))
    tokens = net.op("Add", net.linear(net.attention(q, k, v, 2, 4), 8, 8), tokens)
    order = net.op("Gather", shape, [0, 2, 3], axis=0)
    back = net.op("Reshape", tokens, net.op("Concat", order, [8], axis=0))
    back = net.op("Transpose", back, perm=[0, 3, 1, 2])
    model = net.model(net.conv(net.op("Add", back, y), (8, 4), 1))
    assert not between(restructured(model))
    assert_unchanged(model, lower, h=8, w=24)


@pytest.mark.parametrize("shape", [[0, 8, 4, 6], [0, 0, 4, 6], [0, 8, 0, 1], [-1, 8, 4, 6]])
def test_tokens_become_an_image_again(
    shape: list[int], net: Any, assert_unchanged: Any, lower: Any
) -> None:
    tokens = net.op("Reshape", image(net, 8), [0, 8, -1])
    tokens = net.group_norm(tokens, 8, 2, rank=3)
    model = net.model(net.conv(net.op("Reshape", tokens, shape), (8, 4)))
    assert_unchanged(model, lower, h=4, w=6)


@pytest.mark.parametrize(
    ("shape", "batch"),
    [
        ([-1], 2), ([0, -1], 2), ([1, 8, -1], 2), ([-1, 8, 4], 2), ([0, 4, 2, -1], 2),
        ([0, 2, 4, 4, 6], 2), ([-1, 8, 2, 6], 2), ([0, 8, 6, 4], 2), ([1, 8, -1], 1),
    ],
)  # fmt: skip
def test_any_reshape(
    shape: list[int], batch: int, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    y = net.op("Relu", image(net, 8))
    assert_unchanged(net.model(net.op("Reshape", y, shape)), lower, b=batch, h=4, w=6)


@pytest.mark.parametrize(
    "how",
    [
        {
            "mode": "nearest",
            "coordinate_transformation_mode": "asymmetric",
            "nearest_mode": "floor",
        },
        {"mode": "nearest"},
        {"mode": "linear"},
        {"mode": "linear", "antialias": 1},
        {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
    ],
)
@pytest.mark.parametrize("by", ["scales", "sizes", "shape", "axes"])
def test_any_resize(by: str, how: Any, net: Any, assert_unchanged: Any, lower: Any) -> None:
    y = image(net, 4)
    if by == "scales":
        y = net.op("Resize", y, None, np.array([1.0, 1, 2, 1.5]), **how)
    elif by == "axes":
        y = net.op("Resize", y, None, np.array([2.0, 2]), axes=[2, 3], **how)
    else:
        sizes: Any = [2, 4, 16, 9]
        if by == "shape":
            sizes = net.op("Mul", net.op("Shape", y), [1, 1, 2, 2])
        y = net.op("Resize", y, None, None, sizes, **how)
    assert_unchanged(net.model(net.conv(y, (4, 4))), lower)


def test_a_resize_of_a_region(net: Any, assert_unchanged: Any, lower: Any) -> None:
    y = net.op("Resize", image(net), np.array([0, 0, 0.2, 0.2, 1, 1, 0.9, 0.8]), None,
               [2, 4, 8, 8], coordinate_transformation_mode="tf_crop_and_resize",
               mode="linear")  # fmt: skip
    assert_unchanged(net.model(y), lower)


@pytest.mark.parametrize(
    "other",
    [
        2.0, [3.0], [[[[4.0]]]], (4, 1, 1), (1, 4, 1, 1), (6,), (8, 1), (4, 8, 6), (3, 1, 4, 1, 1),
        "h", "b", "image", "tokens",
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Div"])
def test_any_broadcast(
    op_type: str, other: Any, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    y = image(net)
    inputs = {
        "h": ("w",),
        "b": ("b", 1, 1, 1),
        "image": ("b", 4, "h", "w"),
        "tokens": (4, "h", "w"),
    }
    if isinstance(other, str):
        other = net.op("Exp", net.input("other", inputs[other]))
    elif isinstance(other, tuple):
        other = net.rng.random(other) + 0.5
    model = net.model(net.op(op_type, net.op("Exp", y), other), net.op("Sub", other, y))
    assert_unchanged(model, lower)


@pytest.mark.parametrize("bounds", [{}, {"start": 2}, {"start": 1, "end": -1}, {"end": 1}])
def test_shapes_are_those_of_channels_first(
    bounds: dict[str, int], net: Any, assert_unchanged: Any, lower: Any
) -> None:
    y = image(net, 6)
    assert_unchanged(net.model(net.op("Shape", y, **bounds), net.op("Abs", y)), lower)


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
def test_any_concat(axis: int, net: Any, assert_unchanged: Any, lower: Any) -> None:
    y = image(net)
    other = net.input("other", ("b", 4, "h", "w"))
    model = net.model(net.op("Concat", y, other, net.op("Neg", y), axis=axis))
    assert_unchanged(model, lower)


@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2), (1, 0, 2, 3), None])
@pytest.mark.parametrize("output", [True, False])
def test_any_transpose(
    perm: Any, output: bool, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    how = {} if perm is None else {"perm": perm}
    native = net.op("Transpose", net.input("native", ("b", 4, "h", "w")), **how)
    moved = net.op("Transpose", image(net), **how)
    ends = [native, moved] if output else [net.op("Abs", native), net.op("Abs", moved)]
    assert_unchanged(net.model(*ends), lower)


def test_transposes_that_undo_each_other(net: Any, assert_unchanged: Any, lower: Any) -> None:
    x = net.input("x", ("b", "h", "w", 4))
    first = net.op("Transpose", x, perm=[0, 3, 1, 2])
    model = net.model(net.op("Transpose", first, perm=[0, 2, 3, 1]), net.conv(first, (4, 4)))
    assert_unchanged(model, lower)


def test_one_result_given_twice(net: Any, assert_unchanged: Any, lower: Any) -> None:
    y = image(net)
    moved = [net.op("Transpose", y, perm=[0, 2, 3, 1]) for _ in range(2)]
    assert_unchanged(net.model(y, *moved, net.op("Abs", y)), lower)


def test_whole_numbers(net: Any, assert_unchanged: Any, lower: Any) -> None:
    x = net.input("x", ("b", "h", "w", 4), ir.DataType.INT64)
    y = net.op("Mul", net.op("Transpose", x, perm=[0, 3, 1, 2]), np.array([[[[3]]]]))
    assert_unchanged(net.model(net.op("Add", y, np.arange(4)[:, None, None])), lower)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (6,), (1, 6), (), (2, 1), (2, 6)], ids=str)
@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_any_gemm(
    form: str, bias: Any, transposed: int, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    weight = net.weight(6, 5) if transposed else net.weight(5, 6)
    shift = [] if bias is None else [net.rng.standard_normal(bias)]
    y = net.op("Gemm", net.input("x", ("b", 5)), weight, *shift, transB=transposed)
    assert_unchanged(
        net.model(y), lambda m: lower(m, form), tolerance=1e-4 if form == "fp32" else 0.03
    )


@pytest.mark.parametrize("how", [{"alpha": 2.0}, {"beta": 0.5}, {"transA": 1}])
def test_a_gemm_that_is_more_than_a_product(
    how: Any, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    y = net.op("Gemm", net.input("x", (5, 5)), net.weight(5, 6), net.weight(6), **how)
    assert_unchanged(net.model(y), lower)


@pytest.mark.parametrize("dims", [(5,), (3, 5), ("b", 3, 5), ("b", 2, 3, 5), ("b", 2, 2, 3, 5)])
@pytest.mark.parametrize("form", ["fp32", "int8", "int8-weights", "fp16"])
def test_products_of_any_rank(
    form: str, dims: Any, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    model = net.model(net.linear(net.input("x", dims), 5, 6))
    assert_unchanged(model, lambda m: lower(m, form), tolerance=1e-4 if form == "fp32" else 0.03)


@pytest.mark.parametrize("dtype", ["FLOAT16", "DOUBLE", "INT64"])
def test_products_of_other_types(dtype: str, net: Any, assert_unchanged: Any, lower: Any) -> None:
    kind = ir.DataType[dtype]
    weight = net.constant(np.arange(12).reshape(4, 3), kind.numpy())
    y = net.op("MatMul", net.input("x", (2, 4), kind), weight)
    assert_unchanged(net.model(y), lower, inputs={"x": np.ones((2, 4), kind.numpy())})


@pytest.mark.parametrize(
    ("bias", "attached"),
    [((6,), True), ((1, 6), False), ((1,), False), ((), False), ((3, 1), False)],
    ids=str,
)
def test_only_a_bias_is_attached(
    bias: Any, attached: bool, net: Any, assert_unchanged: Any, lower: Any
) -> None:
    product = net.op("MatMul", net.input("x", ("b", 3, 5)), net.weight(5, 6))
    model = net.model(net.op("Add", product, net.rng.standard_normal(bias)))
    copy = model.clone()
    channels_last(copy)
    attach_biases(copy)
    assert [layer.bias is not None for layer in layers(copy)] == [attached]
    assert_unchanged(model, lower)


def test_a_product_that_is_read_twice_keeps_its_bias_apart(
    net: Any, assert_unchanged: Any, lower: Any
) -> None:
    product = net.op("MatMul", net.input("x", ("b", 3, 5)), net.weight(5, 6))
    model = net.model(net.op("Add", product, net.weight(6)), net.op("Abs", product))
    assert_unchanged(model, lower)
