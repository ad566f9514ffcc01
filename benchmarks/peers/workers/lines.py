"""Shared by the workers: one JSON object per line, the protocol of `edgediff.bench.worker`.

It imports only the standard library, so that it works in every peer's environment.
"""

import base64
import importlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Draw = Callable[[], tuple[Any, dict[str, Any]]]
"""→ (the image: a PIL image, or an argument for `to_pil`; seconds of `text_encoder`, `steps` and
`decoder`, those that the peer reports)."""


def serve(
    modules: tuple[str, ...],
    load: Callable[[dict[str, Any]], Draw],
    to_pil: Callable[[Any], Any] = lambda image: image,
) -> None:
    """Import `modules`, load the first line's configuration, and generate an image on request."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a peer's own output must not mix with the protocol
    _tell(out, "started")
    config = json.loads(sys.stdin.readline())
    before = time.perf_counter()
    for name in modules:
        importlib.import_module(name)
    imported = time.perf_counter()
    draw = load(config)
    _tell(
        out,
        "loaded",
        imports=imported - before,
        load=time.perf_counter() - imported,
    )
    image: Any = None
    for line in sys.stdin:
        if json.loads(line)["do"] == "show":
            buffer = io.BytesIO()
            to_pil(image).save(buffer, format="PNG")
            png = base64.b64encode(buffer.getvalue()).decode()
            _tell(out, "shown", png=png)
            continue
        began = time.perf_counter()
        image, stages = draw()
        total = time.perf_counter() - began
        _tell(out, "image", total=total, peak_bytes=_peak_memory(), **stages)


class Stopwatch:
    """Records the duration of stage calls: a list of seconds for each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def around(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = call(*args, **kwargs)
            self.seconds.setdefault(stage, []).append(time.perf_counter() - began)
            return result

        return timed

    def take(self) -> dict[str, Any]:
        """The durations since the last call, in the form of `Draw`."""
        found, self.seconds = self.seconds, {}
        return {
            "text_encoder": sum(found["text_encoder"]),
            "steps": found["unet"],
            "decoder": sum(found["decoder"]),
        }


def _tell(out: Any, event: str, **what: Any) -> None:
    out.write(json.dumps({"event": event, "at": time.monotonic(), **what}) + "\n")
    out.flush()


def _peak_memory() -> int | None:
    """Peak resident bytes of this process."""
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rss if sys.platform == "darwin" else rss * 1024
