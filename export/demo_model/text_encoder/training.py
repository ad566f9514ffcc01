"""Teach the text encoder: what a caption says of a scene, and what a sentence encoder makes of it.

By linear maps, its last state at the text's end must tell every fact of the scene, and the vector
that a sentence encoder (`sentences`) gives the caption, so that a word which no caption has lies
near those that some caption has. It costs far less than a step of
the UNet. The encoder is then frozen.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import CLIPTextModel, CLIPTokenizer

from demo_model import checkpoint, device, sentences
from demo_model.replicas import Replicas
from demo_model.text_encoder import facts
from demo_model.text_encoder.model import PADS, Shape, cut, new_encoder, tokenize
from demo_model.training_run import Log, TrainingRun

SHAPE = Shape(width=256, layers=4, heads=4)
LENGTH, VOCABULARY = 32, 4000  # tokens of a caption; entries
SAMPLES, BATCH, LR = 3_000_000, 256, 1e-3
TAUGHT = 0.125  # of a batch: captions that the sentence encoder is asked about too
W_SENTENCE = 2.0
Teacher = Callable[[Sequence[str]], Tensor]


class Student(nn.Module):
    """The encoder and the linear maps that it is trained through."""

    def __init__(self, tokenizer: CLIPTokenizer, subjects: int, shape: Shape) -> None:
        super().__init__()
        self.encoder = new_encoder(tokenizer, shape)
        self.sentence = nn.Linear(shape.width, sentences.WIDTH)
        self.sizes = list(facts.heads(subjects).values())
        self.facts = nn.Linear(shape.width, sum(self.sizes))

    def forward(self, ids: Tensor, places: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """ids, places (n, length) → sentence (n, k, 384) and logits (n, k, classes) of each head.

        The k states are the text's end and the PADS after it; see `model.cut`.
        """
        hidden = self.encoder(ids, position_ids=places).last_hidden_state
        ends = (ids == self.encoder.config.eos_token_id).int().argmax(1, keepdim=True)
        ends = (ends + torch.arange(PADS + 1, device=ids.device)).clamp(max=ids.shape[1] - 1)
        states = hidden.take_along_dim(ends.unsqueeze(-1), 1)
        return self.sentence(states), self.facts(states).split(self.sizes, -1)


def text_loss(student: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: ids (n, length), labels (n, heads), vectors (n, 384), zeros if not asked for."""
    ids, labels, vectors = batch
    sentence, logits = student(*cut(ids))
    k = sentence.shape[1]
    total = ids.new_zeros((), dtype=torch.float32)
    for part, label in zip(logits, labels.unbind(1), strict=True):
        total = total + cross_entropy(part.flatten(0, 1), label.repeat_interleave(k))
    asked = vectors.abs().sum(1) > 0
    unlike = 1 - cosine_similarity(sentence, vectors[:, None], dim=-1)
    share = asked.float().mean().clamp(min=1e-6)
    return total + W_SENTENCE * (unlike * asked[:, None]).mean() / share


def train(
    entries: Sequence[dict[str, Any]],
    subjects: int,
    tokenizer: CLIPTokenizer,
    teacher: Teacher,
    path: Path,
    *,
    samples: int = SAMPLES,
    log: Log,
    pause: Path | None = None,
    processes: int = 2,
    shape: Shape = SHAPE,
    batch: int = BATCH,
) -> CLIPTextModel:
    """Train on so many captions in all, resuming the checkpoint at `path`.

    entries: scenes as the pools list them. teacher: texts → unit vectors (n, 384).
    """
    student = Student(tokenizer, subjects, shape)
    processes = device.prepare(student, processes)
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    parts = {"student": student, "optimizer": optimizer}
    run = TrainingRun(path, parts, samples=samples, log=log, pause=pause)
    rng = np.random.default_rng(run.step)
    told = np.array([facts.labels(entry, subjects) for entry in entries])
    replicas = Replicas(student, text_loss, processes, seed=run.step)
    for _ in run.steps():
        run.set_rate(optimizer, LR)
        chosen = rng.integers(len(entries), size=batch)
        texts = [entries[k]["captions"][rng.integers(len(entries[k]["captions"]))] for k in chosen]
        vectors = np.zeros((batch, sentences.WIDTH), np.float32)
        # A few in every part of the batch, whichever process gets it.
        asked = np.arange(0, batch, max(1, round(1 / TAUGHT)))
        vectors[asked] = teacher([texts[k] for k in asked]).numpy()
        ids = tokenize(tokenizer, texts).numpy()
        value = replicas.backward((ids, told[chosen], vectors))
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        run.note(batch, loss=value)
    replicas.close()
    return student.cpu().encoder.eval()


def load(
    path: Path, subjects: int, tokenizer: CLIPTokenizer, *, shape: Shape = SHAPE
) -> CLIPTextModel:
    """The encoder of the checkpoint at `path`. Raises FileNotFoundError if there is none."""
    state = checkpoint.load(path)
    if state is None:
        raise FileNotFoundError(f"{path}: run the stage `text` first")
    student = Student(tokenizer, subjects, shape)
    student.load_state_dict(state["student"])
    return student.encoder.eval()


@torch.no_grad()
def accuracy(
    path: Path,
    entries: Sequence[dict[str, Any]],
    subjects: int,
    tokenizer: CLIPTokenizer,
    *,
    shape: Shape = SHAPE,
) -> dict[str, float]:
    """The share of captions whose fact each head tells, of scenes that were not trained on."""
    student = Student(tokenizer, subjects, shape).eval()
    state = checkpoint.load(path)
    if state is None:
        raise FileNotFoundError(f"{path}: run the stage `text` first")
    student.load_state_dict(state["student"])
    labels = torch.tensor([facts.labels(entry, subjects) for entry in entries])
    _, logits = student(*cut(tokenize(tokenizer, [entry["captions"][0] for entry in entries])))
    names = facts.heads(subjects)
    return {
        name: float((part[:, 0].argmax(-1) == label).float().mean())
        for name, part, label in zip(names, logits, labels.unbind(1), strict=True)
    }
