"""All stages of the recipe in order, on a small catalogue and networks of a few channels."""

import inspect
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from demo_model import sentences, train
from demo_model.first_stage import training as first_stage
from demo_model.flow import training as flow
from demo_model.flow.networks import Shape
from demo_model.judges import prompts
from demo_model.judges import training as judges
from demo_model.scenes import pool
from demo_model.scenes.scene import Scenes
from demo_model.text_encoder import training as text
from demo_model.text_encoder.model import Shape as TextShape
from PIL import Image

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
TRAINED = ("first-stage", "text", "flow", "few-steps", "judge")


class _Teacher:
    """In place of the sentence encoder, whose weights are a download."""

    def __init__(self, _: Path) -> None:
        pass

    def __call__(self, texts: list[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.ones(len(texts), sentences.WIDTH), dim=-1)


@pytest.fixture
def small(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(pool, "_scenes", lambda *_: scenes)
    monkeypatch.setattr(pool, "SHARD", 8)
    monkeypatch.setattr(train, "IMAGE_SHARDS", 1)
    monkeypatch.setattr(train, "LATENT_SHARDS", 2)
    monkeypatch.setattr(train, "JUDGED", 8)
    monkeypatch.setattr(train, "PROMPTS", ("a fox", "a cat"))
    monkeypatch.setattr(prompts, "SIZES", dict.fromkeys(prompts.SIZES, 2))
    monkeypatch.setattr(sentences, "Sentences", _Teacher)
    monkeypatch.setattr(first_stage, "MEASURED", 4)
    tiny = Shape(channels=(16, 16), attention=(False, True), heads=2, groups=8)
    monkeypatch.setattr(train, "Shape", lambda: tiny)
    little = TextShape(width=16, layers=1, heads=2)
    for function in (text.train, text.load, text.accuracy):
        monkeypatch.setitem(inspect.unwrap(function).__kwdefaults__, "shape", little)  # type: ignore[arg-type]
    for function in (text.train, flow.train, flow.train_few_steps, judges.train):
        monkeypatch.setitem(inspect.unwrap(function).__kwdefaults__, "batch", 4)  # type: ignore[arg-type]


def folders(tmp_path: Path) -> list[str]:
    """The flags of every stage."""
    places = {"--work": tmp_path / "work", "--cache": tmp_path / "cache"}
    return [*(str(part) for pair in places.items() for part in pair), "--processes", "1"]


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_every_stage_runs_resumes_and_leaves_its_results(tmp_path: Path) -> None:
    given = folders(tmp_path)
    for stage in train.STAGES[2:]:
        train.main([stage, *given, "--samples", "32", "--seeds", "2"])
    work = tmp_path / "work"
    for stage in TRAINED:
        assert (work / f"{stage}.ckpt").exists()
    assert sorted(p.name for p in (work / "latents").iterdir()) == ["000000000", "000000008"]
    assert not list((tmp_path / "cache" / "spare").iterdir())  # rendered for latents only
    sheet = np.asarray(Image.open(work / "sheet.png"))
    assert sheet.shape == (2 * 128, 2 * 128, 3)
    session = onnxruntime.InferenceSession(work / "scene_judge.onnx")
    assert "subjects" in [o.name for o in session.get_outputs()]
    reached = (work / "LOG.md").read_text()
    for stage in TRAINED:
        assert f", {stage}: 32 samples" in reached
    for folder in ("flow", "few-steps"):
        assert (work / "pipelines" / folder / "model_index.json").exists()
    before = (work / "flow.ckpt").stat().st_size
    train.main(["flow", *given, "--samples", "64"])
    assert (work / "flow.ckpt").stat().st_size == before


@pytest.mark.usefixtures("small")
def test_latents_wait_for_the_autoencoder(tmp_path: Path) -> None:
    given = folders(tmp_path)
    train.main(["scenes", *given])
    train.main(["first-stage", *given, "--samples", "16"])
    with pytest.raises(RuntimeError, match="first-stage"):
        train.main(["latents", *given, "--samples", "32"])
    with pytest.raises(FileNotFoundError, match="latents"):
        train.main(["flow", *given])
