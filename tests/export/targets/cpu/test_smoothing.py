"""Smoothing: nothing changes in float, and outlier channels no longer take everyone's scale."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.fidelity.cases import Case
from edgediff_export.targets.cpu.calibration import Seen, calibrate
from edgediff_export.targets.cpu.passes import Choices, layers, restructure, write_out
from edgediff_export.targets.cpu.smoothing import smooth

OUTLIERS = np.ones(16, np.float32)
OUTLIERS[[3, 11]] = 60


def from_norm(net: Any, x: ir.Value, factors: Any) -> ir.Value:
    return net.op("LayerNormalization", x, factors, 0.1 * factors, axis=-1)


def from_geglu(net: Any, x: ir.Value, factors: Any) -> ir.Value:
    weight = net.weight(16, 16).const_value.numpy() * factors
    value = net.op("Add", net.weight(16), net.op("MatMul", x, weight))
    return net.op("Mul", value, net.op("Erf", net.linear(x, 16, 16)))


def from_values(net: Any, x: ir.Value, factors: Any) -> ir.Value:
    weight = net.weight(16, 16).const_value.numpy() * factors
    q, k = (net.linear(x, 16, 16) for _ in range(2))
    return net.attention(q, k, net.op("MatMul", x, weight), 2, 8)


SOURCES = [from_norm, from_geglu, from_values]


def watch(model: ir.Model, folder: Path, example: Any) -> tuple[dict[str, Seen], Path]:
    """A graph restructured in place and watched on two examples."""
    path = folder / "graph.onnx"
    ir.save(model, path)
    cases = [Case(name=str(i), inputs=example(model, seed=i, s=50), outputs={}) for i in range(2)]
    restructure(model)
    return calibrate(model, path, cases), path


def built(net: Any, source: Any, factors: Any = OUTLIERS, readers: int = 1) -> ir.Model:
    y = source(net, net.input("x", ("b", "s", 16)), factors)
    return net.model(*[net.op("Abs", net.linear(y, 16, 12)) for _ in range(readers)])


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("source", SOURCES)
def test_outliers_are_smoothed(
    source: Any, readers: int, net: Any, tmp_path: Path, example: Any, run: Any, assert_close: Any
) -> None:
    model = built(net, source, readers=readers)
    inputs = example(model, s=50)
    expected = run(model, inputs)
    seen, path = watch(model, tmp_path, example)
    names = [layer.name for layer in layers(model)]
    last = names[-readers:]
    assert sorted(smooth(model, seen, last)) == sorted(last)
    assert [layer.name for layer in layers(model)] == names
    cases = [Case(name="0", inputs=example(model, seed=0, s=50), outputs={})]
    after = calibrate(model, path, cases)
    for name in last:
        assert after[name].error < 0.5 * seen[name].error
        spread = [s[name].channels.max() / np.median(s[name].channels) for s in (seen, after)]
        assert spread[1] < 0.3 * spread[0]
    for name in set(names) - set(last):  # values that are read elsewhere keep their size
        np.testing.assert_allclose(after[name].low, seen[name].low, rtol=0.5)
    write_out(model, Choices())
    assert_close(run(model, inputs), expected, 1e-5)


@pytest.mark.parametrize("source", SOURCES)
def test_only_named_layers_are_smoothed(
    source: Any, net: Any, tmp_path: Path, example: Any
) -> None:
    model = built(net, source)
    seen, _ = watch(model, tmp_path, example)
    before = {layer.name: layer.weight.copy() for layer in layers(model)}
    assert smooth(model, seen, []) == []
    for layer in layers(model):
        np.testing.assert_array_equal(layer.weight, before[layer.name])


def test_a_chain_of_all_three(
    net: Any, tmp_path: Path, example: Any, run: Any, assert_close: Any
) -> None:
    """A transformer block, every layer named: layers are sources and readers at once."""
    x = net.input("x", ("b", "s", 16))
    for source in (from_values, from_geglu):
        x = net.op("Add", net.linear(source(net, from_norm(net, x, OUTLIERS), OUTLIERS), 16, 16), x)
    model = net.model(net.op("Abs", x))
    inputs = example(model, s=50)
    expected = run(model, inputs)
    seen, path = watch(model, tmp_path, example)
    changed = smooth(model, seen, set(seen))
    assert len(changed) == len(set(changed)) == 7
    after = calibrate(model, path, [Case(name="0", inputs=inputs, outputs={})])
    assert max(s.error for s in after.values()) < 0.5 * max(s.error for s in seen.values())
    write_out(model, Choices())
    assert_close(run(model, inputs), expected, 1e-5)


def test_norms_may_share_what_they_scale_with(
    net: Any, tmp_path: Path, example: Any, run: Any, assert_close: Any
) -> None:
    """Each takes constants of its own, and only the named one changes."""
    gain, shift = net.constant(OUTLIERS), net.constant(0.1 * OUTLIERS)
    x = net.input("x", ("b", "s", 16))
    norms = [net.op("LayerNormalization", v, gain, shift, axis=-1) for v in (x, net.op("Tanh", x))]
    model = net.model(*[net.op("Abs", net.linear(y, 16, 12)) for y in norms])
    inputs = example(model)
    expected = run(model, inputs)
    seen, path = watch(model, tmp_path, example)
    first, second = (layer.name for layer in layers(model))
    assert smooth(model, seen, {second}) == [second]
    after = calibrate(model, path, [Case(name="0", inputs=inputs, outputs={})])
    assert after[first].channels.max() > 3 * after[second].channels.max()
    write_out(model, Choices())
    assert_close(run(model, inputs), expected, 1e-5)


def shared_weight(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    y, weight = from_norm(net, x, OUTLIERS), net.weight(16, 12)
    return net.op("MatMul", y, weight), net.op("MatMul", net.op("Tanh", x), weight)


def shared_source(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    weight = net.constant(net.weight(16, 16).const_value.numpy() * OUTLIERS)
    value = net.op("MatMul", x, weight)
    y = net.op("Mul", value, net.op("Erf", net.op("MatMul", net.op("Tanh", x), weight)))
    return (net.linear(y, 16, 12),)


def read_otherwise(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    y = from_norm(net, x, OUTLIERS)
    return net.linear(y, 16, 12), net.op("Tanh", y)


def given_out(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    y = from_norm(net, x, OUTLIERS)
    return net.linear(y, 16, 12), y


def value_read_twice(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    value = net.linear(x, 16, 16)
    return net.linear(net.op("Mul", value, net.op("Sigmoid", value)), 16, 12), net.op("Abs", x)


def without_source(net: Any, x: ir.Value) -> tuple[ir.Value, ...]:
    return (net.linear(net.op("Tanh", net.linear(x, 16, 16)), 16, 12),)


@pytest.mark.parametrize(
    "rest",
    [shared_weight, shared_source, read_otherwise, given_out, value_read_twice, without_source],
)
def test_what_others_read_is_left_alone(
    rest: Any, net: Any, tmp_path: Path, example: Any, run: Any, assert_close: Any
) -> None:
    y = rest(net, net.input("x", ("b", "s", 16)))
    model = net.model(*[v if rest is given_out and v is y[-1] else net.op("Abs", v) for v in y])
    inputs = example(model)
    expected = run(model, inputs)
    seen, _ = watch(model, tmp_path, example)
    before = {layer.name: layer.weight.copy() for layer in layers(model)}
    assert smooth(model, seen, set(seen)) == []
    for layer in layers(model):
        np.testing.assert_array_equal(layer.weight, before[layer.name])
    write_out(model, Choices())
    assert_close(run(model, inputs), expected, 1e-5)


def test_a_channel_that_is_always_zero(
    net: Any, tmp_path: Path, example: Any, run: Any, assert_close: Any
) -> None:
    model = built(net, from_norm, np.where(np.arange(16) == 5, 0, OUTLIERS))
    inputs = example(model)
    expected = run(model, inputs)
    seen, _ = watch(model, tmp_path, example)
    assert len(smooth(model, seen, set(seen))) == 1
    write_out(model, Choices())
    assert_close(run(model, inputs), expected, 1e-5)
