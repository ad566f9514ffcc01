"""Checkpoints of whole pipelines in one file: diffusers' own reader is the judge."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from edgediff_export.defaults import latent_space
from edgediff_export.source.configs import REPOSITORIES, Kind
from edgediff_export.source.open import open_source
from edgediff_export.source.original_names import unet_names, vae_names
from edgediff_export.source.safetensors_file import Header
from edgediff_export.source.scheduler import adapt, read_schedule
from edgediff_export.source.single_file import _cached_configs, identify
from edgediff_export.source.weights import load_file_weights
from safetensors.torch import load_file, save_file

from edgediff.errors import ExportError
from edgediff.sampling.schedule import EDMSchedule

pytestmark = [  # of diffusers, transformers and peft themselves
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STATE = dict[str, torch.Tensor]


@pytest.mark.parametrize("shape", ["sd1", "sd2", "xl", "inpaint", "xl-inpaint"])
def test_every_weight_is_the_one_that_diffusers_reads(
    shape: str,
    small_pipeline: Callable[[str], Path],
    checkpoint: Callable[..., STATE],
    small_configs: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    folder = small_pipeline(shape)
    small_configs(folder)
    path = tmp_path / "model.safetensors"
    save_file(checkpoint(folder), path)
    source = open_source(str(path), work=tmp_path)
    assert (source.name, source.description) == ("model", "model")
    unet = diffusers.UNet2DConditionModel.from_single_file(
        str(path), config=str(folder / "unet"), local_files_only=True
    )
    vae = diffusers.AutoencoderKL.from_single_file(
        str(path), config=str(folder / "vae"), local_files_only=True
    )
    theirs = {"unet": unet.state_dict(), "vae": vae.state_dict()}
    theirs |= {
        encoder: load_file(next((folder / encoder).glob("*.safetensors")))
        for encoder in source.text_encoders
    }
    for component, expected in theirs.items():
        ours = source.load(component).state_dict()
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())


def test_a_loaded_text_encoder_runs(
    small_pipeline: Callable[[str], Path],
    checkpoint: Callable[..., STATE],
    small_configs: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    folder = small_pipeline("xl")
    small_configs(folder)
    save_file(checkpoint(folder), tmp_path / "model.safetensors")
    ids = torch.arange(77)[None]
    one = open_source(str(tmp_path / "model.safetensors"), work=tmp_path).load("text_encoder_2")
    two = open_source(str(folder), work=tmp_path).load("text_encoder_2")
    with torch.no_grad():
        assert torch.equal(one(ids).text_embeds, two(ids).text_embeds)


@pytest.mark.parametrize("shape", ["sd1", "xl"])
def test_replacements_come_first(
    shape: str,
    small_pipeline: Callable[[str], Path],
    checkpoint: Callable[..., STATE],
    small_configs: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    folder = small_pipeline(shape)
    small_configs(folder)
    path = tmp_path / "pruned.safetensors"
    save_file(checkpoint(folder, "vae"), path)
    with pytest.raises(ExportError, match="holds no VAE: give one with --vae, a folder or a"):
        open_source(str(path), work=tmp_path)
    source = open_source(str(path), work=tmp_path, vae=folder / "vae")
    assert source.description == "pruned with the VAE vae"
    source.load("vae")
    bare = tmp_path / "vae-ft.safetensors"
    vae = checkpoint(folder, "unet", "text_encoder", "text_encoder_2")
    save_file({k.removeprefix("first_stage_model."): v for k, v in vae.items()}, bare)
    (tmp_path / "again").mkdir()
    source = open_source(str(path), work=tmp_path / "again", vae=bare)
    expected = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    ours = source.load("vae").state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in expected.items())


def test_latents_that_the_file_says_are_normalized(
    small_pipeline: Callable[[str], Path],
    checkpoint: Callable[..., STATE],
    small_configs: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    """As Playground v2.5's one file does."""
    folder = small_pipeline("xl")
    small_configs(folder)
    path = tmp_path / "playground.safetensors"
    scales = {"edm_mean": torch.tensor([-1.5, 0.0, 1.0, 0.5]), "edm_std": torch.full((4,), 5.0)}
    save_file({**checkpoint(folder), **scales}, path)
    source = open_source(str(path), work=tmp_path, tiny_vae=True)
    assert source.notes == ("the pipeline's own VAE is kept: there is no tiny one for its latents",)
    config = source.load("vae").config
    assert config["latents_mean"] == [-1.5, 0.0, 1.0, 0.5]
    assert config["latents_std"] == [5.0] * 4
    adapted = adapt(
        source.scheduler,
        name=source.names,
        timestep_spacing=None,
        prediction_type=None,
        said=source.said,
        bare=source.bare,
    )
    assert read_schedule(adapted) == EDMSchedule(prediction_type="edm")
    assert latent_space(replace(source, scheduler=adapted)).scaling_factor == 1.0


