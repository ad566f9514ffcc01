"""Shared by the benchmarks: interleaved runs, the machine, measured values against targets."""

import argparse
import json
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import edgediff
from benchmarks.models import ROOT
from edgediff.backend.available import ort
from edgediff.bench import machine as this_machine
from edgediff.cores import usable_cores

PAUSE = 0.05
"""Seconds between runs, so that the threads of one session sleep before the next one starts."""


def interleave(
    runs: Mapping[str, Callable[[], object]], repeats: int, *, pause: float = PAUSE
) -> dict[str, list[float]]:
    """Seconds of each run: A B A B …, after one warm-up round.

    Other load on the machine then affects all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(pause)
            started = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
    return seconds


@dataclass(frozen=True, kw_only=True)
class Check:
    """A measured value and its target."""

    what: str
    value: float
    bar: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def record(self) -> dict[str, Any]:
        """For JSON; an infinite value, such as the PSNR of equal images, is null."""
        value = self.value if np.isfinite(self.value) else None
        return {**asdict(self), "value": value, "met": self.met}


def machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, and versions."""
    return {
        "cpu": _cpu(),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "edgediff": edgediff.__version__,
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
        },
    }


def _cpu() -> str:
    """The processor's name, and those of its flags that matter for int8."""
    found = this_machine.describe()
    int8 = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
    return " ".join([found.cpu, *(f for f in int8 if f in found.cpu_flags)])


def peak_megabytes() -> float:
    """Peak resident memory of this process, in MB."""
    return (this_machine.peak_memory() or 0) / 1e6


def process_memory(pid: int | str = "self") -> dict[str, float]:
    """MB by the names of /proc/PID/status (VmHWM, RssAnon, RssFile, …); empty if there is none.

    RssFile is mapped files: it counts as resident, but is dropped when memory is short."""
    return {name: size / 1e6 for name, size in this_machine.process_memory(pid).items()}


def watched(command: Sequence[str], *, every: float) -> tuple[str, dict[str, float]] | None:
    """Run a process in the repository's root: its stdout, and the peaks in MB of its kinds of
    memory, sampled every `every` seconds. None if it fails."""
    peaks: dict[str, float] = {}
    ended = threading.Event()

    def watch(pid: int) -> None:
        while not ended.wait(every):
            for name, megabytes in process_memory(pid).items():
                peaks[name] = max(peaks.get(name, 0.0), megabytes)

    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=watch, args=(process.pid,))
        watcher.start()
        output, _ = process.communicate()
        ended.set()
        watcher.join()
    return None if process.returncode else (output, peaks)


def print_machine(found: Mapping[str, Any]) -> None:
    print(
        f"{found['cpu']}, {found['cores']} cores;"
        f" onnxruntime {found['versions']['onnxruntime']}, edgediff {found['versions']['edgediff']}"
    )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: first column aligned left, the others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row, widths, strict=True))]
        print("  ".join([cells[0], *cells[2:]]).rstrip())


def print_checks(checks: Sequence[Check]) -> None:
    """Print each measured value, its target and the verdict."""
    if not checks:
        return
    print()
    rows = [
        (
            c.what,
            f"{c.value:.3g}{c.unit}" if c.value < 10 else f"{c.value:.1f}{c.unit}",
            f"{'≥' if c.at_least else '≤'} {c.bar:g}{c.unit}",
            "met" if c.met else "missed",
        )
        for c in checks
    ]
    print_table(("measured", "value", "target", "verdict"), rows)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the measurements to OUT")


def write_json(path: Path | None, found: Any) -> None:
    if path is not None:
        path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n")
