"""Image to image and inpainting against diffusers' own pipelines: latents and pixels."""

from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import edgediff
from edgediff.errors import InputError

pytestmark = [  # of diffusers itself
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The configuration file of this scheduler:FutureWarning"),
]

PROMPT = "a red fox, jumping over 2 lazy dogs"
SEEDS = (7, 2**33 + 1)
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "euler": diffusers.EulerDiscreteScheduler.from_config,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler.from_config,
    # SDXL's configuration does not say, which the class takes for clipping.
    "ddim": lambda config: diffusers.DDIMScheduler.from_config(config, clip_sample=False),
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler.from_config,
    "lcm": diffusers.LCMScheduler.from_config,
}


def photograph(width: int = 64, height: int = 64) -> Image.Image:
    """Smooth colours under some noise."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    smooth = np.stack([x, y, 1 - (x + y) / 2], axis=-1) * 200
    noise = np.random.default_rng(0).integers(0, 56, (height, width, 3))
    return Image.fromarray((smooth + noise).astype(np.uint8))


def blob(width: int = 64, height: int = 64) -> Image.Image:
    """A mask: a disc in the middle with soft edges."""
    y, x = np.mgrid[:height, :width]
    away = np.hypot(y - height / 2, x - width / 2.5)
    return Image.fromarray(np.clip(255 - 8 * (away - 12), 0, 255).astype(np.uint8))


class Pair:
    """diffusers' pipelines for images and ours, of one shape."""

    def __init__(self, folders: Any) -> None:
        base = diffusers.DiffusionPipeline.from_pretrained(folders.diffusers, local_files_only=True)
        components = base.components
        if "text_encoder_2" in components:
            self._img2img = diffusers.StableDiffusionXLImg2ImgPipeline(**components)
            self._inpaint = diffusers.StableDiffusionXLInpaintPipeline(**components)
        else:
            arguments = {**components, "requires_safety_checker": False}
            self._img2img = diffusers.StableDiffusionImg2ImgPipeline(**arguments)
            self._inpaint = diffusers.StableDiffusionInpaintPipeline(**arguments)
        for pipe in (self._img2img, self._inpaint):
            pipe.set_progress_bar_config(disable=True)
        self._config = base.scheduler.config
        self.ours = edgediff.load(folders.bundle, threads=1)

    def theirs(self, sampler: str, output: str, mask: Any = None, **arguments: Any) -> Any:
        pipe = self._img2img if mask is None else self._inpaint
        pipe.scheduler = SCHEDULERS[sampler](self._config)
        if mask is not None:
            arguments["mask_image"] = [mask] * len(arguments["image"])
        seeds = arguments.pop("seeds")
        generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        return pipe(
            [PROMPT] * len(seeds), generator=generators, output_type=output, **arguments
        ).images


@pytest.fixture(scope="module")
def pair(exported: Callable[[str], Any]) -> Callable[[str], Pair]:
    """Shape → both, loaded once."""
    loaded: dict[str, Pair] = {}

    def load(shape: str) -> Pair:
        if shape not in loaded:
            loaded[shape] = Pair(exported(shape))
        return loaded[shape]

    return load


def compare(
    pair: Pair,
    *,
    sampler: str,
    steps: int,
    strength: float,
    guidance: float = 5.0,
    image: Image.Image | None = None,
    mask: Image.Image | None = None,
    size: tuple[int, int] | None = None,
    seeds: tuple[int, ...] = SEEDS,
) -> None:
    image = image or photograph()
    options: dict[str, Any] = {
        "seed": list(seeds),
        "steps": steps,
        "sampler": sampler,
        "guidance_scale": guidance,
        "strength": strength,
        "init_image": image,
        "mask": mask,
        "size": size,
    }
    arguments: dict[str, Any] = {
        "seeds": seeds,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "strength": strength,
        "image": [image] * len(seeds),
    }
    if mask is not None:
        arguments["width"], arguments["height"] = size or image.size
    latents = list(pair.ours.stream(PROMPT, **options))[-1].latents
    expected = pair.theirs(sampler, "latent", mask, **arguments).numpy()
    assert latents.shape == expected.shape
    assert np.abs(latents - expected).max() <= 1e-3
    images = pair.ours.generate(PROMPT, **options).images
    for mine, other in zip(images, pair.theirs(sampler, "pil", mask, **arguments), strict=True):
        difference = np.asarray(mine).astype(int) - np.asarray(other).astype(int)
        assert np.abs(difference).max() <= 1


