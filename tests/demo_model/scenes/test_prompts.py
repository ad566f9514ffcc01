"""Prompts for judging: of their kind, with their facts, from seeds that no training draws."""

import numpy as np
import pytest
import torch
from demo_model.judges import prompts
from demo_model.judges.model import Judge
from demo_model.scenes.held_out import is_held_out
from demo_model.scenes.scene import Scenes
from demo_model.scenes.surroundings import SURROUNDINGS


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "SIZES", dict.fromkeys(prompts.SIZES, 6))


def test_every_set_is_of_its_kind(scenes: Scenes) -> None:
    found = prompts.sets(scenes)
    assert {name: len(entries) for name, entries in found.items()} == prompts.SIZES
    names = [s.name for s in scenes.catalogue.subjects]
    for entry in found["held out"]:
        held = [is_held_out(names[k], entry["place"], entry["relation"]) for k in entry["subjects"]]
        assert any(held)
    for name in ("relation", "place", "count"):
        for entry in found[name]:
            assert not any(
                entry["place"] in SURROUNDINGS
                and is_held_out(names[k], entry["place"], entry["relation"])
                for k in entry["subjects"]
            )
    assert all(len(entry["subjects"]) == 2 for entry in found["relation"])
    assert all(entry["place"] in SURROUNDINGS for entry in found["place"])
    assert all(entry["colours"][0] in entry["prompt"] for entry in found["colour"])
    assert {entry["counts"][0] for entry in found["count"]} <= {2, 3}
    assert all(entry["seed"] >= prompts.FIRST_SEED for e in found.values() for entry in e)


def test_originals_of_one_prompt_differ(scenes: Scenes) -> None:
    scene = next(prompts._found(scenes, "variety"))
    images = prompts.variants(scene, scenes)
    assert len({image.tobytes() for image in images}) == prompts.VARIANTS
    assert all(
        np.array_equal(a, b) for a, b in zip(images, prompts.variants(scene, scenes), strict=True)
    )
    torch.manual_seed(0)
    assert prompts.original_distance(Judge(12, (8, 8, 8, 8)).eval(), scenes) > 0
