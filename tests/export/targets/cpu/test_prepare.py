"""The CPU target: which layers stay float, and that a stage can be written any number of times."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from edgediff_export.fidelity.cases import Case
from edgediff_export.graph.write import write_graph
from edgediff_export.targets.conversion import FloatStage
from edgediff_export.targets.cpu.calibration import Seen
from edgediff_export.targets.cpu.passes import layers, restructure
from edgediff_export.targets.cpu.prepare import (
    ACTIVATION_END,
    ACTIVATION_LIMIT,
    SPARED,
    Prepared,
    prepare,
    quantizable,
    takes_direct,
)

from edgediff.errors import ExportError

COUNT = 80


@pytest.fixture
def chain(new_net: Any, tmp_path: Path) -> Callable[[Mapping[int, float]], Prepared]:
    """Layer number → its error, by default a small one: a stage of equal layers."""

    def make(errors: Mapping[int, float]) -> Prepared:
        net = new_net()
        y = net.input("x", ("b", "s", 64))
        for _ in range(COUNT):
            y = net.op("Relu", net.linear(y, 64, 64))
        model = net.model(net.op("Relu", net.linear(y, 64, 8)))
        restructure(model)
        found = tuple(layers(model))
        seen = {
            layer.name: Seen(
                low=-1,
                high=1,
                channels=np.ones(64, np.float32),
                output=np.ones(layer.channels[1], np.float32),
                error=errors.get(k, 0.005),
                rows=100,
            )
            for k, layer in enumerate(found)
        }
        return Prepared(
            model=model, source=tmp_path / "chain.onnx", layers=found, seen=seen, kernels={}
        )

    return make


def spared(prepared: Prepared) -> list[int]:
    plan = prepared.plain_int8()
    return [k for k, y in enumerate(prepared.layers) if plan[y.name] == "int8-weights"]


def test_small_layers_stay_float(chain: Any) -> None:
    prepared = chain({COUNT: 0.5})
    plan = prepared.plain_int8()
    assert [plan[y.name] for y in prepared.layers] == ["int8"] * COUNT + ["fp32"]
    assert not quantizable(prepared.layers[-1])


def test_the_worst_are_spared_as_far_as_the_share_goes(chain: Any) -> None:
    most = int(SPARED * COUNT)
    assert most == 2
    assert spared(chain({})) == []
    assert spared(chain({5: ACTIVATION_LIMIT})) == []
    assert spared(chain({5: 0.02})) == [5]
    assert spared(chain({5: 0.02, 30: 0.03, 7: 0.04, 8: 0.05})) == [7, 8]


def test_what_no_layer_bears_is_always_spared(chain: Any) -> None:
    bad = dict.fromkeys(range(10), 2 * ACTIVATION_END)
    assert spared(chain(bad)) == list(range(10))
    assert spared(chain({**bad, 20: 0.09})) == list(range(10))
    everything = dict.fromkeys(range(COUNT), 1.0)
    assert spared(chain(everything)) == list(range(COUNT))


def test_small_work_is_spared_first(chain: Any) -> None:
    """A layer of little work frees little, but costs little: the share reaches further there."""
    prepared = chain({3: 0.05, 4: 0.04, 5: 0.04, 6: 0.04})
    few = {
        y.name: replace(prepared.seen[y.name], rows=1)
        for k, y in enumerate(prepared.layers)
        if k in (4, 5, 6)
    }
    prepared = replace(prepared, seen={**prepared.seen, **few})
    assert spared(prepared) == [3, 4, 5, 6]
    total = sum(prepared.work(y) for y in prepared.layers if quantizable(y))
    assert sum(prepared.work(prepared.layers[k]) for k in (3, 4, 5, 6)) <= SPARED * total


def test_layers_that_were_not_watched_are_int8(chain: Any) -> None:
    prepared = replace(chain({}), seen={})
    assert set(prepared.plain_int8().values()) == {"int8", "fp32"}


@pytest.fixture
def stage(net: Any, tmp_path: Path, example: Any) -> tuple[Path, list[Case]]:
    """A small stage on disk, with an embedding, a convolution and linear layers, and examples."""
    y = net.conv(net.input("sample", ("b", 4, "h", "w")), (4, 64))
    y = net.conv(net.silu(net.group_norm(y, 64, 8)), (64, 64))
    ids = net.input("ids", ("b", 3), ir.DataType.INT64)
    words = net.op("Gather", net.weight(100, 64), ids)
    words = net.linear(net.op("LayerNormalization", words, np.ones(64), np.zeros(64)), 64, 64)
    shift = net.op("Unsqueeze", net.op("ReduceMean", words, [1], keepdims=0), [2, 3])
    model = net.model(net.conv(net.op("Add", y, shift), (64, 4)))
    path = tmp_path / "stage" / "graph.onnx"
    path.parent.mkdir()
    ir.save(model, path, external_data="graph.onnx.data", size_threshold_bytes=1024)
    inputs = [example(model, seed=k) for k in range(2)]
    return path, [Case(name=str(k), inputs=x, outputs={}) for k, x in enumerate(inputs)]


def test_a_stage_is_written_any_number_of_times(
    stage: Any, tmp_path: Path, run: Any, assert_close: Any
) -> None:
    path, cases = stage
    expected = run(loaded(path), cases[0].inputs)
    prepared = prepared_stage(path, cases)
    files = ["graph.onnx", "graph.onnx.data", "graph.restructured.data"]
    assert sorted(p.name for p in path.parent.iterdir()) == files
    nodes = [n.op_type for n in prepared.model.graph]
    plain = prepared.plain_int8()
    assert list(plain.values()).count("int8") == 2
    plans = [plain, dict.fromkeys(plain, "fp32"), dict.fromkeys(plain, "fp16"), None, plain]
    results = []
    for plan in plans:
        lowered = prepared.write(plan)
        assert lowered.formats == {**(plain if plan is None else plan), "constant_10": "int8"}
        results.append(run_written(lowered.model, tmp_path, cases[0]))
        assert [n.op_type for n in prepared.model.graph] == nodes
    for found, tolerance in zip(results, (0.05, 0.02, 0.02, 0.05, 0.05), strict=True):
        assert_close(found, expected, tolerance)
    for k in (3, 4):
        np.testing.assert_array_equal(results[k][0], results[0][0])


def prepared_stage(path: Path, cases: list[Case], **how: Any) -> Prepared:
    return prepare(FloatStage(source=path, cases=cases, **how))


def run_written(model: ir.Model, folder: Path, case: Case) -> list[Any]:
    """A graph some of whose weights are still on disk, in the file that it was read from."""
    write_graph(model, folder / "written.onnx")
    running = ort.InferenceSession(folder / "written.onnx", providers=["CPUExecutionProvider"])
    return running.run(None, dict(case.inputs))


def loaded(path: Path) -> ir.Model:
    model = ir.load(path)
    ir.external_data.load_to_model(model)
    return model


def test_a_plan_of_other_layers_is_refused(stage: Any) -> None:
    prepared = prepared_stage(*stage)
    with pytest.raises(ExportError, match=r"no\.such\.weight"):
        prepared.write({**prepared.plain_int8(), "no.such.weight": "int8"})


def test_a_weight_that_layers_share(net: Any, tmp_path: Path, example: Any, run: Any) -> None:
    x, weight = net.input("x", ("b", "s", 64)), net.weight(64, 64)
    y = x
    for _ in range(3):
        y = net.op("Relu", net.op("MatMul", y, weight))
    model = net.model(net.op("Sigmoid", net.op("MatMul", y, net.weight(64, 64))))
    path = tmp_path / "graph.onnx"
    ir.save(model, path)
    inputs = example(model)
    prepared = prepared_stage(path, [Case(name="", inputs=inputs, outputs={})])
    lowered = prepared.write(dict.fromkeys(prepared.plain_int8(), "int8"))
    assert len(lowered.formats) == 2
    np.testing.assert_allclose(run(lowered.model, inputs)[0], run(model, inputs)[0], atol=0.02)


def decoder(net: Any, *, norm: bool = True, name: str = "latent_sample") -> ir.Model:
    y = net.conv(net.input(name, ("b", 4, "h", "w")), (4, 64))
    y = net.group_norm(y, 64, 8) if norm else net.op("Relu", y)
    scales = np.array([1.0, 1, 2, 2])
    how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    y = net.op("Resize", y, None, scales, mode="nearest", **how)
    return net.model(net.conv(net.op("Relu", net.conv(y, (64, 64))), (64, 3)))


@pytest.mark.parametrize(
    ("how", "kernel", "resizes"),
    [
        ({}, "direct", 0),
        ({"norm": False}, "gather", 0),
        ({"name": "sample"}, "gather", 1),
    ],
)
def test_decoders_are_known_by_their_input(
    how: Any, kernel: str, resizes: int, net: Any, tmp_path: Path, example: Any, run: Any, ops: Any,
    assert_close: Any,
) -> None:  # fmt: skip
    """Group norms, and upsampling merged: bytes all through. Anything else gathers."""
    model = decoder(net, **how)
    path = tmp_path / "graph.onnx"
    ir.save(model, path)
    cases = [Case(name="", inputs=example(model), outputs={})]
    prepared = prepared_stage(path, cases, profile="x86-vnni")
    restructured = loaded(path)
    restructure(restructured)
    assert takes_direct(restructured) == (kernel == "direct")
    assert set(prepared.kernels.values()) == ({"direct"} if kernel == "direct" else set())
    lowered = prepared.write()
    assert len(ops(lowered.model, "Resize")) == resizes
    quantized = sum(f == "int8" for f in lowered.formats.values())
    assert quantized == (1 if resizes else 4)
    assert len(ops(lowered.model, "QLinearConv")) == (quantized if kernel == "direct" else 0)
    assert_close(run(lowered.model, cases[0].inputs), run(loaded(path), cases[0].inputs), 0.1)


def test_a_profile_chooses_the_kernels(net: Any, tmp_path: Path, example: Any, ops: Any) -> None:
    """Matrix tiles take small images gathered and large ones direct; auto has measured."""
    path = tmp_path / "graph.onnx"
    ir.save(decoder(net), path)
    cases = [Case(name="", inputs=example(loaded(path)), outputs={})]
    small = prepared_stage(path, cases, profile="x86-amx").write()
    assert not ops(small.model, "QLinearConv")
    assert ops(small.model, "MatMulIntegerToFloat")
    large = prepared_stage(path, cases, profile="x86-amx", area_ratio=1e7)
    assert set(large.kernels.values()) == {"direct"}
    assert not large.reduced_range
    measured = prepared_stage(path, cases, profile="auto")
    assert set(measured.kernels.values()) <= {"direct", "gather"}
    assert measured.kernels.keys() == large.kernels.keys()


def test_without_vnni_weights_have_seven_bits(
    net: Any, tmp_path: Path, example: Any, run: Any, assert_close: Any
) -> None:
    path = tmp_path / "graph.onnx"
    model = decoder(net)
    ir.save(model, path)
    cases = [Case(name="", inputs=example(model), outputs={})]
    prepared = prepared_stage(path, cases, profile="x86-avx2")
    assert set(prepared.kernels.values()) == {"direct"}
    lowered = prepared.write()
    assert "session.x64quantprecision" not in lowered.session_config
    bytes_ = [
        np.abs(v.const_value.numpy().astype(int)).max()
        for v in lowered.model.graph.initializers.values()
        if v.dtype == ir.DataType.INT8 and v.const_value.numpy().ndim > 1
    ]
    assert bytes_ == [63] * len([f for f in lowered.formats.values() if f == "int8"])
    assert_close(run(lowered.model, cases[0].inputs), run(loaded(path), cases[0].inputs), 0.1)
    full = replace(prepared, reduced_range=False).write()
    assert full.session_config["session.x64quantprecision"] == "1"
