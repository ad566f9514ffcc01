"""Classifier-free guidance: whether and at which steps it acts, and how two predictions become one.

Ho and Salimans 2022 (arXiv:2207.12598). A model that was distilled from guided predictions (Meng et
al. 2022, arXiv:2210.03142) reads the scale as an embedding instead, and needs one prediction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgediff.arrays import Array
from edgediff.checks import is_number
from edgediff.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly, and at which steps, predictions are pushed from the negative prompt.

    scale: guidance acts if it is above 1; otherwise the prompt runs without a negative one.
    rescale: phi of Lin et al. 2023 (arXiv:2305.08891), section 3.4, from 0 (off) to 1: the share of
        the guided prediction that is scaled back to the prompt's standard deviation.
    interval: guidance acts from the first to before the second fraction of the steps,
        Kynkäänniemi et al. 2024 (arXiv:2404.07724).
    embedding_dim: size of the network's input `timestep_cond`, for a network that reads the scale
        as an embedding, at any scale; None = the network has no such input.

    Raises InputError for a scale that is not finite, a rescale that is not from 0 to 1, an interval
    that is not two rising fractions, and an embedding_dim below 4."""

    scale: float = 1.0
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    embedding_dim: int | None = None

    def __post_init__(self) -> None:
        if not is_number(self.scale) or not math.isfinite(self.scale):
            raise InputError(
                f"`guidance_scale` is {self.scale!r}: give a finite number, such as 7.5"
            )
        if not is_number(self.rescale) or not 0.0 <= self.rescale <= 1.0:  # nan too
            raise InputError(
                f"`guidance_rescale` is {self.rescale!r}: give a number from 0 (off) to 1"
            )
        start, end = _fractions(self.interval)
        if self.embedding_dim is not None and self.embedding_dim < 4:
            raise InputError(f"guidance embedding of size {self.embedding_dim}: expected 4 or more")
        # Equal guidance compares equal, whichever types of number it was given as.
        for name, value in (
            ("scale", float(self.scale)),
            ("rescale", float(self.rescale)),
            ("interval", (start, end)),
        ):
            object.__setattr__(self, name, value)

    @property
    def acts(self) -> bool:
        """Whether the scale asks for guidance, by either of the two ways."""
        return self.scale > 1.0

    @property
    def needs_negative(self) -> bool:
        """Whether the network evaluates the negative prompt as well."""
        return self.acts and self.embedding_dim is None

    def steps(self, count: int) -> tuple[int, ...]:
        """Of so many steps, counted from 0, those at which guidance acts: those that begin inside
        the interval."""
        if not self.acts:
            return ()
        start, end = self.interval
        return tuple(k for k in range(count) if start <= k / count < end)

    def combine(self, uncond: Array, cond: Array) -> Array:
        """The predictions for one image without and with the prompt → the guided one.

        Ho and Salimans 2022, eq. 6, in the form uncond + scale·(cond - uncond); then Lin et al.
        2023, eq. 15 and 16, over the whole image. Any shape, float32, which is the result's too."""
        guided = cond - uncond
        guided *= self.scale
        guided += uncond
        if self.rescale > 0.0:
            deviation = float(guided.std(dtype=np.float64))
            if deviation > 0.0:  # a constant prediction has nothing to rescale
                ratio = float(cond.std(dtype=np.float64)) / deviation
                guided *= self.rescale * ratio + (1.0 - self.rescale)
        return guided

    def embedding(self) -> Array | None:
        """The scale as the network's `timestep_cond`, (1, embedding_dim) float32; None if the
        network has no such input.

        Luo et al. 2023 (arXiv:2310.04378), section 4.2: sines, then cosines, of w = scale - 1 over
        embedding_dim / 2 frequencies; an odd dim ends in 0."""
        if self.embedding_dim is None:
            return None
        half = self.embedding_dim // 2
        # The phase reaches thousands, and there float32 rounding shows: round as training did.
        w = np.float32(self.scale - 1.0) * np.float32(1000.0)
        rate = np.float32(-math.log(10000.0)) / np.float32(half - 1)
        frequency = np.exp((np.arange(half, dtype=np.float32) * rate).astype(np.float64))
        phase = w * frequency.astype(np.float32)
        out = np.zeros((1, self.embedding_dim), np.float32)
        out[0, :half] = np.sin(phase)
        out[0, half : 2 * half] = np.cos(phase)
        return out


def _fractions(interval: object) -> tuple[float, float]:
    """Raise InputError unless the interval is two rising fractions, from 0 to 1."""
    pair = tuple(interval) if isinstance(interval, Sequence) else ()
    if len(pair) != 2 or not all(map(is_number, pair)) or not 0.0 <= pair[0] < pair[1] <= 1.0:
        raise InputError(
            f"`guidance_interval={interval!r}`: give where guidance starts and where it ends,"
            f" as rising fractions of the steps, such as `guidance_interval={(0.0, 0.8)!r}`"
        )
    return float(pair[0]), float(pair[1])


NO_GUIDANCE = Guidance()
"""The prompt runs without a negative one at every step."""
