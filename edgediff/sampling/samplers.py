"""Samplers: generators that take latents from noise to an image, step by step.

Latents under noise are x = alpha·x0 + sigma_t·eps, in the form that the network was trained on: the
plan's `alpha_sigma` turns a noise level sigma into alpha and sigma_t. Papers write some samplers
over x / alpha = x0 + sigma·eps instead; the two are equal, but that one is infinite at zero
terminal SNR, and there rounding errors of its large values end up in the image. With a discrete
schedule, multiply by sqrt(1 + sigma²) to compare with the latents inside diffusers' Euler, Heun and
LMS schedulers; the others, and those for flow matching, hold the same numbers as here. With EDM's
schedules, multiply by sigma_data·sqrt(1 + sigma²).

A sampler knows nothing of prompts, sessions or bundles: it is given `denoise(x, sigma) -> x0` and a
plan (`make_plan`), and yields a `Step` after each of the plan's steps. A step takes
one evaluation of the model. Those of heun and dpmpp_sde take two, except for the last (and for
heun's large steps in a run from zero signal), and so does pndm's first, or four in each of its
first three if they are of Runge and Kutta. A sampler can be abandoned
at any step, and each `Step`'s arrays stay as they are.

It may also be steered: `trajectory.send(latents)` in the place of `next(trajectory)` makes it go on
with those latents, at the noise level `step.sigma`, instead of the step's own. Inpainting blends
known latents into each step this way. After the last step there is nothing to go on with, and
`send` ends the generator.
"""

from collections.abc import Callable

import numpy as np

from edgediff.arrays import Array
from edgediff.errors import InputError
from edgediff.sampling.consistency import lcm, tcd
from edgediff.sampling.dpm_solver import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_2s_sde
from edgediff.sampling.multistep import deis, lms, pndm, unipc
from edgediff.sampling.plan import Plan
from edgediff.sampling.singlestep import ddim, ddpm, dpmpp_sde, euler, euler_a, heun
from edgediff.sampling.trajectory import Denoise, Noise, Step, Trajectory

__all__ = [
    "DETERMINISTIC",
    "SAMPLERS",
    "STOCHASTIC",
    "Denoise",
    "Noise",
    "Step",
    "Trajectory",
    "initial_latents",
    "sample",
]

DETERMINISTIC: dict[str, Callable[[Denoise, Array, Plan], Trajectory]] = {
    "euler": euler,
    "heun": heun,
    "ddim": ddim,
    "pndm": pndm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_karras": dpmpp_2m,
    "dpmpp_2s": dpmpp_2s,
    "unipc": unipc,
    "deis": deis,
    "lms": lms,
}
STOCHASTIC: dict[str, Callable[[Denoise, Array, Plan, Noise], Trajectory]] = {
    "euler_a": euler_a,
    "ddpm": ddpm,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2s_sde": dpmpp_2s_sde,
    "dpmpp_sde": dpmpp_sde,
    "lcm": lcm,
    "tcd": tcd,
}
SAMPLERS = (*DETERMINISTIC, *STOCHASTIC)


def initial_latents(noise: Array, plan: Plan) -> Array:
    """N(0, 1) noise (n, c, …) float32 → the latents that the plan starts from, a new array."""
    return noise * plan.noise_scale


def sample(denoise: Denoise, latents: Array, plan: Plan, noise: Noise | None = None) -> Trajectory:
    """Run the plan's sampler over latents (n, c, …) float32, which are left as they are.

    Latents have any rank from 3, such as those of images (n, c, h, w), of frames (n, c, f, h, w) or
    one-dimensional ones (n, c, t).
    noise: needed by the samplers in STOCHASTIC; the others draw none.
    Raises InputError, at once, for latents of another kind and if noise is missing."""
    if latents.dtype != np.float32 or latents.ndim < 3:
        raise InputError(
            f"latents are {latents.dtype} of shape {latents.shape}: expected float32 (n, c, …),"
            " such as (n, c, h, w)"
        )
    if plan.sampler not in STOCHASTIC:
        return DETERMINISTIC[plan.sampler](denoise, latents, plan)
    if noise is None:
        raise InputError(f"noise is None: sampler {plan.sampler} draws some: give a noise source")
    return STOCHASTIC[plan.sampler](denoise, latents, plan, noise)
