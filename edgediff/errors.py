"""Every error that edgediff raises on purpose.

    EdgediffError
    ├── BundleError      the bundle on disk is missing, damaged, or contradicts its manifest
    ├── InputError       an argument of a call is out of range (also a ValueError)
    ├── ProviderError    an execution provider that was asked for cannot run
    ├── Cancelled        the run was cancelled from another thread, or by Ctrl-C
    ├── DeadlineExceeded the run took longer than its deadline (also a TimeoutError)
    └── ExportError      a pipeline cannot be exported

Each message names the value, what was expected, and the remedy. Options stand in backticks under
their Python names; a command line puts its flags in their place (`InputError.spelled`).
"""

import ast
import re
from collections.abc import Callable
from typing import Any


class EdgediffError(Exception):
    """Base of all errors below. Its text can be shown to a user as it is."""


class BundleError(EdgediffError):
    """The bundle is missing, damaged, of a newer format, or contradicts itself."""


class InputError(EdgediffError, ValueError):
    """An argument is of the wrong type or out of range.

    The text has options in backticks under their Python names, such as `steps`. A value that has
    another form on a command line goes with its option: `guidance_interval=(0.0, 0.8)`."""

    def spelled(self, spell: "Spell") -> "InputError":
        """The same error, with each option replaced as `spell` says."""

        def respell(match: re.Match[str]) -> str:
            try:
                value = None if match[2] is None else ast.literal_eval(match[2])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return match[0]  # of a text that a caller gave
            found = spell(match[1], value)
            return match[0] if found is None else found

        return InputError(_OPTION.sub(respell, str(self)))


Spell = Callable[[str, Any], str | None]
"""(option's name in Python, its value or None) → the text to replace both; None = keep them."""
_OPTION = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")


class ProviderError(EdgediffError):
    """An execution provider is not installed, or refused the model."""


class Cancelled(EdgediffError):  # noqa: N818 - an outcome that was asked for
    """A run was stopped by `Run.cancel`."""


class DeadlineExceeded(EdgediffError, TimeoutError):  # noqa: N818 - likewise
    """A run did not finish within its deadline."""


class ExportError(EdgediffError):
    """The source cannot be turned into a bundle."""


def printable(text: str) -> str:
    """Text fit for a terminal: line breaks stay, and what else is not shown, such as the escapes
    that move a cursor or set a title, is written as Python writes it in a string."""
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return "".join(shown)


def one_line(text: str) -> str:
    """Text as `printable` writes it, with spaces for line breaks: a name or a value of a file must
    not look like a line of the program's own."""
    return printable(text).replace("\n", " ")


def first_line(e: BaseException) -> str:
    """The first line of another library's message, at most 200 characters, for use in our own."""
    lines = str(e).strip().splitlines()
    return printable(lines[0][:200]) if lines else type(e).__name__
