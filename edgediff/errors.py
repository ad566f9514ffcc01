"""Every error that edgediff raises on purpose.

    EdgediffError
    ├── BundleError      the bundle on disk is missing, damaged, or not what it says it is
    ├── InputError       an argument of a call is out of range (also a ValueError)
    ├── ProviderError    an execution provider that was asked for cannot run
    ├── Cancelled        the run was cancelled from another thread, or by Ctrl-C
    ├── DeadlineExceeded the run took longer than its deadline (also a TimeoutError)
    └── ExportError      a pipeline cannot be exported

Each message names the value, what was expected, and the remedy. Options are named as in Python; a
command line puts its flags in their place (`InputError.spelled`).
"""

from collections.abc import Callable
from typing import Any


class EdgediffError(Exception):
    """Base of all errors below; its text is fit to be shown to a user as it is."""


class BundleError(EdgediffError):
    """The bundle is missing, damaged, of a newer format, or contradicts itself."""


class Name(str):
    """The name of an option, as a part of an InputError's text. text: what Python code has for it,
    where that is not the name alone."""

    option: str

    def __new__(cls, option: str, text: str | None = None) -> "Name":
        self = super().__new__(cls, option if text is None else text)
        self.option = option
        return self


class Value(str):
    """A value of an option, as a part of an InputError's text, whose form is another elsewhere."""

    option: str
    value: Any

    def __new__(cls, option: str, value: Any) -> "Value":
        self = super().__new__(cls, repr(value))
        self.option, self.value = option, value
        return self

    def __getnewargs__(self) -> tuple[str, Any]:  # type: ignore[override]
        return self.option, self.value


class InputError(EdgediffError, ValueError):
    """An argument is of the wrong type or out of range.

    parts: the text, in pieces of which some may be a Name or a Value."""

    def __init__(self, *parts: str) -> None:
        super().__init__(*parts)

    def __str__(self) -> str:
        return "".join(self.args)

    def spelled(self, spell: Callable[[Name | Value], str]) -> "InputError":
        """The same error with other words for the names and values of options."""
        parts = (spell(p) if isinstance(p, Name | Value) else p for p in self.args)
        return InputError(*parts)


class ProviderError(EdgediffError):
    """An execution provider is not installed, or refused the model."""


class Cancelled(EdgediffError):  # noqa: N818 - an outcome that was asked for
    """A run was stopped by `Run.cancel`."""


class DeadlineExceeded(EdgediffError, TimeoutError):  # noqa: N818 - likewise
    """A run did not finish within its deadline."""


class ExportError(EdgediffError):
    """The source cannot be turned into a bundle."""


def first_line(e: BaseException) -> str:
    """What another library's exception says, in a line that fits into one of ours."""
    lines = str(e).strip().splitlines()
    return lines[0][:200] if lines else type(e).__name__
