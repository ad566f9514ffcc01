"""edgediff in packaged apps: from a zip, without docstrings, frozen, and its hook."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import edgediff
from edgediff.__pyinstaller import get_hook_dirs
from edgediff.cli import edgediff as command

PACKAGE = Path(edgediff.__file__).parent


def test_from_a_zip_the_error_says_what_is_missing(tiny_bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "edgediff.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for path in PACKAGE.rglob("*.py"):
            out.write(path, path.relative_to(PACKAGE.parent))
    code = """if True:
        import sys
        sys.path.insert(0, sys.argv[1])
        import edgediff
        assert sys.argv[1] in edgediff.__file__
        try:
            edgediff.load()
        except edgediff.BundleError as e:
            print(e)
        print(len(edgediff.load(sys.argv[2]).generate("a", steps=1).images))
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(archive), str(tiny_bundle)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    error, images = done.stdout.splitlines()
    assert "packaged without its data files, or runs from a zip" in error
    assert "--collect-data edgediff" in error
    assert images == "1"


def test_the_wheel_has_every_file_of_both_packages(tmp_path: Path) -> None:
    """Also those that are no code: the model, and CLIP's merges for checkpoints in one file."""
    root = PACKAGE.parent
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True, cwd=root)
    (wheel,) = tmp_path.glob("*.whl")
    names = {*zipfile.ZipFile(wheel).namelist()}
    for package in (PACKAGE, root / "export" / "edgediff_export"):
        files = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        assert len(files) > 50
        assert {p.relative_to(package.parent).as_posix() for p in files} <= names
    assert "edgediff_export/source/configs/clip_merges.txt.gz" in names
    assert not [name for name in names if "tests/" in name or "demo_model" in name]


def test_without_docstrings_and_assertions(tiny_bundle: Path, tmp_path: Path) -> None:
    start = [sys.executable, "-OO", "-m", "edgediff"]
    made = [*start, "generate", "a fox", "-m", str(tiny_bundle), "-o", "a.png", "--steps", "1"]
    for line in (made, [*start, "verify", str(tiny_bundle)], [*start, "generate", "--help"]):
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
    assert edgediff.recorded(tmp_path / "a.png").prompt == "a fox"


def test_the_hook_is_found_and_finds_everything() -> None:
    (folder,) = get_hook_dirs()
    text = (Path(folder) / "hook-edgediff.py").read_text()
    asked: dict[str, str] = {}
    stubs: dict[str, Any] = {
        "collect_data_files": lambda name: asked.setdefault("data", name),
        "collect_submodules": lambda name, **_: asked.setdefault("modules", name),
    }
    lines = [line for line in text.splitlines() if not line.startswith("from PyInstaller")]
    exec("\n".join(lines), stubs)
    assert asked == {"data": "edgediff", "modules": "edgediff"}
    assert stubs["excludedimports"] == ["huggingface_hub"]
    project = (PACKAGE.parent / "pyproject.toml").read_text()
    assert 'hook-dirs = "edgediff.__pyinstaller:get_hook_dirs"' in project


def test_bench_of_a_frozen_app_says_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    done = CliRunner().invoke(command, ["bench", "--runs", "1"])
    assert done.exit_code == 1
    assert "a packaged app has none: use an edgediff that pip installed" in done.output


def test_export_of_a_frozen_app_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: ())
    done = CliRunner().invoke(command, ["export", "--help"])
    assert done.exit_code == 1
    assert 'pip install "edgediff[export]"' in done.output


def test_every_lazy_name_is_a_module_that_the_hook_collects() -> None:
    for home in {*edgediff._HOMES.values()}:
        path = PACKAGE.joinpath(*home.split("."))
        assert path.with_suffix(".py").is_file() or path.is_dir(), home
    assert os.path.isfile(PACKAGE / "__pyinstaller" / "hook-edgediff.py")  # noqa: PTH113
