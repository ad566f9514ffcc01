"""The models that the benchmarks measure: made once, and kept in a work folder between runs.

Each is made in its own process, so that this process stays small.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
main_export(sys.argv[1], output=sys.argv[2], task="text-to-image", do_validation=False)
"""


def add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--work",
        type=lambda text: Path(text).resolve(),
        default=ROOT / "build" / "benchmarks",
        metavar="DIR",
        help="folder for models that are kept between runs (%(default)s)",
    )


def pipeline(work: Path, shape: str = "sd15", *, half: bool = False) -> Path:
    """A diffusers folder of one of sd15_shape's SHAPES. half: weights in float16."""

    def write(folder: Path) -> None:
        precision = ["--half"] if half else []
        run_python("-m", "benchmarks.sd15_shape", str(folder), "--shape", shape, *precision)

    return once(work / (f"{shape}-half" if half else shape), write)


def bundle(work: Path, source: Path, precision: str, *options: str, name: str = "") -> Path:
    """The bundle that `edgediff export` makes; made again if the export's code is newer."""
    folder = work / (name or f"{source.name}-{precision}")
    if folder.exists() and _newest_code() > (folder / "bundle.json").stat().st_mtime:
        print(f"{folder}: older than the export's code, exporting again", file=sys.stderr)
        shutil.rmtree(folder)

    def export(out: Path) -> None:
        arguments = [str(source.resolve()), str(out), "--precision", precision, *options]
        run_python("-m", "edgediff", "export", *arguments)

    return once(folder, export)


def optimum_graphs(work: Path, source: Path) -> Path:
    """STAGE/model.onnx in float32, by optimum's own `main_export`."""

    def export(out: Path) -> None:
        run_python("-c", _OPTIMUM, str(source.resolve()), str(out))

    return once(work / f"{source.name}-optimum", export)


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make` unless it exists; complete or not at all."""
    if folder.exists():
        print(f"using {folder}", file=sys.stderr)
        return folder
    print(f"making {folder}", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(folder.name + ".part")
    if part.exists():
        shutil.rmtree(part)
    make(part)
    part.rename(folder)
    return folder


def run_python(*arguments: str) -> None:
    """Run Python in the repository's root; if it fails, its output goes to stderr."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{' '.join(arguments)}: failed")


def _newest_code() -> float:
    spec = importlib.util.find_spec("edgediff_export")
    if spec is None or spec.origin is None:
        return 0.0
    return max(f.stat().st_mtime for f in Path(spec.origin).parent.rglob("*.py"))
