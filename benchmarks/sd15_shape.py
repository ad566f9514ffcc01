"""Write a diffusers folder with random weights and the shape of a real pipeline.

    python -m benchmarks.sd15_shape OUT [--shape sd15] [--seed 0] [--half]

Speed and memory depend on a model's shape, not on its weights, so Stable Diffusion 1.5 or SDXL can
be measured without a download. The images are noise. Tests export the small shapes (sd1, sd2, lcm,
turbo, xl and so on).

One component is in memory at a time: sd15 takes 4 GB of disk (2 GB with --half) and about as much
memory, sdxl 14 GB (7 GB).
"""

import argparse
import contextlib
import gc
import json
import pydoc_data.topics
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EOS = "<|endoftext|>"
BOS = "<|startoftext|>"

_SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SMALL_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
_SMALL_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_SMALL_VAE = {
    "block_out_channels": (16, 16, 32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 64,
}
_XL_UNET = {
    **_SMALL_UNET,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "cross_attention_dim": 32 + 48,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
}
_XL_TEXT = {**_SMALL_TEXT, "num_hidden_layers": 3}
_XL_TEXT_2 = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "projection_dim": 24,
    "hidden_act": "gelu",
}
_SD15_TEXT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_SD15_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}


_UNET_ALONE = (
    *("sample_size", "in_channels", "time_cond_proj_dim", "mid_block_type"),
    *("up_block_types", "reverse_transformer_layers_per_block"),
)
"""Options of a UNet that its control networks do not share."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The parts of a pipeline; the dicts override diffusers' defaults."""

    unet: dict[str, Any]
    text: dict[str, Any]
    vae: dict[str, Any]
    vae_class: str = "AutoencoderKL"
    scheduler_class: str = "PNDMScheduler"
    scheduler: dict[str, Any] = field(default_factory=dict)
    pad_token: str = EOS
    vocabulary: int = 600
    text_2: dict[str, Any] | None = None
    pipeline: str = "StableDiffusionPipeline"
    index: dict[str, Any] = field(default_factory=dict)


