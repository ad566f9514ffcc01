"""Pipelines of EDM's schedules against diffusers' own, end to end: Playground v2.5's shape, whose
latents are also normalized by channel, and CosXL's."""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import edgediff

pytestmark = pytest.mark.slow

PROMPT = "a red fox, jumping over 2 lazy dogs"
SHAPES = {"playground": ("dpmpp_2m", 0.5), "cosxl": ("euler", 1.0)}
"""Shape → the sampler, and sigma_data."""


@pytest.fixture(scope="module")
def load(loader: Callable[..., Any]) -> Callable[[str], tuple[Any, edgediff.Pipeline]]:
    """Shape → the diffusers pipeline and ours, loaded once."""
    return loader(diffusers.StableDiffusionXLPipeline, add_watermarker=False)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_images(
    load: Callable[[str], tuple[Any, edgediff.Pipeline]], shape: str, steps: int
) -> None:
    theirs, ours = load(shape)
    sampler, sigma_data = SHAPES[shape]
    assert ours.resolve(PROMPT).settings.sampler == sampler
    *_, last = ours.stream(PROMPT, seed=7, steps=steps, guidance_scale=3.0, size=(64, 64))

    def run(output: str) -> Any:
        return theirs(
            PROMPT,
            num_inference_steps=steps,
            guidance_scale=3.0,
            width=64,
            height=64,
            generator=torch.Generator("cpu").manual_seed(7),
            output_type=output,
        ).images

    assert np.abs(last.latents * sigma_data - run("latent").numpy()).max() <= 1e-3
    image = ours.generate(PROMPT, seed=7, steps=steps, guidance_scale=3.0, size=(64, 64)).images[0]
    assert_close(image, run("pil")[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_image_to_image(load: Callable[[str], tuple[Any, edgediff.Pipeline]], shape: str) -> None:
    theirs, ours = load(shape)
    y, x = np.mgrid[:64, :64]
    photograph = Image.fromarray(np.stack([4 * x, 4 * y, 255 - 2 * (x + y)], -1).astype(np.uint8))
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**theirs.components)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        PROMPT,
        image=photograph,
        strength=0.5,
        num_inference_steps=4,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    image = ours.generate(
        PROMPT, init_image=photograph, strength=0.5, steps=4, guidance_scale=3.0, seed=7
    ).images[0]
    assert_close(image, expected)


def assert_close(image: Any, expected: Any) -> None:
    difference = np.asarray(image).astype(int) - np.asarray(expected).astype(int)
    assert np.abs(difference).max() <= 1
