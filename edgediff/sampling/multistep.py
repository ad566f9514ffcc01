"""Samplers with a memory of earlier evaluations: a higher order with one evaluation a step.

The history holds the model's own predictions. As in diffusers, latents that are sent in place of a
step's own do not change it; they only change the model's input from then on."""

import math

import numpy as np

from edgediff.arrays import Array
from edgediff.sampling.plan import Plan
from edgediff.sampling.trajectory import Denoise, Noise, Step, Trajectory, hand_over, mix, to_level


def dpmpp_2m(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), algorithm 2.

    The first step is of first order, there being no history, and so is a last step to sigma 0,
    at which lambda = -log sigma is infinite."""
    x0_prev: Array | None = None
    h_prev = math.nan
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        h = _h(step.sigma, step.sigma_next)
        d = _extrapolate(x0, x0_prev, h, h_prev)
        x = to_level(plan, x, d, step.sigma, step.sigma_next)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))
        x0_prev, h_prev = x0, h


def dpmpp_2m_sde(denoise: Denoise, x: Array, plan: Plan, noise: Noise) -> Trajectory:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095): as dpmpp_2m, with e^-2h in the place
    of e^-h, and noise for the difference. h is infinite in a last step to sigma 0."""
    x0_prev: Array | None = None
    h_prev = math.nan
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        h = _h(step.sigma, step.sigma_next)
        d = _extrapolate(x0, x0_prev, h, h_prev)
        _, sigma_t = plan.alpha_sigma(step.sigma)
        alpha_next, sigma_t_next = plan.alpha_sigma(step.sigma_next)
        fresh = -math.expm1(-2.0 * h)
        x = mix(x, d, sigma_t_next / sigma_t * math.exp(-h), alpha_next * fresh)
        if step.sigma_next > 0.0:
            x += noise(i) * (sigma_t_next * math.sqrt(fresh))
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))
        x0_prev, h_prev = x0, h


