"""Averaged keys and values, against attention computed in numpy on averaged tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from edgediff_export.targets.cpu.averaged import average_keys_and_values
from edgediff_export.targets.cpu.passes import Choices, restructure, write_out

Array = npt.NDArray[Any]
HEADS, SIZE = 2, 4


class Block:
    """Attention on tokens, and its result by numpy, from the graph's own constants."""

    def __init__(self, net: Any, width: int, text: ir.Value | None = None) -> None:
        self.net = net
        self.text = text
        inner = HEADS * SIZE
        source = width if text is None else text.shape[-1]
        self.weights = [net.weight(k, inner) for k in (width, source, source)]
        self.out, self.bias = net.weight(inner, width), net.weight(width)
        self.gain = net.constant(1 + 0.1 * net.rng.standard_normal(width))
        self.shift = net.weight(width)

    def __call__(self, tokens: ir.Value) -> ir.Value:
        net = self.net
        x = net.op("LayerNormalization", tokens, self.gain, self.shift, axis=-1)
        context = x if self.text is None else self.text
        q, k, v = (
            net.op("MatMul", of, w)
            for of, w in zip((x, context, context), self.weights, strict=True)
        )
        mixed = net.attention(q, k, v, HEADS, SIZE)
        y = net.op("Add", net.op("MatMul", mixed, self.out), self.bias)
        return net.op("Add", y, tokens)

    def expected(
        self, tokens: Array, grid: tuple[int, int] | None, text: Array | None = None
    ) -> Array:
        """grid: (h, w) of tokens that are averaged, or None."""
        x = tokens - tokens.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        x = x * value(self.gain) + value(self.shift)
        context = x if text is None else text
        if grid is not None:
            context = averaged(x, *grid)
        sources = zip((x, context, context), self.weights, strict=True)
        q, k, v = (split(of @ value(w)) for of, w in sources)
        scores = 0.5 * q @ k.swapaxes(-1, -2)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        joined = mixed.swapaxes(1, 2).reshape(*tokens.shape[:2], HEADS * SIZE)
        return joined @ value(self.out) + value(self.bias) + tokens


def value(constant: ir.Value) -> Array:
    return constant.const_value.numpy().astype(np.float64)


def split(x: Array) -> Array:
    return x.reshape(*x.shape[:2], HEADS, SIZE).swapaxes(1, 2)


def averaged(x: Array, h: int, w: int) -> Array:
    """(b, h·w, c) → means over 2×2, an odd last row or column repeated."""
    b, _, c = x.shape
    x = np.pad(x.reshape(b, h, w, c), ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    x = x.reshape(b, (h + 1) // 2, 2, (w + 1) // 2, 2, c).mean((2, 4))
    return x.reshape(b, -1, c)


def to_tokens(net: Any, x: ir.Value, width: int) -> ir.Value:
    return net.op("Reshape", net.op("Transpose", x, perm=[0, 2, 3, 1]), [0, -1, width])


def to_image(net: Any, tokens: ir.Value, like: ir.Value, width: int) -> ir.Value:
    shape = net.op("Shape", like)
    parts = [net.op("Gather", shape, np.array([i])) for i in (0, 2, 3)]
    cut = net.op("Concat", *parts, np.array([width]), axis=0)
    return net.op("Transpose", net.op("Reshape", tokens, cut), perm=[0, 3, 1, 2])


def average(model: ir.Model) -> int:
    restructure(model)
    count = average_keys_and_values(model)
    write_out(model, Choices())
    return count


@pytest.mark.parametrize("before", ["conv", "linear", "nothing"])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (4, 6), (5, 7), (1, 8), (2, 3)])
def test_it_is_attention_to_averaged_tokens(
    h: int, w: int, before: str, net: Any, run: Any, ops: Any
) -> None:
    """Two blocks of self-attention and, between them, one to text that stays as it is."""
    width = 8 if before == "nothing" else 12
    x = net.input("x", ("b", 8, "h", "w"))
    text = net.input("text", ("b", "s", 6))
    weight, bias = net.weight(8, width), net.weight(width)
    y: Any = net.op("Add", x, 0.0)  # a conv of one pixel would be merged with another
    if before == "conv":
        turned = np.ascontiguousarray(value(weight).T)[:, :, None, None]
        y = net.op("Conv", y, turned, bias, kernel_shape=[1, 1])
        tokens = to_tokens(net, y, width)
    else:
        tokens = to_tokens(net, y, 8)
        if before == "linear":
            tokens = net.op("Add", net.op("MatMul", tokens, weight), bias)
    blocks = [Block(net, width), Block(net, width, text), Block(net, width)]
    for block in blocks:
        tokens = block(tokens)
    model = net.model(to_image(net, tokens, y, width))
    inputs = {
        "x": net.rng.standard_normal((2, 8, h, w), dtype=np.float32),
        "text": net.rng.standard_normal((2, 3, 6), dtype=np.float32),
    }
    expected = inputs["x"].astype(np.float64).transpose(0, 2, 3, 1).reshape(2, h * w, 8)
    if before != "nothing":
        expected = expected @ value(weight) + value(bias)
    for block in blocks:
        cross = block.text is not None
        given = inputs["text"].astype(np.float64) if cross else None
        expected = block.expected(expected, None if cross else (h, w), given)
    assert average(model) == 2
    assert len(ops(model, "MultiHeadAttention")) == 3
    (found,) = run(model, inputs)
    found = found.transpose(0, 2, 3, 1).reshape(2, h * w, width)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_query_that_is_the_key_keeps_its_tokens(net: Any, run: Any) -> None:
    x = net.input("x", ("b", 8, "h", "w"))
    tokens = to_tokens(net, net.op("Add", x, 0.0), 8)
    q, v = (net.linear(tokens, 8, 8) for _ in range(2))
    model = net.model(to_image(net, net.attention(q, q, v, HEADS, SIZE), x, 8))
    average(model)
    (found,) = run(model, {"x": net.rng.standard_normal((1, 8, 5, 4), dtype=np.float32)})
    assert found.shape == (1, 8, 5, 4)


