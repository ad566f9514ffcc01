"""Checks of single values from callers. Those that refuse raise InputError, naming the option."""

import math
import numbers
import operator
from typing import SupportsIndex, cast

import numpy as np

from edgediff.errors import InputError

MAX_SIDE = 4096
"""In pixels. Beyond it, a single float32 feature map of a decoder takes tens of gigabytes."""


def is_number(value: object) -> bool:
    """Whether it is a real number, numpy's and arrays without dimensions too; True and False are
    not."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iuf"
    return isinstance(value, numbers.Real | np.floating) and not isinstance(value, bool | np.bool_)


def whole_number(value: object) -> int | None:
    """A whole number, numpy's and arrays without dimensions too, as an int; None for anything
    else, True and False among it."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:  # an array of several numbers, or of other values
        return None


def check_number(name: str, value: object) -> float:
    """A real number, numpy's too, as a float. nan passes; an int too large for a float is infinity.

    Raises InputError for any other type."""
    if not is_number(value):
        raise InputError(f"`{name}` is {value!r}: expected a number")
    try:
        return float(cast(float, value))
    except OverflowError:  # ints have no limit
        return math.inf


def check_whole(name: str, value: object) -> int:
    """A whole number from 1 up, numpy's too → int."""
    number = whole_number(value)
    if number is None or number < 1:
        raise InputError(f"`{name}` is {value!r}: expected a whole number from 1 up")
    return number


def check_flag(name: str, value: object) -> bool:
    """True or False, numpy's too; None means unset and is False. Otherwise raises InputError."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise InputError(f"`{name}` is {value!r}: expected True or False")
    return bool(value)
