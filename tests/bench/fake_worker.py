"""A worker with timings that are made up: `fake_worker.py SECONDS [HOW [AFTER]]`.

SECONDS: what it says an image takes. HOW: what happens at image number AFTER instead.
"""

import json
import os
import signal
import sys
import time

seconds = float(sys.argv[1])
how = sys.argv[2] if len(sys.argv) > 2 else ""
after = int(sys.argv[3]) if len(sys.argv) > 3 else 1
# One pixel, white.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"


def tell(event: str, **what: object) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **what}), flush=True)


tell("started")
config = json.loads(sys.stdin.readline())
tell("loaded", provider="cpu", imports=0.1, load=0.2, stages={"unet": 0.2})
count = 0
for line in sys.stdin:
    if json.loads(line)["do"] == "show":
        tell(
            "shown",
            png=PNG,
            placement={"unet": {"CPUExecutionProvider": [3, 2]}},
            caches={"unet": {"engine": "miss", "timing": "hit"}} if how == "compile" else {},
            notes=["unet.onnx: runs without a CUDA graph"] if how == "compile" else [],
        )
        continue
    count += 1
    if count == after:
        if how == "crash":
            sys.exit("Segmentation of thought")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(60)
        if how == "refuse":
            tell("error", message="unet.onnx: the run failed")
            sys.exit(1)
        if how == "babble":
            print("no JSON", flush=True)
    shaken = seconds * (1 + 0.01 * (count % 3 - 1))
    tell(
        "image",
        total=shaken,
        text_encoder=0.1 * shaken,
        steps=[0.4 * shaken] * 2,
        decoder=0.1 * shaken,
        stages={"unet": 0.2},
        peak_bytes=1_000_000,
    )
