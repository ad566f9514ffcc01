"""Files and folders in the wrong place, and models of other kinds, are refused by name and with a
remedy."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.source.controlnet_file import file_config
from edgediff_export.source.file_kinds import FAMILIES, kind_of, lora_of_another
from edgediff_export.source.lora import Lora, match
from edgediff_export.source.open import open_source
from edgediff_export.source.pipeline import Source
from edgediff_export.source.safetensors_file import Header
from edgediff_export.source.textual_inversion import Embedding
from edgediff_export.source.weights import find_weights, load_file_weights
from safetensors.torch import load_file, save_file

from edgediff.errors import ExportError

Write = Callable[[Path], object]


@pytest.fixture(scope="module")
def source(
    small_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Source:
    """A pipeline of Stable Diffusion 1's shape, opened once."""
    return open_source(str(small_pipeline("sd1")), work=tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def skeletons(source: Source) -> dict[str, Any]:
    """Component → its module without weights."""
    return {name: source._skeleton(name) for name in ("unet", "vae", "text_encoder")}


@pytest.fixture
def folder(small_pipeline: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_pipeline("sd1"), tmp_path / "pipeline"))


def config(**entries: Any) -> str:
    return json.dumps(entries)


# Files in the place of a checkpoint, of weights, of a LoRA and of a textual inversion

FILES: Mapping[str, tuple[Mapping[str, tuple[int, ...]], str, str]] = {
    "LoRA": ({"lora_unet_x.lora_up.weight": (4, 2)}, "a LoRA", "--lora"),
    "LoRA of PEFT": ({"base_model.model.x.lora_A.weight": (2, 4)}, "a LoRA", "--lora"),
    "LoHa": ({"lycoris_x.hada_w1_a": (4, 2)}, "a LoRA", "--lora"),
    "textual inversion": ({"emb_params": (1, 32)}, "a textual inversion", "--embedding"),
    "SDXL's": ({"clip_g": (1, 32), "clip_l": (1, 32)}, "a textual inversion", "--embedding"),
    "ControlNet": ({"controlnet_cond_embedding.x": (1,)}, "a control network", "--controlnet"),
    "original ControlNet": (
        {"control_model.input_blocks.0.0.weight": (1,), "control_model.zero_convs.0.0.bias": (1,)},
        "a control network",
        "--controlnet",
    ),
    "UNet": ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "a UNet", "--unet"),
    "original UNet": ({"input_blocks.0.0.weight": (1,)}, "a UNet", "--unet"),
    "VAE": ({"decoder.conv_in.weight": (1,), "encoder.conv_in.weight": (1,)}, "a VAE", "--vae"),
    "original VAE": ({"first_stage_model.decoder.conv_in.weight": (1,)}, "a VAE", "--vae"),
    "CLIP": (
        {"text_model.embeddings.token_embedding.weight": (1,), "vision_model.x": (1,)},
        "a text encoder",
        "--text-encoder",
    ),
    "open_clip": ({"transformer.resblocks.0.ln_1.bias": (1,)}, "a text encoder", "--text-encoder"),
    "IP-Adapter": ({"image_proj.proj.weight": (1,)}, "an IP-Adapter, which", ""),
    "T2I-Adapter": ({"body.0.in_conv.weight": (1,)}, "a T2I-Adapter, which", ""),
    "ESRGAN": ({"conv_first.weight": (1,)}, "an upscaling network, which enlarges", ""),
    "motion module": (
        {"down_blocks.0.motion_modules.0.proj_in.weight": (1,)},
        "a motion module, which makes video",
        "",
    ),
    "Stable Video Diffusion": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": (1,),
            "model.diffusion_model.input_blocks.1.0.time_stack.x": (1,),
        },
        "a video model, which makes video",
        "",
    ),
    "FLUX": ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "a FLUX model, whose denoiser is", ""),
    "FLUX of diffusers": ({"single_transformer_blocks.0.x": (1,)}, "a FLUX model", ""),
    "SD 3": ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "a Stable Diffusion 3 model", ""),
    "PixArt": ({"adaln_single.linear.weight": (1,)}, "a PixArt model, whose denoiser is", ""),
    "Wan": ({"blocks.0.self_attn.q.weight": (1,)}, "a Wan model, which makes video", ""),
    "Lumina": ({"cap_embedder.0.weight": (1,)}, "the denoiser of another model", ""),
    "T5": ({"encoder.block.0.layer.0.x": (1,), "shared.weight": (1,)}, "a T5 text encoder", ""),
    "Stable Cascade": (
        {"down_blocks.0.0.channelwise.0.weight": (1,)},
        "a Stable Cascade model",
        "",
    ),
    "CLIP vision": ({"vision_model.embeddings.x": (1,)}, "an image encoder, which reads", ""),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_in_the_place_of_another(
    case: str, source: Source, skeletons: dict[str, Any], tmp_path: Path
) -> None:
    shapes, called, option = FILES[case]
    kind = kind_of(shapes)
    assert kind is not None
    assert called.startswith(kind.called)
    assert kind.option == option
    path = tmp_path / "it.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    place = f".* and this file as {option}" if option else f": give a checkpoint of {FAMILIES}"
    with pytest.raises(ExportError, match=rf"it\.safetensors: is {called}.*{place}"):
        open_source(str(path), work=tmp_path)
    # In the place of each component, LoRA and textual inversion that it is not.
    place = f"give it as {option}" if option else f"of {FAMILIES}"
    for component, module in skeletons.items():
        flag = "--" + component.replace("_", "-")
        if option != flag:
            with pytest.raises(ExportError, match=rf"{flag} .*: is {called}.* and not a .*{place}"):
                load_file_weights(path, component, module, flag=flag)
    if option != "--lora":
        with pytest.raises(ExportError, match=rf"--lora .*: is {called}.* and not a LoRA.*{place}"):
            match(Lora(path=path), {"unet": {}})
    if option != "--embedding" and len(shapes) > 1:
        with pytest.raises(ExportError, match=rf"--embedding .*: is {called}.*{place}"):
            source.merged([], [Embedding(path=path)])


