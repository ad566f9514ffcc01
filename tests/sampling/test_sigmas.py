import itertools
import math

import numpy as np
import pytest

from edgediff.sampling.sigmas import SPACINGS, beta_quantile, exponential_sigmas, karras_sigmas


@pytest.mark.parametrize("spacing", SPACINGS)
def test_from_the_highest_level_to_the_lowest(spacing: str) -> None:
    space = SPACINGS[spacing]  # type: ignore[index]
    assert space(0.1, 10.0, 1) == pytest.approx([10.0])
    assert space(0.1, 10.0, 2) == pytest.approx([10.0, 0.1])
    sigmas = space(0.1, 10.0, 9)
    assert len(sigmas) == 9
    assert (sigmas[0], sigmas[-1]) == (pytest.approx(10.0), pytest.approx(0.1))
    assert all(a > b for a, b in itertools.pairwise(sigmas))
    assert all(type(s) is float for s in sigmas)


def test_karras_sigmas() -> None:
    seventh = [s ** (1 / 7) for s in karras_sigmas(0.1, 10.0, 5)]
    gaps = [a - b for a, b in itertools.pairwise(seventh)]
    assert gaps == pytest.approx([gaps[0]] * 4)


def test_exponential_sigmas() -> None:
    assert exponential_sigmas(0.01, 100.0, 5) == pytest.approx([100.0, 10.0, 1.0, 0.1, 0.01])


@pytest.mark.parametrize("p", [0.0, 1e-12, 1e-3, 0.25, 0.5, 0.75, 0.999, 1.0 - 1e-12, 1.0])
def test_beta_quantile_is_the_arcsine_law_at_a_half(p: float) -> None:
    assert beta_quantile(p, 0.5) == pytest.approx(math.sin(0.5 * math.pi * p) ** 2, abs=1e-13)


def test_beta_quantile_rises_and_is_symmetric() -> None:
    x = [beta_quantile(p, 0.6) for p in np.linspace(0.0, 1.0, 101)]
    assert all(a < b for a, b in itertools.pairwise(x))
    assert x == pytest.approx([1.0 - q for q in reversed(x)], abs=1e-15)
    assert (x[0], x[50], x[100]) == (0.0, pytest.approx(0.5, abs=1e-15), 1.0)
