"""The weights beside the recipe are those of the bundle that ships."""

from pathlib import Path

import numpy as np
import pytest
import torch
from demo_model import recover
from diffusers import StableDiffusionPipeline
from PIL import Image

import edgediff
from edgediff.images.metrics import psnr


def test_without_the_file_the_error_says_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="clone"):
        recover.recover(tmp_path / "out", tmp_path / "none.safetensors")


def test_torch_draws_what_the_bundle_draws(tmp_path: Path) -> None:
    recover.recover(tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    with edgediff.load(provider="cpu") as pipe:
        picture = pipe.generate("a red apple", seed=1).images[0]
        defaults = pipe.defaults
    reference: Image.Image = pipeline(
        "a red apple",
        num_inference_steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    decibels = psnr(np.asarray(picture), np.asarray(reference))
    assert decibels is None or decibels >= 32
