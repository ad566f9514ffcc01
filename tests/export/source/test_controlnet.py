"""Control networks at export: which are taken, which are refused, and their graphs."""

import filecmp
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from edgediff_export.defaults import latent_space
from edgediff_export.export import Exported, Options, export
from edgediff_export.source.controlnet import open_controlnets
from edgediff_export.source.families import CONTROLLED_UNET
from edgediff_export.source.open import open_source
from edgediff_export.source.original_names import controlnet_names
from edgediff_export.source.pipeline import Source
from edgediff_export.trace.stage import network_stage
from safetensors.torch import load_file, save_file

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
    with pytest.raises(InputError, match=r"'a network' is not a name .* give NAME=SOURCE"):
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


def test_from_the_hub(source: Source, controlnets: dict[str, Path], hub: Any) -> None:
    canny = {path.name: path.read_bytes() for path in controlnets["canny"].iterdir()}
    hub.add("owner/name", {**canny, "diffusion_pytorch_model.fp16.safetensors": b"", "a.bin": b""})
    (network,) = opened(source, "x=owner/name")
    assert network.description == "owner/name"
    assert sorted(hub.fetched()) == sorted(canny)
    with pytest.raises(ExportError, match=r"--controlnet no/one: no such folder or file here, and"):
        opened(source, "x=no/one")
    hub.add("owner/loose", {"a.safetensors": b""})
    with pytest.raises(ExportError, match=r"--controlnet owner/loose: holds no config\.json"):
        opened(source, "x=owner/loose")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "is a AutoencoderKL, expected a ControlNetModel"),
        (
            {"cross_attention_dim": 768},
            "made for Stable Diffusion 1.x: it reads text of 768 values a token, and sd1 gives 32:"
            " give a ControlNet for sd1, or its family$",
        ),
        ({"cross_attention_dim": 2048}, "made for SDXL: it reads text of 2048 values"),
        ({"cross_attention_dim": 64}, "made for another UNet: it reads text of 64 values"),
        (
            {"block_out_channels": [32, 32]},
            r"its residuals have \[32, .*\] channels, and the skip connections of sd1 \[32",
        ),
        ({"layers_per_block": 2}, "made for another UNet: its residuals have"),
        (
            {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 96},
            "it takes 96 values about prompt and size, as SDXL's do, and sd1 gives none",
        ),
        ({"addition_embed_type": "image"}, "has addition_embed_type 'image', which is not"),
        ({"in_channels": 9}, "takes 9 latent channels, and sd1 has 4"),
        ({"conditioning_channels": 1}, "takes control images of 1 channels, and bundles give RGB"),
        (
            {"controlnet_conditioning_channel_order": "gbr"},
            "has `controlnet_conditioning_channel_order` 'gbr', expected 'rgb' or 'bgr'",
        ),
        (
            {"conditioning_embedding_out_channels": [16, 32]},
            "makes its control image 2 times smaller, and latents are 8 times smaller",
        ),
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


OTHERS = {
    "a Union ControlNet": (
        *("ControlNetUnionModel", "task_embedding"),
        "since it takes the type of its control image as a further input",
    ),
    "a Control-LoRA": (
        *(None, "input_blocks.1.0.in_layers.2.up"),
        "since it holds low-rank changes of a UNet, and not a whole network",
    ),
    "a ControlNet-XS": (
        *("ControlNetXSAdapter", "control_to_base_for_conv_in.weight"),
        "since it exchanges values with the UNet in each layer",
    ),
    "a T2I-Adapter": (
        *("T2IAdapter", "adapter.body.0.resnets.0.block1.weight"),
        "since it runs once for an image",
    ),
    "an IP-Adapter": (
        *(None, "ip_adapter.1.to_k_ip.weight"),
        "since it adds attention to an image's embedding",
    ),
    "a ControlNet-LLLite": (
        *(None, "lllite_unet_input_blocks_1_1_proj.down.0.weight"),
        "since it changes the inputs of the UNet's attention",
    ),
    "a SparseCtrl network": ("SparseControlNetModel", None, "since it steers the frames of a vid"),
    "a LoRA": (
        *(None, "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"),
        "since it changes weights and takes no image: give it as --lora",
    ),
    "a control network for a transformer": (
        *("FluxControlNetModel", "transformer_blocks.0.attn.to_q.weight"),
        "since it is for FLUX, Stable Diffusion 3 and the like",
    ),
    "the difference of a ControlNet and a UNet": (
        *(None, "difference"),
        "since its weights are complete only together with those of one UNet",
    ),
}
"""Adapter → its class in diffusers, a tensor by which it is known, and the reason."""


