"""How the noise levels of a run are spread between its highest and its lowest.

Each function takes sigma_min < sigma_max and gives `steps` levels from sigma_max down to sigma_min,
as Python floats; one step stays at sigma_max.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

Spacing = Literal["karras", "exponential", "beta"]

_BETA = 0.6


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022 (arXiv:2206.00364), eq. 5, without its final 0."""
    ramp = np.linspace(0.0, 1.0, steps)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return [float(s) for s in (high + ramp * (low - high)) ** rho]


def exponential_sigmas(sigma_min: float, sigma_max: float, steps: int) -> list[float]:
    """Even steps of log sigma."""
    logs = np.linspace(math.log(sigma_max), math.log(sigma_min), steps)
    return [float(s) for s in np.exp(logs)]


def beta_sigmas(sigma_min: float, sigma_max: float, steps: int) -> list[float]:
    """Lee et al. 2024 (arXiv:2407.12173): quantiles of Beta(0.6, 0.6), dense at both ends."""
    quantiles = [beta_quantile(p, _BETA) for p in 1.0 - np.linspace(0.0, 1.0, steps)]
    return [sigma_min + q * (sigma_max - sigma_min) for q in quantiles]


SPACINGS: dict[Spacing, Callable[[float, float, int], list[float]]] = {
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "beta": beta_sigmas,
}


def beta_quantile(p: float, a: float) -> float:
    """The x in 0 … 1 at which Beta(a, a)'s distribution function is p; 0 < a < 1.

    The function is a power series of x (Abramowitz and Stegun 1964, 26.5.4 and 15.1.1), which
    gains a bit with each term up to x = 1/2; the other half is its mirror image. There it is
    concave, so that Newton's method comes from below and never leaves the interval."""
    p = float(p)
    if p > 0.5:
        return 1.0 - beta_quantile(1.0 - p, a)
    if p <= 0.0:
        return 0.0
    n = np.arange(64)
    # (1 - a)_n / (n! (a + n)), the coefficients of x^n in B_x(a, a) / x^a.
    rising = np.concatenate(([1.0], np.cumprod((n[1:] - a) / n[1:])))
    coefficients = rising / (a + n)
    target = p * math.gamma(a) ** 2 / math.gamma(2.0 * a)
    x = min((target * a) ** (1.0 / a), 0.5)
    for _ in range(64):
        area = x**a * float(coefficients @ x**n)
        step = (area - target) / (x * (1.0 - x)) ** (a - 1.0)
        x -= step
        if abs(step) <= 1e-16 * x:
            break
    return float(x)
