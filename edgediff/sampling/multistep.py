"""Samplers with a memory of earlier evaluations: a higher order with one evaluation a step.

The history holds the model's own predictions. As in diffusers, latents that are sent in place of a
step's own do not change it; they only change the model's input from then on."""

import math

import numpy as np

from edgediff.arrays import Array
from edgediff.sampling.dpm_solver import log_ratio
from edgediff.sampling.plan import Plan
from edgediff.sampling.planned_step import PlannedStep
from edgediff.sampling.trajectory import Denoise, Step, Trajectory, hand_over, mix, to_level


def unipc(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """UniPC with B(h) = e^h - 1 over x0, of order 1 to 3, Zhao et al. 2023 (arXiv:2302.04867).

    Each evaluation first corrects the step before it (UniC), from the latents that the step began
    with, then predicts the next (UniP). The first step has order 1."""
    begun = x  # the latents that the step before began with, corrected
    seen: list[tuple[float, Array]] = []  # (sigma, x0) of the evaluations before, latest first
    order = 0  # that of the step before
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        if seen:
            d = _uni(seen[:order], step.sigma, x0)
            x = to_level(plan, begun, d, seen[0][0], step.sigma)
        begun, seen = x, [(step.sigma, x0), *seen[:2]]
        order = min(step.order, len(seen))
        x = to_level(plan, x, _uni(seen[:order], step.sigma_next), step.sigma, step.sigma_next)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def _uni(seen: list[tuple[float, Array]], sigma: float, x0: Array | None = None) -> Array:
    """The x0 to step towards, from the latest level seen to sigma: by UniP, or by UniC if x0 has
    been seen there as well. The number of evaluations seen is the order.

    The weights solve sum(rho·r^k) = h·φ_{k+2}(-h)·(k+1)! / B(h); with a single one, it is 1/2."""
    (start, m0), *before = seen
    h = log_ratio(start, sigma)
    if (not before and x0 is None) or h == 0.0 or math.isinf(h):
        return m0
    points = [(-log_ratio(level, start) / h, m) for level, m in before]
    if x0 is not None:
        points.append((1.0, x0))
    phi = math.expm1(-h)
    term, factorial, right = phi / -h - 1.0, 1, []
    for k in range(len(points)):
        right.append(term * factorial / phi)
        factorial *= k + 2
        term = term / -h - 1.0 / factorial
    powers = [[r**k for r, _ in points] for k in range(len(points))]
    rho = [0.5] if len(points) == 1 else np.linalg.solve(powers, right).tolist()
    weights = [w / r for w, (r, _) in zip(rho, points, strict=True)]
    d: Array = m0 * (1.0 - sum(weights))
    for weight, (_, m) in zip(weights, points, strict=True):
        d += m * weight
    return d


def deis(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """DEIS of first or second order over log rho = log sigma, Zhang and Chen 2022
    (arXiv:2204.13902): eps, linear in log sigma between this evaluation and the last, integrated
    over sigma.

    As in diffusers, the first step is of first order, and so is the last one of fewer than 15."""
    eps_prev: Array | None = None
    sigma_prev = math.nan
    for i, step in enumerate(plan.steps):
        sigma, sigma_next = step.sigma, step.sigma_next
        x0 = denoise(x, sigma)
        eps = _eps(plan, x, x0, sigma)
        x = to_level(plan, x, x0, sigma, sigma_next)
        if eps_prev is not None and step.order > 1:
            # ∫ (log s - log sigma) ds / (log sigma_prev - log sigma), from sigma to sigma_next.
            area = sigma_next * (math.log(sigma_next / sigma) - 1.0) + sigma
            alpha_next, _ = plan.alpha_sigma(sigma_next)
            x += (eps_prev - eps) * (alpha_next * area / math.log(sigma_prev / sigma))
        x = yield from hand_over(Step(index=i, sigma=sigma_next, latents=x, x0=x0))
        eps_prev, sigma_prev = eps, sigma


_LMS_ORDER = 4


def lms(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """The linear multistep method of order 4 over sigma, as in k-diffusion: the polynomial through
    the last four slopes, which are eps, integrated from sigma to sigma_next.

    It is written as a step of Euler and a rest of differences of eps, in which large terms do not
    cancel."""
    seen: list[tuple[float, Array]] = []  # (sigma, eps), latest first
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        eps = _eps(plan, x, x0, step.sigma)
        seen = [(step.sigma, eps), *seen[: _LMS_ORDER - 1]]
        x = to_level(plan, x, x0, step.sigma, step.sigma_next)
        alpha_next, _ = plan.alpha_sigma(step.sigma_next)
        weights = _lagrange_areas([sigma for sigma, _ in seen], step.sigma_next)
        for weight, (_, before) in zip(weights[1:], seen[1:], strict=True):
            x += (before - eps) * (alpha_next * weight)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def _lagrange_areas(levels: list[float], end: float) -> list[float]:
    """∫ of each of Lagrange's polynomials over the levels, from the first of them to `end`."""
    areas = []
    for k, level in enumerate(levels):
        others = np.array(levels[:k] + levels[k + 1 :]) - levels[0]
        basis = np.atleast_1d(np.poly(others)) / np.prod(level - levels[0] - others)
        areas.append(float(np.polyval(np.polyint(basis), end - levels[0])))
    return areas


def _eps(plan: Plan, x: Array, x0: Array, sigma: float) -> Array:
    """The noise in x, if x0 is the clean latents."""
    alpha, sigma_t = plan.alpha_sigma(sigma)
    return mix(x, x0, 1.0 / sigma_t, -alpha / sigma_t)


# Adams and Bashforth: the weights of the last evaluations, latest first, by how many there are.
_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """PNDM, Liu et al. 2022 (arXiv:2202.09778), eq. 9, 12 and 13. The first three steps are of
    Runge and Kutta, with four evaluations, if the plan gives them a middle. Else it goes as Stable
    Diffusion was published: the first step is Heun's, with a second evaluation, and the second and
    third use a shorter history.

    The history is of eps. As in diffusers it is of v if the model predicts v; so it is in runs from
    zero signal, at which eps says nothing about the image."""
    over_v = plan.schedule.prediction_type == "v_prediction" or math.isinf(plan.start)
    seen: list[Array] = []  # latest first
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        seen = [_prediction(plan, x, x0, step.sigma, over_v), *seen[:3]]
        if step.sigma_mid is not None:
            x0, out = _runge_kutta(denoise, plan, x, seen[0], step, over_v)
        elif i == 0 and len(plan.steps) > 1:
            ahead = _transfer(plan, x, seen[0], step.sigma, step.sigma_next, over_v)
            x0 = denoise(ahead, step.sigma_next)
            out = mix(seen[0], _prediction(plan, ahead, x0, step.sigma_next, over_v), 0.5, 0.5)
        else:
            out = np.zeros_like(x)
            for weight, before in zip(_ADAMS_BASHFORTH[len(seen) - 1], seen, strict=True):
                out += before * weight
        x = _transfer(plan, x, out, step.sigma, step.sigma_next, over_v)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def _runge_kutta(
    denoise: Denoise, plan: Plan, x: Array, first: Array, step: PlannedStep, over_v: bool
) -> tuple[Array, Array]:
    """Liu et al. 2022, eq. 13: (the last x0 seen, the mean of four predictions); first: the one at
    the step's start. All transfers are from there."""
    middle = step.sigma if step.sigma_mid is None else step.sigma_mid
    x0, latest = x, first
    total = first / 6.0
    for level, weight in ((middle, 1 / 3), (middle, 1 / 3), (step.sigma_next, 1 / 6)):
        ahead = _transfer(plan, x, latest, step.sigma, level, over_v)
        x0 = denoise(ahead, level)
        latest = _prediction(plan, ahead, x0, level, over_v)
        total += latest * weight
    return x0, total


def _prediction(plan: Plan, x: Array, x0: Array, sigma: float, over_v: bool) -> Array:
    """The network's prediction as v or eps, from the x0 that it led to."""
    alpha, sigma_t = plan.alpha_sigma(sigma)
    if over_v:
        return mix(x, x0, alpha / sigma_t, -1.0 / sigma_t)
    return _eps(plan, x, x0, sigma)


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
