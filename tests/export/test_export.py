"""Whole exports: each kind of pipeline, each precision, and that the bundle is as it says."""

import functools
import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from edgediff_export import convert
from edgediff_export.export import Exported, Options, export
from edgediff_export.targets.conversion import Converted, FloatStage
from edgediff_export.targets.qdq import to_qdq
from edgediff_export.targets.table import CONVERTERS

import edgediff
from edgediff.bundle.folder import Bundle, write_manifest
from edgediff.bundle.manifest import Precision
from edgediff.errors import InputError
from edgediff.verification import relative_error, verify

PRECISIONS = ["int8", pytest.param("fp16", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def lowered(
    small_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Precision], Exported]:
    """Precision → the sd1 pipeline in it, exported once."""
    folder = tmp_path_factory.mktemp("lowered")

    @functools.cache
    def run(precision: Precision) -> Exported:
        source, out = str(small_pipeline("sd1")), folder / precision
        return export(Options(source=source, out=out, precision=precision, steps=2))

    return run


@pytest.mark.parametrize("shape", ["sd1", "sd2", "lcm"])
def test_a_float_bundle_verifies(shape: str, exported: Callable[[str], Any]) -> None:
    outcome = verify(exported(shape).bundle, provider="cpu")
    assert [c for c in outcome.checks if not c.ok] == []
    manifest = Bundle.open(exported(shape).bundle).manifest
    assert all(s.error < 1e-5 for s in manifest.fidelity.stages.values())
    assert [p.psnr_db for p in manifest.fidelity.images] == [None] * 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lowered_bundle_verifies(
    precision: Precision, lowered: Callable[[Precision], Exported]
) -> None:
    made = lowered(precision)
    outcome = verify(made.root, provider="cpu")
    assert [c for c in outcome.checks if not c.ok] == []
    for image in made.manifest.fidelity.images:
        assert image.psnr_db is None or image.psnr_db > (32 if precision == "int8" else 35)
    for stage in made.manifest.graphs:
        assert made.size(stage) < 0.8 * made.float_sizes[stage]


@pytest.mark.slow
def test_the_plan_names_every_weight(lowered: Callable[[Precision], Exported]) -> None:
    int8 = lowered("int8").manifest.quantization
    assert int8.precision == "int8"
    unet = int8.tensors["unet"]
    assert unet["conv_in.weight"] == unet["conv_out.weight"] == "fp32"
    assert unet["mid_block.resnets.0.conv1.weight"] == "int8"
    # A GEGLU's two halves are layers of their own.
    gate = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight.256-512"
    assert unet[gate] == "int8"
    assert set(unet.values()) <= {"int8", "int8-weights", "fp32"}
    text = int8.tensors["text_encoder"]
    assert text["text_model.embeddings.token_embedding.weight"] == "int8"
    half = lowered("fp16").manifest.quantization.tensors
    assert half["unet"]["conv_in.weight"] == half["vae_decoder"]["decoder.conv_in.weight"] == "fp16"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_inputs_and_outputs_stay_float32(
    precision: Precision, lowered: Callable[[Precision], Exported]
) -> None:
    for graph in lowered(precision).manifest.graphs.values():
        for spec in (*graph.inputs, *graph.outputs):
            assert spec.dtype == ("int64" if spec.name == "input_ids" else "float32")


def test_a_batch_is_what_each_would_be_alone(lowered: Callable[[Precision], Exported]) -> None:
    """Activations are quantized as they come: one image must not see the other's range."""
    how = {"steps": 2, "guidance_scale": 4.0}
    with edgediff.load(lowered("int8").root, provider="cpu") as pipe:
        together = pipe.generate("a cat", seed=[3, 0], **how).images
        for seed, image in zip((3, 0), together, strict=True):
            (single,) = pipe.generate("a cat", seed=seed, **how).images
            np.testing.assert_array_equal(np.asarray(image), np.asarray(single))


def test_averaged_attention_is_off_unless_asked_for(
    lowered: Callable[[Precision], Exported],
) -> None:
    quantization = lowered("int8").manifest.quantization
    assert quantization.averaged_attention is False
    assert quantization.search is None
    graph = onnx.load(lowered("int8").root / "unet.onnx", load_external_data=False).graph
    assert not any(n.op_type == "Pad" and "edge" in str(n.attribute) for n in graph.node)


@pytest.mark.slow
def test_averaged_attention(
    lowered: Callable[[Precision], Exported], sd1: Any, tmp_path: Path
) -> None:
    source = str(sd1.diffusers)
    how = {"precision": "int8", "steps": 2, "average_attention": True}
    made = export(Options(source=source, out=tmp_path / "b", **how))
    assert made.manifest.quantization.averaged_attention is True
    for stage, plan in lowered("int8").manifest.quantization.tensors.items():
        assert made.manifest.quantization.tensors[stage].keys() == plan.keys()
    graph = onnx.load(made.root / "unet.onnx", load_external_data=False).graph
    assert any(n.op_type == "Pad" and "edge" in str(n.attribute) for n in graph.node)
    assert verify(made.root, provider="cpu").ok
    with edgediff.load(made.root, provider="cpu") as pipe:
        assert pipe.generate("a cat", seed=0, steps=1, size=(72, 40)).images[0].size == (72, 40)


@pytest.mark.slow
def test_a_plan_used_again(
    lowered: Callable[[Precision], Exported], sd1: Any, tmp_path: Path
) -> None:
    first = lowered("int8")
    source = str(sd1.diffusers)
    how = {"precision": "int8", "steps": 2, "plan": first.root}
    made = export(Options(source=source, out=tmp_path / "b", **how))
    assert made.manifest.quantization == first.manifest.quantization
    for stage in made.manifest.graphs:
        assert made.size(stage) == first.size(stage)
    assert made.manifest.fidelity.images == first.manifest.fidelity.images
    other = str(one_layer_less(sd1.diffusers, tmp_path))
    with pytest.raises(InputError, match=r"the plan of another model, 'sd1', and this is 'other'"):
        export(Options(source=other, out=tmp_path / "c", **how))
    with pytest.raises(
        InputError, match=r"the plan of another model, 'sd1' \(.*--min-psnr to sear"
    ):
        export(Options(source=other, out=tmp_path / "c", name="sd1", **how))
    assert made.manifest.quantization.direct == first.manifest.quantization.direct
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "other"]


