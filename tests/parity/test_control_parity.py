"""Control networks against diffusers' own pipelines: latents and pixels, end to end."""

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import edgediff
from edgediff import Control

pytestmark = [  # of diffusers itself
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

PROMPT = "a red fox, jumping over 2 lazy dogs"
NEGATIVE = "blurry, low quality"
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler.from_config,
    "euler": diffusers.EulerDiscreteScheduler.from_config,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler.from_config,
}


@pytest.fixture(scope="module")
def pictures() -> dict[str, Image.Image]:
    """Maps of other sizes and modes than the pictures that they steer."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    lines = Image.fromarray((rng.random((64, 64)) > 0.8).astype(np.uint8) * 255)
    return {"canny": coarse.resize((100, 70)), "depth": lines}


@pytest.fixture(scope="module")
def theirs(controlled: Any) -> Callable[..., Any]:
    """Names of control networks → diffusers' pipeline with these, loaded once."""
    loaded: dict[tuple[str, ...], Any] = {}

    def load(*names: str) -> Any:
        if names not in loaded:
            networks = [
                diffusers.ControlNetModel.from_pretrained(controlled.controlnets[n]) for n in names
            ]
            loaded[names] = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
                controlled.diffusers,
                controlnet=networks if len(networks) > 1 else networks[0],
                safety_checker=None,
                local_files_only=True,
            )
            loaded[names].set_progress_bar_config(disable=True)
        return loaded[names]

    return load


@pytest.fixture(scope="module")
def ours(controlled: Any) -> edgediff.Pipeline:
    return edgediff.load(controlled.bundle, threads=1)


def compare(
    theirs: Any,
    ours: edgediff.Pipeline,
    control: Mapping[str, Control],
    *,
    sampler: str = "ddim",
    steps: int = 3,
    guidance: float = 4.0,
    seed: int = 7,
    size: tuple[int, int] = (64, 64),
    negative: str | None = NEGATIVE,
) -> np.ndarray:
    """Both pipelines on the same request; returns our latents."""
    theirs.scheduler = SCHEDULERS[sampler](theirs.scheduler.config)
    each = {
        "image": [c.image for c in control.values()],
        "controlnet_conditioning_scale": [float(c.scale) for c in control.values()],
        "control_guidance_start": [c.start for c in control.values()],
        "control_guidance_end": [c.end for c in control.values()],
    }
    arguments = {
        "prompt": PROMPT,
        "negative_prompt": negative,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "width": size[0],
        "height": size[1],
        **{k: v if len(v) > 1 else v[0] for k, v in each.items()},
    }
    options: dict[str, Any] = {
        "negative_prompt": negative,
        "steps": steps,
        "guidance_scale": guidance,
        "seed": seed,
        "size": size,
        "sampler": sampler,
        "control": control,
    }

    def run_theirs(output: str) -> Any:
        generator = torch.Generator("cpu").manual_seed(seed)
        return theirs(**arguments, generator=generator, output_type=output).images

    latents = list(ours.stream(PROMPT, **options))[-1].latents
    expected = run_theirs("latent").numpy()
    assert latents.shape == expected.shape
    assert np.abs(latents - expected).max() <= 1e-3
    (picture,) = ours.generate(PROMPT, **options).images
    difference = np.asarray(picture).astype(int) - np.asarray(run_theirs("pil")[0]).astype(int)
    assert np.abs(difference).max() <= 1
    return latents


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_one_network(theirs: Any, ours: Any, pictures: Any, scale: float, guidance: float) -> None:
    control = {"canny": Control(pictures["canny"], scale=scale)}
    latents = compare(theirs("canny"), ours, control, guidance=guidance)
    how = {"steps": 3, "guidance_scale": guidance, "seed": 7, "sampler": "ddim"}
    plain = list(ours.stream(PROMPT, negative_prompt=NEGATIVE, **how))[-1].latents
    assert (np.abs(plain - latents).max() > 0.01) == (scale > 0)


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (0.5, 1.0), (0.2, 0.8)])
def test_on_part_of_the_steps(
    theirs: Any, ours: Any, pictures: Any, start: float, end: float
) -> None:
    control = {"depth": Control(pictures["depth"], scale=0.8, start=start, end=end)}
    compare(theirs("depth"), ours, control, steps=5)


def test_two_networks_add_up(theirs: Any, ours: Any, pictures: Any) -> None:
    control = {
        "canny": Control(pictures["canny"], scale=0.5, end=0.75),
        "depth": Control(pictures["depth"], scale=1.0, start=0.25),
    }
    compare(theirs("canny", "depth"), ours, control, steps=4, sampler="dpmpp_2m")


@pytest.mark.parametrize("size", [(72, 104), (128, 64)])
def test_other_sizes(theirs: Any, ours: Any, pictures: Any, size: tuple[int, int]) -> None:
    control = {"canny": Control(pictures["canny"])}
    compare(theirs("canny"), ours, control, steps=2, sampler="euler", size=size)


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps(theirs: Any, ours: Any, pictures: Any, steps: int) -> None:
    compare(theirs("depth"), ours, {"depth": Control(pictures["depth"])}, steps=steps)


def test_a_map_is_prepared_as_in_diffusers(theirs: Any, pictures: Any) -> None:
    """Resized by Lanczos, RGB, in [0, 1]: to the last bit."""
    for picture in pictures.values():
        processor = theirs("canny").control_image_processor
        expected = processor.preprocess(picture.convert("RGB"), height=88, width=56).numpy()
        np.testing.assert_array_equal(Control(picture).pixels(56, 88), expected)
