"""Stopping a run: from another thread, or at its deadline."""

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from edgediff.checks import check_number
from edgediff.errors import Cancelled, DeadlineExceeded, InputError

T = TypeVar("T")

GRACE = 0.05
"""Seconds that a run which has to end waits for the operator that is running."""


class Terminable(Protocol):
    """onnxruntime's RunOptions. Once `terminate` is set, the run stops before its next operator."""

    terminate: bool


class CancelToken:
    """Ends the run that it belongs to when `cancel` is called or the deadline has passed.

    deadline: seconds from now; None = no limit. Raises InputError unless it is positive."""

    def __init__(self, deadline: float | None = None) -> None:
        self._seconds = None if deadline is None else check_deadline(deadline)
        self._end = None if self._seconds is None else time.monotonic() + self._seconds
        self._cancelled = self._expired = False
        self._lock = threading.Lock()
        self._running: list[Terminable] = []
        self._waiting: list[threading.Event] = []

    def cancel(self) -> None:
        """End the run, from any thread. A short operator that is running finishes first."""
        self._cancelled = True
        self._terminate()

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded if the run has to end."""
        if self._cancelled:
            raise Cancelled("the run was cancelled")
        if self._expired or (self._end is not None and time.monotonic() >= self._end):
            raise DeadlineExceeded(
                f"the run did not finish within its deadline of {self._seconds:g} s: give more"
                " time, fewer steps or a smaller size"
            )

    @contextlib.contextmanager
    def terminates(self, options: Terminable) -> Iterator[None]:
        """While the block runs, let this token stop the onnxruntime run with these RunOptions.

        Raises Cancelled or DeadlineExceeded if the token has ended already."""
        timer: threading.Timer | None = None
        with self._lock:
            self._running.append(options)
        try:
            self.check()  # after `append`: a cancel from here on reaches the options
            if self._end is not None:
                timer = threading.Timer(self._end - time.monotonic(), self._expire)
                timer.daemon = True
                timer.start()
            yield
        finally:
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._running.remove(options)

    def wait(self, function: Callable[[], T]) -> T:
        """The value of `function`, which runs in a thread of its own. If the run has to end, wait
        for it no longer than GRACE: onnxruntime stops only between operators, and one may take a
        second. It then finishes unobserved.

        Raises as `function` does, Cancelled and DeadlineExceeded."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        changed = threading.Event()
        future.add_done_callback(lambda _: changed.set())
        with self._lock:
            self._waiting.append(changed)
            if self._cancelled or self._expired:
                changed.set()
        try:
            # Not a daemon, whoever starts it: the interpreter must not end while it computes.
            threading.Thread(target=complete, args=(future, function), daemon=False).start()
            changed.wait()
            if not future.done():
                concurrent.futures.wait([future], timeout=GRACE)
            if not future.done():
                self.check()
            return future.result()
        except KeyboardInterrupt:
            self.cancel()
            raise
        finally:
            with self._lock:
                self._waiting.remove(changed)

    def _expire(self) -> None:
        self._expired = True
        self._terminate()

    def _terminate(self) -> None:
        with self._lock:
            for options in self._running:
                options.terminate = True
            for changed in self._waiting:
                changed.set()


def complete(future: concurrent.futures.Future[T], function: Callable[[], T]) -> None:
    """Give a future the outcome of `function`; for the target of a thread."""
    try:
        future.set_result(function())
    except BaseException as e:
        future.set_exception(e)


def check_deadline(deadline: float) -> float:
    """A deadline in seconds, as a float. Raises InputError unless it is a positive number."""
    seconds = check_number("deadline", deadline)
    if not 0 < seconds <= threading.TIMEOUT_MAX:  # nan too
        raise InputError(
            f"`deadline` is {deadline!r}: expected a positive number of seconds, at most"
            f" {threading.TIMEOUT_MAX:.0e}; leave it out for no limit"
        )
    return seconds
