"""A peer with made-up timings: `fake_worker.py SECONDS LOG NAME [HOW [AFTER]]`.

SECONDS: the time it reports for an image. LOG: a file that records its starts. HOW: what it does at
its start number AFTER (counted in LOG) instead of an image.
"""

import base64
import json
import struct
import sys
import time
import zlib
from pathlib import Path

COLOURS = {"red": b"\xff\0\0", "blue": b"\0\0\xff"}

seconds, log, name = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
how = sys.argv[4] if len(sys.argv) > 4 else ""
after = int(sys.argv[5]) if len(sys.argv) > 5 else 1


def tell(event: str, **what: object) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **what}), flush=True)


def png(width: int, height: int, colour: bytes) -> str:
    """Base64 of a PNG of one colour; importing pillow would take longer than all the rest."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + colour * width) * height)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


tell("started")
config = json.loads(sys.stdin.readline())
with log.open("a") as file:
    file.write(f"{name}\n")
start = log.read_text().split().count(name)
tell("loaded", imports=0.1, load=0.2)
for line in sys.stdin:
    if start >= after and how == "crash":
        sys.exit("ImportError: libimage.so: cannot open shared object file")
    if json.loads(line)["do"] == "show":
        size = (config["width"], config["height"]) if how != "small" else (1, 1)
        tell("shown", png=png(*size, COLOURS[config["colour"]]))
    elif how == "coy":  # shows no stages, and not its memory
        tell("image", total=seconds, peak_bytes=None)
    else:
        tell(
            "image",
            total=seconds,
            peak_bytes=1_000_000 * start,
            text_encoder=0.1 * seconds,
            steps=[0.4 * seconds, 0.4 * seconds],
            decoder=0.1 * seconds,
        )
