"""A layer's measurements in calibration, against the numbers themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.fidelity.cases import Case
from edgediff_export.targets.cpu.calibration import calibrate
from edgediff_export.targets.cpu.passes import layers, restructure


@pytest.mark.parametrize("rank", [3, 4])
def test_a_layer_is_watched_over_all_cases(rank: int, net: Any, tmp_path: Path, apply: Any) -> None:
    x = net.input("x", ("b", 5, 4) if rank == 3 else ("b", 4, 6, 6))
    y = net.linear(x, 4, 8) if rank == 3 else net.conv(x, (4, 8), 3, strides=[2, 2])
    model = net.model(net.op("Relu", y))
    path = tmp_path / "graph.onnx"
    ir.save(model, path)
    dims = (2, 5, 4) if rank == 3 else (2, 4, 6, 6)
    arrays = [net.rng.standard_normal(dims, dtype=np.float32) * k for k in (1, 3)]
    cases = [Case(name=str(i), inputs={"x": a}, outputs={}) for i, a in enumerate(arrays)]
    restructure(model)
    (layer,) = layers(model)
    before = [n.op_type for n in model.graph]
    (seen,) = calibrate(model, path, cases).values()
    assert [n.op_type for n in model.graph] == before
    assert list(tmp_path.iterdir()) == [path]
    both = np.concatenate(arrays)
    last = both.transpose(0, 2, 3, 1) if rank == 4 else both
    but_last = tuple(range(rank - 1))
    assert (seen.low, seen.high) == (both.min(), both.max())
    np.testing.assert_allclose(seen.channels, np.abs(last).max(axis=but_last))
    # For an input as large as the largest: the first case counts as if it were.
    reach = [np.abs(a).max() for a in arrays]
    most = np.max(
        [
            np.abs(apply(layer, part, layer.weight)).max(axis=but_last) / r * max(reach)
            for part, r in zip(np.split(last, 2), reach, strict=True)
        ],
        axis=0,
    )
    np.testing.assert_allclose(seen.output, most, rtol=1e-4)
    assert seen.rows == (10 if rank == 3 else 72)
    assert 1e-4 < seen.error < 0.03


def test_only_named_layers_are_watched(net: Any, tmp_path: Path) -> None:
    x = net.input("x", ("b", 5, 4))
    model = net.model(net.op("Relu", net.linear(net.op("Relu", net.linear(x, 4, 4)), 4, 4)))
    path = tmp_path / "graph.onnx"
    ir.save(model, path)
    cases = [Case(name="one", inputs={"x": np.ones((1, 5, 4), np.float32)}, outputs={})]
    restructure(model)
    first, second = (layer.name for layer in layers(model))
    assert set(calibrate(model, path, cases)) == {first, second}
    assert set(calibrate(model, path, cases, {second})) == {second}
    assert calibrate(model, path, cases, set()) == {}


def test_layers_of_one_weight_are_one(net: Any, tmp_path: Path) -> None:
    x, weight = net.input("x", ("b", 5, 4)), net.weight(4, 8)
    y = [net.op("Relu", net.op("MatMul", net.op("Mul", x, k), weight)) for k in (1.0, -3.0)]
    model = net.model(*y)
    path = tmp_path / "graph.onnx"
    ir.save(model, path)
    restructure(model)
    a = net.rng.standard_normal((1, 5, 4), dtype=np.float32)
    ((name, seen),) = calibrate(model, path, [Case(name="", inputs={"x": a}, outputs={})]).items()
    assert name == layers(model)[0].name
    both = np.concatenate([a, -3 * a])
    assert (seen.low, seen.high) == (both.min(), both.max())
    np.testing.assert_allclose(seen.channels, 3 * np.abs(a).max((0, 1)), rtol=1e-6)
    assert seen.rows == 5
