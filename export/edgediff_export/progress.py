"""Progress of an export: its phases, and how much of each is done."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """text: the step under way. phase: the phase that it belongs to, of which `done` of `total` is
    done, in units of equal time; total is 0 if that is not known."""

    phase: str
    text: str
    done: float = 0.0
    total: float = 0.0


class Reporter:
    """Reports the phases of an export, and the steps within them, to `listen`."""

    def __init__(self, listen: Callable[[Progress], None] = lambda _: None) -> None:
        self._listen = listen

    def __call__(self, text: str) -> None:
        """A phase of one step begins, or there is a result to report."""
        self._listen(Progress(phase=text, text=text))

    def phase(self, name: str, total: float) -> "Phase":
        """A phase of so many units, in which nothing has begun yet."""
        return Phase(self._listen, name, total)


class Phase:
    """A phase whose length is known."""

    def __init__(self, listen: Callable[[Progress], None], name: str, total: float) -> None:
        self._listen, self._name, self._total = listen, name, total
        self._text, self._done, self._end = name, 0.0, total

    def begin(self, text: str | None = None, units: float | None = None) -> None:
        """A step begins. text: its description, by default the phase's name. units: its share of
        the phase, by default all."""
        self._text = self._name if text is None else text
        self._end = self._total if units is None else self._done + units
        self._report()

    def advance(self, units: float = 1.0) -> None:
        """So many units of the step are done; more than its share count as its share."""
        self._done = min(self._done + units, self._end)
        self._report()

    def end(self) -> None:
        """The step is done."""
        self._done = self._end
        self._report()

    def _report(self) -> None:
        progress = Progress(phase=self._name, text=self._text, done=self._done, total=self._total)
        self._listen(progress)
