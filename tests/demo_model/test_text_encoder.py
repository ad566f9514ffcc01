"""The text encoder learns the facts of scenes from captions, and resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from demo_model import checkpoint, sentences
from demo_model import tokenizer as tokenizers
from demo_model.text_encoder import facts, training
from demo_model.text_encoder.model import Shape
from transformers import CLIPTokenizer

SHAPE = Shape(width=32, layers=1, heads=2)
SUBJECTS = 3


def _entry(caption: str, subjects: list[int], **changed: Any) -> dict[str, Any]:
    return {
        "captions": [caption], "subjects": subjects, "counts": [1] * len(subjects),
        "colours": [""] * len(subjects), "relation": "", "place": "white", "plain_colours": [],
        "light": "", "framing": "", "style": "", "pose": "", "size": "",
    } | changed  # fmt: skip


ENTRIES = [
    _entry("a fox", [0]),
    _entry("a cat in the snow", [1], place="snow"),
    _entry("two red apples", [2], counts=[2], colours=["red"]),
    _entry("a fox on an apple at night", [0, 2], relation="on", place="grass", light="night"),
]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train([c for e in ENTRIES for c in e["captions"]], folder, 560)
    return tokenizers.load(folder, 16)


def test_labels_follow_the_facts() -> None:
    names = list(facts.heads(SUBJECTS))
    told = dict(zip(names, facts.labels(ENTRIES[3], SUBJECTS), strict=True))
    assert (told["subject 0"], told["subject 1"], told["subject 2"]) == (0, 2, SUBJECTS)
    assert told["light"] == 1 + ["morning", "sunset", "night"].index("night")
    red = dict(zip(names, facts.labels(ENTRIES[2], SUBJECTS), strict=True))
    assert facts.SAID_COLOURS[red["colour 0"]] == "red"
    assert red["count"] == 1
    for name, label in told.items():
        assert 0 <= label < facts.heads(SUBJECTS)[name]


def test_it_learns_facts_and_resumes(tmp_path: Path, tokens: CLIPTokenizer) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "text.ckpt"
    asked: list[str] = []

    def teacher(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.nn.functional.normalize(torch.ones(len(texts), sentences.WIDTH), dim=-1)

    options = {"log": print, "processes": 1, "shape": SHAPE, "batch": 16}
    training.train(ENTRIES, SUBJECTS, tokens, teacher, path, samples=4000, **options)
    found = training.accuracy(path, ENTRIES, SUBJECTS, tokens, shape=SHAPE)
    assert min(found.values()) == 1
    assert set(asked) == {e["captions"][0] for e in ENTRIES}
    training.train(ENTRIES, SUBJECTS, tokens, teacher, path, samples=4016, **options)
    state = checkpoint.load(path)
    assert state is not None
    assert state["seen"] == 4016
    encoder = training.load(path, SUBJECTS, tokens, shape=SHAPE)
    assert encoder.config.hidden_size == SHAPE.width


def test_an_untrained_encoder_is_asked_for(tmp_path: Path, tokens: CLIPTokenizer) -> None:
    with pytest.raises(FileNotFoundError, match="text"):
        training.load(tmp_path / "text.ckpt", SUBJECTS, tokens, shape=SHAPE)
