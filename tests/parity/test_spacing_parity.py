"""The inverse of the beta distribution function, against scipy's."""

import numpy as np
import pytest
from scipy.stats import beta

from edgediff.sampling.sigmas import beta_quantile

TAILS = 10.0 ** -np.arange(1.0, 13.0)


@pytest.mark.parametrize("a", [0.1, 0.5, 0.6, 0.9])
def test_beta_quantile_equals_scipy(a: float) -> None:
    p = np.concatenate([np.linspace(0.0, 1.0, 501), TAILS, 1.0 - TAILS])
    ours = [beta_quantile(q, a) for q in p]
    np.testing.assert_allclose(ours, beta.ppf(p, a, a), rtol=0, atol=1e-12)