@pytest.mark.parametrize("lacking", ["text_encoder_2/config.json", "tokenizer_2/merges.txt", None])
def test_configs_in_the_cache_count_if_all_are_there(
    lacking: str | None,
    small_pipeline: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another program may have loaded only a part of the pipeline."""
    folder = Path(shutil.copytree(small_pipeline("xl"), tmp_path / "cached"))
    for tokenizer in ("tokenizer", "tokenizer_2"):
        for name in ("vocab.json", "merges.txt"):
            (folder / tokenizer / name).touch()
    if lacking is not None:
        (folder / lacking).unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    assert _cached_configs("sdxl") == (folder if lacking is None else None)
    assert _cached_configs("sd1") == folder


def test_statements_are_about_the_components_of_their_file(
    small_pipeline: Callable[[str], Path],
    checkpoint: Callable[..., STATE],
    small_configs: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    folder = small_pipeline("xl")
    small_configs(folder)
    tensors, v = checkpoint(folder), tmp_path / "noob.safetensors"
    empty = {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    save_file({**tensors, **empty}, v, metadata={"modelspec.title": "Lightning"})
    file = next((folder / "unet").glob("*.safetensors"))

    def opened(number: int, source: Path, **given: Path) -> Any:
        (tmp_path / str(number)).mkdir()
        return open_source(str(source), work=tmp_path / str(number), **given)

    assert opened(0, v).said.prediction_type == "v_prediction"
    assert "Lightning" in opened(1, v).names
    for number, unet in ((2, folder / "unet"), (3, file)):
        source = opened(number, v, unet=unet)
        assert source.said.prediction_type is source.said.zero_terminal_snr is None
        assert "Lightning" not in source.names
        (note,) = source.notes
        assert "are about its own UNet" in note
        assert "`--prediction-type`" in note
    assert opened(4, folder, unet=v).said.prediction_type == "v_prediction"
    playground = tmp_path / "playground.safetensors"
    scales = {"edm_mean": torch.tensor([-1.5, 0.0, 1.0, 0.5]), "edm_std": torch.full((4,), 5.0)}
    save_file({**tensors, **scales}, playground)
    source = opened(5, playground, unet=file)
    assert source.said.edm is None
    assert source.vae["latents_mean"] == [-1.5, 0.0, 1.0, 0.5]
    assert source.vae["scaling_factor"] == 0.5
    assert opened(6, folder, unet=playground).vae["latents_std"] == [5.0] * 4
    both = opened(7, playground, unet=file, vae=folder / "vae")
    assert both.vae.get("latents_mean") is None


def test_a_checkpoint_of_stable_diffusion_2_says_what_was_assumed(
    small_pipeline: Callable[[str], Path],
    checkpoint: Callable[..., STATE],
    small_configs: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(small_pipeline("sd2"), tmp_path / "configs"))
    config = folder / "scheduler" / "scheduler_config.json"
    v = {**json.loads(config.read_text()), "prediction_type": "v_prediction"}
    config.write_text(json.dumps(v))
    small_configs(folder)
    for name, prediction in (("v2-1_512-ema-pruned", None), ("sd_turbo", "epsilon")):
        (tmp_path / name).mkdir()
        save_file(checkpoint(folder), tmp_path / f"{name}.safetensors")
        said = open_source(str(tmp_path / f"{name}.safetensors"), work=tmp_path / name).said
        assert said.prediction_type == prediction
        (note,) = said.notes(name)
        assert "is taken to predict" in note


def test_a_folder_that_lacks_what_is_replaced(
    small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_pipeline("sd1"), tmp_path / "pipeline"))
    index = json.loads((folder / "model_index.json").read_text())
    for component in ("vae", "text_encoder"):
        shutil.rmtree(folder / component)
        index[component] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    whole = small_pipeline("sd1")
    with pytest.raises(ExportError, match=r"text_encoder is None.*give one with --text-encoder"):
        open_source(str(folder), work=tmp_path, vae=whole / "vae")
    source = open_source(
        str(folder),
        work=tmp_path,
        vae=whole,
        text_encoder=whole / "text_encoder",
    )
    assert source.description == "pipeline with the VAE sd1 with the text encoder text_encoder"
    for component in ("unet", "vae", "text_encoder"):
        source.load(component)
    with pytest.raises(ExportError, match=r"--text-encoder-2 .*no such component"):
        open_source(str(whole), work=tmp_path, text_encoder_2=whole / "text_encoder")


def test_a_tiny_vae_in_one_file(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny()
    path = tmp_path / "taesd.safetensors"
    save_file(tiny.state_dict(), path)
    source = open_source(str(small_pipeline("sd1")), work=tmp_path, vae=path)
    assert source.vae == {"_class_name": "AutoencoderTiny", "latent_channels": 4}
    ours = source.load("vae").state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in tiny.state_dict().items())


def test_diffusers_old_names_of_a_vae(
    small_pipeline: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = small_pipeline("sd1")
    expected = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    old = {}
    for key, tensor in expected.items():
        name = key
        for now, then in (
            *((".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value.")),
            (".to_out.0.", ".proj_attn."),
        ):
            name = name.replace(now, then)
        old[name] = tensor
    assert old.keys() != expected.keys()
    save_file(old, tmp_path / "vae.safetensors")
    vae = open_source(str(folder), work=tmp_path, vae=tmp_path / "vae.safetensors").load("vae")
    assert all(torch.equal(vae.state_dict()[key], tensor) for key, tensor in expected.items())


_U = "model.diffusion_model."
_TO_K = _U + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def header(*names: str, channels: int | None = None, context: int = 768, **more: Any) -> Header:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, (1,))
    if channels is not None:
        shapes |= {_U + "input_blocks.0.0.weight": (320, channels, 3, 3), _TO_K: (320, context)}
    return Header(path=Path("it.safetensors"), shapes=shapes | more, metadata={})


SD1 = ("first_stage_model.x", "cond_stage_model.transformer.text_model.x")
SD2 = ("first_stage_model.x", "cond_stage_model.model.ln_final.weight")
XL = (
    *("first_stage_model.x", "conditioner.embedders.0.transformer.x"),
    *("conditioner.embedders.1.model.x", _U + "label_emb.0.0.weight"),
)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (header(*SD1, channels=4), "sd1"),
        (header(*SD1, channels=9), "sd1-inpaint"),
        (header(*SD2, channels=4, context=1024), "sd2"),
        (header(*SD2, channels=9, context=1024), "sd2-inpaint"),
        (header(*XL, channels=4, context=2048), "sdxl"),
        (header(*XL, channels=9, context=2048), "sdxl-inpaint"),
    ],
)
def test_kinds(given: Header, kind: Kind) -> None:
    assert identify(given) == kind
    assert kind in REPOSITORIES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (header(), "holds no tensors"),
        (header("lora_unet_x.lora_up.weight"), "is a LoRA: give .* as --lora"),
        (header("unet.base_model.model.x.lora_A.weight"), "is a LoRA"),
        (header("control_model.x"), "is a control network: .*--controlnet"),
        (header("model.diffusion_model.joint_blocks.0.x"), "Stable Diffusion 3 model"),
        (header("double_blocks.0.img_attn.qkv.weight"), "is a FLUX model"),
        (header("input_blocks.0.0.weight"), "a UNet and nothing else: .*--unet"),
        (header("down_blocks.0.x"), "a UNet and nothing else"),
        (header("decoder.conv_in.weight"), "a VAE and nothing else: .*--vae"),
        (header("text_model.x"), "a text encoder and nothing else: .*--text-encoder"),
        (header("emb_params"), "a textual inversion: .*--embedding"),
        (header("blocks.0.x"), r"holds no checkpoint of a pipeline \(but blocks.0.x"),
        (header(*SD1, channels=8), "an InstructPix2Pix model"),
        (header(*SD1, channels=5), "a depth-to-image model"),
        (header(*SD1, channels=7), "an upscaler"),
        (header(SD1[0], channels=4), "holds no text encoder: give one with --text-encoder"),
        (header(SD1[1], channels=4), "holds no VAE: give one with --vae"),
        (header(*XL[:2], XL[3], channels=4, context=2048), "second text encoder"),
        (
            header("conditioner.embedders.0.model.x", XL[3], channels=4, context=1280),
            "an SDXL refiner, which only finishes",
        ),
    ],
)
def test_each_refusal_has_its_reason(given: Header, message: str) -> None:
    with pytest.raises(ExportError, match=rf"it\.safetensors: .*{message}"):
        identify(given)


@pytest.mark.parametrize("kind", sorted(REPOSITORIES))
def test_the_configs_that_are_shipped(kind: Kind, shipped: Callable[[Kind], Path]) -> None:
    """A whole pipeline can be built of them, and CLIP's ids are the published ones."""
    import transformers

    folder = shipped(kind)
    source_of = diffusers.UNet2DConditionModel.load_config(folder / "unet")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(source_of)
        vae = diffusers.AutoencoderKL.from_config(
            diffusers.AutoencoderKL.load_config(folder / "vae")
        )
    millions = {"sd1": 860, "sd2": 866, "sdxl": 2567}[kind.partition("-")[0]]
    assert round(sum(p.numel() for p in unet.parameters()) / 1e6) == millions
    assert round(sum(p.numel() for p in vae.parameters()) / 1e6) == 84
    for name in folder.glob("tokenizer*"):
        tokenizer = transformers.CLIPTokenizer.from_pretrained(name)
        ids = [49406, 320, 1125, 539, 320, 2368, 49407]
        assert tokenizer("a photo of a cat").input_ids == ids
        assert len(tokenizer) == 49408
    # The original names of every layer of the real autoencoder.
    original = vae_names({k.rpartition(".")[0] for k in vae.state_dict()})
    assert original["decoder.up_blocks.0.resnets.2.conv1"] == "decoder.up.3.block.2.conv1"
    assert original["decoder.mid_block.attentions.0.to_out.0"] == "decoder.mid.attn_1.proj_out"
    assert original["encoder.down_blocks.1.downsamplers.0.conv"] == "encoder.down.1.downsample.conv"
    assert original["decoder.up_blocks.2.upsamplers.0.conv"] == "decoder.up.1.upsample.conv"


def test_a_file_without_the_hub(
    small_pipeline: Callable[[str], Path],
    checkpoint: Callable[..., STATE],
    shipped: Callable[[Kind], Path],
    tmp_path: Path,
) -> None:
    """Its configs are those that are shipped; a small model's weights do not fit them."""
    assert shipped("sd1").is_dir()
    path = tmp_path / "model.safetensors"
    save_file(checkpoint(small_pipeline("sd1")), path)
    source = open_source(str(path), work=tmp_path)
    assert source.unet["cross_attention_dim"] == 768
    assert source.scheduler["_class_name"] == "PNDMScheduler"
    with pytest.raises(ExportError, match=r"holds .*, which a UNet of this kind has not"):
        source.load("unet")


@pytest.mark.parametrize(
    ("component", "leave_out", "message"),
    [
        (
            "unet",
            "mid_block",
            r"lacks mid_block.*, which a UNet of this kind has \(stable-diffusion-v1-5/stable-diffu"
            r".* repository that it was published in, such as nota-ai/bk-sdm-small or .* as --unet",
        ),
        ("vae", "", r"its VAE is of another shape .*than that of stable-.* this file as --vae"),
        ("text_encoder", "", r"lacks text_model.embeddings.*, such as nota.*--text-encoder"),
    ],
)
def test_a_checkpoint_whose_configs_are_not_shipped_says_where_to_get_them(
    component: str,
    leave_out: str,
    message: str,
    shipped: Callable[[Kind], Path],
    tmp_path: Path,
) -> None:
    """Such as a pruned one: its file looks like Stable Diffusion's."""
    configs = shipped("sd1")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel.from_config(
            diffusers.UNet2DConditionModel.load_config(configs / "unet")
        )
        vae = diffusers.AutoencoderKL.from_config(
            diffusers.AutoencoderKL.load_config(configs / "vae")
        )
    names = unet_names({k.rpartition(".")[0] for k in unet.state_dict()})
    state = {}
    for key, tensor in unet.state_dict().items():
        layer, _, end = key.rpartition(".")
        if not (leave_out and key.startswith(leave_out)):
            # One number stands for a weight: only names and first shapes are looked at.
            shape = tensor.shape if "attn2.to_k" in key or layer == "conv_in" else (1,)
            state[f"model.diffusion_model.{names[layer]}.{end}"] = torch.zeros(shape)
    original = vae_names({k.rpartition(".")[0] for k in vae.state_dict()})
    for key in vae.state_dict():
        layer, _, end = key.rpartition(".")
        state[f"first_stage_model.{original[layer]}.{end}"] = torch.zeros(1)
    state["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = torch.zeros(768)
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    source = open_source(str(path), work=tmp_path)
    with pytest.raises(ExportError, match=message):
        source.load(component)


def test_scaled_float8_is_refused(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "unet.safetensors"
    weights = load_file(small_pipeline("sd1") / "unet" / "diffusion_pytorch_model.safetensors")
    save_file({**weights, "conv_in.scale_weight": torch.ones(1)}, path)
    source = open_source(str(small_pipeline("sd1")), work=tmp_path, unet=path)
    with pytest.raises(ExportError, match="its weights are float8 with scales"):
        source.load("unet")
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in weights.items()}, path)
    module = load_file_weights(path, "unet", source._skeleton("unet"), flag="--unet")
    assert module.conv_in.weight.dtype is torch.float32
