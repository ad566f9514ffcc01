"""A run at a terminal: its progress, and Ctrl-C inside a step."""

import concurrent.futures
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgediff.result import Progress, Result
    from edgediff.run import Run
    from edgediff.samplers import Step

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
    """The run's result. Ctrl-C cancels it inside a step: the run has a thread of its own, since
    Python handles no signal while onnxruntime computes."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        try:
            result = pool.submit(run.result, on_step)
            while not concurrent.futures.wait([result], timeout=_POLL).done:
                pass
        except KeyboardInterrupt:
            run.cancel()
            raise
        return result.result()


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
