"""Measure the figures that README and docs/benchmarks.md quote, and keep them by machine.

    python -m benchmarks.record [NAME...] [--work DIR]

NAME: one of RECORDED; all by default. Each writes benchmarks/results/NAME-MACHINE.json; then
`python -m benchmarks.performance_page` writes the figures into both files. Nothing else should run
on the machine meanwhile.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks.models import ROOT, add_work
from edgediff.bench import machine
from edgediff.bench.machine import Machine

RESULTS = ROOT / "benchmarks" / "results"
RECORDED = {
    "startup": False,
    "stages": False,
    "unet_step": True,
    "vae_decode": True,
    "memory": True,
    "peers": True,
}
"""Benchmarks, and whether they keep models in a work folder."""
_INT8 = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp", "avx2")
"""CPU flags of int8 kernels, best first: they distinguish processors that share a name."""


def slug(found: Machine) -> str:
    """A machine's name for files: amd-epyc-avx2-2-cores."""
    best = next((flag for flag in _INT8 if flag in found.cpu_flags), "")
    text = f"{found.cpu} {best} {found.cores} cores".lower()
    words = "".join(c if c.isalnum() else " " for c in text.replace("(r)", "").replace("(tm)", ""))
    return "-".join(words.split())


def record(name: str, folder: Path, *, work: Path) -> Path:
    """Run a benchmark, whose output goes to stdout. Returns the file that it wrote."""
    out = folder / f"{name}-{slug(machine.describe())}.json"
    where = ("--work", str(work)) if RECORDED[name] else ()
    command = [sys.executable, "-m", f"benchmarks.{name}", *where, "--json", str(out)]
    print(f"== {name}", flush=True)
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(f"{name}: failed; the earlier record is unchanged")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=tuple(RECORDED), metavar="NAME")
    add_work(parser)
    arguments = parser.parse_args()
    for name in arguments.names or RECORDED:
        print(record(name, RESULTS, work=arguments.work), file=sys.stderr)


if __name__ == "__main__":
    main()
