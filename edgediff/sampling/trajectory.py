"""Shared by all samplers: the step that they yield, and the arithmetic between noise levels."""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from edgediff.arrays import Array
from edgediff.errors import InputError
from edgediff.sampling.plan import Plan

Denoise = Callable[[Array, float], Array]
"""(x (n, c, …) float32, sigma) → x0, alike: the model's estimate of the clean latents."""
Noise = Callable[[int], Array]
"""Step index → fresh N(0, 1) noise (n, c, …) float32. Called in the order of the steps: once (by
dpmpp_sde twice) in each step that adds noise, which one to sigma 0 hardly ever does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The state of a sampler after step `index` (from 0).

    sigma: the noise level left in `latents`.
    latents: (n, c, …) float32, alpha·x0 + sigma_t·eps at that level.
    x0: (n, c, …) float32, this step's latest estimate of the clean latents; good for a preview.
    """

    index: int
    sigma: float
    latents: Array
    x0: Array


Trajectory = Generator[Step, Array | None, None]
"""A running sampler: yields each Step, and may be sent latents to go on with instead of its own."""


def hand_over(step: Step) -> Generator[Step, Array | None, Array]:
    """Yield a step, and return the latents to go on with: its own, or those sent in their place.

    Raises InputError, in the sampler, for latents of another shape or dtype."""
    sent = yield step
    if sent is None:
        return step.latents
    if sent.shape != step.latents.shape or sent.dtype != np.float32:
        raise InputError(
            f"latents sent to step {step.index} are {sent.dtype} of shape {sent.shape}: expected"
            f" float32 of shape {step.latents.shape}"
        )
    return sent


def to_level(plan: Plan, x: Array, x0: Array, sigma: float, sigma_next: float) -> Array:
    """Lu et al. 2022 (arXiv:2211.01095), eq. 9 with k = 1: keep x0 and eps, change the noise level.
    The same as a step of Euler over x / alpha."""
    _, sigma_t = plan.alpha_sigma(sigma)
    alpha_next, sigma_t_next = plan.alpha_sigma(sigma_next)
    return mix(x, x0, sigma_t_next / sigma_t, alpha_next * (1.0 - sigma_next / sigma))


def mix(a: Array, b: Array, wa: float, wb: float) -> Array:
    """wa·a + wb·b, a new array."""
    out = a * wa
    out += b * wb
    return out
