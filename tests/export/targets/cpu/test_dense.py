"""Layers written out in each format, against the error that their scales allow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import pytest
from edgediff_export.targets.cpu.dense import BLOCK, Range, quantize_blocks, quantize_weight
from edgediff_export.targets.cpu.passes import Choices, layers, restructure, write_out
from edgediff_export.targets.weights import REDUCED_RANGE

Floats = npt.NDArray[np.float32]
RNG = np.random.default_rng(0)
CONVOLUTIONS = [
    # channels, kernel, strides, pads (top, left, bottom, right)
    ((4, 12), 3, [1, 1], [1, 1, 1, 1]),
    ((12, 4), 3, [1, 1], [1, 1, 1, 1]),
    ((4, 4), 1, [1, 1], [0, 0, 0, 0]),
    ((64, 8), 1, [1, 1], [0, 0, 0, 0]),
    ((8, 8), 1, [2, 2], [0, 0, 0, 0]),
    ((8, 6), 3, [2, 2], [1, 1, 1, 1]),
    ((8, 6), 3, [2, 2], [0, 0, 1, 1]),
    ((4, 6), 3, [1, 2], [0, 2, 1, 0]),
    ((4, 6), 1, [1, 1], [1, 0, 0, 1]),
    ((4, 6), 2, [1, 1], [0, 0, 0, 0]),
]
CONVOLUTION = pytest.mark.parametrize(("channels", "kernel", "strides", "pads"), CONVOLUTIONS)


def convolution(net: Any, channels: Any, kernel: int, strides: Any, pads: Any) -> ir.Model:
    x = net.input("x", ("b", channels[0], "h", "w"))
    return net.model(net.conv(x, channels, kernel, strides=strides, pads=pads))


def only_layer(model: ir.Model) -> Any:
    copy = model.clone()
    restructure(copy)
    (layer,) = layers(copy)
    return layer


def written(
    model: ir.Model,
    form: Any,
    kernel: Any = "gather",
    seen: Range | None = None,
    **choices: Any,
) -> ir.Model:
    """A model's only layer in a format; the model itself stays as it is."""
    copy = model.clone()
    restructure(copy)
    (layer,) = layers(copy)
    found = {} if seen is None else {layer.name: seen}
    write_out(
        copy,
        Choices(formats={layer.name: form}, kernel=lambda _: kernel, ranges=found, **choices),
    )
    return copy


def last(y: Floats) -> Floats:
    """Channels last, as a layer has them."""
    return y.transpose(0, 2, 3, 1) if y.ndim == 4 else y


def check_int8(
    model: ir.Model, kernel: str, x: Floats, run: Any, error_bound: Any, narrower: float = 1.0
) -> ir.Model:
    """Write the model's only layer in int8 and compare. narrower: of the calibrated range."""
    layer = only_layer(model)
    bias = 0 if layer.bias is None else layer.bias.const_value.numpy()
    raw = last(run(model, {"x": x})[0]) - bias
    seen = None
    if kernel == "direct":
        most = np.abs(raw).max(axis=tuple(range(raw.ndim - 1))) * np.float32(narrower)
        seen = Range(low=float(x.min()), high=float(x.max()), output=most)
    int8 = written(model, "int8", kernel, seen)
    expected, allowed = error_bound(layer, last(x), seen)
    error = np.abs(last(run(int8, {"x": x})[0]) - expected)
    assert (error <= allowed).all(), (error / allowed).max()
    return int8


@CONVOLUTION
@pytest.mark.parametrize("kernel_name", ["gather", "direct"])
@pytest.mark.parametrize("size", [(8, 8), (9, 24)])
def test_int8_convolutions(
    kernel_name: str, size: tuple[int, int], channels: Any, kernel: int, strides: Any, pads: Any,
    net: Any, run: Any, ops: Any, error_bound: Any,
) -> None:  # fmt: skip
    model = convolution(net, channels, kernel, strides, pads)
    x = RNG.standard_normal((2, channels[0], *size), dtype=np.float32)
    int8 = check_int8(model, kernel_name, x, run, error_bound)
    assert len(ops(int8, "QLinearConv")) == (kernel_name == "direct")
    assert len(ops(int8, "MatMulIntegerToFloat")) == (kernel_name == "gather")
    assert not ops(int8, "ConvInteger")


