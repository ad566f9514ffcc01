"""The probe: one graph in which every layer's activations can be rounded, or not."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.search.sensitivity import Probe, make_probe, mean_square
from edgediff_export.targets.cpu.passes import Choices, layers, restructure, write_out
from edgediff_export.targets.cpu.prepare import quantizable


def restructured(model: ir.Model) -> ir.Model:
    model = model.clone()
    restructure(model)
    return model


def written(model: ir.Model, form: str) -> ir.Model:
    model = restructured(model)
    formats = {y.name: form for y in layers(model) if quantizable(y)}
    write_out(model, Choices(formats=formats))
    return model


@pytest.fixture
def model(net: Any) -> ir.Model:
    x = net.input("x", ("b", 4, "h", "w"))
    y = net.conv(x, (4, 64))
    y = net.conv(net.silu(y), (64, 64), strides=[2, 2])
    tokens = net.op("Transpose", y, perm=[0, 2, 3, 1])
    tokens = net.op("Mul", net.linear(tokens, 64, 64), net.op("Tanh", net.linear(tokens, 64, 64)))
    y = net.op("Transpose", net.linear(tokens, 64, 64), perm=[0, 3, 1, 2])
    return net.model(net.conv(y, (64, 4)))


def probe_of(model: ir.Model, folder: Path) -> Probe:
    path = folder / "graph.onnx"
    ir.save(model, path)
    ready = restructured(model)
    nodes, inputs = [n.op_type for n in ready.graph], list(ready.graph.inputs)
    probe = make_probe(ready, path)
    assert [n.op_type for n in ready.graph] == nodes
    assert list(ready.graph.inputs) == inputs
    assert list(folder.iterdir()) == [path]
    return probe


def test_all_off_and_all_on(
    model: ir.Model, tmp_path: Path, example: Any, run: Any, assert_close: Any
) -> None:
    """Off, it is the graph of int8 weights; on, the int8 graph, but for rounding in float32."""
    probe = probe_of(model, tmp_path)
    names = [y.name for y in layers(restructured(model)) if quantizable(y)]
    assert probe.names == tuple(names)
    assert len(names) == 4
    inputs = example(model)
    float_weights = run(written(model, "int8-weights"), inputs)
    int8 = run(written(model, "int8"), inputs)
    (output,) = (v.name for v in model.graph.outputs)
    assert list(probe.run(inputs)) == [output]
    assert_close([probe.run(inputs)[output]], float_weights, 1e-5)
    probe.on.update(names)
    apart = np.linalg.norm(int8[0] - float_weights[0])
    assert np.linalg.norm(probe.run(inputs)[output] - int8[0]) < 0.3 * apart


def test_each_layer_costs_something_of_its_own(
    model: ir.Model, tmp_path: Path, example: Any
) -> None:
    probe = probe_of(model, tmp_path)
    inputs = example(model)
    ((output, exact),) = probe.run(inputs).items()
    costs = []
    for name in probe.names:
        probe.on = {name}
        costs.append(mean_square(probe.run(inputs)[output], exact))
    assert min(costs) > 0
    assert len(set(costs)) == len(costs)
    probe.on = set(probe.names)
    together = mean_square(probe.run(inputs)[output], exact)
    assert 0.3 * sum(costs) < together < 3 * sum(costs)
    probe.on = set()
    np.testing.assert_array_equal(probe.run(inputs)[output], exact)


def test_a_stage_with_nothing_to_switch(net: Any, tmp_path: Path, example: Any, run: Any) -> None:
    model = net.model(net.op("Relu", net.linear(net.input("x", ("b", 6)), 6, 6)))
    probe = probe_of(model, tmp_path)
    assert probe.names == ()
    inputs = example(model)
    (found,) = probe.run(inputs).values()
    np.testing.assert_allclose(found, run(model, inputs)[0], atol=1e-6)


def test_layers_of_one_weight_switch_together(net: Any, tmp_path: Path, example: Any) -> None:
    weight = net.weight(64, 64)
    y = net.op("Tanh", net.op("MatMul", net.input("x", ("b", 64)), weight))
    model = net.model(net.op("Abs", net.op("MatMul", y, weight)))
    probe = probe_of(model, tmp_path)
    assert len(set(probe.names)) == 1
    inputs = example(model)
    (exact,) = probe.run(inputs).values()
    probe.on = {probe.names[0]}
    (found,) = probe.run(inputs).values()
    assert 0 < mean_square(found, exact) < 1e-2


def test_mean_square_is_in_float64() -> None:
    a = np.full(1000, 1e4, np.float32)
    assert mean_square(a, a + np.float32(1e-3)) == pytest.approx((1 / 1024) ** 2)
