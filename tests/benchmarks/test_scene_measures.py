"""Scene measures: shares, distances and bars, with a judge and a pipeline that are known."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import emoji, scenes

COLOURS = np.array([(250, 120, 20), (40, 90, 220), (30, 160, 60)], np.uint8)


class Pipe:
    """Draws an image of one colour for the first subject that the prompt names."""

    def generate(self, prompt: str, *, seed: int, **settings: Any) -> SimpleNamespace:
        named = [k for k, name in enumerate(("fox", "cat", "owl")) if name in prompt]
        image = np.empty((128, 128, 3), np.uint8)
        image[:] = COLOURS[named[0] if named else 0]
        image[seed % 100 :: 7] = 0
        if "negative_prompt" in settings:
            image[:8, :8] = 255
        return SimpleNamespace(images=[image])


class Judge(scenes.SceneJudge):
    """Knows the colours, and sees leaves unless the corner is white."""

    def __init__(self, folder: Path) -> None:
        model = folder / "judge.onnx"
        model.with_suffix(".json").write_text(json.dumps(_listed()))
        listed = _listed()
        self.classes = {name: listed[name] for name in ("place", "colour", "count", "light")}
        self.subjects, self.prompts = listed["subjects"], listed["prompts"]
        self.original_distance = listed["original_distance"]

    def __call__(self, images: np.ndarray, _: int = 64) -> scenes.Seen:
        x = images.reshape(len(images), -1, 3).astype(np.float32)
        middle = np.median(x, axis=1)
        subjects = -np.abs(middle[:, None] - COLOURS[None]).sum(-1)
        white = (images[:, :8, :8] == 255).all((1, 2, 3))
        n = len(images)
        place = np.zeros((n, 2), np.float32)
        place[np.arange(n), white.astype(int)] = 1
        stripes = images[:, :, 0].reshape(n, -1).astype(np.float32) / 1000
        return {
            "subjects": subjects, "place": place,
            "colour": np.eye(2, dtype=np.float32)[np.zeros(n, int)],
            "count": np.eye(4, dtype=np.float32)[np.ones(n, int)],
            "light": np.eye(2, dtype=np.float32)[np.ones(n, int)],
            "features": x.mean(1), "maps": stripes,
        }  # fmt: skip


def _entry(prompt: str, subjects: list[int], place: str = "leaves") -> dict[str, Any]:
    return {
        "prompt": prompt,
        "subjects": subjects,
        "place": place,
        "colours": ["red"],
        "counts": [2],
    }


def _listed() -> dict[str, Any]:
    return {
        "subjects": [{"names": [n], "common": True} for n in ("fox", "cat", "owl")],
        "place": ["leaves", "white"], "colour": ["red", "blue"], "count": [1, 2, 3, 4],
        "light": ["", "morning"], "original_distance": 0.5,
        "prompts": {
            "relation": [_entry("a fox on a cat", [0, 1]), _entry("a cat", [1])],
            "held out": [_entry("an owl", [2]), _entry("an owl", [2], "white")],
            "place": [_entry("a fox", [0])], "colour": [_entry("a red fox", [0])],
            "count": [_entry("two cats", [1])], "variety": [_entry("a fox", [0])],
        },
    }  # fmt: skip


def test_subjects_are_right_if_they_have_the_highest_logits() -> None:
    seen = {"subjects": np.array([[3.0, 1, 2], [3, 1, 2], [0, 0, 9]])}
    right = scenes.subjects_right(seen, [[0, 2], [0, 1], [2, 2]])
    assert right.tolist() == [True, False, True]


def test_frechet_distance_of_shifted_features_is_the_shift_squared() -> None:
    x = np.random.default_rng(0).normal(size=(500, 6)).astype(np.float32)
    assert scenes.frechet_distance(x, x) == pytest.approx(0, abs=1e-3)
    assert scenes.frechet_distance(x, x + 2) == pytest.approx(24, rel=1e-3)
    assert scenes.frechet_distance(x, 3 * x) > 20


def test_mean_distance_leaves_out_each_image_with_itself() -> None:
    maps = np.array([[0.0, 0], [1, 0], [0, 1]], np.float32)
    assert scenes.mean_distance(maps) == pytest.approx((1 + 1 + 2) / 3)
    assert scenes.mean_distance(np.zeros((4, 2), np.float32)) == 0


def test_every_bar_has_its_figure(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 255, (40, 128, 128, 3), np.uint8)
    pipe: Any = Pipe()
    found = scenes.measure(Judge(tmp_path), pipe, originals)
    assert found["subject"] == 1
    assert found["relation"] == 0.5  # the second subject of "a fox on a cat" is never drawn
    assert found["held out"] == 0.5
    assert found["fox seeds"] == scenes.FOX_SEEDS
    assert found["negative"] == 1
    assert found["variety"] > 0
    listed = {check.what: check for check in scenes.checks(found)}
    assert len(listed) == len(scenes.BARS) + 1
    assert listed["subject, single things"].met
    assert not listed["both subjects of a relation"].met


def test_scenes_need_originals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = ["emoji", "--scenes", "judge.onnx", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", given)
    with pytest.raises(SystemExit) as ended:
        emoji.main()
    assert ended.value.code == 2
