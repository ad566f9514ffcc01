"""A run at a terminal: its progress, and Ctrl-C inside a step."""

import concurrent.futures
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgediff.result import Progress, Result
    from edgediff.run import Run
    from edgediff.sampling.samplers import Step

_POLL = 0.1
"""Seconds; on Windows a waiting thread sees Ctrl-C only when its wait ends."""

LABELS = {
    "text_encoder": "encoding the prompt",
    "encoder": "encoding the image",
    "denoiser": "denoising",
    "upscale": "enlarging",
    "decoder": "decoding",
}


def finish(run: "Run", on_step: "Callable[[Step], None] | None" = None) -> "Result":
    """The run's result. Ctrl-C cancels it inside a step, a second one abandons it.

    The run has a thread of its own, since Python handles no signal while onnxruntime computes. The
    handler cancels instead of raising: an exception could strike anywhere, also before the thread
    that it should end is known."""
    pressed = threading.Event()

    def cancel(*_: object) -> None:
        run.cancel()
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    # A daemon: an abandoned operator must not keep the process alive.
    worker = threading.Thread(target=_complete, args=(future, run, on_step), daemon=True)
    with _handling(cancel):
        worker.start()
        while worker.is_alive():
            worker.join(_POLL)
    if pressed.is_set():
        raise KeyboardInterrupt
    return future.result()


def _complete(
    future: "concurrent.futures.Future[Result]",
    run: "Run",
    on_step: "Callable[[Step], None] | None",
) -> None:
    try:
        future.set_result(run.result(on_step))
    except BaseException as e:
        future.set_exception(e)


@contextlib.contextmanager
def _handling(handler: Callable[..., None]) -> Iterator[None]:
    """Let Ctrl-C call `handler` for a while; not if it is ignored, as in a shell's background."""
    ours = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT)
    if not ours or previous == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def progress_bar(steps: int) -> "Iterator[Callable[[Progress], None]]":
    """A bar on stderr for a person at a terminal; yields the `on_progress` that moves it."""
    # hidden: elsewhere a bar is only noise.
    with click.progressbar(
        length=steps, label=LABELS["text_encoder"], file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:

        def show(progress: "Progress") -> None:
            bar.label = LABELS[progress.phase]
            bar.update(progress.step - bar.pos)
            bar.render_progress()

        yield show
