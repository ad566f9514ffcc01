"""Weights in a prompt, `(word:1.3)`, as AUTOMATIC1111's web UI reads and applies them."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgediff.errors import InputError

STEP = 1.1
"""What a pair of brackets without a number multiplies by, or divides by if they are square."""
MAX_WEIGHT = 100.0
"""Either way; beyond any use, as is a weighted prompt that must be scaled by more."""

# An escaped bracket; a bracket; a number and the bracket that it closes; other text.
_PIECES = re.compile(
    r"\\[\\()\[\]]|[()\[\]]|:\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)|[^\\()\[\]:]+|.",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A stretch of a prompt that has one weight. `at`: where in the prompt, as it was typed, each
    character of `text` stands."""

    text: str
    weight: float
    at: tuple[int, ...]


def plain(prompt: str) -> Fragment:
    """A prompt as it was typed, at weight 1."""
    return Fragment(text=prompt, weight=1.0, at=tuple(range(len(prompt))))


def parse_weights(prompt: str) -> list[Fragment]:
    """A prompt's text without its brackets, by weight.

    `(text:1.3)` multiplies by 1.3, `(text)` by STEP, `[text]` divides by STEP; they nest. A
    backslash makes a bracket, or a backslash, text. Unmatched brackets are text
    (the web UI stretches an open one to the end), and so is anything after a colon that is not a
    number of digits, point and sign: `(text:nan)` and `(text:1e9)` are `(text)` with that in it.

    Raises InputError for a weight beyond MAX_WEIGHT either way."""
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
    """Index of each piece that is a bracket with a partner → the factor of an opening one, None of
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
        while True:  # what opened since has no partner
            found, opening = waiting.pop()
            count[found] -= 1
            if found == bracket:
                break
        factors[opening] = float(piece[1] or STEP) if bracket == "(" else 1 / STEP
        factors[k] = None
    return factors


def apply_weights(states: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hidden states (1, t, d) float32 times their tokens' weights (t) float32, scaled so that the
    mean over all is as before. Weights of 1 give `states` themselves.

    Raises InputError if the weights leave a mean too small for that."""
    if (weights == 1).all():
        return states
    weighted: NDArray[np.float32] = states * weights[None, :, None]
    before, after = (float(s.mean(dtype=np.float64)) for s in (states, weighted))
    # Rounding alone: a last norm without a bias gives every state a mean of 0, weighted or not.
    if abs(before) <= 1e-5 * float(np.abs(states).mean(dtype=np.float64)):
        return weighted
    if not abs(before) <= MAX_WEIGHT * abs(after):
        raise InputError(
            f"the weights of the prompt, from {weights.min():g} to {weights.max():g}, cancel each"
            " other out: give weights nearer to 1"
        )
    weighted *= np.float32(before / after)
    return weighted
