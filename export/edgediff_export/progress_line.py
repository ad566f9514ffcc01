"""The progress of an export on stderr, with the time left."""

import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import click

from edgediff.cli.report import duration
from edgediff.cli.running import is_terminal
from edgediff_export.progress import Progress

_ENOUGH = 0.05
"""The part of a phase from which the rest of it is estimated."""
_INTERVAL = 0.1
"""Seconds between two updates of the line on a terminal."""


class ProgressLine:
    """Progress on stderr: seconds since the start, and the step. On a terminal the current step has
    one line, which also shows the time left in its phase; elsewhere each step is a line of its own.
    """

    def __init__(
        self,
        *,
        terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terminal = is_terminal() if terminal is None else terminal
        self._clock = clock
        self._started = self._phase_started = self._drawn = clock()
        self._progress: Progress | None = None
        self._plain, self._width = "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_line()

    def __call__(self, progress: Progress) -> None:
        """Show it."""
        now, last = self._clock(), self._progress
        self._progress = progress
        if last is None or progress.phase != last.phase or progress.done < last.done:
            self._phase_started = now
        if last is None or progress.text != last.text:
            self._end_line()
            self._draw(now)
        elif self._terminal and now - self._drawn >= _INTERVAL:
            self._draw(now)

    def seconds_left(self) -> float | None:
        """Of the current phase; None if that cannot be estimated yet."""
        progress = self._progress
        if progress is None or progress.done < _ENOUGH * progress.total or not progress.done:
            return None
        passed = self._clock() - self._phase_started
        return passed * max(0.0, progress.total - progress.done) / progress.done

    def _draw(self, now: float) -> None:
        self._drawn = now
        text = "" if self._progress is None else self._progress.text
        self._plain = f"{now - self._started:6.1f} s  {text}"
        if not self._terminal:
            click.echo(self._plain, err=True)
            return
        left = self.seconds_left()
        self._replace_line(self._plain if left is None else f"{self._plain}  {duration(left)} left")

    def _replace_line(self, line: str) -> None:
        line = line[: shutil.get_terminal_size().columns - 1]
        click.echo(f"\r{line.ljust(self._width)}", err=True, nl=False)
        sys.stderr.flush()
        self._width = len(line)

    def _end_line(self) -> None:
        """Leave the line of the last step as it is, without the time left."""
        if self._width:
            self._replace_line(self._plain)
            click.echo(err=True)
        self._width = 0
