"""Guidance: away from the velocity of no text, or of an unwanted one (Ho & Salimans 2022)."""

from torch import Tensor


def guided(v_text: Tensor, v_other: Tensor, scale: float) -> Tensor:
    """v_other + scale (v_text − v_other). Scale 1 is the text's own velocity.

    v_other: of the empty caption, or of a negative prompt.
    """
    return v_other + scale * (v_text - v_other)
