"""Whether a process that draws for a long time grows: 10,000 images in four threads, and 500 loads.

    python -m benchmarks.soak [BUNDLE] [--images N] [--loads N] [--json OUT]

Four threads share one pipeline and mix seeds, sizes, steps, image to image, prompts in chunks,
cancels from another thread and deadlines. Without BUNDLE, the small random bundle of the tests.
Resident memory is read after the first 200 images (20 loads) and at the end.

onnxruntime keeps the work space of as many runs as ever ran at once. So in the first 100 images the
threads enter the stages together, at the largest size: growth after that is not a late coincidence.
"""

import argparse
import ctypes
import gc
import hashlib
import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import edgediff
from edgediff.arrays import AnyArray
from edgediff.backend.run_stage import RunStage
from edgediff.errors import Cancelled, DeadlineExceeded

TINY = Path(__file__).parent.parent / "tests" / "golden" / "tiny"
WARM = 200
WARM_LOADS = 20
BAR = 0.01
"""Growth, relative to the first reading."""
THREADS = 4
LARGEST: tuple[tuple[str, dict[str, Any]], ...] = (
    ("a fox", {"steps": 2, "size": 128}),
    ("a fox", {"steps": 1, "size": 96}),
    ("a", {"steps": 2, "strength": 0.5}),
    ("a fox, " * 60, {"steps": 1, "long_prompts": True}),
)
"""Prompts and options of the first images."""


def resident() -> int:
    """Bytes of this process in memory (Linux), without those that malloc keeps for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


class Soak:
    """One pipeline, drawn from by several threads."""

    def __init__(self, bundle: Path, images: int) -> None:
        self.pipe = edgediff.load(bundle, threads=1)
        self.images = images
        self.outcomes: Counter[str] = Counter()
        self.warm = 0
        self.foreign: list[str] = []
        self.expected: dict[int, str] = {}
        self._next = min(WARM, images) // 2 // THREADS * THREADS
        self._together = threading.Barrier(THREADS)
        self._lock = threading.Lock()
        self._photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)

    def run(self) -> None:
        threads = [threading.Thread(target=self._draw) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _draw(self) -> None:
        first = min(WARM, self.images)
        for number in range(first // 2 // THREADS):
            self._largest(number)
        self._mix(first)
        if self._together.wait() == 0:
            self.warm = resident()
        self._together.wait()
        self._mix(self.images)

    def _mix(self, end: int) -> None:
        """Images of every kind until `end` were begun, by all threads."""
        while True:
            with self._lock:
                number = self._next
                if number >= end:
                    return
                self._next += 1
            try:
                outcome = self._one(random.Random(number))
            except (Cancelled, DeadlineExceeded) as e:
                outcome = type(e).__name__
            except Exception as e:
                outcome = "foreign"
                self.foreign.append(f"{number}: {type(e).__name__}: {e}")
            with self._lock:
                self.outcomes[outcome] += 1

    def _largest(self, number: int) -> None:
        """One of the first images: the largest of its kind, in step with the other threads."""

        def together(run_stage: RunStage) -> RunStage:
            def run(stage: str, inputs: dict[str, AnyArray]) -> dict[str, AnyArray]:
                self._together.wait()
                return run_stage(stage, inputs)

            return run

        prompt, options = LARGEST[number % len(LARGEST)]
        if options.get("strength"):
            options = options | {"init_image": self._photo}
        request = self.pipe.resolve(prompt, seed=[number, number + 1], **options)
        self.pipe.run(request, wrap=together).result()
        with self._lock:
            self.outcomes["together"] += 1

    def _one(self, source: random.Random) -> str:
        seed = source.randrange(20)
        act = source.randrange(8)
        if act == 0:  # the same in every thread, whatever the others do
            image = self.pipe.generate("a fox", seed=seed, steps=2).images[0]
            digest = hashlib.sha256(image.tobytes()).hexdigest()
            with self._lock:
                if self.expected.setdefault(seed, digest) != digest:
                    raise ValueError(f"seed {seed} gave another image")
            return "same"
        if act == 1:
            run = self.pipe.stream("a fox", seed=seed, steps=8, size=128)
            timer = threading.Timer(source.random() * 0.05, run.cancel)
            timer.start()
            try:
                run.result()
            finally:
                timer.cancel()
                timer.join()
            return "finished before it was cancelled"
        if act == 2:
            deadline = source.random() * 0.05 + 1e-3
            self.pipe.generate("a fox", seed=seed, steps=8, size=128, deadline=deadline)
            return "finished before its deadline"
        if act == 3:
            self.pipe.generate("a", seed=seed, steps=2, init_image=self._photo, strength=0.5)
            return "image to image"
        if act == 4:
            self.pipe.generate("a fox, " * 60, seed=seed, steps=1, long_prompts=True)
            return "chunks"
        size = source.choice((32, 64, 96, (64, 32), (32, 128)))
        self.pipe.generate("a fox", seed=[seed, seed + 1], steps=1, size=size)
        return "sizes"


def loads(bundle: Path, count: int) -> tuple[int, int]:
    """Load, draw, and let go. Returns resident bytes when warm and at the end."""
    warm = 0
    for number in range(count):
        if number == WARM_LOADS:
            warm = resident()
        pipe = edgediff.load(bundle, threads=1)
        pipe.generate("a fox", seed=number, steps=1)
        if number % 2:
            pipe.close()
        del pipe
    return warm, resident()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", nargs="?", type=Path, default=TINY)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--loads", type=int, default=500)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    started = time.monotonic()
    soak = Soak(given.bundle, given.images)
    soak.run()
    end = resident()
    warm_loads, end_loads = loads(given.bundle, given.loads)
    found = {
        "images": given.images,
        "outcomes": dict(soak.outcomes),
        "foreign": soak.foreign,
        "resident_warm_bytes": soak.warm,
        "resident_end_bytes": end,
        "growth": end / soak.warm - 1 if soak.warm else None,
        "loads": given.loads,
        "loads_resident_warm_bytes": warm_loads,
        "loads_resident_end_bytes": end_loads,
        "loads_growth": end_loads / warm_loads - 1 if warm_loads else None,
        "seconds": time.monotonic() - started,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n")
    growths = (found["growth"], found["loads_growth"])
    grew = any(isinstance(growth, float) and growth >= BAR for growth in growths)
    sys.exit(1 if soak.foreign or grew else 0)


if __name__ == "__main__":
    main()
