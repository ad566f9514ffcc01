"""The images that an export compares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgediff.bundle.manifest import FidelityLevel, Manifest
from edgediff.request.init_image import inpaints
from edgediff_export.fidelity.cases import Array

if TYPE_CHECKING:
    from edgediff.backend.run_stage import RunStage
    from edgediff.pipeline import Pipeline
    from edgediff.run import Run

PROMPTS = (
    "a red apple on a wooden table",
    "a lighthouse by the sea at sunset",
    "a smiling cat",
    "a green tree in the snow",
)
TRIAL_PROMPTS = (
    "a blue bird on a branch",
    "a bowl of fruit",
    "a castle on a hill",
    "a yellow taxi in the rain",
    "a portrait of an old sailor",
    "a slice of chocolate cake",
    "a robot reading a book",
    "a pair of running shoes",
    "a snowy mountain at night",
    "a green frog on a leaf",
    "an umbrella on the beach",
    "a cup of coffee",
)
"""Calibration prompts first, then those for the measurement afterwards."""
CALIBRATION = 4
_SMALL_UNET = 100e6
"""Parameters; smaller models make more and larger images in the same time."""
_QUICK_SIDE, _QUICK_STEPS = 256, 4
"""Pixels a side, and denoising steps, of images that are to take little time."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One image to compare, by the options that it is generated with.

    init, mask: an image (h, w, 3) and its parts to repaint (h, w), uint8, if the UNet inpaints."""

    name: str
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    init: Array | None = field(default=None, repr=False, compare=False)
    mask: Array | None = field(default=None, repr=False, compare=False)


def choose_shots(manifest: Manifest, parameters: int, level: FidelityLevel) -> list[Shot]:
    """The images that an export compares.

    full: four as the bundle makes them. quick: two that are small and have few steps, or one if the
    UNet, of so many parameters, is large. none: no image."""
    counts: dict[FidelityLevel, int] = {
        "full": len(PROMPTS),
        "quick": 2 if parameters < _SMALL_UNET else 1,
        "none": 0,
    }
    return _shots(manifest, PROMPTS[: counts[level]], 0, quick=level == "quick")


def trial_shots(manifest: Manifest, parameters: int) -> tuple[list[Shot], list[Shot]]:
    """The images that a search compares, and those that it does not see: as the bundle makes them,
    or fewer and quicker ones if each would take minutes."""
    small = parameters < _SMALL_UNET
    used, others = (CALIBRATION, 8) if small else (1, 2)
    shots = _shots(manifest, TRIAL_PROMPTS, 100, quick=not small)
    return shots[:used], shots[CALIBRATION:][:others]


def _shots(manifest: Manifest, prompts: Sequence[str], seed: int, *, quick: bool) -> list[Shot]:
    """An image for each prompt, from consecutive seeds."""
    defaults, unit = manifest.defaults, manifest.latent.downscale
    width, height, steps = defaults.width, defaults.height, defaults.steps
    if quick:
        most = max(unit, _QUICK_SIDE // unit * unit)
        width, height, steps = min(width, most), min(height, most), min(steps, _QUICK_STEPS)
    init, mask = painting(width, height)
    return [
        Shot(
            name=str(k),
            prompt=prompt,
            seed=seed + k,
            steps=steps,
            guidance_scale=defaults.guidance_scale,
            sampler=defaults.sampler,
            width=width,
            height=height,
            **({"init": init, "mask": mask} if inpaints(manifest) else {}),
        )
        for k, prompt in enumerate(prompts)
    ]


def evaluations(shots: Sequence[Shot]) -> int:
    """The denoising steps and decodings of images: the units of progress while they are made."""
    return sum(shot.steps + 1 for shot in shots)


def trajectory(
    pipe: "Pipeline", shot: Shot, wrap: "Callable[[RunStage], RunStage] | None" = None
) -> "Run":
    """A run over the denoising steps of a shot. wrap: as in `Pipeline.run`."""
    request = pipe.resolve(
        shot.prompt,
        seed=shot.seed,
        steps=shot.steps,
        guidance_scale=shot.guidance_scale,
        sampler=shot.sampler,
        size=(shot.width, shot.height),
        init_image=shot.init,
        mask=shot.mask,
    )
    return pipe.run(request, wrap=wrap)


def painting(width: int, height: int) -> tuple[Array, Array]:
    """An image (h, w, 3) of even areas, and a mask (h, w) of its left half. Both uint8."""
    side = max(width, height)
    even = even_areas(np.random.default_rng(5), (1, 3, side, side))[0, :, :height, :width]
    init = np.clip(even.transpose(1, 2, 0) * 64 + 128, 0, 255).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return init, mask


def even_areas(
    rng: np.random.Generator, shape: tuple[int, int, int, int]
) -> npt.NDArray[np.float32]:
    """Quarters of one value each, (n, c, side, side), standard normal."""
    n, c, side, _ = shape
    coarse = rng.standard_normal((n, c, 2, 2), dtype=np.float32)
    half = -(-side // 2)
    areas = np.kron(coarse, np.ones((1, 1, half, half), np.float32))
    quarters: npt.NDArray[np.float32] = areas[..., :side, :side]
    return quarters