def test_tokens_that_were_not_an_image_stay(net: Any, assert_unchanged: Any) -> None:
    tokens = net.input("x", ("b", "s", 8))
    q, k, v = (net.linear(tokens, 8, 8) for _ in range(3))
    model = net.model(net.op("Abs", net.attention(q, k, v, HEADS, SIZE)))
    assert_unchanged(model, lambda m: average(m) and pytest.fail("averaged"), 1e-5)


@pytest.fixture(scope="module")
def unet(exported: Callable[[str], Any]) -> Callable[[str], ir.Model]:
    def load(shape: str) -> ir.Model:
        model = ir.load(exported(shape).bundle / "unet.onnx")
        ir.external_data.load_to_model(model)
        return model

    return load


@pytest.mark.parametrize("shape", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
def test_a_unet_of_any_size(shape: str, unet: Any, example: Any, run: Any, ops: Any) -> None:
    """Only the attentions at the highest resolution read fewer keys."""
    model = unet(shape)
    restructure(model)
    widths = [node.inputs[0].producer().inputs[1].shape[-1] for node in self_attentions(model, ops)]
    assert len(set(widths)) == 2
    reads = {n.name: made_of(n) for n in ops(model, "MultiHeadAttention")}
    assert average_keys_and_values(model) == widths.count(min(widths))
    changed = [n for n in ops(model, "MultiHeadAttention") if reads[n.name] != made_of(n)]
    assert {n.inputs[0].producer().inputs[1].shape[-1] for n in changed} == {min(widths)}
    assert len(changed) == widths.count(min(widths))
    write_out(model, Choices())
    whole = unet(shape)
    for height, width in ((8, 8), (24, 24), (9, 7), (1, 5)):
        inputs = example(whole, batch=2, height=height, width=width, sequence=77)
        inputs["timestep"] = np.array(501.25, np.float32)
        (exact,) = run(whole, inputs)
        (found,) = run(model, inputs)
        assert found.shape == exact.shape == (2, 4, height, width)
        assert np.isfinite(found).all()
        # The images differ, but not altogether.
        assert 1e-6 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.3


def made_of(node: ir.Node) -> list[ir.Value]:
    return [v.producer().inputs[0] for v in node.inputs[:3]]


def self_attentions(model: ir.Model, ops: Any) -> list[ir.Node]:
    return [n for n in ops(model, "MultiHeadAttention") if len(set(made_of(n))) == 1]
