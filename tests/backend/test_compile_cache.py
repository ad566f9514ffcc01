"""The caches of providers that compile: their folders, and their hits and misses."""

import os
import sys
from pathlib import Path

import pytest

from edgediff.backend.compile_cache import Cache, default_cache_dir

KERNEL = "TensorrtExecutionProvider_TRTKernel_graph_main_7_0_0_fp16_sm90"
TIMING = "TensorrtExecutionProvider_cache_sm90.timing"
SHAPE = {"height": 64, "batch": 2, "width": 96}


def fill(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_each_graph_and_each_set_of_shapes_has_a_folder(tmp_path: Path) -> None:
    """TensorRT's file names would be the same."""
    folders = {
        Cache(tmp_path, "unet.onnx", SHAPE).folder,
        Cache(tmp_path, "unet.onnx", {**SHAPE, "width": 64}).folder,
        Cache(tmp_path, "vae_decoder.onnx", {}).folder,
    }
    assert {f.name for f in folders} == {"unet-2-64-96", "unet-2-64-64", "vae_decoder"}
    assert not list(tmp_path.iterdir())


def test_a_first_engine_is_a_miss_and_its_reuse_a_hit(tmp_path: Path) -> None:
    first = Cache(tmp_path, "unet.onnx", SHAPE)
    assert first.outcomes() == {}
    fill(first.folder / f"{KERNEL}.engine", "engine")
    fill(first.folder / f"{KERNEL}.profile", "shapes")
    fill(tmp_path / TIMING, "times")
    assert first.outcomes() == {"engine": "miss", "timing": "miss"}
    again = Cache(tmp_path, "unet.onnx", SHAPE)
    assert again.outcomes() == {"engine": "hit", "timing": "unused"}


def test_timings_of_another_graph_are_a_hit(tmp_path: Path) -> None:
    fill(tmp_path / TIMING, "times")
    cache = Cache(tmp_path, "unet.onnx", SHAPE)
    fill(cache.folder / f"{KERNEL}.engine", "engine")
    fill(tmp_path / TIMING, "more times")
    assert cache.outcomes() == {"engine": "miss", "timing": "hit"}


def test_an_engine_that_is_built_again_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "unet.onnx", SHAPE)
    engine = cache.folder / f"{KERNEL}.engine"
    fill(engine, "engine")
    stale = Cache(tmp_path, "unet.onnx", SHAPE)
    os.utime(engine, ns=(1, 1))
    assert stale.outcomes() == {"engine": "miss"}


def test_a_new_engine_for_another_part_of_the_graph_is_a_miss(tmp_path: Path) -> None:
    """TensorRT builds an engine for each piece of the graph that it takes."""
    cache = Cache(tmp_path, "unet.onnx", SHAPE)
    fill(cache.folder / f"{KERNEL}.engine", "engine")
    later = Cache(tmp_path, "unet.onnx", SHAPE)
    fill(cache.folder / f"{KERNEL}_1.engine", "engine")
    assert later.outcomes() == {"engine": "miss"}


def test_other_providers_cache_a_compiled_graph(tmp_path: Path) -> None:
    cache = Cache(tmp_path, "unet.onnx", {})
    fill(cache.folder / "deep" / "17082301.blob", "compiled")
    assert cache.outcomes() == {"graph": "miss"}
    assert Cache(tmp_path, "unet.onnx", {}).outcomes() == {"graph": "hit"}


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, "home/.cache"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "home/.cache"),
        ("linux", {"XDG_CACHE_HOME": "{}/xdg"}, "xdg"),
        ("darwin", {"XDG_CACHE_HOME": "{}/xdg"}, "home/Library/Caches"),
        ("win32", {"LOCALAPPDATA": "{}/local"}, "local"),
        ("win32", {}, "home/AppData/Local"),
    ],
)
def test_the_default_cache_is_in_the_platforms_cache_folder(
    platform: str,
    environment: dict[str, str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(sys, "platform", platform)
    folder = tmp_path / expected / "edgediff" / "0123456789abcdef"
    assert default_cache_dir("0123456789abcdef" * 4) == folder
    assert list(tmp_path.iterdir()) == []


def test_no_default_cache_if_it_is_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert default_cache_dir("0" * 64) is None
    monkeypatch.undo()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    assert default_cache_dir("0" * 64) is None
