"""`edgediff generate` under limits of memory, files, disk and processors: the image, or one error.

    sudo python -m benchmarks.limits [BUNDLE] [--only KIND ...] [--json OUT]

Kinds: cgroup (a memory cgroup of version 1 or 2, page cache included, without swap), address-space
(`ulimit -v`), files (`ulimit -n`), disk (a file system in memory, too small for the image), and
processor (an affinity of one). Each limit goes through STEPS. An outcome is "image", "error" (one
line that begins with "Error:", exit status 1 or 2), "killed", or "other". Exit status 1 if one is
killed or other, or if a half image is left. Linux; cgroup and disk need root, and without it the
command says so and fails.
"""

import argparse
import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import machine, print_machine, write_json
from edgediff.request.record import check_whole

ROOT = Path(__file__).parent.parent
MEGABYTE = 10**6
STEPS: dict[str, tuple[int, ...]] = {
    "cgroup": (48, 64, 80, 96, 112, 128, 144, 160, 192, 256, 384, 512, 768, 1024, 2048, 4096),
    "address-space": (200, 300, 400, 600, 800, 1200, 1600, 2400, 4000),
    "files": (5, 6, 7, 8, 10, 12, 16, 24, 32, 64),
    "disk": (4, 8, 16, 24, 32, 64, 128, 1024),
    "processor": (1,),
}
"""MB of memory, numbers of files, KB of disk, processors."""


def outcome(command: list[str], image: Path, limit: Callable[[], None] | None) -> str:
    """Run a command under a limit, and name its outcome."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        preexec_fn=limit,
        env=environment,
        check=False,
    )
    left = [path for path in image.parent.iterdir() if path.suffix == ".partial"]
    if done.returncode == 0:
        check_whole(image)
        found = "image"
    elif image.exists() or left:
        found = "other: left a file behind"
    elif done.returncode == -signal.SIGKILL:
        found = "killed"
    elif done.returncode in (1, 2) and "Traceback" not in done.stderr and "Error:" in done.stderr:
        found = "error"
    else:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        found = f"other: status {done.returncode}: {last[:200]}"
    for path in (image, *left):
        path.unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def memory_cgroup(megabytes: int) -> Iterator[Callable[[], None]]:
    """A cgroup with a limit; yields the function that brings the calling process into it."""
    first = Path("/sys/fs/cgroup/memory")
    version = 1 if first.is_dir() else 2
    folder = (first if version == 1 else Path("/sys/fs/cgroup")) / f"edgediff-{os.getpid()}"
    folder.mkdir()
    try:
        name = "memory.limit_in_bytes" if version == 1 else "memory.max"
        (folder / name).write_text(str(megabytes * MEGABYTE))
        swap = folder / ("memory.swappiness" if version == 1 else "memory.swap.max")
        with contextlib.suppress(OSError):  # a kernel without swap
            swap.write_text("0")
        members = folder / "cgroup.procs"
        yield lambda: members.write_text(str(os.getpid())) and None
    finally:
        folder.rmdir()


@contextlib.contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """A folder on a file system of its own."""
    with tempfile.TemporaryDirectory() as name:
        size = f"size={kilobytes}k"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", name], check=True)
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def limited(kind: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (most, most))


def run(kind: str, amount: int, bundle: str, folder: Path) -> str:
    """The outcome of one image under one limit."""

    def generate(where: Path, limit: Callable[[], None] | None) -> str:
        image = where / "a.png"
        command = [sys.executable, "-m", "edgediff", "generate", "a fox", "-m", bundle, "-o"]
        return outcome([*command, str(image)], image, limit)

    if kind == "cgroup":
        with memory_cgroup(amount) as enter:
            return generate(folder, enter)
    if kind == "disk":
        with small_disk(amount) as disk:
            return generate(disk, None)
    limits = {
        "address-space": limited(resource.RLIMIT_AS, amount * MEGABYTE),
        "files": limited(resource.RLIMIT_NOFILE, amount),
        "processor": lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    }
    return generate(folder, limits[kind])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("bundle", nargs="?", default="emoji")
    parser.add_argument("--only", action="append", choices=[*STEPS], default=[])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    kinds = given.only or [*STEPS]
    if os.geteuid() != 0 and {"cgroup", "disk"} & {*kinds}:
        sys.exit("cgroup and disk need root: run it with sudo, or choose others with --only")
    found: dict[str, dict[int, str]] = {}
    print_machine(machine())
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            found[kind] = {}
            for amount in STEPS[kind]:
                found[kind][amount] = run(kind, amount, given.bundle, Path(folder))
                print(f"{kind:14} {amount:5}  {found[kind][amount]}", flush=True)
    write_json(given.json, {"machine": machine(), "bundle": given.bundle, "outcomes": found})
    fine = {"image", "error"}
    sys.exit(any(one not in fine for kind in found.values() for one in kind.values()))


if __name__ == "__main__":
    main()
