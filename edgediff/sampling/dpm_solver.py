"""DPM-Solver++ of orders 1 to 3, Lu et al. 2022 (arXiv:2206.00927 and arXiv:2211.01095), over x0.

A step of any order is one of the first order towards a combination of the x0 seen so far, whose
weights follow from their places in lambda = -log sigma. The plan gives each step's order, which is
lower if too few evaluations came before the step.

SDE-DPM-Solver++ has e^-2h in the place of e^-h, and noise for the difference. Here it stops at the
second order: in diffusers' third, the weight of x0's second derivative has a sign that makes it a
method of first order."""

import math
from collections.abc import Sequence

from edgediff.arrays import Array
from edgediff.sampling.plan import Plan
from edgediff.sampling.schedule import SolverType
from edgediff.sampling.trajectory import Denoise, Noise, Step, Trajectory, hand_over, mix, to_level

_Seen = list[tuple[float, Array]]
"""(sigma, x0) of evaluations, latest first."""


def dpmpp_2m(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), algorithm 2; likewise of order 1 and 3.

    The first step is of first order, there being no history, and so is a last step to sigma 0,
    at which lambda is infinite."""
    return _multistep(denoise, x, plan, None)


def dpmpp_2m_sde(denoise: Denoise, x: Array, plan: Plan, noise: Noise) -> Trajectory:
    """SDE-DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), or of order 1."""
    return _multistep(denoise, x, plan, noise)


def dpmpp_2s(denoise: Denoise, x: Array, plan: Plan) -> Trajectory:
    """DPM-Solver++(2S), Lu et al. 2022 (arXiv:2211.01095), algorithm 1; likewise of order 1 and 3.

    As in diffusers, each evaluation counts as a step. It yields the latents of a step of lower
    order that ends there; the steps of higher order start from the same latents as the first."""
    return _singlestep(denoise, x, plan, None)


def dpmpp_2s_sde(denoise: Denoise, x: Array, plan: Plan, noise: Noise) -> Trajectory:
    """SDE-DPM-Solver++(2S), or of order 1, as in diffusers: with noise of its own to each level."""
    return _singlestep(denoise, x, plan, noise)


def _multistep(denoise: Denoise, x: Array, plan: Plan, noise: Noise | None) -> Trajectory:
    seen: _Seen = []
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        seen = [(step.sigma, x0), *seen[:2]]
        order = min(step.order, len(seen))
        d = _extrapolate(seen[:order], step.sigma_next, plan.solver_type, noise is not None)
        x = _advance(plan, x, d, (step.sigma, step.sigma_next), noise, i)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def _singlestep(denoise: Denoise, x: Array, plan: Plan, noise: Noise | None) -> Trajectory:
    seen: _Seen = []
    begun = x  # the latents that the steps of higher order start from
    for i, step in enumerate(plan.steps):
        x0 = denoise(x, step.sigma)
        seen = [(step.sigma, x0), *seen[:2]]
        order = min(step.order, len(seen))
        begun = x if order == 1 else begun
        start = seen[order - 1][0]
        d = _interpolate(seen[:order], step.sigma_next, plan.solver_type, noise is not None)
        x = _advance(plan, begun, d, (start, step.sigma_next), noise, i)
        x = yield from hand_over(Step(index=i, sigma=step.sigma_next, latents=x, x0=x0))


def _advance(
    plan: Plan,
    x: Array,
    d: Array,
    levels: tuple[float, float],
    noise: Noise | None,
    index: int,
) -> Array:
    """A step of first order from one level to the next, towards d instead of x0."""
    sigma, sigma_next = levels
    if noise is None:
        return to_level(plan, x, d, sigma, sigma_next)
    _, sigma_t = plan.alpha_sigma(sigma)
    alpha_next, sigma_t_next = plan.alpha_sigma(sigma_next)
    h = log_ratio(sigma, sigma_next)
    fresh = -math.expm1(-2.0 * h)
    x = mix(x, d, sigma_t_next / sigma_t * math.exp(-h), alpha_next * fresh)
    if sigma_next > 0.0:
        x += noise(index) * (sigma_t_next * math.sqrt(fresh))
    return x


def _extrapolate(seen: _Seen, sigma_next: float, solver_type: SolverType, sde: bool) -> Array:
    """The x0 to step towards from the latest level, by as many evaluations as the order."""
    (sigma, m0), *before = seen
    h = log_ratio(sigma, sigma_next)
    if not before or math.isinf(h) or h == 0.0:
        return m0
    r0 = log_ratio(before[0][0], sigma) / h
    slope, curve = _weights(2.0 * h if sde else h)
    if len(before) == 1:
        slope = 0.5 if solver_type == "midpoint" else slope
        return mix(m0, before[0][1], 1.0 + slope / r0, -slope / r0)
    r1 = log_ratio(before[1][0], before[0][0]) / h
    bend = (slope * r0 + curve) / (r0 + r1)
    w0, w1 = (slope + bend) / r0, -bend / r1
    return _sum((m0, before[0][1], before[1][1]), (1.0 + w0, w1 - w0, -w1))


def _interpolate(seen: _Seen, sigma_next: float, solver_type: SolverType, sde: bool) -> Array:
    """The x0 to step towards from the earliest level, by as many evaluations as the order."""
    *_, (sigma, first) = seen
    h = log_ratio(sigma, sigma_next)
    if len(seen) == 1:
        return first
    r0 = log_ratio(sigma, seen[0][0]) / h
    slope, curve = _weights(2.0 * h if sde else h)
    if len(seen) == 2:
        slope = 0.5 if solver_type == "midpoint" else slope
        return mix(first, seen[0][1], 1.0 - slope / r0, slope / r0)
    if solver_type == "midpoint":
        return mix(first, seen[0][1], 1.0 - slope / r0, slope / r0)
    r1 = log_ratio(sigma, seen[1][0]) / h
    w0 = (2.0 * curve - slope * r1) / (r0 - r1) / r0
    w1 = (slope * r0 - 2.0 * curve) / (r0 - r1) / r1
    return _sum((first, seen[0][1], seen[1][1]), (1.0 - w0 - w1, w0, w1))


def _weights(h: float) -> tuple[float, float]:
    """Of x0's first and second derivative over a step of h: h·φ_2(-h) and h·φ_3(-h), relative to
    that of x0 itself, h·φ_1(-h)."""
    total = -math.expm1(-h)
    return 1.0 / total - 1.0 / h, (0.5 - (h - total) / h**2) / total


def log_ratio(sigma: float, sigma_next: float) -> float:
    """The step in lambda = -log sigma."""
    return math.log(sigma / sigma_next) if sigma_next > 0.0 else math.inf


def _sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    out = arrays[0] * weights[0]
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        out += array * weight
    return out
