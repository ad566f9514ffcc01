"""Bounds of medians and ratios."""

import math

import numpy as np
import pytest

from edgediff.bench.intervals import is_narrow, median_interval, paired_ratio, unpaired_ratio
from edgediff.errors import InputError


def test_one_sample_bounds_nothing() -> None:
    found = median_interval([3.0])
    assert (found.low, found.median, found.high) == (3.0, 3.0, 3.0)
    assert found.confidence == 0.0
    assert not is_narrow([3.0], 0.5)


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="no samples"):
        median_interval([])
    assert not is_narrow([], 0.5)


def test_few_samples_give_the_extremes_and_say_how_sure_they_are() -> None:
    """Five samples hold the median between them with 1 − 2/2⁵."""
    found = median_interval([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.low, found.median, found.high) == (1.0, 3.0, 5.0)
    assert found.confidence == pytest.approx(0.9375)


@pytest.mark.parametrize(("n", "k"), [(6, 1), (9, 2), (15, 4), (20, 6), (50, 18)])
def test_bounds_are_the_tabulated_order_statistics(n: int, k: int) -> None:
    """Table A.2 of Conover 1999 and any other of the sign test at 95 %."""
    found = median_interval([float(i) for i in range(1, n + 1)])
    assert (found.low, found.high) == (k, n + 1 - k)
    assert found.confidence >= 0.95


@pytest.mark.parametrize("draw", ["exponential", "lognormal", "uniform"])
def test_the_true_median_lies_inside_as_often_as_promised(draw: str) -> None:
    rng = np.random.default_rng(0)
    median = {"exponential": math.log(2), "lognormal": 1.0, "uniform": 0.5}[draw]
    inside = 0
    for _ in range(2000):
        found = median_interval(getattr(rng, draw)(size=15).tolist())
        inside += found.low <= median <= found.high
    assert 0.95 <= inside / 2000 < 0.99


def test_a_slow_spell_cancels_where_samples_are_paired() -> None:
    a = [1.0, 1.01, 3.0, 3.03, 1.0, 0.99, 1.0]
    b = [2 * x for x in a]
    found = paired_ratio(b, a)
    assert found.median == pytest.approx(2.0)
    assert found.low == pytest.approx(2.0)
    assert unpaired_ratio(b, a).low < 1.0  # unpaired, it does not


def test_pairs_must_be_complete() -> None:
    with pytest.raises(InputError, match="2 samples against 1"):
        paired_ratio([1.0, 2.0], [1.0])


def test_unpaired_bounds_hold_the_true_ratio_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):
        a = (2.0 * rng.lognormal(0, 0.2, 12)).tolist()
        b = rng.lognormal(0, 0.2, 12).tolist()
        found = unpaired_ratio(a, b)
        inside += found.low <= 2.0 <= found.high
    assert inside / 1000 >= 0.95


def test_equal_samples_are_narrow_once_there_are_enough() -> None:
    assert not is_narrow([1.0] * 5, 0.05)
    assert is_narrow([1.0] * 6, 0.05)
    assert not is_narrow([1.0, 1.2] * 10, 0.05)
