"""Where things stand to each other: boxes for a drawing on, under, in, behind, beside another.

Sizes are in pixels of the scene, before `fitted` scales the whole group. Boxes come in the order in
which they are painted. The tables of `catalogue` say what can be on, in or under what.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from demo_model.scenes.painting import SIZE

# Covers that stand on the ground: what is under them stands before their trunk.
STANDING = frozenset({
    "tree", "palm tree", "pine tree", "mushroom", "chair", "christmas tree", "elephant",
    "giraffe", "dragon",
})  # fmt: skip
# Covers with a handle, which reaches down beside what is under them.
HANDLED = frozenset({"umbrella", "parachute", "balloon", "kite"})
# Held by the lower end, and drawn upwards from there.
STEMMED = frozenset({
    "balloon", "umbrella", "flower", "rose", "tulip", "sunflower", "lollipop", "kite",
    "magic wand", "broom", "candle", "trumpet", "spoon", "hammer", "ice cream", "bouquet",
})  # fmt: skip
# Seats: what is on them sits lower than their highest point.
SEATS = frozenset({
    "chair", "bed", "couch and lamp", "motorcycle", "scooter", "tractor", "sailboat", "horse",
    "camel", "elephant", "treasure chest", "sled", "dolphin", "cow",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Box:
    """A drawing, RGBA, and the rectangle that it fills. `grounded`: it throws a shadow below it."""

    picture: Image.Image
    x: float
    y: float
    width: float
    height: float
    grounded: bool = True

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.y + self.height


def sized(picture: Image.Image, side: float) -> Box:
    """The drawing with its longer side so long, at the origin."""
    scale = side / max(picture.size)
    return Box(
        picture=picture, x=0, y=0, width=picture.width * scale, height=picture.height * scale
    )


def at(box: Box, *, middle: float, bottom: float, grounded: bool = True) -> Box:
    """The box moved: its middle at that x, its lower edge at that y."""
    return replace(box, x=middle - box.width / 2, y=bottom - box.height, grounded=grounded)


def top_at(box: Box, middle: float, width: float) -> float:
    """The y of the highest painted pixel of a box around x = middle, `width` to both sides."""
    alpha = np.asarray(box.picture.getchannel("A")) > 128
    scale = box.picture.width / box.width
    left = int(np.clip((middle - width - box.x) * scale, 0, alpha.shape[1] - 1))
    right = int(np.clip((middle + width - box.x) * scale, left + 1, alpha.shape[1]))
    rows = np.flatnonzero(alpha[:, left:right].any(1))
    return box.y + (rows[0] / scale if rows.size else 0.0)


def row(boxes: Sequence[Box], rng: np.random.Generator) -> list[Box]:
    """Side by side on one ground, a little nearer or farther each."""
    placed, x = [], 0.0
    for box in boxes:
        placed.append(at(box, middle=x + box.width / 2, bottom=rng.uniform(-4, 4)))
        x += box.width + rng.uniform(-3, 5)
    return sorted(placed, key=lambda box: box.bottom)


def grid(boxes: Sequence[Box], rng: np.random.Generator) -> list[Box]:
    """Two rows, for three or four of a kind."""
    half = (len(boxes) + 1) // 2
    upper, lower = row(boxes[:half], rng), row(boxes[half:], rng)
    width = max(b.x + b.width for b in upper)
    shift = (width - max(b.x + b.width for b in lower)) / 2
    drop = max(b.height for b in lower) + 4
    return [*upper, *(replace(b, x=b.x + shift, y=b.y + drop) for b in lower)]


def beside(a: Box, b: Box, _: str, rng: np.random.Generator) -> list[Box]:
    """a next to b, on either side."""
    return row([a, b] if rng.random() < 0.5 else [b, a], rng)


def on(a: Box, b: Box, name: str, rng: np.random.Generator) -> list[Box]:
    """a on top of b."""
    b = at(b, middle=0, bottom=0)
    middle = rng.uniform(-0.12, 0.12) * b.width
    y = top_at(b, middle, 0.2 * min(a.width, b.width))
    sunk = 0.3 if name in SEATS else 0.07
    return [b, at(a, middle=middle, bottom=y + sunk * min(a.height, b.height), grounded=False)]


def under(a: Box, b: Box, name: str, rng: np.random.Generator) -> list[Box]:
    """a under b."""
    if name in STANDING:
        b = at(b, middle=0, bottom=0)
        return [b, at(a, middle=rng.uniform(-0.3, 0.3) * b.width, bottom=rng.uniform(1, 6))]
    a = at(a, middle=0, bottom=0)
    overlap = 0.42 * b.height if name in HANDLED else -rng.uniform(1, 8)
    b = at(b, middle=rng.uniform(-0.1, 0.1) * b.width, bottom=a.y + overlap, grounded=False)
    return [b, a]


def inside(a: Box, b: Box, _: str, rng: np.random.Generator) -> list[Box]:
    """a in b: it looks out over the rim."""
    b = at(b, middle=0, bottom=0)
    middle = rng.uniform(-0.1, 0.1) * b.width
    rim = top_at(b, middle, 0.2 * b.width)
    hidden = min(0.42 * a.height, 0.8 * (b.bottom - rim))
    return [at(a, middle=middle, bottom=rim + hidden, grounded=False), b]


def behind(a: Box, b: Box, _: str, rng: np.random.Generator) -> list[Box]:
    """a behind b: partly covered by it."""
    a = at(a, middle=0, bottom=0)
    side = 1 if rng.random() < 0.5 else -1
    shift = side * (0.5 * a.width + rng.uniform(0.0, 0.15) * b.width)
    return [a, at(b, middle=shift, bottom=rng.uniform(4, 10))]


def holding(a: Box, b: Box, name: str, rng: np.random.Generator) -> list[Box]:
    """a holding b before it, at one side."""
    a = at(a, middle=0, bottom=0)
    side = 1 if rng.random() < 0.5 else -1
    middle = side * 0.4 * a.width
    hand = -rng.uniform(0.16, 0.3) * a.height
    if name in STEMMED:
        b = at(
            b, middle=middle + side * 0.1 * b.width, bottom=hand + 0.12 * b.height, grounded=False
        )
    else:
        b = at(b, middle=middle, bottom=hand + 0.5 * b.height, grounded=False)
    return [a, b]


Relation = Callable[[Box, Box, str, np.random.Generator], list[Box]]
# The function, and the sides of a and b in pixels.
RELATIONS: dict[str, tuple[Relation, float, float]] = {
    "next to": (beside, 58, 58),
    "on": (on, 50, 70),
    "under": (under, 46, 76),
    "in": (inside, 58, 70),
    "behind": (behind, 72, 60),
    "holding": (holding, 78, 40),
}


def fitted(boxes: Sequence[Box], *, most: float, least: float = 0.0) -> list[Box]:
    """The group scaled so that its longer side is at most, and at least, so long."""
    left, top = min(b.x for b in boxes), min(b.y for b in boxes)
    side = max(max(b.x + b.width for b in boxes) - left, max(b.bottom for b in boxes) - top)
    scale = min(1.0, most / side) * max(1.0, least / side)
    return [
        replace(b, x=(b.x - left) * scale, y=(b.y - top) * scale, width=b.width * scale,
                height=b.height * scale)
        for b in boxes
    ]  # fmt: skip


def placed(boxes: Sequence[Box], *, middle: float, bottom: float) -> list[Box]:
    """The group moved: its middle at that x, its lower edge at that y; inside if it fits."""
    left, right = min(b.x for b in boxes), max(b.x + b.width for b in boxes)
    top, low = min(b.y for b in boxes), max(b.bottom for b in boxes)
    dx = middle - (left + right) / 2
    if right - left < SIZE - 4:
        dx = float(np.clip(dx, 2 - left, SIZE - 2 - right))
    dy = bottom - low
    if low - top < SIZE - 4:
        dy = max(dy, 2 - top)
    return [replace(b, x=b.x + dx, y=b.y + dy) for b in boxes]
