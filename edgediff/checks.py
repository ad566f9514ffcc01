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
    """Whether it is a real number, numpy's too; True and False are none."""
    return isinstance(value, numbers.Real | np.floating) and not isinstance(value, bool | np.bool_)


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
    number = operator.index(value) if isinstance(value, SupportsIndex) else 0
    if isinstance(value, bool) or number < 1:
        raise InputError(f"`{name}` is {value!r}: expected a whole number from 1 up")
    return number


def check_flag(name: str, value: object) -> bool:
    """True or False, numpy's too; None means unset and is False. Otherwise raises InputError."""
    if value is not None and not isinstance(value, bool | np.bool_):
        raise InputError(f"`{name}` is {value!r}: expected True or False")
    return bool(value)
