"""Control networks at export: which are taken, which are refused, and their graphs."""

import filecmp
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgediff_export.defaults import latent_space
from edgediff_export.export import Exported, Options, export
from edgediff_export.source.controlnet import open_controlnets
from edgediff_export.source.families import CONTROLLED_UNET
from edgediff_export.source.open import open_source
from edgediff_export.source.pipeline import Source
from edgediff_export.trace.stage import network_stage

import edgediff
from edgediff.bundle.folder import Bundle
from edgediff.errors import ExportError, InputError
from edgediff.verification import verify


@pytest.fixture(scope="module")
def source(small_pipeline: Callable[[str], Path], tmp_path_factory: Any) -> Source:
    return open_source(str(small_pipeline("sd1")), work=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def controlled_sd1(controlled: Callable[[str], Any]) -> Any:
    return controlled("sd1")


@pytest.fixture(scope="module")
def controlnets(controlled_sd1: Any) -> dict[str, Path]:
    """Two control networks for UNets of the shape "sd1"."""
    return controlled_sd1.controlnets


def opened(source: Source, *requests: str) -> Any:
    return open_controlnets(requests, source, latent_space(source))


def changed(controlnets: Any, tmp_path: Path, **changes: Any) -> Path:
    """A control network's folder with other entries in its config; None removes one."""
    folder = tmp_path / "changed"
    shutil.copytree(controlnets["canny"], folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(config))
    return folder


def test_names(source: Source, controlnets: Any) -> None:
    canny, depth = controlnets["canny"], controlnets["depth"]
    found = opened(source, str(canny), f"lines={canny}", f"a-1.x_y={depth}")
    assert [n.name for n in found] == ["canny", "lines", "a-1.x_y"]
    assert [network_stage(n).name for n in found] == [
        "controlnet.canny",
        "controlnet.lines",
        "controlnet.a-1.x_y",
    ]
    assert [n.description for n in found] == ["canny", "canny", "depth"]
    assert opened(source) == ()


def test_two_of_one_name(source: Source, controlnets: Any) -> None:
    canny = controlnets["canny"]
    with pytest.raises(InputError, match="there are two called 'canny': give NAME=SOURCE"):
        opened(source, str(canny), f"canny={controlnets['depth']}")


def test_a_folder_whose_name_is_none(source: Source, controlnets: Any, tmp_path: Path) -> None:
    odd = tmp_path / "a network"
    shutil.copytree(controlnets["canny"], odd)
    with pytest.raises(InputError, match=r"'a network' is no name .* give NAME=SOURCE"):
        opened(source, str(odd))
    assert [n.name for n in opened(source, f"mine={odd}")] == ["mine"]


@pytest.mark.parametrize("where", ["absent", "./absent/folder", "/absent", "a b/c"])
def test_what_is_not_there(source: Source, where: str) -> None:
    with pytest.raises(ExportError, match="no such folder: give one that holds"):
        opened(source, f"x={where}")


def test_a_folder_that_is_not_a_networks_own(
    source: Source, controlnets: Any, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    own = "give a control network's own folder, where config.json says _class_name ControlNetModel"
    pipeline = small_pipeline("sd1")
    with pytest.raises(ExportError) as e:
        opened(source, f"a={pipeline}")
    assert str(e.value) == f"--controlnet {pipeline}: is a whole pipeline: {own}"
    with pytest.raises(ExportError) as e:
        opened(source, f"a={tmp_path}")
    assert str(e.value) == f"--controlnet {tmp_path}: has no config.json: {own}"
    (tmp_path / "model_index.json").write_text("{}")
    shutil.copytree(controlnets["canny"], tmp_path / "controlnet")
    with pytest.raises(ExportError) as e:
        opened(source, f"a={tmp_path}")
    assert str(e.value) == (
        f"--controlnet {tmp_path}: is a whole pipeline: did you mean {tmp_path / 'controlnet'}?"
    )


@pytest.mark.filterwarnings("ignore")
def test_a_hub_id_without_a_hub(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ExportError, match="owner/name: neither a folder here nor to be had"):
        opened(source, "x=owner/name")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "T2IAdapter"}, "is a T2IAdapter, expected a ControlNetModel"),
        ({"cross_attention_dim": 64}, "its cross_attention_dim: 64, and sd1 has 32"),
        (
            {"block_out_channels": [32, 32]},
            r"skip connections: \[32, .*\], and sd1 has",
        ),
        ({"layers_per_block": 2}, "its channels of skip connections"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type: text_time, and sd1 has None"),
        ({"in_channels": 9}, "its latent channels: 9, and sd1 has 4"),
        ({"conditioning_channels": 1}, "its image channels: 1, and sd1 has 3"),
        ({"conditioning_embedding_out_channels": [16, 32]}, "its pixels a latent: 2"),
        ({"global_pool_conditions": True}, "has global_pool_conditions True, which is not"),
        ({"class_embed_type": "timestep"}, "has class_embed_type 'timestep', which is not"),
    ],
)
def test_what_does_not_fit(
    source: Source, controlnets: Any, tmp_path: Path, changes: Any, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        opened(source, str(changed(controlnets, tmp_path, **changes)))


def test_a_pickle_is_refused(source: Source, controlnets: Any, tmp_path: Path) -> None:
    folder = changed(controlnets, tmp_path)
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    (network,) = opened(source, str(folder))
    with pytest.raises(ExportError, match="a pickle, which can run any code"):
        network.load()


def test_nothing_is_written_where_one_does_not_fit(
    small_pipeline: Any, controlnets: Any, tmp_path: Path
) -> None:
    other = changed(controlnets, tmp_path, cross_attention_dim=64)
    with pytest.raises(ExportError, match="made for another UNet"):
        export(
            Options(
                source=str(small_pipeline("sd1")), out=tmp_path / "b", controlnets=(str(other),)
            )
        )
    assert not (tmp_path / "b").exists()


def test_the_plain_unet_stays_as_it_was(sd1: Any, controlled_sd1: Any) -> None:
    for name in ("unet.onnx", "unet.onnx.data"):
        assert filecmp.cmp(sd1.bundle / name, controlled_sd1.bundle / name, shallow=False)


def test_the_controlled_unet_is_a_graph_over_the_same_weights(controlled_sd1: Any) -> None:
    manifest = Bundle.open(controlled_sd1.bundle).manifest
    plain, steered = manifest.graphs["unet"], manifest.graphs[CONTROLLED_UNET]
    assert steered.data == plain.data == ("unet.onnx.data",)
    network = manifest.graphs["controlnet.canny"]
    assert steered.inputs == (*plain.inputs, *network.outputs)
    assert [(o.name, o.shape) for o in network.outputs] == [
        ("down_residual_0", ("batch", 32, "height", "width")),
        ("down_residual_1", ("batch", 32, "height", "width")),
        ("down_residual_2", ("batch", 32, "height_2", "width_2")),
        ("down_residual_3", ("batch", 64, "height_2", "width_2")),
        ("mid_residual", ("batch", 64, "height_2", "width_2")),
    ]
    assert [i.name for i in network.inputs] == [
        *("sample", "timestep", "encoder_hidden_states", "controlnet_cond", "conditioning_scale")
    ]
    size = manifest.files[steered.file].size
    assert size < manifest.files[plain.file].size + 4096
    for graph in (network, steered):
        onnx.checker.check_model(str(controlled_sd1.bundle / graph.file))
    assert manifest.provenance.controlnets == {"canny": "canny", "depth": "depth"}


def test_a_float_bundle_verifies(controlled_sd1: Any) -> None:
    outcome = verify(controlled_sd1.bundle, provider="cpu")
    assert [c for c in outcome.checks if not c.ok] == []
    stages = Bundle.open(controlled_sd1.bundle).manifest.fidelity.stages
    assert {CONTROLLED_UNET, "controlnet.canny", "controlnet.depth"} <= stages.keys()
    assert all(s.error < 1e-5 for s in stages.values())


def test_residuals_of_zero_change_nothing(controlled_sd1: Any) -> None:
    rng = np.random.default_rng(0)
    with edgediff.load(controlled_sd1.bundle, provider="cpu") as pipe:
        inputs = {
            "sample": rng.standard_normal((1, 4, 9, 11), dtype=np.float32),
            "timestep": np.array(500, np.float32),
            "encoder_hidden_states": rng.standard_normal((1, 77, 32), dtype=np.float32),
        }
        plain = pipe.run_stage("unet", inputs)
        sides = [(32, 9, 11), (32, 9, 11), (32, 5, 6), (64, 5, 6), (64, 5, 6)]
        names = [*(f"down_residual_{k}" for k in range(4)), "mid_residual"]
        zeros = {n: np.zeros((1, *s), np.float32) for n, s in zip(names, sides, strict=True)}
        steered = pipe.run_stage(CONTROLLED_UNET, {**inputs, **zeros})
    np.testing.assert_array_equal(plain["out_sample"], steered["out_sample"])


def lowered(small_pipeline: Any, controlnets: Any, out: Path, **how: Any) -> Exported:
    return export(
        Options(
            source=str(small_pipeline("sd1")),
            out=out,
            steps=1,
            controlnets=(str(controlnets["canny"]),),
            **how,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "target"), [("int8", "cpu"), ("fp16", "gpu"), ("int8", "openvino")]
)
def test_lowered(
    small_pipeline: Any, controlnets: Any, tmp_path: Path, precision: Any, target: Any
) -> None:
    made = lowered(small_pipeline, controlnets, tmp_path / "b", precision=precision, target=target)
    manifest = made.manifest
    assert made.notes == ()
    assert {g.precision for g in manifest.graphs.values()} == {precision}
    assert manifest.graphs[CONTROLLED_UNET].data == manifest.graphs["unet"].data
    assert made.size(CONTROLLED_UNET) == (made.root / "unet_controlled.onnx").stat().st_size
    assert made.size("controlnet.canny") < 0.6 * made.float_sizes["controlnet.canny"]
    stages = manifest.fidelity.stages
    assert stages[CONTROLLED_UNET].error < 2 * stages["unet"].error
    assert CONTROLLED_UNET not in manifest.quantization.tensors
    outcome = verify(made.root, provider="cpu")
    assert [c for c in outcome.checks if not c.ok] == []
    with edgediff.load(made.root, provider="cpu") as pipe:
        control = {"canny": edgediff.Control(np.full((8, 8, 3), 200, np.uint8))}
        latents = [list(pipe.stream("a", seed=0, control=c))[-1].latents for c in (None, control)]
        assert np.abs(latents[0] - latents[1]).max() > 1e-3


@pytest.mark.slow
def test_a_plan_from_before_the_control_networks(
    small_pipeline: Any, controlnets: Any, tmp_path: Path
) -> None:
    source = str(small_pipeline("sd1"))
    first = export(Options(source=source, out=tmp_path / "a", precision="int8", steps=1))
    made = lowered(
        small_pipeline, controlnets, tmp_path / "b", precision="int8", plan=tmp_path / "a"
    )
    again = made.manifest.quantization.tensors
    assert {k: again[k] for k in first.manifest.quantization.tensors} == (
        first.manifest.quantization.tensors
    )
    assert "int8" in again["controlnet.canny"].values()


@pytest.mark.slow
def test_a_budget_is_kept_beside_control_networks(
    small_pipeline: Any, controlnets: Any, tmp_path: Path
) -> None:
    from edgediff_export.search.budget import Budget

    made = lowered(
        small_pipeline,
        controlnets,
        tmp_path / "b",
        precision="int8",
        budget=Budget(min_psnr=30.0),
    )
    assert made.manifest.quantization.search is not None
    assert set(made.manifest.quantization.tensors["controlnet.canny"].values()) <= {
        *("int8", "int8-weights", "fp32")
    }
    assert verify(made.root, provider="cpu").ok
