"""How well a model draws scenes: shares of images in which a judge sees the facts of the prompt.

The judge is an ONNX file and the JSON beside it, both written by `demo_model.train judge`: a
classifier that was trained on composed originals, never on generated images, and prompts from
scenes that no training drew. `measure` returns every figure of one bundle; `checks` compares them
with their bars.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgediff
from benchmarks.measure import Check
from edgediff.backend.available import ort

FOX = "a fox curled up in autumn leaves, soft morning light"
WARM = ("morning", "sunset")
FOX_SEEDS, VARIETY_SEEDS, SCENE_SEEDS = 16, 8, 4
NEGATIVE, NEGATIVE_PROMPT, NEGATIVE_SCALE = "a fox in autumn leaves", "autumn leaves", 3.0
TEACHER_STEPS = 20
FIRST_SEED = 100
Images = NDArray[np.uint8]
Seen = dict[str, NDArray[Any]]


class SceneJudge:
    """The classifier, its classes, and the prompts that come with it."""

    def __init__(self, model: Path) -> None:
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        listed = json.loads(model.with_suffix(".json").read_text())
        self.classes: dict[str, list[Any]] = {
            name: listed[name] for name in ("place", "colour", "count", "light")
        }
        self.subjects: list[dict[str, Any]] = listed["subjects"]
        self.prompts: dict[str, list[dict[str, Any]]] = listed["prompts"]
        self.original_distance: float = listed["original_distance"]

    def __call__(self, images: Images, batch: int = 64) -> Seen:
        """(n, 128, 128, 3) uint8 → each output of the judge by name, with n rows."""
        parts = [
            self._session.run(None, {"images": images[k : k + batch]})
            for k in range(0, len(images), batch)
        ]
        joined = (np.concatenate(part) for part in zip(*parts, strict=True))
        return dict(zip(self._outputs, joined, strict=True))

    def named(self, seen: Seen, head: str) -> list[Any]:
        """The likeliest class of each image."""
        return [self.classes[head][k] for k in seen[head].argmax(-1)]

    def common(self) -> list[int]:
        """Indices of the 300 everyday subjects."""
        return [k for k, subject in enumerate(self.subjects) if subject["common"]]

    def index(self, name: str) -> int:
        """The index of the subject of that first name."""
        return next(k for k, s in enumerate(self.subjects) if s["names"][0] == name)


def subjects_right(seen: Seen, asked: Sequence[Sequence[int]]) -> NDArray[np.bool_]:
    """Whether the m subjects of each image are those of its m highest logits, (n,)."""
    right = []
    for logits, subjects in zip(seen["subjects"], asked, strict=True):
        there = set(subjects)
        right.append(set(np.argsort(logits)[-len(there) :].tolist()) == there)
    return np.array(right)


def draw(
    pipe: edgediff.Pipeline, prompts: Iterable[str], seeds: Iterable[int], **settings: Any
) -> Images:
    """One image (128, 128, 3) uint8 of each prompt and seed, stacked."""
    return np.stack(
        [
            np.asarray(pipe.generate(prompt, seed=seed, **settings).images[0])
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
    )


def edge_energy(images: Images) -> float:
    """Mean absolute difference of neighbouring pixels, in steps of 255."""
    x = images.astype(np.float32)
    return float(np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean())


def frechet_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Between Gaussians fitted to two sets of features (n, m) (Heusel et al. 2017, eq. 6)."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    # The trace of the root of a product is the sum of the roots of its eigenvalues.
    roots = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0))
    means = np.square(x.mean(0) - y.mean(0)).sum()
    return float(means + np.trace(first) + np.trace(second) - 2 * roots.sum())


def mean_distance(maps: NDArray[np.float32]) -> float:
    """Mean squared distance between the maps (n, m) of different images."""
    gram = maps @ maps.T
    norms = np.diag(gram)
    apart = norms[:, None] + norms[None] - 2 * gram
    return float(apart.sum() / (len(maps) * (len(maps) - 1)))


def measure(
    judge: SceneJudge, pipe: edgediff.Pipeline, originals: Images, *, limit: int | None = None
) -> dict[str, float]:
    """Every figure of one bundle. originals (n, 128, 128, 3): composed, not trained on.

    limit: of the prompts of each kind, for a quick look.
    """
    found: dict[str, float] = {}
    common = judge.common()[:limit]
    names = [_with_article(judge.subjects[k]["names"][0]) for k in common]
    first = [FIRST_SEED] * len(names)
    single = draw(pipe, names, first)
    found["subject"] = float(subjects_right(judge(single), [[k] for k in common]).mean())
    for steps in (1, 2, 8):
        seen = judge(draw(pipe, names, first, steps=steps))
        found[f"subject, {steps} steps"] = float(subjects_right(seen, [[k] for k in common]).mean())
    found |= _by_kind(judge, pipe, limit)
    found["fox seeds"] = float(_fox(judge, pipe).sum())
    found["variety"] = _variety(judge, pipe, limit) / judge.original_distance
    found |= _against_originals(judge, pipe, originals, limit)
    found["negative"] = _negative(judge, pipe)
    found["seconds"] = _seconds(pipe)
    return found


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def _by_kind(judge: SceneJudge, pipe: edgediff.Pipeline, limit: int | None) -> dict[str, float]:
    """The sets of prompts that ask for one fact more than a subject."""
    found = {}
    for kind, seeds in (("relation", SCENE_SEEDS), ("held out", 1), ("place", 1), ("colour", 1),
                        ("count", 1)):  # fmt: skip
        entries = [e for e in judge.prompts[kind][:limit] for _ in range(seeds)]
        numbers = [FIRST_SEED + k % seeds for k in range(len(entries))]
        seen = judge(draw(pipe, [e["prompt"] for e in entries], numbers))
        subjects = subjects_right(seen, [e["subjects"] for e in entries])
        places = np.array(
            [a == e["place"] for a, e in zip(judge.named(seen, "place"), entries, strict=True)]
        )
        if kind == "relation":
            found["relation"] = float(subjects.mean())
        elif kind == "held out":
            found["held out"] = float((subjects & places).mean())
        elif kind == "place":
            found["place"] = float(places.mean())
        else:
            key = {"colour": "colours", "count": "counts"}[kind]
            told = judge.named(seen, kind)
            found[kind] = float(
                np.mean([a == e[key][0] for a, e in zip(told, entries, strict=True)])
            )
    return found


def _fox(judge: SceneJudge, pipe: edgediff.Pipeline) -> NDArray[np.bool_]:
    """Of each seed: whether fox, leaves and warm light are all there."""
    seen = judge(draw(pipe, [FOX] * FOX_SEEDS, range(FIRST_SEED, FIRST_SEED + FOX_SEEDS)))
    fox = subjects_right(seen, [[judge.index("fox")]] * FOX_SEEDS)
    leaves = np.array([place == "leaves" for place in judge.named(seen, "place")])
    warm = np.array([light in WARM for light in judge.named(seen, "light")])
    return fox & leaves & warm


def _variety(judge: SceneJudge, pipe: edgediff.Pipeline, limit: int | None) -> float:
    """Mean distance between the images of one prompt's seeds."""
    distances = []
    for entry in judge.prompts["variety"][:limit]:
        seeds = range(FIRST_SEED, FIRST_SEED + VARIETY_SEEDS)
        images = draw(pipe, [entry["prompt"]] * VARIETY_SEEDS, seeds)
        distances.append(mean_distance(judge(images)["maps"]))
    return float(np.mean(distances))


