"""Exported pipelines of SDXL's shape against diffusers' own: latents and pixels, end to end."""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import edgediff

pytestmark = [  # of diffusers itself
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

PROMPT = "a red fox, jumping over 2 lazy dogs"
SEEDS = (7, 0, 2**33 + 1)


@pytest.fixture(scope="module")
def load(loader: Callable[..., Any]) -> Callable[[str], tuple[Any, edgediff.Pipeline]]:
    """Shape → the diffusers pipeline and ours, loaded once."""
    return loader(diffusers.StableDiffusionXLPipeline, add_watermarker=False)


def compare(
    pair: tuple[Any, edgediff.Pipeline],
    *,
    steps: int = 2,
    guidance: float = 5.0,
    seeds: tuple[int, ...] = (0,),
    prompt: str = PROMPT,
    negative: str | None = None,
    size: tuple[int, int] = (64, 64),
    clip_skip: int | None = None,
) -> None:
    """In the pipeline's own sampler, which is also the bundle's default."""
    theirs, ours = pair
    arguments = {
        "prompt": [prompt] * len(seeds),
        "negative_prompt": None if negative is None else [negative] * len(seeds),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "width": size[0],
        "height": size[1],
        "clip_skip": clip_skip,
    }

    def run_theirs(output: str) -> Any:
        # Made anew each time: a generator goes on where it was.
        generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        return theirs(**arguments, generator=generators, output_type=output).images

    options: dict[str, Any] = {
        "negative_prompt": negative,
        "steps": steps,
        "guidance_scale": guidance,
        "seed": list(seeds),
        "size": size,
        "clip_skip": clip_skip,
    }
    latents = list(ours.stream(prompt, **options))[-1].latents
    expected = run_theirs("latent").numpy()
    assert latents.shape == expected.shape
    assert np.abs(latents - expected).max() <= 1e-3
    images = ours.generate(prompt, **options).images
    for mine, other in zip(images, run_theirs("pil"), strict=True):
        assert mine.size == other.size == size
        difference = np.asarray(mine).astype(int) - np.asarray(other).astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.slow
def test_guidance_a_negative_prompt_and_a_batch_of_three(load: Callable[[str], Any]) -> None:
    compare(load("xl"), steps=4, seeds=SEEDS, negative="blurry, low quality")


@pytest.mark.slow
def test_no_negative_prompt_is_zeros(load: Callable[[str], Any]) -> None:
    compare(load("xl"), negative=None)


def test_an_empty_negative_prompt_is_encoded(load: Callable[[str], Any]) -> None:
    compare(load("xl"), negative="")
    _, ours = load("xl")
    zeros, encoded = (
        list(ours.stream(PROMPT, seed=0, steps=2, guidance_scale=5.0, negative_prompt=text))[-1]
        for text in (None, "")
    )
    assert np.abs(zeros.latents - encoded.latents).max() > 1e-3


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance(load: Callable[[str], Any], guidance: float) -> None:
    compare(load("xl"), guidance=guidance, steps=1, seeds=(1,))


def test_an_empty_prompt(load: Callable[[str], Any]) -> None:
    compare(load("xl"), prompt="")


@pytest.mark.parametrize("size", [(128, 64), (72, 104)])
def test_other_sizes(load: Callable[[str], Any], size: tuple[int, int]) -> None:
    compare(load("xl"), seeds=(2,), size=size)


def test_clip_skip(load: Callable[[str], Any]) -> None:
    compare(load("xl"), clip_skip=1, guidance=0.0)


@pytest.mark.slow
def test_a_pruned_unet(load: Callable[[str], Any]) -> None:
    """Without a middle block, its transformers of other depths on the way up; and a pipeline that
    encodes an empty negative prompt."""
    compare(load("xl-pruned"), steps=3, seeds=SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_lightning(load: Callable[[str], Any], steps: int) -> None:
    """Trailing timesteps, x0 predicted, no guidance."""
    compare(load("xl-lightning"), steps=steps, guidance=0.0, seeds=SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_lcm_takes_the_guidance_embedding(load: Callable[[str], Any], steps: int) -> None:
    compare(load("xl-lcm"), steps=steps, guidance=8.0, seeds=SEEDS)
