"""Every error that edgediff raises on purpose.

    EdgediffError
    ├── BundleError      the bundle on disk is missing, damaged, or not what it says it is
    ├── InputError       an argument of a call is out of range (also a ValueError)
    ├── ProviderError    an execution provider that was asked for cannot run
    └── ExportError      a pipeline cannot be exported

Each message names the value, what was expected, and the remedy.
"""


class EdgediffError(Exception):
    """Base of all errors below; its text is fit to be shown to a user as it is."""


class BundleError(EdgediffError):
    """The bundle is missing, damaged, of a newer format, or contradicts itself."""


class InputError(EdgediffError, ValueError):
    """An argument is of the wrong type or out of range."""


class ProviderError(EdgediffError):
    """An execution provider is not installed, or refused the model."""


class ExportError(EdgediffError):
    """The source cannot be turned into a bundle."""


def first_line(e: BaseException) -> str:
    """What another library's exception says, in a line that fits into one of ours."""
    lines = str(e).strip().splitlines()
    return lines[0][:200] if lines else type(e).__name__
