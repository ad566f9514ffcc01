"""The built-in model's quality: recognition by a classifier, and similarity to training images.

    python -m benchmarks.emoji [--bundle BUNDLE] [--float BUNDLE] [--teacher BUNDLE]
                               [--data DIR] [--seeds 4] [--concepts N] [--out DIR]
    python -m benchmarks.emoji --scenes JUDGE --originals DIR [--bundle BUNDLE] [--out DIR]

The classifier (emoji_judge.onnx) was trained on the published drawings, never on generated images.
emoji_concepts.json lists its concepts, and the (concept, style) pairs and wordings that the model's
training did not use. `export/demo_model/train_emoji.py judge` writes both.

--float: the same weights in float32, for PSNR. --teacher: the model before few-step training,
sampled with 20 steps and guidance. --data: the folder with images.npy from the recipe, to find the
nearest training image. OUT gets emoji.json and contact sheets.

--scenes: a judge of scenes (`benchmarks.scenes`), for a model that draws them. Its measures replace
those above. --originals: a shard of composed scenes that no training saw.

"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import edgediff
from benchmarks import scenes
from benchmarks.contact_sheet import sheet, strip
from benchmarks.measure import Check, machine, print_checks, print_machine, print_table
from edgediff.backend.available import ort
from edgediff.images.metrics import psnr

HERE = Path(__file__).parent
JUDGE, CONCEPTS = HERE / "emoji_judge.onnx", HERE / "emoji_concepts.json"
FIRST_SEED = 100
TEACHER_STEPS, TEACHER_GUIDANCE = 20, 3.0
PSNR_PAIRS = 64
SHEET = 36
Images = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and a seed, and the expected class. style None: any."""

    prompt: str
    seed: int
    concept: int
    style: int | None = None


