"""Gaussian noise, number for number that of `torch.randn` on the CPU, without torch.

The bits come from MT19937 (Matsumoto and Nishimura 1998), the normals from the Box–Muller transform
(Box and Muller 1958). torch has two paths, and both advance one stream of 32-bit words:

* 16 numbers or more: float32 uniforms of 24 bits, one word each, turned into normals in blocks of
  eight cosines and eight sines. If the size is not a multiple of 16, the last 16 numbers are drawn
  again from 16 further words.
* fewer than 16: float64 uniforms of 53 bits, two words each, turned into one pair of normals at a
  time. The second of a pair is kept for the next short draw.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgediff.arrays import Array
from edgediff.checks import is_number, whole_number
from edgediff.errors import InputError

_BLOCK = 16
_TWO_PI = np.float32(2.0 * math.pi)


def check_seed(seed: object, option: str = "seed") -> int:
    """A seed as an int; `option` is its name in messages.

    Raises InputError unless it is one from -2**63 to 2**64 - 1."""
    number = seed if type(seed) is int else whole_number(seed)
    if number is None or not -(2**63) <= number < 2**64:
        raise InputError(f"`{option}` is {seed!r}: give an integer from -2**63 to 2**64 - 1")
    return number


class TorchGenerator:
    """A stream of N(0, 1) noise equal to that of `torch.Generator("cpu").manual_seed(seed)`.

    seed: -2**63 … 2**64 - 1; as in torch, only its low 32 bits (two's complement) count.
    Raises InputError for any other seed. Equal to torch to 1e-6 absolute: torch's own logarithm and
    sine differ in the last bits from one CPU to another.
    """

    def __init__(self, seed: int) -> None:
        # RandomState seeds MT19937 as torch does, and numpy promises never to change its stream.
        self._words = np.random.RandomState(check_seed(seed) & 0xFFFFFFFF)
        self._spare: float | None = None

    def randn(self, shape: Sequence[int]) -> Array:
        """The stream's next normals: shape → array of that shape, float32.

        Equal to `torch.randn(shape, generator=…)`. Raises InputError for a negative size."""
        if any(n < 0 for n in shape):
            raise InputError(f"noise shape is {tuple(shape)}: sizes must be 0 or more")
        size = math.prod(shape)
        flat = self._blocks(size) if size >= _BLOCK else self._pairs(size)
        return flat.reshape(tuple(shape))

    def _draw(self, count: int) -> npt.NDArray[np.uint32]:
        return np.frombuffer(self._words.bytes(4 * count), dtype="<u4")

    def _blocks(self, size: int) -> Array:
        tail = _BLOCK if size % _BLOCK else 0
        u = (self._draw(size + tail) & np.uint32(0xFFFFFF)).astype(np.float32)
        u *= np.float32(2.0**-24)
        whole = size - size % _BLOCK
        if not tail:
            return _box_muller(u)
        # torch writes the last 16 over again, so uniforms past the last whole block go unused.
        out = np.empty(size, np.float32)
        out[:whole] = _box_muller(u[:whole])
        out[-_BLOCK:] = _box_muller(u[size:])
        return out

    def _pairs(self, size: int) -> Array:
        out = np.empty(size, np.float32)
        for i in range(size):
            if self._spare is not None:
                out[i], self._spare = self._spare, None
                continue
            words = [int(w) for w in self._draw(4)]
            u1, u2 = (
                (((high << 32) | low) & (2**53 - 1)) * 2.0**-53
                for high, low in (words[:2], words[2:])
            )
            radius = math.sqrt(-2.0 * math.log1p(-u2))
            theta = 2.0 * math.pi * u1
            out[i], self._spare = radius * math.cos(theta), radius * math.sin(theta)
        return out


class VariedGenerator:
    """A stream of N(0, 1) noise between that of `seed` and that of `variation_seed`.

    variation_strength: 0 … 1; 0 is exactly the noise of `seed`, 1 that of `variation_seed`. In
    between, each draw is their spherical interpolation, which keeps it N(0, 1).
    Raises InputError for bad seeds and for a strength out of range."""

    def __init__(self, seed: int, variation_seed: int, variation_strength: float) -> None:
        self._strength = check_variation_strength(variation_strength)
        self._seed = TorchGenerator(seed)
        self._variation = TorchGenerator(variation_seed)

    def randn(self, shape: Sequence[int]) -> Array:
        """The next normals: shape → array of that shape, float32, interpolated as a whole."""
        return slerp(self._seed.randn(shape), self._variation.randn(shape), self._strength)


def check_variation_strength(strength: float) -> float:
    """Raise InputError unless it is a number from 0 to 1."""
    if not is_number(strength) or not 0.0 <= strength <= 1.0:
        raise InputError(
            f"`variation_strength` is {strength!r}: give a number from 0 (the seed's image) to"
            " 1 (the variation seed's)"
        )
    return float(strength)


def slerp(a: Array, b: Array, weight: float) -> Array:
    """Spherical interpolation, Shoemake 1985: a and b, of one shape, as vectors → float32 of that
    shape, a at weight 0 and b at 1. Linear if they point the same way or opposite ways."""
    if weight in (0.0, 1.0):
        return b if weight else a
    norms = math.sqrt(float(np.vdot(a, a)) * float(np.vdot(b, b)))
    cosine = float(np.vdot(a, b)) / norms if norms > 0.0 else 1.0
    if abs(cosine) > 1.0 - 1e-6:
        return a * np.float32(1.0 - weight) + b * np.float32(weight)
    angle = math.acos(cosine)
    wa, wb = (math.sin(w * angle) / math.sin(angle) for w in (1.0 - weight, weight))
    return a * np.float32(wa) + b * np.float32(wb)


def _box_muller(u: Array) -> Array:
    """Uniforms (16·k,) float32 in [0, 1) → normals (16·k,) float32, block by block."""
    u = u.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(np.float32(-2.0) * np.log(np.float32(1.0) - u[:, 0]))
    theta = _TWO_PI * u[:, 1]
    out = np.empty_like(u)
    np.multiply(radius, np.cos(theta), out=out[:, 0])
    np.multiply(radius, np.sin(theta), out=out[:, 1])
    return out.reshape(-1)
