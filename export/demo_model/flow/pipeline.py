"""The trained parts as a folder that the exporter reads: diffusers' layout, safetensors."""

import json
from pathlib import Path

from diffusers import AutoencoderTiny, FlowMatchEulerDiscreteScheduler
from transformers import CLIPTokenizer

from demo_model import checkpoint
from demo_model.flow.networks import TIMESTEPS, Denoiser


def save(
    folder: Path, denoiser: Denoiser, autoencoder: AutoencoderTiny, tokenizer: CLIPTokenizer
) -> None:
    """Write text_encoder, unet, vae, tokenizer and scheduler beside a model_index.json."""
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMESTEPS)

    def write(beside: Path) -> None:
        beside.mkdir()
        denoiser.text_encoder.save_pretrained(beside / "text_encoder", safe_serialization=True)
        denoiser.unet.save_pretrained(beside / "unet", safe_serialization=True)
        autoencoder.save_pretrained(beside / "vae", safe_serialization=True)
        tokenizer.save_pretrained(beside / "tokenizer")
        scheduler.save_pretrained(beside / "scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "text_encoder": ["transformers", "CLIPTextModel"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderTiny"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
        }
        (beside / "model_index.json").write_text(json.dumps(index, indent=2))

    checkpoint.replace_folder(folder, write)