@pytest.mark.parametrize(
    "case", [c for c in FILES if FILES[c][2] not in ("--lora", "--controlnet")]
)
def test_a_file_in_the_place_of_a_control_network(case: str) -> None:
    shapes, called, option = FILES[case]
    header = Header(path=Path("it.safetensors"), shapes=shapes, metadata={})
    place = f"give it as {option}" if option else f"of {FAMILIES}"
    with pytest.raises(
        ExportError, match=rf"it: is {called}.* and not a control network: .*{place}"
    ):
        file_config("it", header, {})


def test_a_checkpoint_in_the_place_of_a_lora(
    folder: Path, checkpoint: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    save_file(checkpoint(folder), tmp_path / "it.safetensors")
    source = open_source(str(folder), work=tmp_path)
    with pytest.raises(ExportError, match="is a checkpoint of a whole pipeline, and not a LoRA"):
        source.merged([Lora(path=tmp_path / "it.safetensors")], [])


# LoRAs of other models


def pair(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.lora_down.weight": (4, width), f"{name}.lora_up.weight": (8, 4)}


_TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SD1_UNET = {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (8, 768)}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (pair("lora_unet_double_blocks_0_img_attn_qkv", 3072), "was trained for FLUX"),
        (pair("transformer.single_transformer_blocks.0.attn.to_q", 3072), "was trained for FLUX"),
        (pair("lora_unet_joint_blocks_0_x_block_attn_qkv", 1536), "for Stable Diffusion 3"),
        (pair("diffusion_model.blocks.0.self_attn.q", 1536), "was trained for Wan"),
        (pair("transformer.transformer_blocks.0.attn1.to_q", 64), "for a model with a transformer"),
        (
            pair(_TO_K, 2048),
            r"for SDXL, with 2048 values .* this pipeline, like Stable Diffusion 1\.x, has 768",
        ),
        (pair(_TO_K, 1024), r"was trained for Stable Diffusion 2\.x, with 1024"),
        (pair(_TO_K, 80), "was trained for another model, with 80 values a token"),
    ],
)
def test_a_lora_of_another_model(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    found = lora_of_another(shapes, SD1_UNET)
    assert found is not None
    assert re.search(message, found), found


def test_a_lora_of_this_model() -> None:
    assert lora_of_another(pair(_TO_K, 768), SD1_UNET) is None
    assert lora_of_another(pair("lora_te1_text_model_x", 768), SD1_UNET) is None


@pytest.mark.parametrize(("shape", "width", "ours"), [("sd1", 80, 32), ("xl", 32, 80)])
@pytest.mark.parametrize("partial", [False, True])
def test_a_lora_of_another_model_ends_the_export(
    shape: str,
    width: int,
    ours: int,
    partial: bool,
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """Even with --allow-partial: nothing of it was meant for this UNet."""
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    path = tmp_path / "it.safetensors"
    save_file({k: torch.zeros(s) for k, s in pair(name, width).items()}, path)
    source = open_source(str(small_pipeline(shape)), work=tmp_path)
    with pytest.raises(
        ExportError, match=rf"--lora .*with {width} values .* has {ours}: give a LoRA of this"
    ):
        source.merged([Lora(path=path)], [], allow_partial=partial)


# Files that are not safetensors, or not whole

DAMAGED: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", r"is empty \(0 bytes\): download it again"),
    "cut off": (
        (64).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'.ljust(64)
        + b"1234",
        "is cut off: it has 76 of 88 bytes: download it again",
    ),
    "cut off in the header": (
        (64).to_bytes(8, "little") + b'{"a":{"dtype"',
        "is cut off: it has 21 of 72 bytes",
    ),
    "web page": (b"\n<!DOCTYPE html>\n<html>", "a web page, not the weights: .*needs a login"),
    "another page": (b"\xef\xbb\xbf<HTML lang=en>", "a web page, not the weights"),
    "a server's message": (b'{"error":"Invalid credentials"}', "a server's message"),
    "the hub's": (b"Entry not found", "a server's message, not the weights"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer.*`git lfs pull`"),
    "GGUF": (b"GGUF\x03\0\0\0", "a GGUF file under another name.*that it was made from"),
    "zip of torch": (b"PK\x03\x04rest", "a pickle under another name, which can run any code"),
    "old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9", "a pickle under another name"),
    "noise": (bytes(range(100, 200)), "not a safetensors file .*: download it again"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_is_not_safetensors(case: str, source: Source, tmp_path: Path) -> None:
    content, message = DAMAGED[case]
    path = tmp_path / "it.safetensors"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=rf"it\.safetensors: {message}"):
        open_source(str(path), work=tmp_path)
    with pytest.raises(ExportError, match=rf"--lora .*it\.safetensors: {message}"):
        source.merged([Lora(path=path)], [])
    with pytest.raises(ExportError, match=rf"--embedding .*it\.safetensors: {message}"):
        source.merged([], [Embedding(path=path)])
    for component in ("unet", "vae", "text_encoder"):
        flag = "--" + component.replace("_", "-")
        with pytest.raises(ExportError, match=rf"{flag} .*it\.safetensors: {message}"):
            open_source(str(source.folder), work=tmp_path, **{component: path})
    if case != "noise":  # which is left to diffusers' own reader
        path.rename(tmp_path / "model.safetensors")
        with pytest.raises(ExportError, match=rf"model\.safetensors: {message}"):
            find_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("it.ckpt", "a pickle, which can run any code when it is read.*from_single_file"),
        ("it.gguf", "a GGUF file, whose weights are quantized already: give the .safetensors"),
        ("it.onnx", "a .onnx: give a .safetensors file, a diffusers folder or a hub id"),
        ("it", "a file without suffix: give a .safetensors file"),
    ],
)
def test_a_file_by_its_suffix(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"?")
    with pytest.raises(ExportError, match=message):
        open_source(str(tmp_path / name), work=tmp_path)


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    for name in ("models/it.safetensors", "models/it.ckpt"):
        with pytest.raises(ExportError, match=f"{name}: no such folder or file"):
            open_source(name, work=tmp_path)


