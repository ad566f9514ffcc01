"""The prompts that the model is judged by, from scenes of seeds that no training draws."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demo_model.judges.model import Judge
from demo_model.scenes import compose, wording
from demo_model.scenes.pool import facts
from demo_model.scenes.scene import Scene, Scenes, one_of
from demo_model.scenes.surroundings import SURROUNDINGS

FIRST_SEED = 900_000_000  # training's seeds end long before
SIZES = {"relation": 200, "held out": 100, "place": 100, "colour": 100, "count": 100, "variety": 20}
VARIANTS = 8  # originals of one prompt, as many as images of it are generated


def _is_single(scene: Scene) -> bool:
    return len(scene.things) == 1 and not scene.framing and not scene.things[0].pose


KINDS: dict[str, Callable[[Scene], bool]] = {
    "relation": lambda s: bool(s.relation) and not s.is_held_out,
    "held out": lambda s: s.is_held_out,
    "place": lambda s: _is_single(s) and s.place in SURROUNDINGS and not s.is_held_out,
    "colour": lambda s: _is_single(s) and bool(s.things[0].dye) and not s.is_held_out,
    "count": lambda s: len(s.things) == 1 and 1 < s.things[0].count <= 3 and not s.is_held_out,
    "variety": lambda s: _is_single(s) and s.things[0].count == 1 and not s.is_held_out,
}


def _found(scenes: Scenes, name: str) -> Iterator[Scene]:
    drawn = (scenes.any(seed) for seed in count(FIRST_SEED))
    return islice(filter(KINDS[name], drawn), SIZES[name])


def sets(scenes: Scenes) -> dict[str, list[dict[str, Any]]]:
    """Of each kind: prompts with the facts that a judge should see."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in KINDS:
        found[name] = []
        for scene in _found(scenes, name):
            prompt = wording.caption(scene, np.random.default_rng((scene.seed, 2)))
            found[name].append({"prompt": prompt, **facts(scene, scenes)})
    return found


def variants(scene: Scene, scenes: Scenes, n: int = VARIANTS) -> list[NDArray[np.uint8]]:
    """n originals of one single thing in one place: other drawings, poses and backgrounds each."""
    images = []
    thing = scene.things[0]
    for k in range(n):
        rng = np.random.default_rng((scene.seed, 3, k))
        drawings = thing.subject.drawings
        style = scene.style if scene.style_said else one_of(rng, sorted(drawings))
        other = replace(
            thing,
            sprite=one_of(rng, drawings[style]) if not thing.colour else thing.sprite,
            flipped=bool(rng.random() < 0.5),
            turn=round(float(rng.uniform(-9, 9)), 1) if rng.random() < 0.25 else 0.0,
        )
        seed = int(rng.integers(2**31))
        images.append(compose.render(replace(scene, seed=seed, things=(other,)), scenes))
    return images


@torch.no_grad()
def original_distance(model: Judge, scenes: Scenes) -> float:
    """Mean distance between the originals of one prompt, by the judge's maps."""
    distances = []
    for scene in _found(scenes, "variety"):
        *_, maps = model(torch.from_numpy(np.stack(variants(scene, scenes))))
        apart = (maps[:, None] - maps[None]).square().sum(-1)
        distances.append(float(apart.sum()) / (len(maps) * (len(maps) - 1)))
    return float(np.mean(distances))