def _against_originals(
    judge: SceneJudge, pipe: edgediff.Pipeline, originals: Images, limit: int | None
) -> dict[str, float]:
    """Edges of generated images, of the originals'; and distance at 4 steps, of that at 20."""
    entries = judge.prompts["relation"][:limit] + judge.prompts["place"][:limit]
    prompts, seeds = [e["prompt"] for e in entries], range(FIRST_SEED, FIRST_SEED + len(entries))
    few, many = draw(pipe, prompts, seeds), draw(pipe, prompts, seeds, steps=TEACHER_STEPS)
    true = judge(originals)["features"]
    distances = [frechet_distance(judge(images)["features"], true) for images in (few, many)]
    return {
        "edges": edge_energy(few) / edge_energy(originals),
        "frechet": distances[0],
        "frechet, 4 steps of 20": distances[0] / distances[1],
    }


def _negative(judge: SceneJudge, pipe: edgediff.Pipeline) -> float:
    """Of the seeds whose image has leaves, the share in which the negative prompt removes them."""
    seeds = range(FIRST_SEED, FIRST_SEED + FOX_SEEDS)
    prompts = [NEGATIVE] * FOX_SEEDS
    before = judge.named(judge(draw(pipe, prompts, seeds)), "place")
    after = judge.named(
        judge(
            draw(
                pipe, prompts, seeds, negative_prompt=NEGATIVE_PROMPT,
                guidance_scale=NEGATIVE_SCALE,
            )
        ),
        "place",
    )  # fmt: skip
    asked = [b for a, b in zip(before, after, strict=True) if a == "leaves"]
    return float(np.mean([place != "leaves" for place in asked])) if asked else 0.0


def _seconds(pipe: edgediff.Pipeline) -> float:
    """Median seconds of a warm image at the bundle's defaults."""
    taken = []
    for seed in range(7):
        start = time.perf_counter()
        pipe.generate(FOX, seed=seed)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


# Figure, what it is, the bar, and whether more is better.
BARS = (
    ("subject", "subject, single things", 0.9, True),
    ("relation", "both subjects of a relation", 0.6, True),
    ("place", "surrounding", 0.8, True),
    ("colour", "colour", 0.8, True),
    ("count", "count", 0.8, True),
    ("fox seeds", f"fox, leaves and warm light, of {FOX_SEEDS} seeds", 12, True),
    ("held out", "held out: subject and surrounding", 0.5, True),
    ("variety", "difference between seeds, of originals", 0.6, True),
    ("edges", "edge energy, of originals", 0.8, True),
    ("frechet, 4 steps of 20", "Fréchet distance at 4 steps, of that at 20", 1.2, False),
    ("negative", "leaves removed by a negative prompt", 0.8, True),
    ("seconds", "warm image, seconds", 0.15, False),
)


def checks(found: Mapping[str, float]) -> list[Check]:
    """The figures that have a bar."""
    listed = [
        Check(what=what, value=found[name], bar=bar, at_least=at_least)
        for name, what, bar, at_least in BARS
    ]
    gained = found["subject, 8 steps"] - found["subject"]
    return [*listed, Check(what="subject: 8 steps over 4", value=gained, bar=0.0, at_least=True)]