def one_layer_less(folder: Path, work: Path) -> Path:
    """The same pipeline, but for a layer that its text encoder lacks."""
    other = work / "other"
    shutil.copytree(folder, other)
    path = other / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    config["num_hidden_layers"] -= 1
    path.write_text(json.dumps(config))
    return other


@pytest.mark.slow
def test_a_refused_stage_is_refused_again(
    lowered: Callable[[Precision], Exported], sd1: Any, tmp_path: Path
) -> None:
    """A plan that says all float gives the float stage; nothing is averaged there."""
    first = lowered("int8")
    manifest = first.manifest
    tensors = manifest.quantization.tensors
    float_unet = {**tensors, "unet": dict.fromkeys(tensors["unet"], "fp32")}
    quantization = replace(manifest.quantization, tensors=float_unet)
    write_manifest(tmp_path, replace(manifest, quantization=quantization))
    how = {"precision": "int8", "steps": 2, "average_attention": True}
    plan = tmp_path / "bundle.json"
    made = export(Options(source=str(sd1.diffusers), out=tmp_path / "b", plan=plan, **how))
    assert made.manifest.quantization == quantization
    assert made.manifest.graphs["unet"].precision == "fp32"
    assert made.size("unet") == made.float_sizes["unet"]
    assert made.size("vae_decoder") == first.size("vae_decoder")
    assert made.manifest.quantization.averaged_attention is False
    assert verify(made.root, provider="cpu").ok


@pytest.fixture(scope="module")
def for_openvino(
    small_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    """In int8 for OpenVINO, with a text encoder that comes out wrong, and a decoder that is
    neither smaller nor faster."""

    def converter(stage: FloatStage) -> Converted:
        if stage.source.stem == "unet":
            return to_qdq(stage)
        model = ir.load(stage.source)
        formats = dict.fromkeys(list(model.graph.initializers)[:3], "int8")
        if stage.source.stem == "text_encoder":
            for k, out in enumerate(list(model.graph.outputs)):
                wrong = ir.node("Neg", [out])
                wrong.outputs[0].type, wrong.outputs[0].shape = out.type, out.shape
                out.name, wrong.outputs[0].name = f"right{k}", out.name
                model.graph.append(wrong)
                model.graph.outputs[k] = wrong.outputs[0]
        return Converted(model=model, precision="int8", formats=formats)

    def seconds(*_: Any, **__: Any) -> float:
        return 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONVERTERS, ("openvino", "int8"), converter)
        patch.setattr(convert, "seconds", seconds)
        return export(
            Options(
                source=str(small_pipeline("sd1")),
                out=tmp_path_factory.mktemp("openvino") / "b",
                precision="int8",
                target="openvino",
                steps=1,
            )
        )


