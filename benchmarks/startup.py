"""How long edgediff takes to start: import, --help, and the built-in model's first image.

    python -m benchmarks.startup [--repeats N] [--json OUT]

Whole processes are timed from outside, interleaved with `python -c pass`. The time of the latter is
the interpreter's own and is part of every figure. Medians in seconds.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import add_json, interleave, write_json


def commands(folder: Path) -> dict[str, list[str]]:
    python = sys.executable
    image = str(folder / "apple.png")
    return {
        "python -c pass": [python, "-c", "pass"],
        "import edgediff": [python, "-c", "import edgediff"],
        "edgediff --help": [python, "-m", "edgediff", "--help"],
        "first image": [python, "-m", "edgediff", "generate", "a red apple", "-o", image],
    }


def start(command: list[str], checkout: Path | None = None) -> None:
    """Runs `command` with the modules of `checkout`, else with those that this process would find.

    Python may keep bytecode, as it does of an installed package."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)
    subprocess.run(command, check=True, capture_output=True, cwd=checkout, env=environment)


def measure(repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, after one warm-up run of each."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: functools.partial(start, command)
            for name, command in commands(Path(folder)).items()
        }
        return interleave(runs, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    add_json(parser)
    arguments = parser.parse_args()
    seconds = measure(arguments.repeats)
    print(f"{'':18}{'median':>9}{'min':>9}{'max':>9}")
    for name, runs in seconds.items():
        print(f"{name:18}{statistics.median(runs):8.3f}s{min(runs):8.3f}s{max(runs):8.3f}s")
    write_json(arguments.json, seconds)


if __name__ == "__main__":
    main()