class Judge:
    """The classifier and the names of its classes."""

    def __init__(self, model: Path = JUDGE, concepts: Path = CONCEPTS) -> None:
        self._session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        listed = json.loads(concepts.read_text())
        self.styles: list[str] = listed["styles"]
        self.concepts: list[dict[str, Any]] = listed["concepts"]

    def __call__(
        self, images: Images, batch: int = 64
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """(n, 128, 128, 3) uint8 → likeliest concept (n,), style (n,), features (n, 640)."""
        parts = [
            self._session.run(None, {"pictures": images[k : k + batch]})
            for k in range(0, len(images), batch)
        ]
        concept, style, features = (np.concatenate(part) for part in zip(*parts, strict=True))
        return concept.argmax(-1), style.argmax(-1), features

    def common(self, limit: int | None = None) -> list[int]:
        """Indices of the 300 everyday concepts, or of `limit` of them, spread evenly."""
        found = [k for k, c in enumerate(self.concepts) if c["common"]]
        if limit is None or limit >= len(found):
            return found
        return [found[k * len(found) // limit] for k in range(limit)]


def article(noun: str) -> str:
    """ "a cat", "an owl"; nothing before plurals and "the"."""
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def by_name(judge: Judge, seeds: int, limit: int | None) -> list[Request]:
    """Every common concept by its first name, without a style."""
    return [
        Request(prompt=article(judge.concepts[k]["names"][0]), seed=FIRST_SEED + s, concept=k)
        for k in judge.common(limit)
        for s in range(seeds)
    ]


def by_style(judge: Judge, limit: int | None) -> list[Request]:
    """Every common concept once, in a style of its training images."""
    requests = []
    for n, k in enumerate(judge.common(limit)):
        concept = judge.concepts[k]
        style = concept["styles"][n % len(concept["styles"])]
        requests.append(
            Request(
                prompt=f"{article(concept['names'][0])}, {style}",
                seed=FIRST_SEED,
                concept=k,
                style=judge.styles.index(style),
            )
        )
    return requests


def held_out(judge: Judge, limit: int | None) -> list[Request]:
    """The common concepts in styles that training left out."""
    return [
        Request(
            prompt=f"{article(judge.concepts[k]['names'][0])}, {style}",
            seed=FIRST_SEED,
            concept=k,
            style=judge.styles.index(style),
        )
        for k in judge.common(limit)
        for style in judge.concepts[k]["held_out_styles"]
    ]


def by_synonym(judge: Judge, limit: int | None) -> list[Request]:
    """The common concepts in words that no caption contains."""
    return [
        Request(prompt=article(word), seed=FIRST_SEED, concept=k)
        for k in judge.common(limit)
        for word in judge.concepts[k]["unseen_wordings"]
    ]


def draw(pipe: edgediff.Pipeline, requests: Iterable[Request], **settings: Any) -> Images:
    """Generate images (n, h, w, 3) uint8; `settings` override the bundle's defaults."""
    return np.stack(
        [np.asarray(pipe.generate(r.prompt, seed=r.seed, **settings).images[0]) for r in requests]
    )


def score(judge: Judge, requests: Sequence[Request], images: Images) -> dict[str, float]:
    """Share of images whose concept, and whose requested style, is recognized."""
    concepts, styles, _ = judge(images)
    right = concepts == [r.concept for r in requests]
    found = {"images": len(requests), "concept": float(right.mean())}
    asked = [r.style for r in requests]
    if None not in asked:
        found["style"] = float((styles == asked).mean())
    return found


def confusions(judge: Judge, requests: Sequence[Request], images: Images) -> list[list[str]]:
    """[prompt, recognized concept] of the wrong images, each once."""
    concepts, _, _ = judge(images)
    wrong = {
        (r.prompt, judge.concepts[k]["names"][0])
        for r, k in zip(requests, concepts, strict=True)
        if r.concept != k
    }
    return [list(pair) for pair in sorted(wrong)]


def nearest(judge: Judge, images: Images, shown: Images) -> dict[str, Any]:
    """Similarity to the nearest training image: by pixels, and by the classifier's features.

    pixel_psnr_db: PSNR to the training image with the smallest squared error, at 32×32.
    feature_cosine: to the training image with the most similar features. For scale,
    `between_training` has the same from each training image to its nearest neighbour.
    """

    def small(x: Images) -> NDArray[np.float32]:
        y = x.reshape(len(x), 32, 4, 32, 4, 3).mean((2, 4), dtype=np.float32)
        return y.reshape(len(x), -1)

    def unit(x: Images) -> NDArray[np.float32]:
        f = judge(x)[2]
        return f / np.linalg.norm(f, axis=1, keepdims=True)

    pool, pool_features = small(shown), unit(shown)
    norms = np.square(pool).sum(1)

    def distances(x: Images, *, itself: bool) -> dict[str, Any]:
        a, features = small(x), unit(x)
        squared = np.square(a).sum(1)[:, None] + norms[None] - 2 * a @ pool.T
        cosine = features @ pool_features.T
        if itself:
            np.fill_diagonal(squared, np.inf)
            np.fill_diagonal(cosine, -1)
        error = np.maximum(squared.min(1), 1e-3) / a.shape[1]
        decibels = 10 * np.log10(255**2 / error)
        return {
            "pixel_psnr_db": _spread(decibels),
            "feature_cosine": _spread(cosine.max(1)),
            "index": squared.argmin(1).tolist(),
        }

    found = distances(images, itself=False)
    between = distances(shown, itself=True)
    del between["index"]
    return {**found, "between_training": between}


def _spread(values: NDArray[np.floating[Any]]) -> dict[str, float]:
    low, median, high = np.percentile(values, (5, 50, 95))
    return {"percentile_5": float(low), "median": float(median), "percentile_95": float(high)}


def beside(images: Images, found: Images, columns: int = 12) -> Image.Image:
    """Rows of images, each above its nearest training image."""
    rows = []
    for start in range(0, len(images) // columns * columns, columns):
        for row in (images, found):
            rows.append(np.concatenate(list(row[start : start + columns]), 1))
    return Image.fromarray(np.concatenate(rows, 0))


def int8_against_float(
    pipe: edgediff.Pipeline, reference: edgediff.Pipeline, requests: Sequence[Request]
) -> dict[str, float]:
    """PSNR between the two pipelines' images of the same prompts and seeds."""
    pairs = zip(draw(pipe, requests), draw(reference, requests), strict=True)
    found = [psnr(a, b) for a, b in pairs]
    finite = [float("inf") if p is None else p for p in found]
    return {
        "images": len(finite),
        "median_db": statistics.median(finite),
        "minimum_db": min(finite),
    }


def evaluate(
    judge: Judge, pipe: edgediff.Pipeline, seeds: int, limit: int | None
) -> tuple[dict[str, Any], Images]:
    """Every score of one bundle, and the images of the first score."""
    plain = by_name(judge, seeds, limit)
    images = draw(pipe, plain)
    found: dict[str, Any] = {"by name": score(judge, plain, images)}
    found["confusions"] = confusions(judge, plain, images)
    sets = {
        "by style": by_style(judge, limit),
        "held-out pairs": held_out(judge, limit),
        "unseen wordings": by_synonym(judge, limit),
    }
    for name, requests in sets.items():
        if requests:
            found[name] = score(judge, requests, draw(pipe, requests))
    few = by_name(judge, 1, limit)
    for steps in (1, 2, 8):
        found[f"{steps} steps"] = score(judge, few, draw(pipe, few, steps=steps))
    return found, images


def checks(found: dict[str, Any]) -> list[Check]:
    """The values that have a target."""
    bars = [
        ("concept, by name", ("by name", "concept"), 0.85),
        ("style, if requested", ("by style", "style"), 0.95),
        ("concept, held-out pairs", ("held-out pairs", "concept"), 0.6),
        ("concept, unseen wordings", ("unseen wordings", "concept"), 0.6),
        ("concept at 2 steps", ("2 steps", "concept"), 0.75),
        ("concept at 1 step", ("1 steps", "concept"), 0.5),
        ("int8 to float, median", ("int8", "median_db"), 40.0),
        ("int8 to float, lowest", ("int8", "minimum_db"), 32.0),
    ]
    listed = [
        Check(what=what, value=found[part][key], bar=bar, at_least=True)
        for what, (part, key), bar in bars
        if part in found
    ]
    if "teacher" in found:
        ahead = found["teacher"]["concept"] - found["by name"]["concept"]
        listed.append(Check(what="teacher at 20 steps ahead by", value=ahead, bar=0.03))
    return listed


def main() -> None:
    """Parse the command line, generate, judge, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--bundle", default="emoji")
    parser.add_argument("--float", metavar="BUNDLE", dest="float_bundle")
    parser.add_argument("--teacher", metavar="BUNDLE")
    parser.add_argument("--data", type=Path, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=4, help="%(default)s")
    parser.add_argument("--concepts", type=int, help="number of the 300, spread evenly [all]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=Path, metavar="JUDGE", help="measure scenes by this judge")
    parser.add_argument("--originals", type=Path, metavar="DIR", help="with --scenes")
    arguments = parser.parse_args()
    if (arguments.scenes is None) != (arguments.originals is None):
        parser.error("`--scenes` and `--originals` go together: give both or neither")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.scenes is not None:
        measure_scenes(arguments)
        return
    judge = Judge()
    found: dict[str, Any] = {"machine": machine(), "provider": "cpu"}
    print_machine(found["machine"])
    with edgediff.load(arguments.bundle, provider="cpu") as pipe:
        found["bundle"] = pipe.bundle.id
        scores, images = evaluate(judge, pipe, arguments.seeds, arguments.concepts)
        found |= scores
        plain = by_name(judge, arguments.seeds, arguments.concepts)
        shown = [(r.prompt, r.seed) for r in plain[:: max(1, len(plain) // SHEET)]][:SHEET]
        sheet(pipe, shown, 9).save(arguments.out / "sheet.png", optimize=True)
        strip(pipe, ("a fox, 3d", 1)).save(arguments.out / "steps.png", optimize=True)
        if arguments.float_bundle:
            with edgediff.load(arguments.float_bundle, provider="cpu") as reference:
                chosen = plain[:: max(1, len(plain) // PSNR_PAIRS)][:PSNR_PAIRS]
                found["int8"] = int8_against_float(pipe, reference, chosen)
    if arguments.teacher:
        with edgediff.load(arguments.teacher, provider="cpu") as teacher:
            few = by_name(judge, 1, arguments.concepts)
            settings = {"steps": TEACHER_STEPS, "guidance_scale": TEACHER_GUIDANCE}
            found["teacher"] = score(judge, few, draw(teacher, few, **settings)) | settings
    if arguments.data:
        drawings = np.load(arguments.data / "images.npy", mmap_mode="r")
        published = np.asarray(drawings[: sum(c["pictures"] for c in judge.concepts)])
        found["nearest"] = nearest(judge, images, published)
        index = found["nearest"].pop("index")
        some = slice(None, None, max(1, len(images) // 48))
        beside(images[some], published[index][some]).save(arguments.out / "nearest.png")
    (arguments.out / "emoji.json").write_text(json.dumps(found, indent=1, ensure_ascii=False))
    rows = [
        (name, str(int(part["images"])), f"{part['concept']:.1%}", _percent(part.get("style")))
        for name, part in found.items()
        if isinstance(part, dict) and "concept" in part
    ]
    print_table(("prompts", "images", "concept", "style"), rows)
    print_checks(checks(found))
    print(arguments.out, file=sys.stderr)


def measure_scenes(arguments: argparse.Namespace) -> None:
    """Measure how a bundle draws scenes, print the bars, and write scenes.json."""
    judge = scenes.SceneJudge(arguments.scenes)
    originals = np.load(arguments.originals / "images.npy", mmap_mode="r")
    found: dict[str, Any] = {"machine": machine(), "provider": "cpu"}
    print_machine(found["machine"])
    with edgediff.load(arguments.bundle, provider="cpu") as pipe:
        found["bundle"] = pipe.bundle.id
        figures = scenes.measure(judge, pipe, np.asarray(originals), limit=arguments.concepts)
        found["figures"] = figures
        listed = scenes.checks(figures)
        if arguments.float_bundle:
            with edgediff.load(arguments.float_bundle, provider="cpu") as reference:
                entries = judge.prompts["relation"][:PSNR_PAIRS]
                asked = [
                    Request(prompt=e["prompt"], seed=FIRST_SEED + k, concept=0)
                    for k, e in enumerate(entries)
                ]
                found["int8"] = int8_against_float(pipe, reference, asked)
            for key, bar in (("median_db", 38.0), ("minimum_db", 30.0)):
                what = f"int8 to float, {key.removesuffix('_db')}"
                listed.append(Check(what=what, value=found["int8"][key], bar=bar, at_least=True))
        size = sum(f.stat().st_size for f in pipe.bundle.root.iterdir()) / 1e6
        listed.append(Check(what="package, MB", value=size, bar=24.0))
    (arguments.out / "scenes.json").write_text(json.dumps(found, indent=1, ensure_ascii=False))
    print_checks(listed)
    print(arguments.out, file=sys.stderr)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    main()
