"""All peers in turns, A B A B …: in each round every peer starts, generates a cold image and then
warm ones, and ends, so that no peer uses memory or cores while another one runs."""

import base64
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers.catalogue import OURS
from benchmarks.peers.environments import files
from benchmarks.peers.results import Cold, Measured, Result, Settings, Warm
from edgediff.bench import machine
from edgediff.bench.machine import Conditions
from edgediff.bench.runner import Worker, WorkerError
from edgediff.images.metrics import psnr

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A peer that is ready to run. command: its worker. inputs: the worker's configuration.

    reads: files and folders that are read before each start, so that they are in the system's
    cache. compiles: it runs once before the first round, to fill its own cache. differs: its image
    is not comparable with the reference."""

    known: Measured
    command: Sequence[str]
    inputs: dict[str, Any]
    reads: Sequence[Path] = ()
    compiles: bool = False
    differs: bool = False


@dataclass
class Rounds:
    """A run in progress. answer: seconds to wait for a line before a worker counts as hung.

    reference: name of the peer whose image the others are compared with. before: an earlier run
    with the same settings and machine, to continue. Its results for a peer are kept if the peer is
    unchanged or not requested now; a new peer gets at least one round."""

    entrants: Sequence[Entrant]
    settings: Settings
    environment: Mapping[str, str]
    write: Callable[[Result], None]
    tell: Callable[[str], None]
    reference: str = ""
    left_out: Sequence[Measured] = ()
    before: Result | None = None
    answer: float = 1800.0
    images: dict[str, Pixels] = field(default_factory=dict)

    def run(self) -> Result:
        """Measure all. A peer that fails is left out from then on, with its reason."""
        self._utc = datetime.now(UTC).isoformat(timespec="seconds")
        self._found = {e.known.name: e.known for e in self.entrants}
        done = 0 if self.before is None else self._recall(self.before)
        new = any(found.status == "pending" for found in self._found.values())
        last = max(self.settings.rounds, done + new)
        with machine.Watch() as watch:
            self._watch = watch
            self._write(complete=False)
            for entrant in self.entrants:
                if entrant.compiles:
                    self._attempt(entrant, "filling its cache", number=0)
            for n in range(done + 1, last + 1):
                slow = self._clearly_slow()
                for entrant in self.entrants:
                    if entrant.known.name not in slow:
                        what = f"round {n} of {last}"
                        self._attempt(entrant, what, number=n)
                self._write(complete=False)
            return self._write(complete=True)

    def _recall(self, before: Result) -> int:
        """Take over the results of an earlier run; returns the number of its rounds."""
        self._utc = before.started
        out = {p.name for p in self.left_out}
        self._found |= {
            p.name: p
            for p in before.peers
            if p.status == "measured" and p.name not in out and _same(p, self._found.get(p.name, p))
        }
        return max((c.round for p in before.peers for c in p.cold), default=0)

    def _clearly_slow(self) -> set[str]:
        """Measured peers that need no further rounds. edgediff is compared with the fastest peer,
        so all that are near it stay."""
        warm = {
            name: statistics.median(w.total for w in found.warm)
            for name, found in self._found.items()
            if found.warm
        }
        others = [took for name, took in warm.items() if not name.startswith(OURS)]
        fastest = min(others or warm.values(), default=0.0)
        return {name for name, took in warm.items() if took > self.settings.clear * fastest}

    def _attempt(self, entrant: Entrant, what: str, *, number: int) -> None:
        """number: the round, or 0 outside the rounds."""
        name = entrant.known.name
        if self._found[name].status == "left out":
            return
        self.tell(f"{name}: {what}")
        try:
            self._draw(entrant, number=number)
        except WorkerError as e:
            self.tell(f"{name}: left out: {e}")
            self._found[name] = replace(self._found[name], status="left out", reason=str(e))

    def _draw(self, entrant: Entrant, *, number: int) -> None:
        for path in entrant.reads:
            _read_through(path)
        with Worker(
            entrant.command, entrant.inputs, answer=self.answer, environment=self.environment
        ) as worker:
            worker.wait("started")
            loaded = worker.wait("loaded")
            image = worker.ask("image", "image")
            shown = worker.ask("show", "shown")
            pixels = _decode(shown["png"])
            expected = (self.settings.height, self.settings.width, 3)
            if pixels.shape != expected:
                raise WorkerError(f"generated {pixels.shape} pixels, expected {expected}")
            if not number:
                return
            cold = Cold(
                round=number,
                first_image=shown["at"] - worker.started,
                imports=loaded["imports"],
                load=loaded["load"],
            )
            warm = []
            for _ in range(self.settings.warm):
                image = worker.ask("image", "image")
                warm.append(_warm(image, number))
        name = entrant.known.name
        if not entrant.differs:
            self.images[name] = pixels
        found = self._found[name]
        peaks = [p for p in (found.peak_bytes, image["peak_bytes"]) if p is not None]
        self._found[name] = replace(
            found,
            status="measured",
            peak_bytes=max(peaks, default=None),
            cold=(*found.cold, cold),
            warm=(*found.warm, *warm),
        )

    def _write(self, *, complete: bool) -> Result:
        result = Result(
            started=self._utc,
            complete=complete,
            settings=self.settings,
            machine=machine.describe(),
            conditions=self._conditions(),
            peers=(*(self._compared(m) for m in self._found.values()), *self.left_out),
        )
        self.write(result)
        return result

    def _conditions(self) -> Conditions:
        """The conditions of this run; if other processes took more in an earlier run, that
        figure."""
        now = self._watch.conditions()
        if self.before is None or self.before.conditions.others is None:
            return now
        return replace(now, others=max(now.others or 0.0, self.before.conditions.others))

    def _compared(self, measured: Measured) -> Measured:
        """With the PSNR of its image against the reference."""
        image, reference = (self.images.get(n) for n in (measured.name, self.reference))
        if image is None or reference is None or measured.name == self.reference:
            return measured
        decibels = psnr(image, reference)
        return replace(measured, psnr_db=decibels, equal=decibels is None)


def _same(earlier: Measured, now: Measured) -> bool:
    """Whether a peer is unchanged: its packages' versions, and its model's size."""
    return (earlier.versions, earlier.model_bytes) == (now.versions, now.model_bytes)


def _warm(image: dict[str, Any], number: int) -> Warm:
    return Warm(
        round=number,
        total=image["total"],
        text_encoder=image.get("text_encoder"),
        steps=tuple(image.get("steps", ())),
        decoder=image.get("decoder"),
    )


def _read_through(path: Path) -> None:
    for file in files(path):
        with file.open("rb", buffering=0) as content:
            while content.read(1 << 24):
                pass


def _decode(png: str) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
