"""A virtual environment for each peer, from `requirements/NAME.txt`, and its contents."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

from benchmarks.models import ROOT

HERE = Path(__file__).parent
_OURS = "edgediff"
"""Environments with this prefix get this checkout as well."""
_OF_VENV = ("pip", "setuptools", "wheel")
"""Packages of an empty virtual environment."""
_MISSING = "missing:"
"""The prefix of this line; other lines may be warnings."""
_LIMITS = ("OMP_", "OPENBLAS_", "MKL_", "PYTHON")


class PeerError(Exception):
    """A peer cannot run on this machine; the text gives the reason."""


def variables() -> dict[str, str]:
    """This process's variables, without those that change a peer's modules or threads."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_LIMITS)}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def run(*command: object, ours: bool = False) -> str:
    """Run a command and return its output. Unless it is `ours`, it imports nothing of this
    checkout. Raises PeerError with the last line of the output."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            cwd=ROOT if ours else HERE,
            env=None if ours else variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError as e:
        raise PeerError(f"{words[0]}: cannot be started ({e.strerror})") from e
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        said = f": {lines[-1][:300]}" if lines else ""
        raise PeerError(f"{Path(words[0]).name} ended with status {done.returncode}{said}")
    return done.stdout


def python(folder: Path) -> Path:
    """The interpreter of the environment in `folder`."""
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def installed(folder: Path, name: str) -> bool:
    """Whether the environment exists and has the current requirements."""
    stamp = folder / "requirements"
    return stamp.exists() and stamp.read_text() == requirements(name)


def install(folder: Path, name: str) -> None:
    """Make the environment `name` in `folder` unless it exists; edgediff is always installed again,
    because this checkout may have changed. Raises PeerError."""
    pip = (python(folder), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    if not installed(folder, name):
        print(f"installing {folder}", file=sys.stderr)
        if folder.exists():
            shutil.rmtree(folder)
        venv.create(folder, with_pip=True)
        run(*pip, "-r", HERE / "requirements" / f"{name}.txt")
    if name.startswith(_OURS):
        run(*pip, "--no-deps", "--force-reinstall", ROOT)
    (folder / "requirements").write_text(requirements(name))


def check_provider(folder: Path, name: str) -> None:
    """Raise PeerError with the reason unless the environment's edgediff can use the provider."""
    module = "edgediff.backend.available"
    code = f"from {module} import why_missing; print('{_MISSING}', why_missing({name!r}))"
    said = run(python(folder), "-c", code).splitlines()
    missing = next(line.removeprefix(_MISSING) for line in said if line.startswith(_MISSING))
    if missing.strip() != "None":
        raise PeerError(missing.strip())


def requirements(name: str) -> str:
    """The lines of `requirements/NAME.txt`, with includes expanded."""
    lines = []
    for line in (HERE / "requirements" / f"{name}.txt").read_text().splitlines():
        included = line.removeprefix("-r ").removesuffix(".txt")
        lines.append(line if included == line else requirements(included).rstrip("\n"))
    return "\n".join(lines) + "\n"


def versions(folder: Path) -> dict[str, str]:
    """Package → version."""
    found = importlib.metadata.distributions(path=[str(_site_packages(folder))])
    named = {d.name: d.version for d in found if d.name not in _OF_VENV}
    return dict(sorted(named.items(), key=lambda item: item[0].lower()))


def installed_bytes(folder: Path) -> int:
    """Size of its packages on disk, without Python itself, pip, setuptools, and .pyc files, whose
    number depends on the modules that have run."""
    return sum(
        f.stat().st_size
        for entry in _site_packages(folder).iterdir()
        if not entry.name.startswith((*_OF_VENV, "_distutils_hack", "distutils-precedence"))
        for f in files(entry)
        if f.suffix != ".pyc"
    )


def files(path: Path) -> Iterator[Path]:
    """The file, or every file under the folder."""
    if path.is_file():
        yield path
        return
    yield from (f for f in path.rglob("*") if f.is_file())


def _site_packages(folder: Path) -> Path:
    if sys.platform == "win32":
        return folder / "Lib" / "site-packages"
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
