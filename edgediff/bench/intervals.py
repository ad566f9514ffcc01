"""Confidence intervals of medians and their ratios, for any distribution of the noise."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from edgediff.errors import InputError

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A median or a ratio of medians, with bounds that contain the true value with probability
    `confidence`.

    count: number of samples. Few samples cannot give 95 %: two give at most 50 %."""

    median: float
    low: float
    high: float
    confidence: float
    count: int

    @property
    def relative_width(self) -> float:
        """(high − low) / median."""
        return (self.high - self.low) / self.median if self.median else math.inf

    @property
    def holds_one(self) -> bool:
        """For a ratio: whether its bounds contain 1, so that the difference is not significant."""
        return self.low <= 1.0 <= self.high


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The median of independent samples, bounded by two of them.

    The number of samples below the true median is binomial(n, 1/2), whatever the distribution
    (Conover 1999, section 3.2), so it lies between the k-th smallest and the k-th largest with
    probability 1 − 2·P(B < k). Takes the largest k that keeps `confidence`; if there is none, the
    extremes. Raises InputError for no samples."""
    n = len(samples)
    if n == 0:
        raise InputError("a median of no samples: measure at least once")
    ordered = sorted(samples)
    k, covered = 1, _coverage(n, 1)
    while k + 1 <= n // 2 and _coverage(n, k + 1) >= confidence:
        k += 1
        covered = _coverage(n, k)
    return Interval(
        median=statistics.median(ordered),
        low=ordered[k - 1],
        high=ordered[n - k],
        confidence=covered,
        count=n,
    )


def _coverage(n: int, k: int) -> float:
    """1 − 2·P(B < k) for B ~ binomial(n, 1/2)."""
    tail: float = sum(math.comb(n, i) for i in range(k)) / 2.0**n
    return max(0.0, 1.0 - 2.0 * tail)


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """a / b of samples taken in turns: the median of the ratios of each round, so that a temporary
    slowdown of the machine cancels. Raises InputError if the numbers of samples differ."""
    if len(a) != len(b):
        raise InputError(f"{len(a)} samples against {len(b)}: pairs must be complete")
    return median_interval([x / y for x, y in zip(a, b, strict=True)])


def unpaired_ratio(a: Sequence[float], b: Sequence[float]) -> Interval:
    """a / b of samples that were not taken in turns.

    Each median gets 97.5 % bounds, so that both hold with 95 % (Bonferroni). The ratio's bounds
    are the extremes of their quotients."""
    each = 1.0 - (1.0 - CONFIDENCE) / 2.0
    top, bottom = median_interval(a, each), median_interval(b, each)
    return Interval(
        median=top.median / bottom.median,
        low=top.low / bottom.high,
        high=top.high / bottom.low,
        confidence=max(0.0, top.confidence + bottom.confidence - 1.0),
        count=min(top.count, bottom.count),
    )


def is_narrow(samples: Sequence[float], width: float) -> bool:
    """Whether the median's 95 % interval is at most `width` wide, relative to the median."""
    if not samples:
        return False
    found = median_interval(samples)
    return found.confidence >= CONFIDENCE and found.relative_width <= width
