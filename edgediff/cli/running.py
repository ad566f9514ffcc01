"""Running a bundle from a command line: flags, loading, progress, and Ctrl-C within a step."""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from edgediff.errors import one_line

if TYPE_CHECKING:
    from edgediff.bundle.folder import Bundle
    from edgediff.pipeline import Pipeline
    from edgediff.result import Progress, Result
    from edgediff.run import Run
    from edgediff.sampling.samplers import Step

_POLL = 0.1
"""Seconds. On Windows a waiting thread notices Ctrl-C only when its wait ends."""

LABELS = {
    "text_encoder": "encoding the prompt",
    "encoder": "encoding the image",
    "denoiser": "denoising",
    "upscale": "enlarging",
    "decoder": "decoding",
}


class _Flags:
    """A group of a command's flags; each field is named after the flag's parameter."""

    @classmethod
    def given(cls, context: click.Context) -> Self:
        """The flags' values in a command's context."""
        return cls(**{f.name: context.params[f.name] for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Runtime(_Flags):
    """The bundle to run, and where and how it runs."""

    model: str
    provider: str
    threads: int | None
    provider_options: dict[str, str]
    max_memory: str | None
    tile: int | None
    cache_dir: Path | None
    no_cache: bool
    deadline: float | None

    @functools.cached_property
    def folder(self) -> Path:
        """The bundle's folder; one on the hub is fetched first."""
        return local_bundle(self.model)

    def bundle(self) -> "Bundle":
        """Open the bundle's folder, without loading the model."""
        from edgediff.bundle.folder import Bundle

        return Bundle.open(self.folder)

    def load(self) -> "Pipeline":
        """Load the model, and report on stderr its provider and loading time."""
        from edgediff.backend.available import silence_log
        from edgediff.pipeline import load

        silence_log()
        started = time.perf_counter()
        pipe = load(
            self.folder,
            provider=self.provider,
            threads=self.threads,
            cache_dir=False if self.no_cache else self.cache_dir,
            provider_options=self.provider_options,
            max_memory=self.max_memory,
            tile=self.tile,
        )
        for reason in pipe.skipped_providers:
            click.echo(f"Skipped: {one_line(reason)}", err=True)
        seconds = time.perf_counter() - started
        click.echo(f"{one_line(pipe.name)} on {pipe.provider}, loaded in {seconds:.2f} s", err=True)
        return pipe


@dataclass(frozen=True, kw_only=True)
class Output(_Flags):
    """The form of the results. grid: one sheet of all images. as_json: report in JSON."""

    grid: bool
    as_json: bool


def finish(run: "Run", on_step: "Callable[[Step], None] | None" = None) -> "Result":
    """The run's result. Ctrl-C cancels the run within a step; a second Ctrl-C abandons it.

    The run has its own thread because Python does not handle signals while onnxruntime computes.
    The handler cancels instead of raising: it could raise at any point, even before the thread is
    known that the exception should end."""
    import concurrent.futures

    from edgediff.backend.cancellation import complete

    pressed = threading.Event()

    def cancel(*_: object) -> None:
        if pressed.is_set():
            # The interpreter cannot end in order while onnxruntime computes in the other thread.
            click.echo("\nInterrupted.", err=True)
            sys.stdout.flush()
            os._exit(130)
        run.cancel()
        pressed.set()

    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    # A daemon thread: an abandoned operator must not keep the process alive.
    worker = threading.Thread(
        target=complete, args=(future, lambda: run.result(on_step)), daemon=True
    )
    with _handling(cancel):
        worker.start()
        while worker.is_alive():
            worker.join(_POLL)
    if pressed.is_set():
        raise KeyboardInterrupt
    return future.result()


@contextlib.contextmanager
def _handling(handler: Callable[..., None]) -> Iterator[None]:
    """Let Ctrl-C call `handler` in this context, unless the process ignores it, as a background job
    of a shell does."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT)
    if not in_main_thread or previous == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def local_bundle(name: str) -> Path:
    """The folder of a bundle by its path or name; one on the hub is fetched first, with a progress
    bar on stderr."""
    from edgediff.pipeline import find_bundle

    with download_bar() as on_download:
        return find_bundle(name, on_download)


@contextlib.contextmanager
def download_bar() -> "Iterator[Callable[[int, int], None]]":
    """A progress bar on stderr, if that is a terminal, in megabytes; yields the `on_download` that
    moves it. It is shown when a download begins."""
    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def show(there: int, total: int) -> None:
            if not bars:
                bar = click.progressbar(
                    length=total,
                    label="downloading",
                    file=sys.stderr,
                    hidden=not is_terminal(),
                    show_pos=False,
                )
                bars.append(stack.enter_context(bar))
            bars[0].update(there - bars[0].pos)

        yield show


def is_terminal() -> bool:
    """Whether a person reads stderr, which a windowed app may not have."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(steps: int) -> "Iterator[Callable[[Progress], None]]":
    """A progress bar on stderr, if that is a terminal; yields the `on_progress` that moves it."""
    with click.progressbar(
        length=steps, label=LABELS["text_encoder"], file=sys.stderr, hidden=not is_terminal()
    ) as bar:

        def show(progress: "Progress") -> None:
            bar.label = LABELS[progress.phase]
            bar.update(progress.step - bar.pos)
            bar.render_progress()

        yield show
