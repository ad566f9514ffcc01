"""Memory, files, disks and processors that run out: a clear error, or the image."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, resource, sys
import edgediff
import numpy as np
pipe = edgediff.load(sys.argv[1], threads=1, max_memory=None)
pipe.generate("a fox", seed=1, steps=1)
{limit}
try:
    {act}
except edgediff.EdgediffError as e:
    print(type(e).__name__, e)
else:
    print("drawn")
pipe.generate("a fox", seed=1, steps=1)
print("and again")
"""


def run(bundle: Path, limit: str, act: str, cwd: Path) -> list[str]:
    """What a process says that draws, gets a limit, acts, and draws again."""
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(limit=limit, act=act), str(bundle)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_memory_that_runs_out_is_an_error_and_the_pipeline_stays(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    limit = "\n".join(
        [
            "pages = int(open('/proc/self/statm').read().split()[0])",
            "most = pages * os.sysconf('SC_PAGE_SIZE') + 64 * 2**20",
            "resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))",
        ]
    )
    error, again = run(tiny_bundle, limit, "pipe.generate('a', steps=1, size=2048)", tmp_path)
    assert error.startswith("ProviderError")
    assert again == "and again"


def test_file_descriptors_that_run_out_are_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    limit = "\n".join(
        [
            "most = len(os.listdir('/proc/self/fd'))",
            "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]",
            "resource.setrlimit(resource.RLIMIT_NOFILE, (most - 1, hard))",
        ]
    )
    act = "pipe.generate('a', steps=1).save('a.png')"
    error, again = run(tiny_bundle, limit, act, tmp_path)
    assert error.startswith("InputError")
    assert "Too many open files" in error
    assert list(tmp_path.iterdir()) == []
    assert again == "and again"
    error, _ = run(tiny_bundle, limit, "edgediff.load(sys.argv[1])", tmp_path)
    assert error.startswith("BundleError")
    assert "Too many open files" in error


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_disk_that_is_full_leaves_the_old_file(
    tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    """By a limit on the size of files, which needs no disk of its own."""
    (tmp_path / name).write_bytes(b"old")
    limit = "\n".join(
        [
            "import signal",
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))",
        ]
    )
    act = f"pipe.generate('a', steps=1).save({name!r})"
    error, again = run(tiny_bundle, limit, act, tmp_path)
    assert f"{name}: cannot be written (File too large)" in error
    assert again == "and again"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: b"old"}


def test_one_processor_draws_the_same(tiny_bundle: Path, tmp_path: Path) -> None:
    code = """if True:
        import hashlib, os, sys
        if sys.argv[2] == "one":
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import edgediff
        images = edgediff.load(sys.argv[1]).generate("a fox", seed=1, steps=2).images
        print(hashlib.sha256(images[0].tobytes()).hexdigest())
    """

    def drawn(processors: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", code, str(tiny_bundle), processors],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        ).stdout

    assert drawn("one") == drawn("all")