@pytest.mark.parametrize("kind", OTHERS)
def test_other_adapters_are_refused_by_name(
    source: Source, controlnets: Any, tmp_path: Path, kind: str
) -> None:
    """By the class in a config, by the names in a file, and by those beside a config that says
    ControlNetModel, as that of a published Union network does."""
    cls, tensor, why = OTHERS[kind]
    refused = re.escape(f"is {kind}, which is not supported, {why}")
    if cls is not None:
        folder = changed(controlnets, tmp_path, _class_name=cls)
        with pytest.raises(ExportError, match=refused):
            opened(source, str(folder))
    if tensor is not None:
        weights = load_file(controlnets["canny"] / "diffusion_pytorch_model.safetensors")
        weights[tensor] = torch.zeros(4, 4)
        file = tmp_path / "adapter.safetensors"
        save_file(weights, file)
        with pytest.raises(ExportError, match=refused):
            opened(source, str(file))
        folder = shutil.copytree(controlnets["canny"], tmp_path / "folder")
        shutil.copy(file, folder / "diffusion_pytorch_model.safetensors")
        with pytest.raises(ExportError, match=refused):
            opened(source, str(folder))


def test_weights_that_the_config_does_not_have(
    source: Source, controlnets: Any, tmp_path: Path
) -> None:
    """diffusers would leave them out without a word."""
    folder = changed(controlnets, tmp_path)
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(path), "face_embedding.weight": torch.zeros(2, 2)}, path)
    (network,) = opened(source, str(folder))
    with pytest.raises(ExportError, match=r"holds face_embedding\.weight, which a C"):
        network.load()


def original(folder: Path, prefix: str = "control_model.") -> dict[str, torch.Tensor]:
    """The weights in a folder under the names of the original code."""
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    names = controlnet_names({name.rpartition(".")[0] for name in state})
    return {
        f"{prefix}{names[k.rpartition('.')[0]]}.{k.rpartition('.')[2]}": v for k, v in state.items()
    }


@pytest.mark.parametrize("shape", ["sd1", "sd2", "xl"])
@pytest.mark.parametrize("attends", [True, False])
def test_a_file_has_the_config_that_its_folder_had(
    sd15_shape: Any,
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
    shape: str,
    attends: bool,
) -> None:
    """Under either set of names; the weights come out the same, and diffusers reads the original
    names as we do."""
    changes = {} if attends else {"down_block_types": ("DownBlock2D",) * 2}
    changes |= {} if attends else {"mid_block_type": "UNetMidBlock2D"}
    folder = sd15_shape.write_controlnet(tmp_path / "network", shape, **changes)
    of = open_source(str(small_pipeline(shape)), work=tmp_path)
    weights = folder / "diffusion_pytorch_model.safetensors"
    renamed = original(folder)
    save_file(renamed, tmp_path / "control_v11p_sd15_canny.safetensors")
    save_file(original(folder, ""), tmp_path / "bare.safetensors")
    (own,) = opened(of, str(folder))
    expected = own.load()
    converted = convert_controlnet_checkpoint(dict(renamed), dict(expected.config))
    # diffusers converts no embedding of SDXL's sizes.
    added = {k for k in expected.state_dict() if k.startswith("add_embedding.")}
    assert converted.keys() == expected.state_dict().keys() - added
    for file in (weights, *tmp_path.glob("*.safetensors")):
        (network,) = opened(of, f"canny={file}")
        module = network.load()
        for key in set(dict(expected.config)) & set(network.config):
            its, theirs = module.config[key], expected.config[key]
            if key not in ("transformer_layers_per_block", "cross_attention_dim") or attends:
                assert as_list(its) == as_list(theirs), key
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], tensor, rtol=0, atol=0)
            if name not in added:
                torch.testing.assert_close(converted[name], tensor, rtol=0, atol=0)


