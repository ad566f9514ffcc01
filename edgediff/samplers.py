"""Samplers: generators that take latents from noise to an image, one model evaluation per step.

All of them keep the latents in variance-preserving form, x = alpha·x0 + sigma_t·eps, which is what
the network itself is given (`edgediff.schedule.alpha_sigma` turns a noise level sigma into alpha
and sigma_t). Papers write some of them over x / alpha = x0 + sigma·eps instead; the two are equal,
but that one is infinite at zero terminal SNR, and there rounding errors of its large values end up
in the image. Multiply by sqrt(1 + sigma²) to compare with the latents inside diffusers' Euler
schedulers; the others hold the same numbers as here.

A sampler knows nothing of prompts, sessions or bundles: it is given `denoise(x, sigma) -> x0` and a
plan (`edgediff.schedule.make_plan`), and yields a `Step` after each evaluation. It can be abandoned
at any step, and each `Step`'s arrays stay as they are.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgediff.errors import InputError
from edgediff.schedule import Plan, alpha_sigma

Latents = npt.NDArray[np.float32]
Denoise = Callable[[Latents, float], Latents]
"""(x (n, c, h, w) float32, sigma) → x0, the model's view of the clean latents, alike in shape."""
Noise = Callable[[int], Latents]
"""Step index → fresh N(0, 1) noise (n, c, h, w) float32. Called at most once a step, in order."""

_SIGMA_DATA = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Where a sampler stands after step `index` (from 0).

    sigma: the noise level left in `latents`.
    latents: (n, c, h, w) float32, in variance-preserving form.
    x0: (n, c, h, w) float32, the clean latents as this step saw them; good for a preview.
    """

    index: int
    sigma: float
    latents: Latents
    x0: Latents


def initial_latents(noise: Latents, plan: Plan) -> Latents:
    """N(0, 1) noise (n, c, h, w) float32 → the latents that the plan starts from, a new array."""
    return noise * plan.noise_scale


def sample(
    denoise: Denoise, latents: Latents, plan: Plan, noise: Noise | None = None
) -> Iterator[Step]:
    """Run the plan's sampler over latents (n, c, h, w) float32, which are left as they are.

    noise: needed by the samplers in STOCHASTIC; the others draw none.
    Raises InputError, at once, for latents of another kind or where noise is missing."""
    if latents.dtype != np.float32 or latents.ndim != 4:
        raise InputError(
            f"latents are {latents.dtype} of shape {latents.shape}: expected float32 (n, c, h, w)"
        )
    if plan.sampler not in STOCHASTIC:
        return DETERMINISTIC[plan.sampler](denoise, latents, plan)
    if noise is None:
        raise InputError(f"noise is None: sampler {plan.sampler} draws some: give a noise source")
    return STOCHASTIC[plan.sampler](denoise, latents, plan, noise)


def euler(denoise: Denoise, x: Latents, plan: Plan) -> Iterator[Step]:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without its second-order correction."""
    for i, (sigma, sigma_next, _) in enumerate(plan.steps):
        x0 = denoise(x, sigma)
        x = _to_level(x, x0, sigma, sigma_next)
        yield Step(index=i, sigma=sigma_next, latents=x, x0=x0)


def euler_a(denoise: Denoise, x: Latents, plan: Plan, noise: Noise) -> Iterator[Step]:
    """Euler to a level below the next, then noise up to it: Song et al. 2021 (arXiv:2010.02502),
    eq. 16 with eta = 1, over sigma as in k-diffusion's ancestral sampler."""
    for i, (sigma, sigma_next, _) in enumerate(plan.steps):
        x0 = denoise(x, sigma)
        sigma_up = sigma_next * math.sqrt(1.0 - (sigma_next / sigma) ** 2)
        sigma_down = sigma_next * (sigma_next / sigma)
        alpha, _ = alpha_sigma(sigma)
        alpha_next, _ = alpha_sigma(sigma_next)
        ratio = sigma_down / sigma
        x = _mix(x, x0, ratio * (alpha_next / alpha), alpha_next * (1.0 - ratio))
        if sigma_up > 0.0:
            x += noise(i) * (alpha_next * sigma_up)
        yield Step(index=i, sigma=sigma_next, latents=x, x0=x0)