SHAPES = ["sd1", *(pytest.param(s, marks=pytest.mark.slow) for s in ("tiny-vae", "xl"))]
FAST = ("euler", "euler_a")
SAMPLERS = [s if s in FAST else pytest.param(s, marks=pytest.mark.slow) for s in SCHEDULERS]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_image_to_image_at_full_strength(
    pair: Callable[[str], Pair], shape: str, sampler: str, steps: int
) -> None:
    compare(pair(shape), sampler=sampler, steps=steps, strength=1.0)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_image_to_image_at_half_strength(
    pair: Callable[[str], Pair], shape: str, sampler: str, steps: int
) -> None:
    compare(pair(shape), sampler=sampler, steps=steps, strength=0.5)


@pytest.mark.parametrize("sampler", ["euler", "ddim", "dpmpp_2m"])
def test_one_step_of_a_hundred(pair: Callable[[str], Pair], sampler: str) -> None:
    compare(pair("sd1"), sampler=sampler, steps=100, strength=0.01)


@pytest.mark.parametrize(("steps", "strength"), [(1, 0.01), (2, 0.01), (4, 0.01), (1, 0.5)])
def test_where_no_step_is_left_it_is_said(
    pair: Callable[[str], Pair], steps: int, strength: float
) -> None:
    """diffusers' image to image fails on an empty tensor there."""
    with pytest.raises(InputError, match=f"`strength` is {strength}"):
        pair("sd1").ours.stream(
            PROMPT, init_image=photograph(), steps=steps, strength=strength, sampler="ddim"
        )


@pytest.mark.parametrize("image", [(70, 52), (48, 96)])
def test_a_image_takes_its_own_size(pair: Callable[[str], Pair], image: tuple[int, int]) -> None:
    compare(pair("sd1"), sampler="ddim", steps=2, strength=0.5, image=photograph(*image))


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_inpainting_by_blending(
    pair: Callable[[str], Pair], shape: str, sampler: str, strength: float
) -> None:
    compare(pair(shape), sampler=sampler, steps=4, strength=strength, mask=blob())


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
@pytest.mark.parametrize("sampler", list(SCHEDULERS))
@pytest.mark.parametrize("shape", ["inpaint", "xl-inpaint"])
def test_inpainting_with_a_network_that_takes_the_mask(
    pair: Callable[[str], Pair], shape: str, sampler: str, strength: float
) -> None:
    compare(pair(shape), sampler=sampler, steps=4, strength=strength, mask=blob())


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("shape", ["sd1", pytest.param("inpaint", marks=pytest.mark.slow)])
def test_inpainting_in_one_step(pair: Callable[[str], Pair], shape: str, guidance: float) -> None:
    compare(pair(shape), sampler="euler_a", steps=1, strength=1.0, mask=blob(), guidance=guidance)


@pytest.mark.parametrize("shape", ["sd1", pytest.param("inpaint", marks=pytest.mark.slow)])
def test_inpainting_at_another_size(pair: Callable[[str], Pair], shape: str) -> None:
    compare(
        pair(shape),
        sampler="euler",
        steps=2,
        strength=1.0,
        image=photograph(100, 80),
        mask=blob(100, 80),
        size=(64, 72),
    )


@pytest.mark.slow
def test_a_network_that_takes_the_mask_needs_one(pair: Callable[[str], Pair]) -> None:
    for given in ({}, {"init_image": photograph()}):
        with pytest.raises(InputError, match="give `init_image` and `mask`"):
            pair("inpaint").ours.stream(PROMPT, **given)
