"""The configs of Stable Diffusion's first models, for single files, which hold weights only.

The numbers are the published ones. CLIP's merges (Radford et al. 2021, MIT licence) are packed in
clip_merges.txt.gz, in the order of their priority; its vocabulary follows from them.
"""

import gzip
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Kind = Literal["sd1", "sd1-inpaint", "sd2", "sd2-inpaint", "sdxl", "sdxl-inpaint"]

REPOSITORIES: Mapping[Kind, str] = {
    "sd1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd1-inpaint": "stable-diffusion-v1-5/stable-diffusion-inpainting",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "sd2-inpaint": "stabilityai/stable-diffusion-2-inpainting",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
    "sdxl-inpaint": "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
}
"""Where each kind's configs are published; those that the hub's cache has go before these here."""
PRUNED: Mapping[Kind, str] = {
    "sd1": "nota-ai/bk-sdm-small or segmind/tiny-sd",
    "sd2": "nota-ai/bk-sdm-v2-small",
    "sdxl": "segmind/SSD-1B or segmind/Segmind-Vega",
}
"""Smaller models that look like one of these by their file, and have configs of their own."""

_VERSION = "0.39.0"
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
_DDIM = {**_BETAS, "clip_sample": False, "set_alpha_to_one": False}
_SCHEDULERS: Mapping[str, dict[str, Any]] = {
    "sd1": {"_class_name": "PNDMScheduler", **_DDIM, "skip_prk_steps": True},
    "sd2": {"_class_name": "DDIMScheduler", **_DDIM, "prediction_type": "v_prediction"},
    "sd2-inpaint": {"_class_name": "PNDMScheduler", **_DDIM, "skip_prk_steps": True},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", **_DDIM, "timestep_spacing": "leading"},
}
_UNETS: Mapping[str, dict[str, Any]] = {
    "sd1": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
_VAES: Mapping[str, dict[str, Any]] = {
    "sd1": {"sample_size": 512, "scaling_factor": 0.18215},
    "sd2": {"sample_size": 768, "scaling_factor": 0.18215},
    "sdxl": {"sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
}
_CLIP = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_CLIP_L = {
    **_CLIP,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
_CLIP_H = {  # without the last of its layers
    **_CLIP,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
_CLIP_G = {
    **_CLIP,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_TEXT: Mapping[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "sd1": {"text_encoder": ("CLIPTextModel", _CLIP_L)},
    "sd2": {"text_encoder": ("CLIPTextModel", _CLIP_H)},
    "sdxl": {
        "text_encoder": ("CLIPTextModel", _CLIP_L),
        "text_encoder_2": ("CLIPTextModelWithProjection", _CLIP_G),
    },
}
_PADS: Mapping[str, dict[str, str]] = {
    "sd1": {"tokenizer": _EOS},
    "sd2": {"tokenizer": "!"},
    "sdxl": {"tokenizer": _EOS, "tokenizer_2": "!"},
}
_PIPELINES: Mapping[Kind, str] = {
    "sd1": "StableDiffusionPipeline",
    "sd1-inpaint": "StableDiffusionInpaintPipeline",
    "sd2": "StableDiffusionPipeline",
    "sd2-inpaint": "StableDiffusionInpaintPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sdxl-inpaint": "StableDiffusionXLInpaintPipeline",
}


def write_configs(kind: Kind, folder: Path) -> Path:
    """Write the configs and tokenizers of a diffusers folder, without weights → `folder`."""
    base, _, inpaint = kind.partition("-")
    unet = {"_class_name": "UNet2DConditionModel", "in_channels": 4, **_UNETS[base]}
    if inpaint:
        unet["in_channels"] = 9
    if kind == "sd2-inpaint":
        unet |= {"sample_size": 64, "upcast_attention": False}
    vae = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        **_VAES[base],
    }
    scheduler = _SCHEDULERS.get(kind, _SCHEDULERS[base])
    index: dict[str, Any] = {
        "_class_name": _PIPELINES[kind],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    for name, (cls, config) in _TEXT[base].items():
        index[name] = ["transformers", cls]
        _write(folder / name / "config.json", {"architectures": [cls], **config})
    for name, pad in _PADS[base].items():
        index[name] = ["transformers", "CLIPTokenizer"]
        _write_tokenizer(folder / name, pad)
    if base == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    for path, config in (
        ("model_index.json", index),
        ("unet/config.json", unet),
        ("vae/config.json", vae),
        ("scheduler/scheduler_config.json", scheduler),
    ):
        _write(folder / path, {**config, "_diffusers_version": _VERSION})
    return folder


def _write(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_tokenizer(folder: Path, pad: str) -> None:
    packed = importlib.resources.files(__name__).joinpath("clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[:-1]
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [merge.replace(" ", "") for merge in merges]
    _write(folder / "vocab.json", {word: i for i, word in enumerate([*words, _BOS, _EOS])})
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8"
    )
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": _BOS,
        "eos_token": _EOS,
        "unk_token": _EOS,
        "pad_token": pad,
    }
    _write(folder / "tokenizer_config.json", config)


def _byte_letters() -> list[str]:
    """The printable letter that byte-level BPE writes for each byte, in CLIP's order: bytes that
    can be shown stand for themselves and come first."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = 256 - len(shown)
    return [chr(b) for b in shown] + [chr(256 + i) for i in range(hidden)]
