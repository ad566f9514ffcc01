"""Weights in a prompt, `(word:1.3)`, as AUTOMATIC1111's web UI reads and applies them."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgediff.errors import InputError

STEP = 1.1
"""The factor of a pair of round brackets without a number; square brackets divide by it."""
MAX_WEIGHT = 100.0
"""The largest weight, positive or negative, and the largest factor to restore a prompt's mean.
Larger ones are of no use."""

# An escaped bracket; a bracket; a number and the bracket that it closes; other text.
_PIECES = re.compile(
    r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)|[^\\()\[\]:]+|.",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A part of a prompt that has one weight. `at`: the index of each character of `text` in the
    prompt as typed."""

    text: str
    weight: float
    at: tuple[int, ...]


def plain(prompt: str) -> Fragment:
    """The whole prompt as typed, with weight 1."""
    return Fragment(text=prompt, weight=1.0, at=tuple(range(len(prompt))))


def parse_weights(prompt: str) -> list[Fragment]:
    """Split a prompt into fragments of one weight each, without their brackets.

    `(text:1.3)` multiplies by 1.3, `(text)` by STEP, `[text]` divides by STEP; they nest. A
    backslash makes a bracket, or a backslash, text. Unmatched brackets are text; the web UI instead
    extends an unclosed one to the end. A number after a colon has digits, a point and a sign;
    anything else is text, so `(text:nan)` and `(text:1e9)` have the weight of `(text)`.

    Raises InputError for a weight above MAX_WEIGHT or below -MAX_WEIGHT."""
    pieces = list(_PIECES.finditer(prompt))
    factors = _match_brackets(pieces)
    runs: list[tuple[float, list[str], list[int]]] = []
    weights = [1.0]
    for k, piece in enumerate(pieces):
        text, start = piece[0], piece.start()
        if k in factors:
            factor = factors[k]
            if factor is None:
                weights.pop()
            else:
                weights.append(weights[-1] * factor)
            continue
        if text[0] == "\\" and len(text) == 2:
            text, start = text[1], start + 1
        weight = weights[-1]
        if not abs(weight) <= MAX_WEIGHT:
            raise InputError(
                f"the weight of {text.strip()[:40]!r} is {weight:g}: at most {MAX_WEIGHT:g}, either"
                " way"
            )
        if not runs or runs[-1][0] != weight:
            runs.append((weight, [], []))
        runs[-1][1].append(text)
        runs[-1][2].extend(range(start, start + len(text)))
    return [Fragment(text="".join(t), weight=w, at=tuple(at)) for w, t, at in runs]


def _match_brackets(pieces: list[re.Match[str]]) -> dict[int, float | None]:
    """Index of each piece that is a matched bracket → the factor of an opening bracket, or None for
    a closing one."""
    factors: dict[int, float | None] = {}
    waiting: list[tuple[str, int]] = []
    count = {"(": 0, "[": 0}
    for k, piece in enumerate(pieces):
        text = piece[0]
        if text in count:
            waiting.append((text, k))
            count[text] += 1
            continue
        bracket = "[" if text == "]" else "(" if text == ")" or piece[1] else None
        if bracket is None or not count[bracket]:
            continue
        while True:  # brackets opened since then are unmatched
            found, opening = waiting.pop()
            count[found] -= 1
            if found == bracket:
                break
        factors[opening] = float(piece[1] or STEP) if bracket == "(" else 1 / STEP
        factors[k] = None
    return factors


def apply_weights(states: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hidden states (1, t, d) float32 times the weights of their tokens (t) float32, rescaled to
    the mean that all of them had before, as in AUTOMATIC1111's web UI. If all weights are 1, the
    result is `states`.

    Raises InputError if the weighted mean is too small to be rescaled."""
    if (weights == 1).all():
        return states
    weighted: NDArray[np.float32] = states * weights[None, :, None]
    before, after = (float(s.mean(dtype=np.float64)) for s in (states, weighted))
    # Only rounding: a last norm without a bias gives every state a mean of 0, weighted or not.
    if abs(before) <= 1e-5 * float(np.abs(states).mean(dtype=np.float64)):
        return weighted
    if not abs(before) <= MAX_WEIGHT * abs(after):
        raise InputError(
            f"the weights of the prompt, from {weights.min():g} to {weights.max():g}, cancel each"
            " other out: give weights closer to 1"
        )
    weighted *= np.float32(before / after)
    return weighted
