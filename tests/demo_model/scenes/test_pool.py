"""Shards of rendered scenes: written once, whole, the same by one process and by two."""

from pathlib import Path

import numpy as np
import pytest
from demo_model.scenes import pool
from demo_model.scenes.scene import Scenes


@pytest.fixture
def source(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> pool.Source:
    """The small catalogue, as if it had been loaded from these folders."""
    monkeypatch.setattr(pool, "_scenes", lambda *_: scenes)
    return pool.Source(packages=Path("packages"), cache=Path("cache"))


def test_a_shard_holds_each_seed_s_scene(tmp_path: Path, source: pool.Source) -> None:
    path = pool.write_shard(source, tmp_path, 100, size=6)
    assert pool.shards(tmp_path) == [path]
    images, listed = pool.read_shard(path)
    assert images.shape == (6, 128, 128, 3)
    assert [entry["seed"] for entry in listed] == [*range(100, 106)]
    for image, entry in zip(images, listed, strict=True):
        again, told = pool.drawn(source, entry["seed"])
        assert np.array_equal(image, again)
        assert told == entry
        assert len(entry["captions"]) == pool.CAPTIONS


def test_a_shard_that_is_there_is_left_alone(tmp_path: Path, source: pool.Source) -> None:
    path = pool.write_shard(source, tmp_path, 0, size=2)
    before = (path / "scenes.json").stat().st_mtime_ns
    assert pool.write_shard(source, tmp_path, 0, size=2) == path
    assert (path / "scenes.json").stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