def unipc(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """UniPC-2 with B(h) = e^h - 1 over x0, Zhao et al. 2023 (arXiv:2302.04867).

    Each evaluation first corrects the step before it (UniC), from the latents that the step began
    with, then predicts the next (UniP). The first step and the last are of first order."""
    begun = x  # the latents that the step before began with, corrected
    seen: list[tuple[float, Array]] = []  # (sigma, x0) of the evaluations before, latest first
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        if seen:
            x = _unic(plan, begun, seen, step.sigma, x0)
        d = x0
        if seen and i < len(plan.steps) - 1:
            sigma_prev, x0_prev = seen[0]
            h_prev = _h(sigma_prev, step.sigma)
            d = _extrapolate(x0, x0_prev, _h(step.sigma, step.sigma_next), h_prev)
        begun, seen = x, [(step.sigma, x0), *seen[:1]]
        x = to_level(plan, x, d, step.sigma, step.sigma_next)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def _unic(plan: Plan, x: Array, seen: list[tuple[float, Array]], sigma: float, x0: Array) -> Array:
    """Redo the step that x began, to level sigma, now that x0 has been seen there: UniC of order 2,
    or 1 if a single evaluation came before."""
    sigma_prev, m0 = seen[0]
    if len(seen) == 1:
        return to_level(plan, x, mix(m0, x0, 0.5, 0.5), sigma_prev, sigma)
    sigma_before, m1 = seen[1]
    h = _h(sigma_prev, sigma)
    r = -_h(sigma_before, sigma_prev) / h
    # b_k = h·φ_{k+1}(-h)·k! / B(h); the two weights solve [[1, 1], [r, 1]]·rho = b.
    phi = math.expm1(-h)
    phi_2 = phi / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    b1, b2 = phi_2 / phi, 2.0 * phi_3 / phi
    rho_1 = (b1 - b2) / (1.0 - r)
    rho_2 = b1 - rho_1
    d = mix(m0, m1, 1.0 - rho_1 / r - rho_2, rho_1 / r)
    d += x0 * rho_2
    return to_level(plan, x, d, sigma_prev, sigma)


def deis(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """DEIS of second order over log rho = log sigma, Zhang and Chen 2022 (arXiv:2204.13902): eps,
    linear in log sigma between this evaluation and the last, integrated over sigma.

    As in diffusers, the first step is of first order, and so is the last one of fewer than 15."""
    eps_prev: Array | None = None
    sigma_prev = math.nan
    for i, step in enumerate(plan.steps):
        sigma, sigma_next = step.sigma, step.sigma_next
        x0 = denoise(x, sigma)
        alpha, sigma_t = plan.alpha_sigma(sigma)
        eps = mix(x, x0, 1.0 / sigma_t, -alpha / sigma_t)
        x = to_level(plan, x, x0, sigma, sigma_next)
        last = i == len(plan.steps) - 1 and plan.total < 15
        if eps_prev is not None and not last:
            # ∫ (log s - log sigma) ds / (log sigma_prev - log sigma), from sigma to sigma_next.
            area = sigma_next * (math.log(sigma_next / sigma) - 1.0) + sigma
            alpha_next, _ = plan.alpha_sigma(sigma_next)
            x += (eps_prev - eps) * (alpha_next * area / math.log(sigma_prev / sigma))
        x = yield from hand_over(Step(index=i, sigma=sigma_next, latents=x, x0=x0))
        eps_prev, sigma_prev = eps, sigma


# Adams and Bashforth: the weights of the last evaluations, latest first, by how many there are.
_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """PNDM, Liu et al. 2022 (arXiv:2202.09778), eq. 9 and 12, without Runge-Kutta steps, as Stable
    Diffusion was published: the first step is Heun's, with a second evaluation, and the second and
    third use a shorter history.

    The history is of eps. As in diffusers it is of v if the model predicts v; so it is in runs from
    zero signal, at which eps says nothing about the image."""
    over_v = plan.schedule.prediction_type == "v_prediction" or math.isinf(plan.start)
    seen: list[Array] = []  # latest first
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        seen = [_prediction(plan, x, x0, step.sigma, over_v), *seen[:3]]
        if i == 0 and len(plan.steps) > 1:
            ahead = _transfer(plan, x, seen[0], step.sigma, step.sigma_next, over_v)
            x0 = denoise(ahead, step.sigma_next)
            out = mix(seen[0], _prediction(plan, ahead, x0, step.sigma_next, over_v), 0.5, 0.5)
        else:
            out = np.zeros_like(x)
            for weight, before in zip(_ADAMS_BASHFORTH[len(seen) - 1], seen, strict=True):
                out += before * weight
        x = _transfer(plan, x, out, step.sigma, step.sigma_next, over_v)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def _prediction(plan: Plan, x: Array, x0: Array, sigma: float, over_v: bool) -> Array:
    """The network's prediction as v or eps, from the x0 that it led to."""
    alpha, sigma_t = plan.alpha_sigma(sigma)
    if over_v:
        return mix(x, x0, alpha / sigma_t, -1.0 / sigma_t)
    return mix(x, x0, 1.0 / sigma_t, -alpha / sigma_t)


def _transfer(
    plan: Plan, x: Array, out: Array, sigma: float, sigma_next: float, over_v: bool
) -> Array:
    """Liu et al. 2022, eq. 9, for eps, or for v in its place."""
    alpha, sigma_t = plan.alpha_sigma(sigma)
    alpha_next, sigma_t_next = plan.alpha_sigma(sigma_next)
    if over_v:
        along = alpha_next * alpha + sigma_t_next * sigma_t
        return mix(x, out, along, sigma_t_next * alpha - alpha_next * sigma_t)
    return mix(x, out, alpha_next / alpha, alpha_next * (sigma_next - sigma))


def _h(sigma: float, sigma_next: float) -> float:
    """The step in lambda = -log sigma."""
    return math.log(sigma / sigma_next) if sigma_next > 0.0 else math.inf


def _extrapolate(x0: Array, x0_prev: Array | None, h: float, h_prev: float) -> Array:
    """x0 half a step of h on, along the line through this x0 and the one h_prev before it."""
    if x0_prev is None or math.isinf(h):
        return x0
    r = h_prev / h
    return mix(x0, x0_prev, 1.0 + 0.5 / r, -0.5 / r)