# Folders at another level, and of other things


def _touch(*names: str) -> Write:
    def write(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("{}")

    return write


def _config(**entries: Any) -> Write:
    return lambda folder: (folder / "config.json").write_text(config(**entries))


FOLDERS: Mapping[str, tuple[Write, str]] = {
    "empty": (lambda _: None, "is empty: download the pipeline again"),
    "hidden files only": (_touch("._model_index.json", ".DS_Store"), "is empty"),
    "bundle": (_touch("bundle.json"), "is a bundle already: run it with edgediff generate"),
    "parent": (
        _touch("sd15/model_index.json", "notes.txt"),
        "is not a pipeline but holds one: give .*it/sd15",
    ),
    "hub's cache": (
        _touch("snapshots/0123/model_index.json", "refs/main"),
        "is the hub's cache of a model: give the snapshot in it, .*it/snapshots/0123",
    ),
    "UNet": (_config(_class_name="UNet2DConditionModel"), "is a UNet .*as SOURCE .* as --unet"),
    "VAE": (_config(_class_name="AutoencoderTiny"), "is a VAE and nothing else: .* as --vae"),
    "control network": (_config(_class_name="ControlNetModel"), ".* it as --controlnet"),
    "text encoder": (
        _config(architectures=["CLIPTextModel"]),
        "is a text encoder .* --text-encoder",
    ),
    "transformer": (
        _config(_class_name="FluxTransformer2DModel"),
        "is a FluxTransformer2DModel and not a pipeline, which has a model_index.json",
    ),
    "no class": (_config(), "is a model without _class_name and not a pipeline"),
    "LoRA": (
        _touch("adapter_config.json", "adapter_model.safetensors"),
        "holds a LoRA: .* and .*it/adapter_model.safetensors as --lora",
    ),
    "diffusers' LoRA": (_touch("pytorch_lora_weights.safetensors"), "holds a LoRA"),
    "loose files": (
        _touch("a.safetensors", "b.safetensors"),
        "holds loose files and not a pipeline: give one of them, such as .*it/a.safetensors",
    ),
    "pickles": (_touch("model.ckpt"), "holds model.ckpt, a pickle, which can run any code"),
    "ONNX": (_touch("unet/model.onnx"), "holds ONNX files, which are exported already"),
    "others": (_touch("notes.txt"), "model_index.json: missing: give a whole diffusers folder"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_no_pipeline(case: str, tmp_path: Path) -> None:
    write, message = FOLDERS[case]
    (tmp_path / "it").mkdir()
    write(tmp_path / "it")
    with pytest.raises(ExportError, match=rf"it.*: {message}|it/{message}"):
        open_source(str(tmp_path / "it"), work=tmp_path)


def test_a_part_of_a_pipeline(folder: Path, tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder", "scheduler", "tokenizer"):
        with pytest.raises(ExportError, match=rf"{part}: is one part of .*lies in, {folder}$"):
            open_source(str(folder / part), work=tmp_path)


# Pipelines of other models


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("FluxPipeline", r"denoiser is a transformer \(ATransformer\), not a UNet: give a pipel"),
        ("StableDiffusion3Pipeline", "whose denoiser is a transformer"),
        ("PixArtSigmaPipeline", "whose denoiser is a transformer"),
        ("QwenImagePipeline", "whose denoiser is a transformer"),
        ("WanPipeline", "which makes video: give a pipeline of SD 1.x, SD 2.x or SDXL"),
        ("StableVideoDiffusionPipeline", "which makes video"),
        ("AnimateDiffPipeline", "which makes video"),
        ("CogVideoXPipeline", "which makes video"),
        ("StableAudioPipeline", "which makes sound"),
        ("StableDiffusionUpscalePipeline", "which enlarges finished images"),
        ("StableDiffusionLatentUpscalePipeline", "which enlarges finished images"),
        ("StableDiffusionInstructPix2PixPipeline", "which edits an image by a method of its own"),
        ("StableDiffusionDepth2ImgPipeline", "takes or gives a depth map"),
        ("StableDiffusionXLControlNetUnionPipeline", "control network is of another architecture"),
        ("StableDiffusionAdapterPipeline", "which feeds the UNet more than a prompt"),
        ("StableCascadeDecoderPipeline", "which has three stages of its own"),
        ("StableUnCLIPPipeline", "which has a prior"),
        ("KolorsPipeline", "which does not read prompts with CLIP"),
        ("OnnxStableDiffusionPipeline", "which is exported already, for another runtime"),
        ("OVStableDiffusionPipeline", "which is exported already, for another runtime"),
        ("FlaxStableDiffusionPipeline", "whose weights are Flax's"),
        ("StableDiffusionPAGPipeline", "a method of its own: .* StableDiffusionPipeline, write"),
        ("MyPipeline", "which edgediff does not know: .* write that into its model_index.json"),
    ],
)
def test_a_pipeline_of_another_model(
    pipeline: str, message: str, folder: Path, tmp_path: Path
) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    if "StableDiffusion" not in pipeline.replace("StableDiffusion3", "") and pipeline[0] != "M":
        index["transformer"] = ["diffusers", "ATransformer"]
    path.write_text(json.dumps({**index, "_class_name": pipeline}))
    with pytest.raises(ExportError, match=rf": is a {pipeline}, .*{message}"):
        open_source(str(folder), work=tmp_path)


# Components that do not fit


@pytest.mark.parametrize(
    ("component", "entries", "message"),
    [
        ("unet", {"_class_name": "ControlNetModel"}, "is a ControlNetModel.*given as --controlnet"),
        ("unet", {"_class_name": "AutoencoderKL"}, "is a AutoencoderKL.*: a VAE is given as --vae"),
        (
            "unet",
            {"_class_name": "UNet3DConditionModel"},
            "is a UNet3DConditionModel, expected UNe",
        ),
        ("unet", {"_class_name": "FluxTransformer2DModel"}, "is a FluxTransformer2DModel, expec"),
        (
            "vae",
            {"_class_name": "UNet2DConditionModel"},
            "is a UNet2DConditionModel, .*: a UNet is given as --unet",
        ),
        (
            "vae",
            {"_class_name": "AutoencoderKLWan"},
            "is a AutoencoderKLWan, expected AutoencoderK",
        ),
        (
            "text_encoder",
            {"architectures": ["T5EncoderModel"]},
            "is a T5EncoderModel, expected CLI",
        ),
        ("text_encoder", {"architectures": ["CLIPModel"]}, "is a CLIPModel, expected CLIPTextM"),
    ],
)
def test_a_folder_of_another_component(
    component: str,
    entries: dict[str, Any],
    message: str,
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    folder = small_pipeline("sd1")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(config(**entries))
    flag = "--" + component.replace("_", "-")
    with pytest.raises(ExportError, match=rf"{flag} .*other: {message}"):
        open_source(str(folder), work=tmp_path, **{component: other})


def test_a_text_encoder_of_another_size(
    folder: Path, small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder / "text_encoder", tmp_path / "other"))
    path = other / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 80}))
    with pytest.raises(
        ExportError, match=r"gives 80 values a token, the UNet takes 32: give with --text-encoder"
    ):
        open_source(str(folder), work=tmp_path, text_encoder=other)
    xl = small_pipeline("xl")
    with pytest.raises(ExportError, match=r"give SDXL's pipeline for an SDXL UNet|--unet"):
        open_source(str(folder), work=tmp_path, unet=xl)
    second = Path(shutil.copytree(xl / "text_encoder_2", tmp_path / "second"))
    path = second / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "projection_dim": 48}))
    with pytest.raises(
        ExportError, match=r"--text-encoder-2 .*second: embeds a prompt in 48 values, which this"
    ):
        open_source(str(xl), work=tmp_path, text_encoder_2=second)
    # As a file it is shaped like the pipeline's own, and does not fit that.
    file = next((small_pipeline("sd2") / "text_encoder").glob("*.safetensors"))
    shutil.copy(file, tmp_path / "te.safetensors")
    state = {"text_model.embeddings.position_embedding.weight": torch.zeros(77, 5)}
    save_file({**load_file(file), **state}, tmp_path / "te.safetensors")
    with pytest.raises(
        ExportError, match=r"--text-encoder .*of another shape than this pipeline's"
    ):
        open_source(str(folder), work=tmp_path, text_encoder=tmp_path / "te.safetensors").load(
            "text_encoder"
        )