@pytest.mark.slow
def test_a_bundle_for_openvino_runs_on_the_cpu_too(for_openvino: Exported) -> None:
    manifest = Bundle.open(for_openvino.root).manifest
    assert (manifest.target, manifest.providers) == ("openvino", ("openvino", "cpu"))
    assert manifest.graphs["unet"].precision == "int8"
    graph = onnx.load(for_openvino.root / "unet.onnx", load_external_data=False).graph
    assert any(n.op_type == "QuantizeLinear" for n in graph.node)
    outcome = verify(for_openvino.root, provider="cpu")
    assert [c for c in outcome.checks if not c.ok] == []


@pytest.mark.slow
def test_a_refused_stage_stays_float_and_says_so(for_openvino: Exported) -> None:
    assert for_openvino.notes == (
        "text_encoder stays in float32: in int8 its output is off by 2 of its norm",
        "vae_decoder stays in float32: in int8 it is neither smaller nor faster",
    )
    manifest = for_openvino.manifest
    for stage in ("text_encoder", "vae_decoder"):
        assert manifest.graphs[stage].precision == "fp32"
        assert set(manifest.quantization.tensors[stage].values()) == {"fp32"}
        assert for_openvino.size(stage) == for_openvino.float_sizes[stage]
        assert manifest.fidelity.stages[stage].error < 1e-5
    assert manifest.quantization.precision == "int8"


def test_the_graphs_are_what_the_manifest_says(sd1: Any) -> None:
    for graph in Bundle.open(sd1.bundle).manifest.graphs.values():
        model = onnx.load(sd1.bundle / graph.file)
        onnx.checker.check_model(model)
        assert [i.name for i in model.graph.input] == [i.name for i in graph.inputs]
        assert [o.name for o in model.graph.output] == [o.name for o in graph.outputs]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_lowering_does_to_clip_skip_is_measured(
    lowered: Callable[[Precision], Exported], precision: Precision
) -> None:
    bundle = lowered(precision)
    graph = bundle.manifest.graphs["text_encoder"]
    assert graph.precision == precision
    names = [spec.name for spec in graph.outputs]
    assert names == ["last_hidden_state", "clip_skip_1", "clip_skip_2"]
    with (
        np.load(bundle.root / "fixtures.npz") as fixtures,
        edgediff.load(bundle.root, provider="cpu", threads=1) as pipe,
    ):
        worst = 0.0
        for case in ("prompt", "empty"):
            prefix = f"text_encoder/{case}"
            found = pipe.run_stage(
                "text_encoder", {"input_ids": fixtures[f"{prefix}/in/input_ids"]}
            )
            for name in names:
                expected = fixtures[f"{prefix}/out/{name}"]
                worst = max(worst, relative_error(found[name], expected))
        fidelity = bundle.manifest.fidelity.stages["text_encoder"]
        assert 0 < worst <= fidelity.error * 1.01
        assert fidelity.error < 0.02
        last, *skipped = (
            list(pipe.stream("a fox", seed=0, steps=1, clip_skip=k))[-1].latents
            for k in (None, 1, 2)
        )
        for latents in skipped:
            assert np.isfinite(latents).all()
            assert (latents != last).any()


def test_shapes_are_free_where_they_should_be(sd1: Any, lcm: Any) -> None:
    graphs = Bundle.open(sd1.bundle).manifest.graphs
    shapes = {i.name: i.shape for g in graphs.values() for i in (*g.inputs, *g.outputs)}
    assert shapes == {
        "input_ids": ("batch", 77),
        "last_hidden_state": ("batch", 77, 32),
        "clip_skip_1": ("batch", 77, 32),
        "clip_skip_2": ("batch", 77, 32),
        "sample": ("batch", 3, "image_height", "image_width"),  # the decoder's comes last
        "timestep": (),
        "encoder_hidden_states": ("batch", "sequence", 32),
        "out_sample": ("batch", 4, "height", "width"),
        "latent_sample": ("batch", 4, "height", "width"),
        "latent_parameters": ("batch", 8, "height", "width"),
    }
    unet = Bundle.open(lcm.bundle).manifest.graphs["unet"]
    cond = unet.input("timestep_cond")
    assert cond is not None
    assert cond.shape == ("batch", 16)


