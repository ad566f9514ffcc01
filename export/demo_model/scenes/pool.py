"""Scenes rendered ahead by several processes: a memory-mapped pool of images with their captions.

A pool is a folder of shards. Each holds `images.npy` (n, 128, 128, 3) uint8 and `scenes.json`: the
seed, four captions and the facts of each scene, which classifiers learn from. The same first seed
gives the same shard.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo_model import checkpoint
from demo_model.scenes import catalogue, compose, wording
from demo_model.scenes.painting import SIZE
from demo_model.scenes.scene import Scene, Scenes

CAPTIONS = 4  # of each scene
SHARD = 4096  # scenes


def facts(scene: Scene, scenes: Scenes) -> dict[str, Any]:
    """What is in the scene, by the names and numbers that judges and the text encoder learn."""
    return {
        "seed": scene.seed,
        "subjects": [scenes.catalogue.index(thing.subject) for thing in scene.things],
        "counts": [thing.count for thing in scene.things],
        "colours": [thing.colour for thing in scene.things],
        "relation": scene.relation,
        "place": scene.place,
        "plain_colours": list(scene.plain_colours),
        "light": scene.light,
        "framing": scene.framing,
        "style": scene.style if scene.style_said else "",
        "pose": scene.things[0].pose,
        "size": scene.things[0].size,
    }


@cache
def _scenes(packages: Path, cache_folder: Path) -> Scenes:
    return Scenes(*catalogue.load(packages, cache_folder))


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the sprites are, and whether held-out scenes are drawn as well."""

    packages: Path
    cache: Path

    def scenes(self) -> Scenes:
        """The scenes of these sprites; loaded once in every process."""
        return _scenes(self.packages, self.cache)


def drawn(source: Source, seed: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The image of that seed's scene, and its seed, captions and facts."""
    scenes = source.scenes()
    scene = scenes.draw(seed)
    rng = np.random.default_rng((seed, 2))
    captions = [wording.caption(scene, rng) for _ in range(CAPTIONS)]
    entry = {"captions": captions, **facts(scene, scenes)}
    return compose.render(scene, scenes), entry


def _part(source: Source, seeds: Sequence[int]) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    pairs = [drawn(source, seed) for seed in seeds]
    return np.stack([image for image, _ in pairs]), [entry for _, entry in pairs]


def write_shard(
    source: Source, folder: Path, first_seed: int, *, size: int, processes: int = 1
) -> Path:
    """Render `size` scenes from first_seed on into folder/FIRST_SEED, unless they are there."""
    path = folder / f"{first_seed:09d}"
    if path.exists():
        return path
    parts = [
        range(k, min(k + 256, first_seed + size)) for k in range(first_seed, first_seed + size, 256)
    ]
    images = np.empty((size, SIZE, SIZE, 3), np.uint8)
    entries: list[dict[str, Any]] = []
    for pixels, listed in _each_part(source, parts, processes):
        images[len(entries) : len(entries) + len(listed)] = pixels
        entries += listed

    def write(beside: Path) -> None:
        beside.mkdir()
        np.save(beside / "images.npy", images)
        (beside / "scenes.json").write_text(json.dumps(entries))

    checkpoint.replace_folder(path, write)
    return path


def _each_part(
    source: Source, parts: Sequence[range], processes: int
) -> Iterator[tuple[NDArray[np.uint8], list[dict[str, Any]]]]:
    if processes <= 1:
        for part in parts:
            yield _part(source, part)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as workers:
        yield from workers.map(_part, [source] * len(parts), parts)


def remove_shard(path: Path) -> None:
    """Remove a shard that can be rendered again."""
    shutil.rmtree(path)


def shards(folder: Path) -> list[Path]:
    """The finished shards, in order of their seeds."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit())


def read_shard(path: Path) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """A shard's images, memory-mapped, and what is said of each."""
    listed: list[dict[str, Any]] = json.loads((path / "scenes.json").read_text())
    return np.load(path / "images.npy", mmap_mode="r"), listed