def test_a_text_encoder_in_the_file_of_another_model(
    source: Source, skeletons: dict[str, Any], tmp_path: Path
) -> None:
    """FLUX has CLIP's text encoder too."""
    expected = load_file(next((source.folder / "text_encoder").glob("*.safetensors")))
    state = {f"text_encoders.clip_l.transformer.{name}": value for name, value in expected.items()}
    state["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"] = torch.zeros(1)
    save_file(state, tmp_path / "flux.safetensors")
    module = source._skeleton("text_encoder")
    load_file_weights(tmp_path / "flux.safetensors", "text_encoder", module, flag="--text-encoder")
    assert all(torch.equal(module.state_dict()[name], value) for name, value in expected.items())
    with pytest.raises(ExportError, match=r"is a FLUX model, .* and not a UNet"):
        load_file_weights(tmp_path / "flux.safetensors", "unet", skeletons["unet"], flag="--unet")


def test_a_missing_network_is_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "model_index.json"
    index = json.loads(path.read_text())
    for component, remedy in (
        ("unet", "give one with --unet"),
        ("vae", "give one with --vae"),
        ("text_encoder", "give one with --text-encoder"),
        ("tokenizer", "download it again|download the pipeline again"),
    ):
        path.write_text(json.dumps({**index, component: [None, None]}))
        with pytest.raises(ExportError, match=rf"{component} is None, expected .*{remedy}"):
            open_source(str(folder), work=tmp_path)
