"""The judge learns what originals show, and runs as one ONNX file."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from demo_model.judges import model as judge_model
from demo_model.judges import training
from demo_model.judges.model import COLOUR_CLASSES, HEADS, OUTPUTS, Judge

WIDTHS = (8, 8, 16, 16)
COLOURS = {"red": (222, 40, 40), "blue": (40, 60, 220)}


def _entry(colour: str, subject: int, light: str) -> dict[str, object]:
    return {
        "subjects": [subject], "counts": [1], "colours": [colour], "place": "white", "light": light,
    }  # fmt: skip


def _shard() -> tuple[np.ndarray, list[dict[str, object]]]:
    """Red squares are subject 0 by day, blue ones subject 1 by night."""
    rng = np.random.default_rng(0)
    images, entries = np.full((24, 128, 128, 3), 255, np.uint8), []
    for k in range(24):
        colour = ("red", "blue")[k % 2]
        y, x = rng.integers(10, 60, 2)
        images[k, y : y + 50, x : x + 50] = COLOURS[colour]
        entries.append(_entry(colour, k % 2, ("", "night")[k % 2]))
    return images, entries


def test_labels_are_silent_about_several_things() -> None:
    several = _entry("red", 0, "") | {"subjects": [0, 1], "counts": [1, 1], "colours": ["red", ""]}
    assert training.labels(several)[1:3] == [training.NONE, training.NONE]
    assert training.labels(_entry("red", 0, ""))[1] == COLOUR_CLASSES.index("red")


@pytest.mark.slow
def test_it_learns_from_originals_and_runs_in_onnx(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, entries = _shard()
    model = training.train(
        [(images, entries)], 3, tmp_path / "judge.ckpt", samples=2400, log=print, processes=1,
        batch=16, widths=WIDTHS,
    )  # fmt: skip
    found = training.accuracy(model, images, entries)
    assert found["subjects"] == 1
    assert found["colour"] == 1
    assert found["light"] == 1
    again = training.load(tmp_path / "judge.ckpt", 3, WIDTHS)
    judge_model.write(again, tmp_path / "judge.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "judge.onnx")
    got = session.run(list(OUTPUTS), {"images": images[:5]})
    with torch.no_grad():
        expected = again(torch.from_numpy(images[:5]))
    for a, b in zip(got, expected, strict=True):
        assert np.allclose(a, b.numpy(), atol=1e-3)


def test_maps_measure_distance() -> None:
    torch.manual_seed(0)
    model = Judge(3, WIDTHS).eval()
    images, _ = _shard()
    with torch.no_grad():
        *_, maps = model(torch.from_numpy(images[:4]))
    distance = (maps[:, None] - maps[None]).square().sum(-1)
    assert float(distance.diagonal().max()) == pytest.approx(0, abs=1e-9)
    assert float(maps.square().sum(1).mean()) == pytest.approx(1, abs=0.1)
    assert float(distance[0, 1]) > 0


def test_its_classes_are_written(tmp_path: Path) -> None:
    prompts = {"place": [{"prompt": "a fox in the snow", "place": "snow"}]}
    names = [("fox",), ("cat", "kitty")]
    training.describe(names, [True, False], prompts, 0.4, tmp_path / "judge.json")
    listed = json.loads((tmp_path / "judge.json").read_text())
    assert listed["subjects"][1] == {"names": ["cat", "kitty"], "common": False}
    assert set(HEADS) <= set(listed)
    assert listed["prompts"] == prompts
    assert listed["original_distance"] == 0.4
