"""Benchmarks run as the user runs them: `python -m benchmarks.NAME`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Ran(NamedTuple):
    """A benchmark's stdout, and the JSON that it wrote."""

    stdout: str
    found: Any


@pytest.fixture
def benchmark(tmp_path: Path) -> Callable[..., Ran]:
    """Name, arguments → a run; its working folder is the repository's root."""

    def run(name: str, *arguments: object) -> Ran:
        out = tmp_path / "out.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", f"benchmarks.{name}"),
                *(str(a) for a in arguments),
                *("--json", str(out)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return Ran(done.stdout, json.loads(out.read_text()))

    return run
