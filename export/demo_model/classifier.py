"""A small network that says which concept a picture shows and in which style.

It judges the demo model and is trained on the published drawings alone, moved, turned, blurred and
dyed a little; never on a generated picture. The style is read off the drawing: a last map tells all
drawings of the 300 everyday concepts apart, and a style's probability is that of its drawings.
"""

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import (
    affine_grid,
    avg_pool2d,
    cross_entropy,
    dropout,
    grid_sample,
    interpolate,
    linear,
    one_hot,
    softmax,
)

from demo_model import captions, checkpoint
from demo_model.dataset import Concept, is_held_out, is_unseen_wording, published

SIDE = 64  # pixels; pictures are halved first
BATCH = 128
LR = 4e-3
DRAWING_ROUNDS, DRAWING_STEPS, DRAWING_BATCH, DRAWING_LR = 8, 400, 512, 3e-3
SAVE_EVERY = 60.0  # seconds


class Classifier(nn.Module):
    """(n, 128, 128, 3) uint8 → logits of the concepts (n, k) and of the styles (n, 6)."""

    def __init__(self, concepts: int, drawings: Sequence[int] = ()) -> None:
        """drawings: the style of each drawing of the everyday concepts."""
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, stride in ((32, 2), (64, 2), (128, 2), (160, 1)):
            layers += [
                nn.Conv2d(before, channels, 3, stride, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
            ]
            before = channels
        self.features = nn.Sequential(*layers, nn.AvgPool2d(4), nn.Flatten(), nn.Dropout(0.2))
        self.concept = nn.Linear(160 * 4, concepts)
        self.style = nn.Linear(160 * 4, len(captions.STYLES))  # while the features are trained
        # The largest part of the file, in half of its size.
        self.register_buffer("drawing_weight", torch.zeros(len(drawings), 160 * 4).half())
        self.register_buffer("drawing_bias", torch.zeros(len(drawings)))
        by_style = one_hot(torch.tensor(drawings, dtype=torch.long), len(captions.STYLES))
        self.register_buffer("by_style", by_style.float(), persistent=False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Concept logits, style probabilities, and the features (n, 640) that both are made of."""
        concept, _, found = self.judge(halved(pictures))
        drawing = linear(found, self.drawing_weight.float(), self.drawing_bias)
        return concept, softmax(drawing, -1) @ self.by_style, found

    def judge(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(n, 3, 64, 64) float32 in [-1, 1] → concept and style logits, features."""
        found = self.features(x)
        return self.concept(found), self.style(found), found


def halved(pictures: Tensor) -> Tensor:
    """(n, 128, 128, 3) uint8 → (n, 3, 64, 64) float32 in [-1, 1]."""
    return avg_pool2d(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1, 2)


def changed(x: Tensor, random: torch.Generator, strength: float = 1.0) -> Tensor:
    """x (n, 3, 64, 64): each moved, scaled, turned, half of them blurred, and dyed a little."""
    n = len(x)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=random) * 2 - 1

    angle, scale = 0.12 * strength * uniform(), 1 + 0.1 * strength * uniform()
    shift = 0.08 * strength * uniform(2)
    rows = torch.stack(
        [
            torch.stack([scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1),
            torch.stack([scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )
    # What comes in from outside is white: 0 once one is taken away.
    x = grid_sample(x - 1, affine_grid(rows, list(x.shape), align_corners=False)) + 1
    blurred = interpolate(avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear")
    share = torch.rand(n, 1, 1, 1, generator=random)
    x = torch.where(share < 0.5, x, blurred + (share - 0.5) * (x - blurred))
    x = x * (1 + 0.1 * strength * uniform(3, 1, 1)) + 0.06 * strength * uniform(3, 1, 1)
    return x + 0.06 * strength * torch.randn(x.shape, generator=random)


def fit_drawings(model: Classifier, x: Tensor) -> None:
    """Fit the map that tells drawings apart, on the features as they are, of changed pictures.

    x (n, 3, 64, 64): the drawings, in the order of the map's outputs.
    """
    random = torch.Generator().manual_seed(0)
    model.eval()
    with torch.no_grad():
        seen = [
            model.features(changed(part, random, 0.5))
            for _ in range(DRAWING_ROUNDS)
            for part in x.split(256)
        ]
    features, labels = torch.cat(seen), torch.arange(len(x)).repeat(DRAWING_ROUNDS)
    mean, deviation = features.mean(0), features.std(0) + 1e-3
    fitted = nn.Linear(features.shape[1], len(x))
    optimizer = torch.optim.AdamW(fitted.parameters(), lr=DRAWING_LR, weight_decay=0.02)
    for step in range(DRAWING_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = DRAWING_LR * (1 - step / DRAWING_STEPS)
        chosen = torch.randint(len(features), (DRAWING_BATCH,), generator=random)
        logits = fitted(dropout((features[chosen] - mean) / deviation, 0.2))
        value = cross_entropy(logits, labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        weight = fitted.weight / deviation
        model.drawing_weight.copy_(weight)
        model.drawing_bias.copy_(fitted.bias - weight @ mean)


def train(
    images: NDArray[np.uint8],
    concepts: Sequence[Concept],
    folder: Path,
    *,
    minutes: float,
    log: Callable[[str], None],
) -> None:
    """Train for so many minutes in all, resuming folder/classifier.ckpt; write classifier.onnx.

    images (n, 128, 128, 3) uint8, of which the published ones are used.
    """
    shown = published(concepts)
    pairs = [(index, k, style) for k, c in enumerate(shown) for index, style in c.pictures]
    x = torch.cat(
        [
            halved(torch.from_numpy(images[[i for i, _, _ in pairs[s : s + 256]]]))
            for s in range(0, len(pairs), 256)
        ]
    )
    labels = torch.tensor([k for _, k, _ in pairs])
    styles = torch.tensor([captions.STYLES.index(s) for _, _, s in pairs])
    everyday = torch.tensor([shown[k].is_common for _, k, _ in pairs])
    model = Classifier(len(shown), styles[everyday].tolist()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.02, fused=True)
    path = folder / "classifier.ckpt"
    step, spent = 0, 0.0
    state = checkpoint.load(path)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    random = torch.Generator().manual_seed(step)
    budget = minutes * 60

    def save() -> None:
        checkpoint.save(
            path,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seconds": spent,
            },
        )

    model.train()
    last = saved = time.monotonic()
    average: float | None = None
    while spent < budget:
        rate = LR * min(1.0, (step + 1) / 50) * max(0.01, 1 - spent / budget)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = torch.randint(len(pairs), (BATCH,), generator=random)
        seen = changed(x[chosen], random).contiguous(memory_format=torch.channels_last)
        concept, style, _ = model.judge(seen)
        value = cross_entropy(concept, labels[chosen], label_smoothing=0.1)
        value = value + 1.5 * cross_entropy(style, styles[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        step += 1
        now = time.monotonic()
        spent, last = spent + now - last, now
        average = value.item() if average is None else 0.98 * average + 0.02 * value.item()
        if step % 100 == 0:
            log(f"classifier step {step} loss {average:.3f} {spent:.0f} s")
        if now - saved > SAVE_EVERY:
            save()
            saved = now
    save()
    fit_drawings(model, x[everyday])
    with torch.no_grad():
        judged = [model(torch.from_numpy(images[[i for i, _, _ in pairs[s : s + 256]]]))
                  for s in range(0, len(pairs), 256)]  # fmt: skip
    right = torch.cat([c.argmax(-1) for c, _, _ in judged]) == labels
    styled = (torch.cat([s.argmax(-1) for _, s, _ in judged]) == styles)[everyday]
    log(f"published drawings: concept {right.float().mean():.4f}")
    log(f"those of the everyday concepts: style {styled.float().mean():.4f}")
    write(model, folder / "classifier.onnx")


def describe(concepts: Sequence[Concept], path: Path) -> None:
    """What each of the classifier's concepts is called, and what of it was held out, as JSON."""
    listed = [
        {
            "emoji": c.emoji,
            "names": list(c.names),
            "common": c.is_common,
            "pictures": len(c.pictures),
            "styles": [s for _, s in c.pictures if not is_held_out(c.emoji, s)],
            "held_out_styles": [s for _, s in c.pictures if is_held_out(c.emoji, s)],
            "unseen_wordings": [s for s in c.synonyms if is_unseen_wording(c.emoji, s)],
        }
        for c in published(concepts)
    ]
    rows = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in listed)
    path.write_text(f'{{"styles": {json.dumps(captions.STYLES)}, "concepts": [\n{rows}\n]}}\n')


def write(model: Classifier, path: Path) -> None:
    """The classifier as one ONNX file: pictures → concept, style, features."""
    buffer = io.BytesIO()
    torch.onnx.export(
        model,
        (torch.zeros(2, 2 * SIDE, 2 * SIDE, 3, dtype=torch.uint8),),
        buffer,
        input_names=["pictures"],
        output_names=["concept", "style", "features"],
        dynamic_axes={name: {0: "n"} for name in ("pictures", "concept", "style", "features")},
        dynamo=False,
        do_constant_folding=False,  # it would keep the half-precision weights in full
    )
    path.write_bytes(buffer.getvalue())