def test_a_size_other_than_the_one_traced(sd1: Any) -> None:
    with edgediff.load(sd1.bundle, provider="cpu") as pipe:
        result = pipe.generate("a cat", seed=0, steps=1, size=(48, 80), guidance_scale=3.0)
        assert result.images[0].size == (48, 80)


def test_defaults_follow_the_pipeline(sd2: Any, lcm: Any) -> None:
    v = Bundle.open(sd2.bundle).manifest
    assert v.schedule.prediction_type == "v_prediction"
    assert (v.defaults.sampler, v.defaults.width) == ("ddim", 64)
    assert v.tokenizers["text_encoder"].pad_token_id == 0
    consistency = Bundle.open(lcm.bundle).manifest
    assert consistency.defaults.sampler == "lcm"
    assert consistency.defaults.guidance_scale == 8.5


def test_weights_can_be_mapped(sd1: Any) -> None:
    """Tensors lie in the data file without overlap, at offsets a page or a cache line divides."""
    model = onnx.load(sd1.bundle / "unet.onnx", load_external_data=False)
    ranges = []
    for tensor in model.graph.initializer:
        entries = {e.key: e.value for e in tensor.external_data}
        if not entries:
            continue
        offset, length = int(entries["offset"]), int(entries["length"])
        unit = 65536 if length >= 1 << 20 else 4096 if length >= 1 << 16 else 64
        assert offset % unit == 0
        assert length >= 1024
        ranges.append((offset, offset + length))
    ranges.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
    assert ranges[-1][1] == (sd1.bundle / "unet.onnx.data").stat().st_size


@pytest.mark.slow
def test_a_tiny_decoder(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    made = export(Options(source=str(small_pipeline("tiny-vae")), out=tmp_path / "b", steps=1))
    assert made.manifest.latent.scaling_factor == 1.0
    assert verify(made.root, provider="cpu").ok


@pytest.mark.slow
def test_another_vae_and_what_the_user_says(
    small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    made = export(
        Options(
            source=str(small_pipeline("sd1")),
            out=tmp_path / "b",
            vae=small_pipeline("tiny-vae"),
            name="mine",
            size=(48, 64),
            steps=1,
            guidance_scale=0.0,
            sampler="euler",
            license="CC0-1.0",
            attribution=("one", "two"),
        )
    )
    manifest = made.manifest
    assert (manifest.name, manifest.latent.scaling_factor) == ("mine", 1.0)
    defaults = manifest.defaults
    assert (defaults.width, defaults.height, defaults.steps) == (48, 64, 1)
    assert (defaults.guidance_scale, defaults.sampler) == (0.0, "euler")
    provenance = manifest.provenance
    assert (provenance.license, provenance.attribution) == ("CC0-1.0", ("one", "two"))
    assert provenance.source == "sd1 with the VAE tiny-vae"
    assert verify(made.root, provider="cpu").ok


@pytest.mark.slow
def test_turbo_takes_no_guidance(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    made = export(Options(source=str(small_pipeline("turbo")), out=tmp_path / "b"))
    assert made.manifest.defaults.guidance_scale == 0.0
    assert made.manifest.defaults.sampler == "euler"
    assert made.manifest.schedule.timestep_spacing == "trailing"


@pytest.mark.slow
def test_half_weights_export_as_float(sd15_shape: Any, tmp_path: Path) -> None:
    folder = sd15_shape.write_pipeline(tmp_path / "half", "sd1", half=True)
    made = export(Options(source=str(folder), out=tmp_path / "b", steps=1))
    assert verify(made.root, provider="cpu").ok


def test_the_fixtures_are_small_and_named(sd1: Any) -> None:
    with np.load(sd1.bundle / "fixtures.npz", allow_pickle=False) as arrays:
        assert arrays["image/0"].shape == (64, 64, 3)
        assert arrays["unet/t261.5/in/timestep"] == np.float32(261.5)
        assert arrays["unet/t981/out/out_sample"].shape == (1, 4, 8, 8)
    assert (sd1.bundle / "fixtures.npz").stat().st_size < 1e6


def test_nothing_of_this_machine_is_in_the_bundle(sd1: Any) -> None:
    text = (sd1.bundle / "bundle.json").read_text()
    assert str(sd1.diffusers.parent) not in text
    assert json.loads(text)["provenance"]["source"] == "sd1"
    for name in ("unet.onnx", "text_encoder.onnx", "vae_decoder.onnx"):
        assert b"/tmp/" not in (sd1.bundle / name).read_bytes()
        assert b".py" not in (sd1.bundle / name).read_bytes()