def as_list(value: Any) -> Any:
    """A number for each of the two levels, however a config writes it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return [value, value]
    return list(value) if isinstance(value, list | tuple) else value


def test_files_and_their_names(source: Source, controlnets: Any, tmp_path: Path) -> None:
    file = tmp_path / "control_v11e_sd15_shuffle.safetensors"
    save_file(original(controlnets["canny"]), file)
    (network,) = opened(source, str(file))
    assert (network.name, network.description) == ("control_v11e_sd15_shuffle",) * 2
    assert network.pools
    (note,) = network.notes
    assert "averaged over the image" in note
    assert "because of its name" in note
    plain = tmp_path / "control_v11p_sd15_canny.safetensors"
    file.rename(plain)
    (network,) = opened(source, str(plain))
    assert not network.pools
    assert network.notes == ()
    with pytest.raises(ExportError, match=r"has no config.json: did you mean the file .*canny"):
        opened(source, f"a={tmp_path}")


def test_networks_of_both_rules_of_guidance(
    source: Source, controlnets: Any, tmp_path: Path
) -> None:
    pooled = changed(controlnets, tmp_path, global_pool_conditions=True)
    canny, shuffle = f"canny={controlnets['canny']}", f"shuffle={pooled}"
    first, second = opened(source, canny, shuffle)
    assert not first.pools
    assert second.pools
    (note,) = (*first.notes, *second.notes)
    assert note.startswith("only the prompt's half of guidance is steered by shuffle, and both")
    assert [n.notes for n in opened(source, canny, f"a={controlnets['canny']}")] == [(), ()]
    assert [n.notes for n in opened(source, shuffle, f"b={pooled}")] == [(), ()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"a.weight": torch.zeros(1)}, r"holds no ControlNet \(but a.weight, …\)"),
        (
            lambda w: {k: v for k, v in w.items() if "zero_convs.1.0.bias" not in k},
            "lacks controlnet_down_blocks.1.bias, which",
        ),
        (
            lambda w: {**w, "control_model.extra.weight": torch.zeros(1)},
            "holds control_model.extra.weight, which",
        ),
        (
            lambda w: {k: torch.zeros(32, 768) if "attn2.to_k" in k else v for k, v in w.items()},
            "made for Stable Diffusion 1.x: it reads text of 768 values",
        ),
    ],
)
def test_files_that_do_not_fit(
    source: Source, controlnets: Any, tmp_path: Path, change: Any, message: str
) -> None:
    file = tmp_path / "control.safetensors"
    save_file(change(original(controlnets["canny"])), file)
    with pytest.raises(ExportError, match=message):
        opened(source, str(file))[0].load()


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin"])
def test_a_file_that_is_a_pickle(source: Source, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"control_v11p_sd15_canny{suffix}"
    file.write_bytes(b"")
    with pytest.raises(ExportError, match="a pickle, which can run any code"):
        opened(source, str(file))


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
@pytest.mark.parametrize("target", ["cpu", "openvino"])
def test_lowered_without_attention_and_with_averages(
    sd15_shape: Any, small_pipeline: Any, tmp_path: Path, target: Any
) -> None:
    small = {"down_block_types": ("DownBlock2D",) * 2, "mid_block_type": "UNetMidBlock2D"}
    kinds = {"small": small, "shuffle": {"global_pool_conditions": True}}
    folders = {
        "small": sd15_shape.write_controlnet(tmp_path / "small", **kinds["small"]),
        "shuffle": sd15_shape.write_controlnet(tmp_path / "shuffle", **kinds["shuffle"]),
    }
    made = export(
        Options(
            source=str(small_pipeline("sd1")),
            out=tmp_path / "b",
            steps=2,
            precision="int8",
            target=target,
            controlnets=tuple(f"{name}={path}" for name, path in folders.items()),
        )
    )
    (note,) = made.notes
    assert note.startswith("only the prompt's half of guidance is steered by shuffle")
    networks = made.manifest.controlnets
    assert {stage.graph.precision for stage in networks.values()} == {"int8"}
    assert networks["shuffle"].graph.conditional_only
    assert not networks["small"].graph.conditional_only
    assert networks["small"].graph.input("encoder_hidden_states") is None
    assert [c for c in verify(made.root, provider="cpu").checks if not c.ok] == []
    with edgediff.load(made.root, provider="cpu") as pipe:
        control = edgediff.Control(np.full((8, 8, 3), 200, np.uint8))
        how = {"seed": 0, "guidance_scale": 4.0}
        plain = list(pipe.stream("a", **how))[-1].latents
        for name in folders:
            steered = list(pipe.stream("a", control={name: control}, **how))[-1].latents
            assert np.abs(plain - steered).max() > 1e-3


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
