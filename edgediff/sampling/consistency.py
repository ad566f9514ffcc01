"""Samplers for models that were distilled to predict the image at once from any noise level."""

import math

from edgediff.arrays import Array
from edgediff.sampling.plan import Plan
from edgediff.sampling.trajectory import Denoise, Noise, Step, Trajectory, hand_over, mix

_SIGMA_DATA = 0.5


def lcm(denoise: Denoise, x: Array, plan: Plan, noise: Noise) -> Trajectory:
    """Multistep latent consistency sampling, Luo et al. 2023 (arXiv:2310.04378), algorithm 3.

    The boundary condition f = c_skip·x + c_out·x0 (section 4.1) is applied here, since its weights
    depend on the timestep, and it comes after x0 is clipped. The x0 yielded is f."""
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        if plan.clip_range is not None:
            x0 = x0.clip(-plan.clip_range, plan.clip_range)
        scaled = step.timestep * plan.timestep_scaling
        c_skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        c_out = scaled / math.hypot(scaled, _SIGMA_DATA)
        x0 = mix(x0, x, c_out, c_skip)
        alpha_next, sigma_t_next = plan.alpha_sigma(step.sigma_next)
        x = mix(x0, noise(i), alpha_next, sigma_t_next) if step.sigma_next > 0.0 else x0
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def tcd(denoise: Denoise, x: Array, plan: Plan, noise: Noise) -> Trajectory:
    """Trajectory consistency distillation, Zheng et al. 2024 (arXiv:2402.19159): strategic
    stochastic sampling, down to a level below the next without noise, and up to the next with it.

    The last step ends at timestep 0, whose noise is left in the latents, as in diffusers."""
    for i, step in enumerate(plan.steps):
        below = step.sigma_next if step.sigma_mid is None else step.sigma_mid
        x0 = denoise(x, step.sigma)
        alpha, sigma_t = plan.alpha_sigma(step.sigma)
        alpha_s, sigma_s = plan.alpha_sigma(below)
        eps = mix(x, x0, 1.0 / sigma_t, -alpha / sigma_t)
        x = mix(x0, eps, alpha_s, sigma_s)
        if step.sigma_next > below:
            kept = plan.alpha_sigma(step.sigma_next)[0] / alpha_s
            x = mix(x, noise(i), kept, math.sqrt(1.0 - kept**2))
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))
