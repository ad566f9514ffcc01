"""`kill -9` at random instants: no half file under its final name, and a rerun goes on.

    python -m benchmarks.kill [--times N] [--seed S] [--only KIND ...] [--json OUT]

Kinds: generate (`generate -o`, over an image that exists), prompts (`--prompts`), bench
(`bench --json`, over a result that exists) and export. Each command runs once whole, to learn how
long it takes, and then N times until an instant between its start and that long. After each kill,
every file under a final name is read whole: it is the old one or the new one. Then the same command
runs to its end beside the partial files that are left. `export` takes the longest by far.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import edgediff
from benchmarks import sd15_shape
from edgediff.bench import results
from edgediff.bundle.folder import Bundle

TINY = Path(__file__).parent.parent / "tests" / "golden" / "tiny"
PROMPTS = 6


def image(path: Path) -> None:
    """Read an image whole, or raise."""
    from edgediff.request.record import check_whole

    check_whole(path)
    edgediff.recorded(path)


def images(folder: Path) -> None:
    for path in folder.glob("out/*.png"):
        image(path)


def bundle(folder: Path) -> None:
    if (folder / "bundle").exists():
        opened = Bundle.open(folder / "bundle")
        for name in opened.manifest.files:
            opened.check_hash(name)


def result(folder: Path) -> None:
    if (folder / "bench.json").exists():
        results.read(folder / "bench.json")


def commands(source: Path) -> dict[str, tuple[list[str], Callable[[Path], None]]]:
    """Kind → a command line, and what reads its files."""
    drawn = ["-m", str(TINY), "--steps", "2", "--threads", "1"]
    bench = ["--runs", "5", "--cold", "1", "--seconds", "5", "--threads", "1"]
    return {
        "generate": (["generate", "a fox", *drawn, "-o", "a.png"], lambda f: image(f / "a.png")),
        "prompts": (["generate", *drawn, "--prompts", "p.txt", "--out-dir", "out"], images),
        "bench": (["bench", str(TINY), *bench, "--json", "bench.json"], result),
        "export": (["export", str(source), "bundle", "--steps", "2"], bundle),
    }


def start(command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "edgediff", *command],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_at_random(
    kind: str, command: list[str], check: Callable[[Path], None], times: int, source: random.Random
) -> dict[str, object]:
    """Returns how often it was killed, what was found wrong, and the seconds of a whole run."""
    wrong: list[str] = []
    killed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "p.txt").write_text("".join(f"a fox {k}\n" for k in range(PROMPTS)))
        started = time.monotonic()
        if start(command, folder).wait() != 0:
            raise SystemExit(f"{kind}: the command fails without being killed")
        whole = time.monotonic() - started
        for time_ in range(times):
            if kind in ("prompts", "export"):  # the others write over what is there
                shutil.rmtree(folder / "out", ignore_errors=True)
                shutil.rmtree(folder / "bundle", ignore_errors=True)
            process = start(command, folder)
            time.sleep(source.random() * whole)
            if process.poll() is None:
                process.kill()
                killed += 1
            process.wait()
            try:
                check(folder)
            except Exception as e:
                wrong.append(f"{kind}, kill {time_}: {type(e).__name__}: {e}")
        if start(command, folder).wait() != 0:
            wrong.append(f"{kind}: a rerun fails")
        check(folder)
        if kind == "prompts" and len(list((folder / "out").glob("*.png"))) != PROMPTS:
            wrong.append("prompts: a rerun leaves images out")
    return {"killed": killed, "wrong": wrong, "seconds": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    kinds = ["generate", "prompts", "bench", "export"]
    parser.add_argument("--only", action="append", choices=kinds, default=[])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as work:
        chosen = given.only or kinds
        pipeline = Path(work) / "pipeline"
        if "export" in chosen:
            sd15_shape.write_pipeline(pipeline, "tiny-vae")
        for kind, (command, check) in commands(pipeline).items():
            if kind in chosen:
                source = random.Random(f"{given.seed} {kind}")
                found[kind] = kill_at_random(kind, command, check, given.times, source)
                print(json.dumps({kind: found[kind]}), flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(1 if any(one["wrong"] for one in found.values()) else 0)


if __name__ == "__main__":
    main()
