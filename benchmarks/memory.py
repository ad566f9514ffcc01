"""Peak memory of one image, and load time, each in its own process.

    python -m benchmarks.memory [BUNDLE...] [--work DIR] [--size 512] [--steps 4]
                                [--max-memory SIZE] [--repeats N] [--threads N] [--json OUT]

Without BUNDLE, it measures the int8 and float32 exports of a pipeline of Stable Diffusion 1.5's
shape, without guidance. Peak memory is the resident set of the process. Its anonymous part stays
until the process ends; mapped files can be dropped (the two peaks may occur at different times).
Load time is that of `edgediff.load` with files in the system's cache and edgediff imported, with
and without comparing hashes.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.measure import (
    Check,
    add_json,
    machine,
    peak_megabytes,
    print_checks,
    print_machine,
    print_table,
    watched,
    write_json,
)

PROMPT = "a lighthouse on a rocky coast, oil painting"
GUIDANCE_SCALE = 1.0
PEAK_BAR = 2.2
LOW_PEAK_BAR = 1.4
LOAD_BAR = 1.5
_SAMPLE = 0.01


def image(bundle: str, size: int, steps: int, threads: int | None, max_memory: str | None) -> Any:
    """Generate an image: its time and memory, as this process measures them."""
    import edgediff

    # Only if it was requested, so that older versions can be measured too.
    more: dict[str, Any] = {} if max_memory is None else {"max_memory": max_memory}
    started = time.perf_counter()
    pipe = edgediff.load(bundle, provider="cpu", threads=threads, **more)
    loaded = time.perf_counter()
    result = pipe.generate(PROMPT, size=size, steps=steps, guidance_scale=GUIDANCE_SCALE, seed=0)
    return {
        "bundle": pipe.bundle.id,
        "load": loaded - started,
        "image": result.timings.total,
        "sampler": result.settings.sampler,
        "peak_mb": peak_megabytes(),
    }


def load(bundle: str, threads: int | None, check_hashes: bool) -> Any:
    """Seconds of `edgediff.load`."""
    import edgediff
    import edgediff.pipeline  # `edgediff.load` would import it

    started = time.perf_counter()
    pipe = edgediff.load(bundle, provider="cpu", threads=threads, check_hashes=check_hashes)
    seconds = time.perf_counter() - started
    pipe.close()
    return seconds


def in_own_process(**call: Any) -> tuple[Any, dict[str, float]]:
    """Call this module as a process: its answer, and the peaks in MB of its kinds of memory."""
    command = [sys.executable, "-m", "benchmarks.memory", "--call", json.dumps(call)]
    ran = watched(command, every=_SAMPLE)
    if ran is None:
        sys.exit(f"{call}: failed")
    output, peaks = ran
    return json.loads(output), peaks


def _answer(call: dict[str, Any]) -> Any:
    return {"image": image, "load": load}[call.pop("what")](**call)


def measure(
    bundle: Path,
    *,
    size: int,
    steps: int,
    threads: int | None,
    max_memory: str | None,
    repeats: int,
) -> dict[str, Any]:
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    common = {"bundle": str(bundle.resolve()), "threads": threads}
    made, peaks = in_own_process(
        what="image", size=size, steps=steps, max_memory=max_memory, **common
    )
    loads: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(repeats + 1):  # the first warms the system's cache
        for check_hashes, seconds in loads.items():
            took, _ = in_own_process(what="load", check_hashes=check_hashes, **common)
            if repeat:
                seconds.append(took)
    return {
        "name": bundle.name,
        "precision": manifest["quantization"]["precision"],
        **made,
        "peak_anonymous_mb": peaks.get("RssAnon"),
        "peak_files_mb": peaks.get("RssFile"),
        "loads": loads[False],
        "loads_with_hashes": loads[True],
        "median_load": statistics.median(loads[False]),
        "median_load_with_hashes": statistics.median(loads[True]),
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE")
    models.add_work(parser)
    parser.add_argument("--size", type=int, default=512, help="pixels a side (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="%(default)s by default")
    parser.add_argument("--max-memory", metavar="SIZE", help="given to edgediff.load: 1.4GB")
    parser.add_argument("--repeats", type=int, default=5, help="measured loads (%(default)s)")
    parser.add_argument("--threads", type=int, help="one per core by default")
    add_json(parser)
    parser.add_argument("--call", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call is not None:
        print(json.dumps(_answer(arguments.call)))
        return
    bundles = arguments.bundles
    if not bundles:
        source = models.pipeline(arguments.work)
        bundles = [models.bundle(arguments.work, source, p) for p in ("int8", "fp32")]
    found: dict[str, Any] = {
        "machine": machine(),
        "provider": "cpu",
        "threads": arguments.threads,
        "size": arguments.size,
        "steps": arguments.steps,
        "guidance_scale": GUIDANCE_SCALE,
        "max_memory": arguments.max_memory,
        "bundles": [
            measure(
                bundle,
                size=arguments.size,
                steps=arguments.steps,
                threads=arguments.threads,
                max_memory=arguments.max_memory,
                repeats=arguments.repeats,
            )
            for bundle in bundles
        ],
    }
    print_machine(found["machine"])
    print(
        f"{arguments.size}x{arguments.size} pixels, {arguments.steps} steps, no guidance,"
        f" max_memory {arguments.max_memory or 'unset'}; load: medians of {arguments.repeats},"
        " files cached\n"
    )
    checks: list[Check] = []
    rows = []
    for b in found["bundles"]:
        rows.append(
            (
                b["name"],
                b["precision"],
                *(
                    "-" if b[key] is None else f"{b[key]:.0f} MB"
                    for key in ("peak_mb", "peak_anonymous_mb", "peak_files_mb")
                ),
                f"{b['image']:.2f} s",
                f"{b['median_load']:.3f} s",
                f"{b['median_load_with_hashes']:.3f} s",
            )
        )
        if b["precision"] == "int8":
            peak_bar = PEAK_BAR if arguments.max_memory is None else LOW_PEAK_BAR
            peak, name = b["peak_mb"] / 1e3, b["name"]
            checks += [
                Check(what=f"{name}: peak memory", value=peak, bar=peak_bar, unit=" GB"),
                Check(what=f"{name}: load", value=b["median_load"], bar=LOAD_BAR, unit=" s"),
            ]
    header = ("precision", "peak", "anonymous", "files", "image", "load", "with hashes")
    print_table(("bundle", *header), rows)
    print_checks(checks)
    found["checks"] = [c.record() for c in checks]
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
