"""Peak memory and time of exporting a pipeline of SDXL's shape.

    python -m benchmarks.sdxl_shape [--work DIR] [--precision fp16 int8] [--json OUT]

The pipeline has random weights in float16, 2.6e9 of them in the UNet. It takes 7 GB of disk, each
bundle as much again, and an export 20 GB while it runs. Each export is a process of its own. Peak
memory is its resident set. The anonymous part stays until the process ends; mapped files can be
dropped (the two peaks may occur at different times).
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import models
from benchmarks.measure import (
    Check,
    add_json,
    machine,
    print_checks,
    print_machine,
    print_table,
    watched,
    write_json,
)

PEAK_BAR = 20.0
_SAMPLE = 0.1
_PEAKS = ("peak_mb", "peak_anonymous_mb", "peak_files_mb")


def export(source: Path, out: Path, precision: str) -> dict[str, Any]:
    """Seconds and peaks in MB of `edgediff export`, and its report."""
    command = [sys.executable, "-m", "edgediff", "export", str(source), str(out)]
    command += ["--precision", precision, "--force", "--json"]
    started = time.perf_counter()
    ran = watched(command, every=_SAMPLE)
    if ran is None:
        sys.exit(f"{precision}: the export failed")
    output, peaks = ran
    return {
        "precision": precision,
        "seconds": time.perf_counter() - started,
        "peak_mb": peaks["VmHWM"],
        "peak_anonymous_mb": peaks["RssAnon"],
        "peak_files_mb": peaks["RssFile"],
        "report": json.loads(output),
    }


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    models.add_work(parser)
    parser.add_argument("--precision", nargs="+", default=["fp16", "int8"])
    parser.add_argument("--keep", action="store_true", help="keep the bundles")
    add_json(parser)
    arguments = parser.parse_args()
    source = models.pipeline(arguments.work, "sdxl", half=True)
    exports = []
    for precision in arguments.precision:
        out = arguments.work / f"sdxl-{precision}"
        exports.append(export(source, out, precision))
        if not arguments.keep:
            shutil.rmtree(out)
    found = {"machine": machine(), "exports": exports}
    print_machine(found["machine"])
    print_table(
        ("precision", "time", "peak", "anonymous", "files", "bundle"),
        [
            (
                e["precision"],
                f"{e['seconds'] / 60:.1f} min",
                *(
                    f"{e[k] / 1e3:.1f} GB"
                    for k in ("peak_mb", "peak_anonymous_mb", "peak_files_mb")
                ),
                f"{e['report']['bytes'] / 1e9:.2f} GB",
            )
            for e in exports
        ],
    )
    checks = [
        Check(
            what=f"{e['precision']}: peak memory",
            value=e["peak_mb"] / 1e3,
            bar=PEAK_BAR,
            unit=" GB",
        )
        for e in exports
    ]
    print_checks(checks)
    found["checks"] = [c.record() for c in checks]
    write_json(arguments.json, found)


if __name__ == "__main__":
    main()
