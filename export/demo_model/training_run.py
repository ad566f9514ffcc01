"""One stage of training under way: its clock, checkpoints, learning rate, pauses and log.

A run may be killed at any moment; the next one goes on from its last checkpoint. While the file
`pause` exists, it sleeps.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from demo_model import checkpoint

SAVE_EVERY = 300.0  # seconds
LOG_EVERY = 60.0
Log = Callable[[str], None]


class Stateful(Protocol):
    """A module or an optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Take over what a checkpoint kept."""
        ...


class TrainingRun:
    """The loop around a stage's steps, for so many samples in all.

    The schedule follows samples, not the clock: a run that shares its cores learns as much.
    """

    def __init__(
        self,
        path: Path,
        parts: Mapping[str, Stateful],
        *,
        samples: int,
        log: Log,
        pause: Path | None = None,
    ) -> None:
        """parts: what is kept in the checkpoint at `path`, and restored from it if it exists."""
        self._path, self._parts, self._log, self._pause = path, parts, log, pause
        self._samples = samples
        self._averages: dict[str, float] = {}
        self.step, self.seen, self._seconds = 0, 0, 0.0
        state = checkpoint.load(path)
        if state is not None:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            self.step, self.seen, self._seconds = state["step"], state["seen"], state["seconds"]

    @property
    def progress(self) -> float:
        """The share of the samples that is seen."""
        return min(1.0, self.seen / self._samples) if self._samples else 1.0

    @property
    def minutes(self) -> float:
        """Minutes trained so far, without pauses."""
        return self._seconds / 60

    def steps(self) -> Iterator[int]:
        """Count steps until the samples are seen; save and log on the way and at the end."""
        saved = logged = time.monotonic()
        seen = self.seen
        while self.progress < 1:
            self._wait()
            start = time.monotonic()
            yield self.step
            self.step += 1
            now = time.monotonic()
            self._seconds += now - start
            if now - logged > LOG_EVERY:
                self._report((self.seen - seen) / (now - logged))
                logged, seen = now, self.seen
            if now - saved > SAVE_EVERY:
                self.save()
                saved = now
        self.save()

    def note(self, samples: int, **values: float) -> None:
        """Count a step's samples and average its figures for the log."""
        self.seen += samples
        for name, value in values.items():
            before = self._averages.get(name, value)
            self._averages[name] = before + 0.02 * (value - before)

    def set_rate(self, optimizer: torch.optim.Optimizer, peak: float, warm_up: int = 100) -> None:
        """Warm up over so many steps, then fall to a hundredth on a cosine of the progress."""
        decayed = max(0.01, 0.5 + 0.5 * math.cos(math.pi * self.progress))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (self.step + 1) / warm_up) * decayed

    def save(self) -> None:
        """Write the checkpoint, in place of the one before."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        counts = {"step": self.step, "seen": self.seen, "seconds": self._seconds}
        checkpoint.save(self._path, state | counts)

    def _wait(self) -> None:
        if self._pause is not None and self._pause.exists():
            self.save()
            self._log(f"{self._path.stem}: paused while {self._pause} exists")
            while self._pause.exists():
                time.sleep(2)

    def _report(self, rate: float) -> None:
        figures = " ".join(f"{name} {value:.4f}" for name, value in self._averages.items())
        self._log(
            f"{self._path.stem}: step {self.step}, {self.seen} samples, {self.minutes:.1f} min, "
            f"{rate:.1f} samples/s, {figures}"
        )
