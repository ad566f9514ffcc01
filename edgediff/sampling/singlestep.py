"""Samplers without a memory of earlier steps: Euler's and Heun's methods, DDPM, DDIM, and
SDE-DPM-Solver++ as in k-diffusion.

heun and dpmpp_sde evaluate the model twice in each step but the last; heun only once in steps that
it leaves to Euler's method."""

import math

from edgediff.arrays import Array
from edgediff.sampling.plan import Plan
from edgediff.sampling.trajectory import Denoise, Noise, Step, Trajectory, hand_over, mix, to_level


def euler(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without its second-order correction."""
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        x = to_level(plan, x, x0, step.sigma, step.sigma_next)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def heun(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without churn.

    The mean of the slopes at both ends is that of a step of Euler towards a mean of the two x0, the
    second weighed by half the ratio of the two times, which are sigma in the paper, and s in flow
    matching. To sigma 0 there is no second slope.

    From a discrete schedule's zero signal that weight can be in the thousands, and then only the
    difference of the two x0 is left. So runs that begin there, which diffusers' Heun does not
    support, take steps to less than a quarter of sigma by Euler's method: above all the first."""
    for i, step in enumerate(plan.steps):
        sigma, sigma_next = step.sigma, step.sigma_next
        x0 = d = _clip(denoise(x, sigma), plan)
        if sigma_next > 0.0 and not (plan.zero_signal and sigma > 4.0 * sigma_next):
            x0 = _clip(denoise(to_level(plan, x, x0, sigma, sigma_next), sigma_next), plan)
            w = 0.5 * plan.schedule.time(sigma) / plan.schedule.time(sigma_next)
            d = mix(d, x0, 1.0 - w, w)
        x = to_level(plan, x, d, sigma, sigma_next)
        x = yield from hand_over(Step(index=i, sigma=sigma_next, latents=x, x0=x0))


def euler_a(denoise: Denoise, x: Array, plan: Plan, noise: Noise) -> Trajectory:
    """Euler to a level below the next, then noise up to it: Song et al. 2021 (arXiv:2010.02502),
    eq. 16 with eta = 1, over sigma as in k-diffusion's ancestral sampler."""
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        fresh = noise(i) if step.sigma_next > 0.0 else None
        x = _ancestral(plan, x, x0, step.sigma, step.sigma_next, fresh)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def dpmpp_sde(denoise: Denoise, x: Array, plan: Plan, noise: Noise) -> Trajectory:
    """SDE-DPM-Solver++ of second order in single steps, Lu et al. 2022 (arXiv:2211.01095), as in
    k-diffusion: an ancestral step to the middle of log sigma, then, from the same start, one to
    sigma_next with the x0 seen in the middle.

    The noise of both is that of one Brownian path over sigma, from sigma to the middle and from
    sigma to sigma_next."""
    for i, step in enumerate(plan.steps):
        sigma, sigma_next, middle = step.sigma, step.sigma_next, step.sigma_mid
        x0 = denoise(x, sigma)
        if middle is None:
            x = _ancestral(plan, x, x0, sigma, sigma_next, None)
        else:
            first, second = noise(i), noise(i)
            x0 = denoise(_ancestral(plan, x, x0, sigma, middle, first), middle)
            w = (sigma - middle) / (sigma - sigma_next)
            path = mix(first, second, math.sqrt(w), math.sqrt(1.0 - w))
            x = _ancestral(plan, x, x0, sigma, sigma_next, path)
        x = yield from hand_over(Step(index=i, sigma=sigma_next, latents=x, x0=x0))


def ddim(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """Song et al. 2021 (arXiv:2010.02502), eq. 12 with eta = 0."""
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        alpha, sigma_t = plan.alpha_sigma(step.sigma)
        alpha_next, sigma_t_next = plan.alpha_sigma(step.sigma_next)
        # As in diffusers, eps stays the model's own if x0 is clipped.
        eps = mix(x, x0, 1.0 / sigma_t, -alpha / sigma_t)
        x0 = _clip(x0, plan)
        x = mix(x0, eps, alpha_next, sigma_t_next)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def ddpm(denoise: Denoise, x: Array, plan: Plan, noise: Noise) -> Trajectory:
    """Ho et al. 2020 (arXiv:2006.11239), algorithm 2, from any level to the next: the mean of eq.
    7, and noise of the lower or the upper bound of the variance (section 3.2).

    The lower bound is 0 in a step to sigma 0. The upper one is not: as in diffusers, that noise is
    left in the latents unless the last timestep is 0."""
    for i, step in enumerate(plan.steps):
        x0 = _clip(denoise(x, step.sigma), plan)
        alpha, sigma_t = plan.alpha_sigma(step.sigma)
        alpha_next, sigma_t_next = plan.alpha_sigma(step.sigma_next)
        kept = alpha / alpha_next
        beta = 1.0 - kept**2
        lower = (sigma_t_next / sigma_t) ** 2
        x = mix(x, x0, kept * lower, alpha_next * beta / sigma_t**2)
        variance = beta if plan.large_variance else lower * beta
        if step.timestep > 0.0 and variance > 0.0:
            x += noise(i) * math.sqrt(variance)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def _ancestral(
    plan: Plan, x: Array, x0: Array, sigma: float, sigma_next: float, noise: Array | None
) -> Array:
    """From sigma down to sigma_next² / sigma, and up to sigma_next with noise."""
    alpha, _ = plan.alpha_sigma(sigma)
    alpha_next, _ = plan.alpha_sigma(sigma_next)
    ratio = (sigma_next / sigma) ** 2
    x = mix(x, x0, ratio * (alpha_next / alpha), alpha_next * (1.0 - ratio))
    if noise is not None:
        x += noise * (alpha_next * sigma_next * math.sqrt(1.0 - ratio))
    return x


def _clip(x0: Array, plan: Plan) -> Array:
    return x0 if plan.clip_range is None else x0.clip(-plan.clip_range, plan.clip_range)