def ddim(denoise: Denoise, x: Latents, plan: Plan) -> Iterator[Step]:
    """Song et al. 2021 (arXiv:2010.02502), eq. 12 with eta = 0."""
    for i, (sigma, sigma_next, _) in enumerate(plan.steps):
        x0 = denoise(x, sigma)
        alpha, sigma_t = alpha_sigma(sigma)
        alpha_next, sigma_t_next = alpha_sigma(sigma_next)
        # As in diffusers, eps stays the model's own where x0 is clipped.
        eps = _mix(x, x0, 1.0 / sigma_t, -alpha / sigma_t)
        if plan.clip_range is not None:
            x0 = x0.clip(-plan.clip_range, plan.clip_range)
        x = _mix(x0, eps, alpha_next, sigma_t_next)
        yield Step(index=i, sigma=sigma_next, latents=x, x0=x0)


def dpmpp_2m(denoise: Denoise, x: Latents, plan: Plan) -> Iterator[Step]:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), algorithm 2.

    The first step is of first order, there being no history, and so is a last step to sigma 0,
    where lambda = -log sigma is infinite."""
    x0_prev: Latents | None = None
    h_prev = math.nan
    for i, (sigma, sigma_next, _) in enumerate(plan.steps):
        x0 = denoise(x, sigma)
        h = math.log(sigma / sigma_next) if sigma_next > 0.0 else math.inf
        if x0_prev is None or math.isinf(h):
            d = x0
        else:
            r = h_prev / h
            d = _mix(x0, x0_prev, 1.0 + 0.5 / r, -0.5 / r)
        x = _to_level(x, d, sigma, sigma_next)
        yield Step(index=i, sigma=sigma_next, latents=x, x0=x0)
        x0_prev, h_prev = x0, h


def lcm(denoise: Denoise, x: Latents, plan: Plan, noise: Noise) -> Iterator[Step]:
    """Multistep latent consistency sampling, Luo et al. 2023 (arXiv:2310.04378), algorithm 3.

    The boundary condition f = c_skip·x + c_out·x0 (section 4.1) is applied here: it weighs by
    timestep, and comes after x0 is clipped. The x0 yielded is f."""
    for i, (sigma, sigma_next, timestep) in enumerate(plan.steps):
        x0 = denoise(x, sigma)
        if plan.clip_range is not None:
            x0 = x0.clip(-plan.clip_range, plan.clip_range)
        scaled = timestep * plan.timestep_scaling
        c_skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        c_out = scaled / math.hypot(scaled, _SIGMA_DATA)
        x0 = _mix(x0, x, c_out, c_skip)
        alpha_next, sigma_t_next = alpha_sigma(sigma_next)
        x = _mix(x0, noise(i), alpha_next, sigma_t_next) if sigma_next > 0.0 else x0
        yield Step(index=i, sigma=sigma_next, latents=x, x0=x0)


DETERMINISTIC: dict[str, Callable[[Denoise, Latents, Plan], Iterator[Step]]] = {
    "euler": euler,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_karras": dpmpp_2m,
}
STOCHASTIC: dict[str, Callable[[Denoise, Latents, Plan, Noise], Iterator[Step]]] = {
    "euler_a": euler_a,
    "lcm": lcm,
}
SAMPLERS = (*DETERMINISTIC, *STOCHASTIC)


def _to_level(x: Latents, x0: Latents, sigma: float, sigma_next: float) -> Latents:
    """Lu et al. 2022, eq. 9 with k = 1: keep x0 and eps, change the noise level. The same as a step
    of Euler over x / alpha."""
    _, sigma_t = alpha_sigma(sigma)
    alpha_next, sigma_t_next = alpha_sigma(sigma_next)
    return _mix(x, x0, sigma_t_next / sigma_t, alpha_next * (1.0 - sigma_next / sigma))


def _mix(a: Latents, b: Latents, wa: float, wb: float) -> Latents:
    """wa·a + wb·b, a new array."""
    out = a * wa
    out += b * wb
    return out
