"""Exported float32 bundles against diffusers' own pipelines: latents and pixels, end to end."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
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
NEGATIVE = "blurry, low quality"
SEEDS = (7, 0, 2**33 + 1)

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "euler": diffusers.EulerDiscreteScheduler.from_config,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler.from_config,
    "ddim": diffusers.DDIMScheduler.from_config,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler.from_config,
    "dpmpp_2m_karras": lambda config: diffusers.DPMSolverMultistepScheduler.from_config(
        config, use_karras_sigmas=True
    ),
    "lcm": diffusers.LCMScheduler.from_config,
}


@pytest.fixture(scope="module")
def load(loader: Callable[..., Any]) -> Callable[[str], tuple[Any, edgediff.Pipeline]]:
    """Shape → the diffusers pipeline and ours, loaded once."""
    return loader(diffusers.StableDiffusionPipeline, safety_checker=None)


def compare(
    pair: tuple[Any, edgediff.Pipeline],
    *,
    sampler: str,
    steps: int,
    guidance: float,
    seeds: tuple[int, ...],
    negative: str | None = None,
    size: tuple[int, int] = (64, 64),
) -> None:
    theirs, ours = pair
    theirs.scheduler = SCHEDULERS[sampler](theirs.original_config)
    arguments = {
        "prompt": [PROMPT] * len(seeds),
        "negative_prompt": None if negative is None else [negative] * len(seeds),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "width": size[0],
        "height": size[1],
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
        "sampler": sampler,
    }
    latents = list(ours.stream(PROMPT, **options))[-1].latents
    expected = run_theirs("latent").numpy()
    assert latents.shape == expected.shape
    assert np.abs(latents - expected).max() <= 1e-3
    images = ours.generate(PROMPT, **options).images
    for mine, other in zip(images, run_theirs("pil"), strict=True):
        assert mine.size == other.size == size
        difference = np.asarray(mine).astype(int) - np.asarray(other).astype(int)
        assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("sampler", [s for s in SCHEDULERS if s != "lcm"])
@pytest.mark.parametrize("shape", ["sd1", "sd2"])
def test_guidance_a_negative_prompt_and_a_batch_of_three(
    load: Callable[[str], Any], shape: str, sampler: str
) -> None:
    compare(load(shape), sampler=sampler, steps=4, guidance=7.5, seeds=SEEDS, negative=NEGATIVE)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("sampler", [s for s in SCHEDULERS if s != "lcm"])
def test_few_steps(load: Callable[[str], Any], sampler: str, steps: int) -> None:
    compare(load("sd1"), sampler=sampler, steps=steps, guidance=3.0, seeds=(0,))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_without_guidance(load: Callable[[str], Any], guidance: float) -> None:
    compare(load("sd1"), sampler="ddim", steps=3, guidance=guidance, seeds=(1,))


def test_twenty_steps(load: Callable[[str], Any]) -> None:
    compare(load("sd1"), sampler="dpmpp_2m", steps=20, guidance=7.5, seeds=(3,))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_lcm_takes_the_guidance_embedding(load: Callable[[str], Any], steps: int) -> None:
    compare(load("lcm"), sampler="lcm", steps=steps, guidance=8.5, seeds=SEEDS)


@pytest.mark.parametrize(("sampler", "timestep"), [("lcm", 800), ("lcm", 399), ("tcd", 800)])
def test_one_step_from_a_timestep_of_its_own(
    sampler: str, timestep: int, load: Callable[[str], Any], exported: Any, tmp_path: Path
) -> None:
    """As the cards of one-step Hyper-SD and DMD2 call it: `timesteps=[800]`, `timesteps=[399]`."""
    theirs, _ = load("sd1")
    bundle = Path(shutil.copytree(exported("sd1").bundle, tmp_path / "bundle"))
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["schedule"]["timesteps"] = [timestep]
    manifest["defaults"] |= {"sampler": sampler, "steps": 1, "guidance_scale": 0.0}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    schedulers = {"lcm": diffusers.LCMScheduler, "tcd": diffusers.TCDScheduler}
    theirs.scheduler = schedulers[sampler].from_config(theirs.original_config)

    def run_theirs(output: str) -> Any:
        return theirs(
            PROMPT,
            timesteps=[timestep],
            guidance_scale=0.0,
            width=64,
            height=64,
            generator=torch.Generator("cpu").manual_seed(7),
            output_type=output,
        ).images

    ours = edgediff.load(bundle, threads=1)
    latents = list(ours.stream(PROMPT, seed=7))[-1].latents
    assert np.abs(latents - run_theirs("latent").numpy()).max() <= 1e-3
    (image,) = ours.generate(PROMPT, seed=7).images
    difference = np.asarray(image).astype(int) - np.asarray(run_theirs("pil")[0])
    assert np.abs(difference).max() <= 1


def test_lcm_without_the_embedding(load: Callable[[str], Any]) -> None:
    compare(load("sd1"), sampler="lcm", steps=4, guidance=1.0, seeds=(5,))


@pytest.mark.parametrize("size", [(128, 64), (72, 104), (8, 16)])
def test_other_sizes(load: Callable[[str], Any], size: tuple[int, int]) -> None:
    compare(load("sd1"), sampler="euler", steps=2, guidance=7.5, seeds=(2,), size=size)


@pytest.mark.slow
def test_a_tiny_decoder(load: Callable[[str], Any]) -> None:
    compare(load("tiny-vae"), sampler="euler", steps=4, guidance=7.5, seeds=(4,))


def test_a_prompt_that_is_too_long(load: Callable[[str], Any]) -> None:
    theirs, ours = load("sd1")
    theirs.scheduler = SCHEDULERS["ddim"](theirs.original_config)
    prompt = "many words " * 100
    generator = torch.Generator("cpu").manual_seed(0)
    expected = theirs(
        prompt, num_inference_steps=2, generator=generator, output_type="latent"
    ).images.numpy()
    steps = list(ours.stream(prompt, seed=0, steps=2, sampler="ddim", guidance_scale=7.5))
    assert np.abs(steps[-1].latents - expected).max() <= 1e-3
