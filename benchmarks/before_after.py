"""Start-up and overhead of this checkout beside an earlier one, to see whether a change cost time.

    git worktree add --detach /tmp/before COMMIT
    python -m benchmarks.before_after /tmp/before [--repeats N] [--json OUT]

Whole processes take turns: one of the earlier checkout, one of this one. Start-up is timed from
outside. Overhead comes from `benchmarks.stages` of each checkout, which times the built-in model:
the time of an image outside onnxruntime's sessions, divided by the time inside them.
"""

import argparse
import functools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import add_json, interleave, machine, print_machine, write_json
from benchmarks.startup import commands, start

HERE = Path(__file__).parent.parent


def start_up(before: Path, folder: Path, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each command's runs, by command and then by checkout."""
    found = {}
    for name, command in commands(folder).items():
        runs = {
            "before": functools.partial(start, command, before),
            "after": functools.partial(start, command, HERE),
        }
        found[name] = interleave(runs, repeats)
    return found


def overhead(before: Path, folder: Path, processes: int) -> dict[str, list[float]]:
    """The overhead of each process of `benchmarks.stages`, as a fraction."""
    found: dict[str, list[float]] = {"before": [], "after": []}
    output = folder / "stages.json"
    command = [sys.executable, "-m", "benchmarks.stages", "--repeats", "25", "--json", str(output)]
    for _ in range(processes):
        for name, checkout in (("before", before), ("after", HERE)):
            start(command, checkout)
            found[name].append(json.loads(output.read_text())["median"]["overhead"])
    return found


def row(name: str, runs: dict[str, list[float]], scale: float, unit: str) -> str:
    before, after = (statistics.median(runs[key]) for key in ("before", "after"))
    lowest = [min(runs[key]) * scale for key in ("before", "after")]
    return (
        f"{name:18}{before * scale:9.2f}{after * scale:9.2f} {unit:2}{after / before:7.2f}"
        f"   {lowest[0]:.2f}, {lowest[1]:.2f} {unit}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="an earlier checkout")
    parser.add_argument("--repeats", type=int, default=15, help="runs of each command")
    parser.add_argument("--processes", type=int, default=7, help="processes that draw 25 images")
    add_json(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = start_up(arguments.before, Path(folder), arguments.repeats)
        share = overhead(arguments.before, Path(folder), arguments.processes)
    print_machine(machine())
    print(f"{'':18}{'before':>9}{'after':>9} {'':2}{'ratio':>7}   lowest of each")
    for name, runs in seconds.items():
        print(row(name, runs, 1000, "ms"))
    print(row("overhead", share, 100, "%"))
    found: dict[str, Any] = {"machine": machine(), "seconds": seconds, "overhead": share}
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
