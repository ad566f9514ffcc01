"""The process that one configuration runs in: `python -m edgediff.bench.worker`.

It exchanges JSON lines: it reads the configuration, sends `started` and `loaded`, and then answers
each `{"do": "image"}` with an `image` and its seconds. Times are `time.monotonic()`, which all
processes of a machine share. Other programs that use this protocol can be measured too.
"""

import base64
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edgediff.errors import EdgediffError

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline


_PROFILED = 3
"""Number of images that a profile averages over."""


def channel() -> tuple[TextIO, TextIO]:
    """(input, output) of the lines. From now on, other output to stdout goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return sys.stdin, out


def send(out: TextIO, event: str, **values: Any) -> None:
    """Send one line."""
    out.write(json.dumps({"event": event, "at": time.monotonic(), **values}) + "\n")
    out.flush()


def main() -> None:
    """Answer requests until the input ends; an expected failure is sent as an `error` line."""
    lines, out = channel()
    send(out, "started")
    config = json.loads(lines.readline())
    try:
        serve(config, lines, out)
    except EdgediffError as e:
        send(out, "error", message=str(e))
        sys.exit(1)


def serve(config: dict[str, Any], lines: TextIO, out: TextIO) -> None:
    """Load the bundle that `config` names and answer each line."""
    before = time.perf_counter()
    from edgediff.backend.available import silence_log
    from edgediff.backend.options import Observe
    from edgediff.bench.machine import peak_memory
    from edgediff.pipeline import load

    imported = time.perf_counter()
    silence_log()
    pipe = load(
        config["bundle"],
        provider=config["provider"],
        threads=config["threads"],
        check_hashes=False,
        observe=Observe(placement=config["placement"]),
    )
    loaded = time.perf_counter()
    send(
        out,
        "loaded",
        provider=pipe.provider,
        imports=imported - before,
        load=loaded - imported,
        stages=pipe.stages.load_seconds,
    )
    options = {
        "steps": config["steps"],
        "sampler": config["sampler"],
        "guidance_scale": config["guidance_scale"],
        "size": (config["width"], config["height"]),
        "seed": list(range(config["seed"], config["seed"] + config["batch"])),
    }
    for line in lines:
        request = json.loads(line)
        if request["do"] == "image":
            result = pipe.generate(config["prompt"], **options)
            timings = result.timings
            send(
                out,
                "image",
                total=timings.total,
                text_encoder=timings.stages["text_encoder"],
                steps=list(timings.steps),
                decoder=timings.stages["decoder"],
                stages=pipe.stages.load_seconds,
                peak_bytes=peak_memory(),
            )
        elif request["do"] == "show":
            buffer = io.BytesIO()
            result.images[0].save(buffer, format="PNG")
            image = base64.b64encode(buffer.getvalue()).decode()
            send(
                out,
                "shown",
                png=image,
                placement=placement(pipe),
                caches=pipe.stages.caches(),
                notes=[note for _, session in pipe.stages.sessions() for note in session.notes],
            )
        elif request["do"] == "profile":
            pipe.close()
            send(out, "profiled", operators=profile(config, options, request["top"]))


def placement(pipe: "Pipeline") -> dict[str, dict[str, tuple[int, int]]]:
    """Stage → onnxruntime's name of the provider → (nodes, partitions)."""
    return {stage: session.placement() for stage, session in pipe.stages.sessions()}


def profile(
    config: dict[str, Any], options: dict[str, Any], top: int
) -> dict[str, list[tuple[str, float, float]]]:
    """Stage → (operator, seconds per image, share of the stage's time), slowest first."""
    from edgediff.backend.options import Observe
    from edgediff.pipeline import load

    with tempfile.TemporaryDirectory() as folder:
        pipe = load(
            config["bundle"],
            provider=config["provider"],
            threads=config["threads"],
            check_hashes=False,
            observe=Observe(profile=Path(folder)),
        )
        for _ in range(_PROFILED):
            pipe.generate(config["prompt"], **options)
        return {
            stage: slowest(session.end_profiling(), top)
            for stage, session in pipe.stages.sessions()
        }


def slowest(path: Path, top: int) -> list[tuple[str, float, float]]:
    """(operator, seconds per image, share of the total) from a profile of onnxruntime."""
    by_operator: dict[str, float] = {}
    for event in json.loads(path.read_text()):
        operator = event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and operator and event["name"].endswith("_kernel_time"):
            by_operator[operator] = by_operator.get(operator, 0.0) + event["dur"] / 1e6
    total = sum(by_operator.values())
    ordered = sorted(by_operator.items(), key=lambda item: -item[1])[:top]
    return [(name, seconds / _PROFILED, seconds / total) for name, seconds in ordered if total]


if __name__ == "__main__":
    main()