@pytest.mark.parametrize("kernel", ["gather", "direct"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [1, 77])
@pytest.mark.parametrize("batch", [1, 2])
def test_int8_linear_layers(
    kernel: str, bias: bool, tokens: int, batch: int, net: Any, run: Any, error_bound: Any
) -> None:
    x = net.input("x", ("b", "s", 20))
    model = net.model(net.linear(x, 20, 12) if bias else net.op("MatMul", x, net.weight(20, 12)))
    values = RNG.standard_normal((batch, tokens, 20), dtype=np.float32)
    check_int8(model, kernel, values, run, error_bound)


@pytest.mark.parametrize("kernel", ["gather", "direct"])
@pytest.mark.parametrize(
    "change",
    [np.abs, lambda x: -np.abs(x), lambda x: x + 20, lambda x: x * 0, lambda x: x * 1e-6,
     lambda x: x * 1e4, lambda x: np.maximum(x, -0.1)],
    ids=["positive", "negative", "far", "zeros", "small", "large", "as after silu"],
)  # fmt: skip
def test_int8_of_any_range(
    kernel: str, change: Callable[[Floats], Floats], net: Any, run: Any, error_bound: Any
) -> None:
    model = convolution(net, (4, 6), 3, [1, 1], [1, 1, 1, 1])
    x = change(RNG.standard_normal((1, 4, 8, 8), dtype=np.float32))
    check_int8(model, kernel, x, run, error_bound)


def test_direct_layers_clip_what_lies_beyond(net: Any, run: Any, error_bound: Any) -> None:
    model = convolution(net, (4, 6), 3, [1, 1], [1, 1, 1, 1])
    x = RNG.standard_normal((1, 4, 8, 8), dtype=np.float32)
    check_int8(model, "direct", x, run, error_bound, narrower=0.3)


def test_direct_layers_grow_with_their_input(net: Any, run: Any, error_bound: Any) -> None:
    """An input beyond the calibrated range is not clipped, nor is its result."""
    model = convolution(net, (4, 6), 1, [1, 1], [0, 0, 0, 0])
    layer = only_layer(model)
    x = RNG.standard_normal((1, 4, 8, 8), dtype=np.float32)
    small = np.abs(last(run(model, {"x": x / 8})[0]) - layer.bias.const_value.numpy())
    seen = Range(low=x.min() / 8, high=x.max() / 8, output=small.max(axis=(0, 1, 2)))
    expected, allowed = error_bound(layer, last(x), seen)
    y = last(run(written(model, "int8", "direct", seen), {"x": x})[0])
    assert (np.abs(y - expected) <= allowed).all()


@pytest.mark.parametrize("case", ["no ranges", "rows"])
def test_what_direct_cannot_do_is_gathered(case: str, net: Any, run: Any, ops: Any) -> None:
    x = net.input("x", ("b", 4) if case == "rows" else ("b", "s", 4))
    model = net.model(net.linear(x, 4, 6))
    seen = Range(low=-1, high=1, output=np.ones(6, np.float32))
    int8 = written(model, "int8", "direct", seen if case == "rows" else None)
    assert len(ops(int8, "MatMulIntegerToFloat")) == 1
    assert not ops(int8, "QLinearConv")
    x = RNG.standard_normal((2, 4) if case == "rows" else (2, 3, 4), dtype=np.float32)
    np.testing.assert_allclose(run(int8, {"x": x})[0], run(model, {"x": x})[0], atol=0.1)


def weight_error(form: str, w: Floats, integral: bool) -> Floats:
    """How far stored weights may be from `w` (k, n), by output channel."""
    largest = np.abs(w).max(axis=0)
    if form == "int4" and integral:
        return largest / 8  # a block's largest of the other sign is a step off
    steps = {"fp32": 0.0, "fp16": 2.0**-11, "int8-weights": 0.5 / 127, "int4": 0.5 / 127}
    return largest * steps[form]


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8-weights", "int4"])
@CONVOLUTION
def test_convolutions_with_float_activations(
    form: str, channels: Any, kernel: int, strides: Any, pads: Any, net: Any, run: Any, apply: Any
) -> None:
    model = convolution(net, channels, kernel, strides, pads)
    x = RNG.standard_normal((2, channels[0], 8, 9), dtype=np.float32)
    check_float(model, form, x, run, apply)


@pytest.mark.parametrize("form", ["fp32", "fp16", "int8-weights", "int4"])
@pytest.mark.parametrize("k", [20, BLOCK, 3 * BLOCK])
@pytest.mark.parametrize("leading", [(5,), (2, 1), (2, 77), (1, 2, 3)], ids=str)
def test_linear_layers_with_float_activations(
    form: str, k: int, leading: tuple[int, ...], net: Any, run: Any, apply: Any
) -> None:
    model = net.model(net.linear(net.input("x", (*leading, k)), k, 12))
    check_float(model, form, RNG.standard_normal((*leading, k), dtype=np.float32), run, apply)


def check_float(model: ir.Model, form: str, x: Floats, run: Any, apply: Any) -> None:
    layer = only_layer(model)
    is_image = layer.weight.ndim == 4
    expected = run(model, {"x": x})[0]
    y = run(written(model, form), {"x": x})[0]
    matrix = layer.matrix()
    rough = weight_error(form, matrix, layer.pointwise and matrix.shape[0] % BLOCK == 0)
    absolute = last(np.abs(x)) if is_image else np.abs(x)
    allowed = apply(layer, absolute, np.ones_like(layer.weight)) * rough
    allowed += 1e-5 * apply(layer, absolute, np.abs(layer.weight)) + 1e-6
    error = np.abs(y - expected)
    assert ((last(error) if is_image else error) <= allowed).all()


@pytest.mark.parametrize(("form", "kernel"), [
    ("fp32", "gather"), ("fp16", "gather"), ("int8-weights", "gather"), ("int4", "gather"),
    ("int8", "gather"), ("int8", "direct"),
])  # fmt: skip
def test_layers_that_share_a_weight(form: Any, kernel: Any, net: Any, run: Any) -> None:
    weight = net.weight(BLOCK, 6)
    x = net.input("x", ("b", "s", BLOCK))
    model = net.model(*(net.op("MatMul", v, weight) for v in (x, net.op("Neg", x))))
    values = {"x": RNG.standard_normal((1, 5, BLOCK), dtype=np.float32)}
    expected = run(model, values)
    restructure(model)
    names = {layer.name for layer in layers(model)}
    seen = Range(low=-4, high=4, output=np.full(6, 4, np.float32))
    choices = Choices(
        formats=dict.fromkeys(names, form),
        kernel=lambda _: kernel,
        ranges=dict.fromkeys(names, seen),
    )
    write_out(model, choices)
    assert len(names) == 1
    for y, e in zip(run(model, values), expected, strict=True):
        assert np.linalg.norm(y - e) <= 0.15 * np.linalg.norm(e)


@pytest.mark.parametrize("kernel", ["gather", "direct"])
def test_a_reduced_range_does_not_overflow(kernel: str, net: Any, run: Any) -> None:
    """The largest of all sums, in a session that does not ask for exact ones: x86 without VNNI adds
    up pairs of products in 16 bits."""
    filters = net.constant(np.ones((8, 64, 3, 3), np.float32))
    x = net.input("x", ("b", 64, "h", "w"))
    model = net.model(net.op("Conv", x, filters, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
    values = {"x": np.ones((1, 64, 9, 9), np.float32)}
    (expected,) = run(model, values)
    seen = Range(low=-0.1, high=1.0, output=np.full(8, expected.max()))
    reduced = written(model, "int8", kernel, seen, levels=REDUCED_RANGE)
    session = ort.InferenceSession(
        ir.to_proto(reduced).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, values)
    # "direct" also rounds its output to a 127th of the range, which is 1.3 times as wide.
    np.testing.assert_allclose(found, expected, rtol=0.012 if kernel == "direct" else 1e-5)


def test_layers_of_one_input_share_its_quantization(net: Any, lower: Any, ops: Any) -> None:
    x = net.input("x", ("b", "s", 8))
    model = net.model(*(net.linear(x, 8, 8) for _ in range(3)))
    lower(model, "int8")
    assert len(ops(model, "DynamicQuantizeLinear")) == 1
    assert len(ops(model, "MatMulIntegerToFloat")) == 3


@pytest.mark.parametrize("axis", [0, 1, 3])
@pytest.mark.parametrize("levels", [127, REDUCED_RANGE])
def test_weights_have_a_scale_for_each_channel(axis: int, levels: int) -> None:
    w = RNG.standard_normal((5, 6, 3, 4), dtype=np.float32)
    w = np.moveaxis(np.moveaxis(w, axis, 0) * 10.0 ** RNG.integers(-3, 3, (1,)), 0, axis)
    w = w.astype(np.float32)
    np.moveaxis(w, axis, 0)[1] = 0
    q, scale = quantize_weight(w, axis=axis, levels=levels)
    by_channel = np.moveaxis(q, axis, 0).reshape(w.shape[axis], -1)
    assert (q.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (w.shape[axis],))
    assert np.abs(by_channel).max(axis=1).tolist() == [levels, 0, *[levels] * (w.shape[axis] - 2)]
    wide = scale.reshape([-1 if i == axis else 1 for i in range(4)])
    assert (np.abs(q * wide - w) <= wide / 2 * (1 + 1e-5)).all()
    assert (scale > 0).all()


def test_blocks_are_packed_as_the_operator_reads_them(net: Any, run: Any, lower: Any) -> None:
    k, n = 2 * BLOCK, 5
    w = RNG.standard_normal((k, n), dtype=np.float32)
    w[:BLOCK, 1] = 0
    w[BLOCK:, 2] *= 1000
    packed, scales = quantize_blocks(w)
    assert (packed.dtype, packed.shape) == (np.uint8, (n, k // BLOCK, BLOCK // 2))
    assert (scales.dtype, scales.shape) == (np.float32, (n * k // BLOCK,))
    levels = np.stack([packed & 15, packed >> 4], axis=-1).reshape(n, k // BLOCK, BLOCK)
    back = ((levels - 8.0) * scales.reshape(n, -1, 1)).reshape(n, k).T
    blocks = np.abs(back - w).T.reshape(n, -1, BLOCK)
    opposite = np.abs(scales).reshape(n, -1, 1)  # of the sign that has 7 levels, not 8
    assert (blocks <= opposite * (1 + 1e-5)).all()
    assert np.mean(blocks <= opposite / 2 * (1 + 1e-5)) > 0.95
    extreme = np.abs(w).argmax(axis=0)
    np.testing.assert_allclose(back[extreme, range(n)], w[extreme, range(n)], rtol=1e-6)
    model = net.model(net.op("MatMul", net.input("x", ("b", k)), net.constant(w)))
    lower(model, "int4")
    x = np.eye(k, dtype=np.float32)
    np.testing.assert_allclose(run(model, {"x": x})[0], back, rtol=1e-5, atol=1e-6)
