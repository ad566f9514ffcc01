"""Load time, time per stage, peak memory and the runtime's own share, for one bundle.

    python -m benchmarks.stages [BUNDLE] [--size WxH] [--steps N] [--repeats N] [--json OUT]

The runtime's share is the time of an image outside onnxruntime's `InferenceSession.run`, divided by
the time inside it. Peak memory is that of the process at the end of the first image. Each process
measures one bundle.
"""

import argparse
import statistics
import time
from typing import Any

import edgediff
from benchmarks.measure import add_json, machine, peak_megabytes, print_machine, write_json


class TimedSession:
    """An InferenceSession that adds up the seconds spent in `run`."""

    total = 0.0

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        outputs = self._session.run(*arguments)
        TimedSession.total += time.perf_counter() - started
        return outputs


def measure(bundle: str, size: tuple[int, int] | None, steps: int | None, repeats: int) -> Any:
    started = time.perf_counter()
    pipe = edgediff.load(bundle)
    load = time.perf_counter() - started
    arguments: dict[str, Any] = {"size": size, "steps": steps, "seed": 0}
    started = time.perf_counter()
    result = pipe.generate("a red apple", **arguments)
    first = time.perf_counter() - started
    memory = peak_megabytes()
    for session in pipe._stages._sessions.values():  # the benchmark looks inside on purpose
        session._session = TimedSession(session._session)
    images = []
    for _ in range(repeats):
        TimedSession.total = 0.0
        timings = pipe.generate("a red apple", **arguments).timings
        images.append(
            {
                "text_encoder": timings.stages["text_encoder"],
                "step": statistics.median(timings.steps),
                "decoder": timings.stages["decoder"],
                "image": timings.total,
                "in_sessions": TimedSession.total,
                "overhead": timings.total / TimedSession.total - 1,
            }
        )
    return {
        "model": pipe.name,
        "bundle": pipe.bundle.id,
        "provider": pipe.provider,
        "machine": machine(),
        "size": [result.settings.width, result.settings.height],
        "steps": result.settings.steps,
        "sampler": result.settings.sampler,
        "guidance_scale": result.settings.guidance_scale,
        "load": load,
        "first_image": first,
        "peak_mb": memory,
        "images": images,
        "median": {k: statistics.median(p[k] for p in images) for k in images[0]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="emoji")
    parser.add_argument("--size", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--repeats", type=int, default=9)
    add_json(parser)
    arguments = parser.parse_args()
    found = measure(arguments.bundle, arguments.size, arguments.steps, arguments.repeats)
    print_machine(found["machine"])
    width, height = found["size"]
    print(
        f"{found['model']} on {found['provider']}, {width}x{height}, {found['steps']} steps of"
        f" {found['sampler']}, guidance {found['guidance_scale']:g};"
        f" medians of {len(found['images'])} images after the first"
    )
    rows = [
        ("load", found["load"]),
        ("first image", found["first_image"]),
        *((name.replace("_", " "), found["median"][name]) for name in list(found["median"])[:-1]),
    ]
    for name, seconds in rows:
        print(f"{name:14}{seconds:9.4f} s")
    print(f"{'overhead':14}{found['median']['overhead'] * 100:9.2f} % of the time in sessions")
    print(f"{'peak memory':14}{found['peak_mb']:9.0f} MB")
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
