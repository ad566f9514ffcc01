"""The latency of cancelling a run, for one bundle.

    python -m benchmarks.cancelling [BUNDLE] [--size WxH] [--times N] [--threads N] [--work DIR]
                                    [--json OUT]

Without BUNDLE, it measures the int8 export of a random pipeline of Stable Diffusion 1.5's shape, at
512x512. A second thread cancels at random times during text encoding, a step, and decoding, N times
each. Latency is the time from the call of `Run.cancel` until the run's thread catches `Cancelled`.
onnxruntime checks before each operator; a run waits for a long one only 50 ms.
"""

import argparse
import random
import statistics
import threading
import time
from typing import Any

import edgediff
from benchmarks.measure import (
    Check,
    add_json,
    machine,
    print_checks,
    print_machine,
    write_json,
)
from benchmarks.models import add_work, bundle, pipeline
from edgediff.backend.run_stage import RunStage
from edgediff.errors import Cancelled

BAR = 0.1
"""Seconds, inside a step, at most."""


def stage_seconds(pipe: edgediff.Pipeline, request: edgediff.Request) -> dict[str, float]:
    """Stage → seconds of its last run."""
    seconds: dict[str, float] = {}

    def timing(run_stage: RunStage) -> RunStage:
        def timed(stage: str, inputs: Any) -> Any:
            started = time.perf_counter()
            outputs = run_stage(stage, inputs)
            seconds[stage] = time.perf_counter() - started
            return outputs

        return timed

    for _ in range(2):
        pipe.run(request, wrap=timing).result()
    return seconds


def latency(
    pipe: edgediff.Pipeline, request: edgediff.Request, stage: str, after: float
) -> float | None:
    """Seconds from cancelling, `after` seconds into a stage, to the end of the run. None if the
    stage ended first."""
    called: list[float] = []
    ended: list[str] = []

    def cancel() -> None:
        called.append(time.perf_counter())
        run.cancel()

    def cancelling(run_stage: RunStage) -> RunStage:
        def runs(name: str, inputs: Any) -> Any:
            if name == stage and not called:
                timer = threading.Timer(after, cancel)
                timer.start()
            outputs = run_stage(name, inputs)
            ended.append(name)
            return outputs

        return runs

    run = pipe.run(request, wrap=cancelling)
    try:
        run.result()
    except Cancelled:
        if stage not in ended:
            return time.perf_counter() - called[0]
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?")
    parser.add_argument(
        "--size", type=lambda text: tuple(map(int, text.split("x"))), default=(512, 512)
    )
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--threads", type=int)
    add_work(parser)
    add_json(parser)
    arguments = parser.parse_args()
    path = arguments.bundle or bundle(arguments.work, pipeline(arguments.work), "int8")
    chance = random.Random(0)
    with edgediff.load(path, threads=arguments.threads) as pipe:
        request = pipe.resolve("a fox", size=arguments.size, steps=2, guidance_scale=1, seed=0)
        seconds = stage_seconds(pipe, request)
        found: dict[str, list[float]] = {}
        for stage, whole in seconds.items():
            while len(found.setdefault(stage, [])) < arguments.times:
                measured = latency(pipe, request, stage, chance.random() * whole)
                if measured is not None:
                    found[stage].append(measured)
        name = pipe.name
    print_machine(machine())
    print(f"{name}, {'x'.join(map(str, arguments.size))}, {arguments.times} cancels in each stage")
    for stage, values in found.items():
        print(
            f"{stage:14} {seconds[stage] * 1e3:8.1f} ms per run; cancelled after"
            f" {statistics.median(values) * 1e3:6.1f} ms (median),"
            f" {max(values) * 1e3:6.1f} ms (longest)"
        )
    step = max(found["unet"])
    print_checks([Check(what="cancelling inside a step", value=step, bar=BAR, unit=" s")])
    answer = {"model": name, "size": arguments.size, "machine": machine()}
    write_json(arguments.json, {**answer, "stage_seconds": seconds, "latency_seconds": found})


if __name__ == "__main__":
    main()
