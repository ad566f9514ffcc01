"""A plan from another bundle: whose it is, and that it gives the same again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from edgediff_export.search.quantization_plan import QuantizationPlan, read_plan
from edgediff_export.targets.cpu.passes import layers, restructure
from edgediff_export.targets.cpu.prepare import Prepared

from edgediff.bundle.folder import write_manifest
from edgediff.bundle.manifest import Quantization, parse_manifest
from edgediff.errors import InputError


def constant(name: str, *shape: int) -> ir.Value:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    tensor = ir.tensor(values, name=name)
    return ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)


@pytest.fixture
def prepared() -> Prepared:
    """An embedding, two layers of some size, and a small one."""
    ids = ir.val("ids", ir.DataType.INT64, ["b", 3])
    weights = [constant("words", 100, 64), constant("first", 64, 64), constant("second", 64, 64)]
    weights.append(constant("small", 64, 4))
    nodes = [ir.node("Gather", [weights[0], ids], name="words")]
    for weight in weights[1:]:
        y = nodes[-1].outputs[0]
        nodes.append(ir.node("MatMul", [y, weight], name=f"{weight.name}/MatMul"))
    graph = ir.Graph(
        [ids],
        nodes[-1].outputs,
        nodes=nodes,
        initializers=weights,
        opset_imports={"": 18},
        name="stage",
    )
    graph.outputs[0].name = "y"
    graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    model = ir.Model(graph, ir_version=9)
    restructure(model)
    return Prepared(
        model=model,
        source=Path("stage.onnx"),
        layers=tuple(layers(model)),
        seen={},
        kernels={},
    )


def saved(tensors: dict[str, dict[str, str]]) -> QuantizationPlan:
    return QuantizationPlan(path=Path("other/bundle.json"), model="other", tensors=tensors)


def test_a_plan_fits_the_stage_it_was_written_from(prepared: Prepared) -> None:
    plan = {**prepared.plain_int8(), prepared.layers[0].name: "fp16"}
    stored = prepared.write(plan).formats
    assert len(stored) == len(plan) + 1  # and the embedding
    assert saved({"stage": stored}).fitted({"stage": prepared}) == {"stage": plan}
    assert prepared.write(
        saved({"stage": stored}).fitted({"stage": prepared})["stage"]
    ).formats == (stored)


@pytest.mark.parametrize("reduced", [False, True])
def test_a_plan_brings_its_kernels_and_its_range(
    reduced: bool, prepared: Prepared, bundle: Path
) -> None:
    manifest = parse_manifest((bundle / "bundle.json").read_text(encoding="utf-8"))
    quantization = replace(
        manifest.quantization, reduced_range=reduced, direct={"stage": ("first", "gone")}
    )
    write_manifest(bundle, replace(manifest, quantization=quantization))
    applied = read_plan(bundle).applied(replace(prepared, reduced_range=not reduced), "stage")
    assert applied.reduced_range is reduced
    assert applied.kernels == {"first": "direct"}
    assert replace(applied, kernels={}, reduced_range=prepared.reduced_range) == prepared


def test_a_stage_that_stayed_float(prepared: Prepared) -> None:
    stored = prepared.write().formats
    assert not saved({"stage": stored}).keeps_float("stage")
    assert saved({"stage": dict.fromkeys(stored, "fp32")}).keeps_float("stage")
    # Float layers, but an embedding in bytes: written, not left as it was.
    plan = prepared.write(dict.fromkeys(prepared.plain_int8(), "fp32")).formats
    assert not saved({"stage": plan}).keeps_float("stage")


def test_small_layers_may_be_left_out(prepared: Prepared) -> None:
    plan = prepared.plain_int8()
    small = plan.copy()
    del small[prepared.layers[-1].name]
    assert saved({"stage": small}).fitted({"stage": prepared}) == {"stage": small}
    assert prepared.write(small).formats == prepared.write(plan).formats


def test_the_plan_of_another_model(prepared: Prepared) -> None:
    plan = prepared.write().formats
    more = saved({"stage": {**plan, "mid.7.weight": "int8"}})
    message = r"other/bundle\.json: is the plan of another model, 'other' \(stage: it names mid\.7"
    with pytest.raises(InputError, match=message):
        more.fitted({"stage": prepared})
    first = prepared.layers[0].name
    less = saved({"stage": {k: v for k, v in plan.items() if k != first}})
    with pytest.raises(InputError, match=rf"'other' \(stage: it leaves out {first}\).*--min-psnr"):
        less.fitted({"stage": prepared})
    with pytest.raises(InputError, match=r"another model"):
        saved({"unet": plan}).fitted({"stage": prepared})


@pytest.mark.parametrize("form", ["int2", "", "FP16"])
def test_an_unknown_format(form: str, prepared: Prepared) -> None:
    name = prepared.layers[1].name
    plan = saved({"stage": {**prepared.plain_int8(), name: form}})
    message = rf"stage: {name} is '{form}', expected one of int8, int8-weights, int4, fp16, fp32"
    with pytest.raises(InputError, match=message):
        plan.fitted({"stage": prepared})


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The manifest of a bundle in int8 for cpu."""
    manifest = parse_manifest((tiny_bundle / "bundle.json").read_text(encoding="utf-8"))
    quantization = Quantization(precision="int8", tensors={"unet": {"w": "int8"}})
    write_manifest(tmp_path, replace(manifest, target="cpu", quantization=quantization))
    return tmp_path


def test_a_plan_is_read_from_a_bundle_or_its_manifest(bundle: Path) -> None:
    for path in (bundle, bundle / "bundle.json"):
        plan = read_plan(path)
        assert (plan.path, plan.tensors) == (path, {"unet": {"w": "int8"}})
        assert not plan.reduced_range
    assert plan.model == json.loads(path.read_text(encoding="utf-8"))["name"]


@pytest.mark.parametrize(
    "kind", ["nothing", "folder", "text", "bytes", "json", "list", "onnx", "float", "openvino"]
)
def test_files_without_a_plan(kind: str, bundle: Path, tiny_bundle: Path) -> None:
    path = bundle / "bundle.json"
    text = path.read_text(encoding="utf-8")
    if kind == "nothing":
        path = bundle / "no-such-file"
    elif kind == "folder":
        path = bundle / "empty"
        path.mkdir()
    elif kind == "onnx":
        path = tiny_bundle / "unet.onnx"
    elif kind == "bytes":
        path.write_bytes(np.arange(256).astype(np.uint8).tobytes())
    else:
        content = json.loads(text)
        content["target"] = "openvino" if kind == "openvino" else "cpu"
        content["quantization"]["precision"] = "fp32" if kind == "float" else "int8"
        broken = {"text": "int8", "json": "{}", "list": "[]"}
        path.write_text(broken.get(kind, json.dumps(content)), encoding="utf-8")
    with pytest.raises(InputError, match=r"give the bundle\.json of an export") as e:
        read_plan(path)
    assert str(e.value).startswith(f"{path}: ")
    assert "\n" not in str(e.value)