_SMALL = Shape(
    unet=_SMALL_UNET,
    text=_SMALL_TEXT,
    vae=_SMALL_VAE,
    scheduler={
        **_SD,
        "clip_sample": False,
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
)


_EULER = {**_SD, "timestep_spacing": "leading", "steps_offset": 1}


def _xl(**changes: Any) -> "Shape":
    """SDXL's shape: two text encoders, the second with a projection, and sizes as input."""
    given = {
        "unet": _XL_UNET,
        "text": _XL_TEXT,
        "text_2": _XL_TEXT_2,
        "vae": {**_SMALL_VAE, "scaling_factor": 0.13025, "force_upcast": True},
        "scheduler_class": "EulerDiscreteScheduler",
        "scheduler": _EULER,
        "pipeline": "StableDiffusionXLPipeline",
        "index": {"force_zeros_for_empty_prompt": True},
    }
    return _small(**{**given, **changes})


def _small(**changes: Any) -> Shape:
    return Shape(**{**{k: getattr(_SMALL, k) for k in Shape.__dataclass_fields__}, **changes})


SHAPES: dict[str, Shape] = {
    "sd15": _small(
        unet=_SD15_UNET,
        text=_SD15_TEXT,
        vae={"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512},
        vocabulary=49408,
    ),
    "sd1": _SMALL,
    "sd2": _small(
        unet={
            **_SMALL_UNET,
            "use_linear_projection": True,
            "attention_head_dim": (2, 4),
            "upcast_attention": True,
        },
        text={**_SMALL_TEXT, "hidden_act": "gelu"},
        scheduler_class="DDIMScheduler",
        scheduler={
            **_SD,
            "prediction_type": "v_prediction",
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
        pad_token="!",
    ),
    "lcm": _small(
        unet={**_SMALL_UNET, "time_cond_proj_dim": 16},
        scheduler_class="LCMScheduler",
        scheduler=_SD,
    ),
    "turbo": _small(
        scheduler_class="EulerDiscreteScheduler",
        scheduler={**_SD, "timestep_spacing": "trailing"},
    ),
    "sdxl": _xl(
        unet={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "cross_attention_dim": 2048,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        text=_SD15_TEXT,
        text_2={
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_attention_heads": 20,
            "projection_dim": 1280,
            "hidden_act": "gelu",
        },
        vae={
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "sample_size": 1024,
            "scaling_factor": 0.13025,
            "force_upcast": True,
        },
        vocabulary=49408,
    ),
    "xl": _xl(),
    "xl-pruned": _xl(  # like SSD-1B and its smaller successors
        unet={
            **_XL_UNET,
            "transformer_layers_per_block": (1, 2),
            "reverse_transformer_layers_per_block": ((3, 1), 1),
            "mid_block_type": None,
        },
        index={"force_zeros_for_empty_prompt": False},
    ),
    "xl-lightning": _xl(
        scheduler={**_SD, "timestep_spacing": "trailing", "prediction_type": "sample"}
    ),
    "xl-lcm": _xl(
        unet={**_XL_UNET, "time_cond_proj_dim": 16},
        scheduler_class="LCMScheduler",
        scheduler=_SD,
    ),
    "playground": _xl(
        scheduler_class="EDMDPMSolverMultistepScheduler",
        scheduler={"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0},
        vae={
            **_SMALL_VAE,
            "scaling_factor": 0.5,
            "latents_mean": (-1.6, -0.4, 0.9, -0.7),
            "latents_std": (8.4, 6.0, 5.3, 4.5),
        },
    ),
    "cosxl": _xl(
        scheduler_class="EDMEulerScheduler",
        scheduler={
            "sigma_data": 1.0,
            "sigma_min": 0.002,
            "sigma_max": 120.0,
            "sigma_schedule": "exponential",
            "prediction_type": "v_prediction",
        },
    ),
    "inpaint": _small(
        unet={**_SMALL_UNET, "in_channels": 9}, pipeline="StableDiffusionInpaintPipeline"
    ),
    "xl-inpaint": _xl(
        unet={**_XL_UNET, "in_channels": 9}, pipeline="StableDiffusionXLInpaintPipeline"
    ),
    "tiny-vae": _small(
        vae_class="AutoencoderTiny",
        vae={"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4},
    ),
}


def write_pipeline(folder: Path, shape: str = "sd1", *, seed: int = 0, half: bool = False) -> Path:
    """Write a pipeline of one of SHAPES into `folder`, which is created.

    half: weights in float16."""
    import torch

    s = SHAPES[shape]
    vocabulary = write_tokenizer(folder / "tokenizer", s.vocabulary, pad_token=s.pad_token)
    unet: dict[str, Any] = {"in_channels": 4, "out_channels": 4, **s.unet}
    writers: dict[str, Callable[[], Any]] = {
        "text_encoder": lambda: _text_encoder("CLIPTextModel", s.text, vocabulary),
        "unet": lambda: _diffusers("UNet2DConditionModel", unet),
        "vae": lambda: _vae(s),
    }
    # diffusers expects the version that published folders contain.
    index: dict[str, Any] = {
        "_class_name": s.pipeline,
        "_diffusers_version": "0.39.0",
        **s.index,
    }
    if s.text_2 is not None:
        text_2 = s.text_2
        # SDXL's two tokenizers pad differently.
        write_tokenizer(folder / "tokenizer_2", s.vocabulary, pad_token="!")
        writers["text_encoder_2"] = lambda: _text_encoder(
            "CLIPTextModelWithProjection", text_2, vocabulary
        )
        index["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        index["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
    for name, make in writers.items():
        torch.manual_seed(seed)
        with _quiet():
            component = _in_half(make) if half else make()
            component.save_pretrained(folder / name)
        del component
        gc.collect()
    # Not through the class: published configs contain keys of other schedulers too.
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text(json.dumps({"_class_name": s.scheduler_class, **s.scheduler}, indent=2))
    index |= {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", s.vae_class],
        "scheduler": ["diffusers", s.scheduler_class],
        "feature_extractor": [None, None],
    }
    if s.text_2 is None:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def write_controlnet(folder: Path, shape: str = "sd1", *, seed: int = 1, **changes: Any) -> Path:
    """Write a control network for the UNet of one of SHAPES into `folder`, which is created.

    changes: further entries of its config.

    A new network has no effect, because its last convolutions are zero and its first ones pass
    little of the image. These weights are large enough for the image to matter."""
    import torch

    config = {k: v for k, v in SHAPES[shape].unet.items() if k not in _UNET_ALONE}
    width = config["block_out_channels"][0]
    config["conditioning_embedding_out_channels"] = [min(c, width) for c in (16, 32, 96, 256)]
    config |= changes
    torch.manual_seed(seed)
    with _quiet():
        network = _diffusers("ControlNetModel", config)
        for layer in (*network.controlnet_down_blocks, network.controlnet_mid_block):
            torch.nn.init.normal_(layer.weight, std=0.05)
        embedding = network.controlnet_cond_embedding
        torch.nn.init.normal_(embedding.conv_out.weight, std=0.05)
        for layer in (embedding.conv_in, *embedding.blocks, embedding.conv_out):
            layer.weight.data *= 2.2
        network.save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path, size: int, *, pad_token: str = EOS, corpus: str = "") -> int:
    """Write CLIP's vocab.json and merges.txt, trained on Python's own help texts and `corpus`.

    The vocabulary has `size` entries, or fewer if the text yields fewer merges and `size` is small.
    Unused entries fill it up to 49408, so that ids match CLIP's."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", True
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # CLIP's own order: bytes, bytes that end a word, merges, the two special tokens.
    alphabet = list(_byte_letters())
    trainer = trainers.BpeTrainer(
        vocab_size=min(size, 12000) - 2 + len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    lines = [*pydoc_data.topics.topics.values(), corpus]
    tokenizer.train_from_iterator([line for text in lines for line in text.splitlines()], trainer)
    trained = json.loads(tokenizer.to_str())["model"]["merges"]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = [tuple(m) for m in trained][: size - 2 - len(words)]
    words += ["".join(m) for m in merges]
    words += [f"<unused {i}>" for i in range(size - 2 - len(words))]
    vocabulary = {w: i for i, w in enumerate([*dict.fromkeys(words), BOS, EOS])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    text = "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)])
    (folder / "merges.txt").write_text(text + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": pad_token,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)


def _byte_letters() -> dict[str, int]:
    """The printable letter of each byte in byte-level BPE, in CLIP's order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    letters = {chr(b): b for b in shown}
    return letters | {chr(256 + i): b for i, b in enumerate(hidden)}


def _text_encoder(cls: str, config: dict[str, Any], vocabulary: int) -> Any:
    import transformers

    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    return getattr(transformers, cls)(
        transformers.CLIPTextConfig(
            vocab_size=vocabulary, max_position_embeddings=77, **ids, **config
        )
    )


def _vae(s: Shape) -> Any:
    if s.vae_class == "AutoencoderTiny":
        return _diffusers("AutoencoderTiny", s.vae)
    depth = len(s.vae["block_out_channels"])
    vae = _diffusers(
        "AutoencoderKL",
        {
            "down_block_types": ("DownEncoderBlock2D",) * depth,
            "up_block_types": ("UpDecoderBlock2D",) * depth,
            "latent_channels": 4,
            **s.vae,
        },
    )
    # New weights decode to a flat grey; spread the pixels over the range, like a real decoder.
    vae.decoder.conv_out.weight.data *= 2.0
    return vae


def _in_half(make: Callable[[], Any]) -> Any:
    """The module of `make` in float16, without a float32 copy: weights as torch initializes linear
    layers, norms that scale by one."""
    import torch

    with torch.device("meta"):
        component = make()
    component.half().to_empty(device="cpu")
    for weight in component.parameters():
        if weight.ndim > 1:
            reach = weight[0].numel() ** -0.5
            torch.nn.init.uniform_(weight, -reach, reach)
        else:
            torch.nn.init.zeros_(weight)
    for module in component.modules():
        if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
            torch.nn.init.ones_(module.weight)
    return component


def _diffusers(name: str, config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, name)(**config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of the libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the folder to create")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="sd15")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--half", action="store_true", help="write the weights in float16")
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"{args.out} exists: remove it or choose another folder")
    write_pipeline(args.out, args.shape, seed=args.seed, half=args.half)
    print(args.out)


if __name__ == "__main__":
    main()
