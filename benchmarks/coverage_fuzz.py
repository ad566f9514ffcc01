"""A coverage-guided fuzzer over the parsers of what comes from outside.

    pip install atheris
    python -m benchmarks.coverage_fuzz manifest|graph|record|parameters [libFuzzer flags]

manifest: the text of bundle.json. graph: the walk over a graph's protobuf. record: the text that an
image carries. parameters: the text that other tools write. Any exception but an EdgediffError is a
finding, with which it ends; so does an input that takes 10 seconds. Useful flags: a folder to keep
the corpus in, `-max_total_time=600`, `-runs=1000000`.
"""

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["edgediff"]):
    from edgediff.bundle.external_data import external_files
    from edgediff.bundle.manifest import parse_manifest
    from edgediff.errors import EdgediffError
    from edgediff.request.record import _from_record, _record
    from edgediff.request.request import resolve_seeds

TINY = Path(__file__).parent.parent / "tests" / "golden" / "tiny"


def manifest(data: bytes) -> None:
    parse_manifest(data.decode("utf-8", "surrogateescape"))


def graph(data: bytes) -> None:
    external_files(data, "g.onnx")


def record(data: bytes) -> None:
    path = Path("a.png")
    made = _from_record(_record({"edgediff": data.decode("utf-8", "replace")}, path), path)
    seed: Any = made.options.get("seed")
    resolve_seeds(seed)


def parameters(data: bytes) -> None:
    from edgediff.request.a1111 import parse_parameters

    parse_parameters(data.decode("utf-8", "replace"))


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "manifest": (manifest, [(TINY / "bundle.json").read_bytes()]),
    "graph": (graph, [(TINY / "text_encoder.onnx").read_bytes()[:4096]]),
    "record": (record, [json.dumps({"edgediff": "1", "prompt": "a", "seed": 1}).encode()]),
    "parameters": (parameters, [b"a\nNegative prompt: b\nSteps: 2, Sampler: Euler, Seed: 3"]),
}


def main() -> None:
    name, *flags = sys.argv[1:] or [""]
    if name not in TARGETS:
        raise SystemExit(f"{name!r}: expected one of {', '.join(TARGETS)}")
    target, seeds = TARGETS[name]

    def one(data: bytes) -> None:
        with contextlib.suppress(EdgediffError):
            target(data)

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            Path(folder, str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], "-timeout=10", "-max_len=65536", *flags, folder], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
