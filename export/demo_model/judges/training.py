"""Train the judge on originals: blurred, dyed and noised a little, so that soft images count."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    binary_cross_entropy_with_logits,
    cross_entropy,
    interpolate,
)

from demo_model import checkpoint, device
from demo_model.judges.model import (
    COLOUR_CLASSES,
    COUNTS,
    HEADS,
    LIGHT_CLASSES,
    PLACES,
    Judge,
)
from demo_model.replicas import Replicas
from demo_model.training_run import Log, TrainingRun

SAMPLES, BATCH, LR = 1_500_000, 64, 2e-3
NONE = -100  # of a label: nothing to say, as of the colour of several things
W_SUBJECTS = 0.06  # of a sum over a thousand subjects, of which one or two are there


def labels(entry: dict[str, Any]) -> list[int]:
    """The class of each of HEADS, of a scene as the pools list it."""
    single = len(entry["subjects"]) == 1
    colour = entry["colours"][0]
    return [
        PLACES.index(entry["place"]),
        COLOUR_CLASSES.index(colour) if single and colour else NONE,
        COUNTS.index(entry["counts"][0]) if single else NONE,
        LIGHT_CLASSES.index(entry["light"]),
    ]


def worn(x: Tensor) -> Tensor:
    """x (n, 3, h, w) in [-1, 1] → each half of the time blurred, and a little dyed and noisy."""
    n = len(x)
    soft = interpolate(avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    share = torch.rand(n, 1, 1, 1, device=x.device)
    x = torch.where(share < 0.5, x, soft + (1 - share) * (x - soft))
    x = x * (1 + 0.06 * torch.randn(n, 3, 1, 1, device=x.device))
    return x + 0.05 * torch.rand(n, 1, 1, 1, device=x.device) * torch.randn_like(x)


def judge_loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """batch: images (n, 128, 128, 3) uint8, subjects (n, k) bool, labels (n, heads) → a scalar."""
    assert isinstance(model, Judge)  # noqa: S101
    images, subjects, told = batch
    with device.autocast(images.device):
        x = worn(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        found, *heads, _, _ = model.judge(x.contiguous(memory_format=device.LAYOUT))
    there = subjects.float()
    total = (
        W_SUBJECTS
        * there.shape[1]
        * binary_cross_entropy_with_logits(
            found.float(), there, pos_weight=found.new_full((), 4.0).float()
        )
    )
    for logits, label in zip(heads[: len(HEADS)], told.unbind(1), strict=True):
        if (label != NONE).any():
            total = total + cross_entropy(logits.float(), label, ignore_index=NONE)
    return total


def train(
    shards: Sequence[tuple[NDArray[np.uint8], Sequence[dict[str, Any]]]],
    subjects: int,
    path: Path,
    *,
    samples: int = SAMPLES,
    log: Log,
    pause: Path | None = None,
    processes: int = 2,
    batch: int = BATCH,
    widths: tuple[int, ...] = (32, 64, 128, 256),
) -> Judge:
    """Train on so many images in all, resuming the checkpoint at `path`.

    shards: images and scenes as `scenes.pool.read_shard` gives them.
    """
    model = Judge(subjects, widths).to(memory_format=device.LAYOUT)
    processes = device.prepare(model, processes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.02, fused=True)
    parts = {"model": model, "optimizer": optimizer}
    run = TrainingRun(path, parts, samples=samples, log=log, pause=pause)
    rng = np.random.default_rng(run.step)
    told = [np.array([labels(entry) for entry in listed]) for _, listed in shards]
    replicas = Replicas(model.train(), judge_loss, processes, seed=run.step)
    for _ in run.steps():
        run.set_rate(optimizer, LR)
        which = rng.integers(len(shards), size=batch)
        rows = [int(rng.integers(len(told[s]))) for s in which]
        images = np.stack([shards[s][0][k] for s, k in zip(which, rows, strict=True)])
        there = np.zeros((batch, subjects), bool)
        for row, (s, k) in enumerate(zip(which, rows, strict=True)):
            there[row, shards[s][1][k]["subjects"]] = True
        classes = np.stack([told[s][k] for s, k in zip(which, rows, strict=True)])
        value = replicas.backward((images, there, classes))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.note(batch, loss=value)
    replicas.close()
    return model.cpu().eval()


def load(path: Path, subjects: int, widths: tuple[int, ...] = (32, 64, 128, 256)) -> Judge:
    """The judge of the checkpoint at `path`. Raises FileNotFoundError if there is none."""
    state = checkpoint.load(path)
    if state is None:
        raise FileNotFoundError(f"{path}: run the stage `judge` first")
    model = Judge(subjects, widths)
    model.load_state_dict(state["model"])
    return model.eval()


@torch.no_grad()
def accuracy(
    model: Judge, images: NDArray[np.uint8], entries: Sequence[dict[str, Any]]
) -> dict[str, float]:
    """The share of originals of which each head is right; of subjects: all of an image are right.

    images (n, 128, 128, 3): originals that were not trained on. An image's subjects are right if
    its m subjects have the m highest logits.
    """
    outputs = [
        model(torch.from_numpy(np.array(images[k : k + 64]))) for k in range(0, len(images), 64)
    ]
    subjects, *heads = (torch.cat(part) for part in zip(*outputs, strict=True))
    right = [
        set(row.topk(len(set(e["subjects"]))).indices.tolist()) == set(e["subjects"])
        for row, e in zip(subjects, entries, strict=True)
    ]
    told = torch.tensor([labels(entry) for entry in entries])
    found = {"subjects": float(np.mean(right))}
    for name, logits, label in zip(HEADS, heads[: len(HEADS)], told.unbind(1), strict=True):
        asked = label != NONE
        found[name] = float((logits.argmax(-1) == label)[asked].float().mean())
    return found


def describe(
    names: Sequence[Sequence[str]],
    common: Sequence[bool],
    prompts: Mapping[str, Sequence[dict[str, Any]]],
    original_distance: float,
    path: Path,
) -> None:
    """Write what a benchmark needs beside the judge: classes, prompts, originals' distance.

    names, common: of each subject; whether it is one of the 300. prompts: see `prompts.sets`.
    """
    listed = {
        "subjects": [{"names": list(n), "common": c} for n, c in zip(names, common, strict=True)],
        "place": list(PLACES),
        "colour": list(COLOUR_CLASSES),
        "count": list(COUNTS),
        "light": list(LIGHT_CLASSES),
        "original_distance": original_distance,
        "prompts": prompts,
    }
    path.write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n")
