"""The means of painting surroundings: gradients, hills, stamps, soft spots.

Colours are (r, g, b) in 0 to 255. Coordinates are pixels of the canvas, 256 a side; `finished`
halves it, which smooths every edge.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = 128  # pixels of a scene
CANVAS = 2 * SIZE
Colour = tuple[int, int, int]


def jittered(colour: Sequence[int], rng: np.random.Generator, amount: int = 14) -> Colour:
    """The colour, each part moved by up to `amount`."""
    moved = np.clip(np.array(colour) + rng.integers(-amount, amount + 1, 3), 0, 255)
    return (int(moved[0]), int(moved[1]), int(moved[2]))


def mixed(a: Sequence[int], b: Sequence[int], share: float) -> Colour:
    """`share` of b, the rest of a."""
    r, g, bl = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return (r, g, bl)


def gradient(top: Sequence[int], bottom: Sequence[int], angle: float = 0.0) -> Image.Image:
    """A canvas that goes from one colour to the other, downwards or turned by radians."""
    start, end = np.array(top, np.float32), np.array(bottom, np.float32)
    if not angle:
        share = np.linspace(0, 1, CANVAS, dtype=np.float32)[:, None, None]
        column = Image.fromarray((start + share * (end - start) + 0.5).astype(np.uint8))
        return column.resize((CANVAS, CANVAS), Image.Resampling.NEAREST)
    x = np.linspace(-0.5, 0.5, CANVAS // 4, dtype=np.float32)
    share = np.clip(x[None] * math.sin(angle) + x[:, None] * math.cos(angle) + 0.5, 0, 1)[..., None]
    small = Image.fromarray((start + share * (end - start) + 0.5).astype(np.uint8))
    return small.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)


def finished(canvas: Image.Image) -> Image.Image:
    """The canvas at the size of a scene."""
    return canvas.reduce(2)


def empty() -> Image.Image:
    """A transparent canvas, for what stands before the things."""
    return Image.new("RGBA", (CANVAS, CANVAS))


def ridge(
    rng: np.random.Generator, level: float, height: float, waves: int = 3
) -> NDArray[np.float64]:
    """The y of a hilly line at each x of the canvas: smooth, up to `height` off `level`."""
    x = np.arange(CANVAS) / CANVAS * 2 * math.pi
    y = sum(
        rng.uniform(0.4, 1) / k * np.sin(k * x * rng.uniform(0.5, 1) + rng.uniform(0, 6.3))
        for k in range(1, waves + 1)
    )
    return level + height * np.asarray(y)


def fill_below(canvas: Image.Image, line: NDArray[np.float64], colour: Sequence[int]) -> None:
    """Paint everything under the line."""
    points = [(x, float(line[x])) for x in range(0, CANVAS, 4)] + [(CANVAS, float(line[-1]))]
    ImageDraw.Draw(canvas).polygon([(0, CANVAS), *points, (CANVAS, CANVAS)], fill=tuple(colour))


def peaks(
    rng: np.random.Generator, level: float, height: float, count: int
) -> list[tuple[float, float]]:
    """The corners of a row of mountains."""
    xs = np.linspace(-30, CANVAS + 30, 2 * count + 1) + rng.uniform(-12, 12, 2 * count + 1)
    tops = [level - (height * rng.uniform(0.6, 1) if k % 2 else height * rng.uniform(0, 0.2))
            for k in range(2 * count + 1)]  # fmt: skip
    return list(zip(xs.tolist(), tops, strict=True))


@cache
def soft_spot(side: int = 64) -> Image.Image:
    """An L image, opaque in the middle and fading out to nothing at the edge."""
    x = np.linspace(-1, 1, side)
    radius = np.sqrt(x[None] ** 2 + x[:, None] ** 2)
    return Image.fromarray((255 * np.clip(1 - radius, 0, 1) ** 1.2).astype(np.uint8))


def glow(
    canvas: Image.Image,
    x: float,
    y: float,
    radius: float,
    colour: Sequence[int],
    strength: float = 1.0,
) -> None:
    """Paint a soft round light, or shadow, around a point."""
    side = max(2, round(2 * radius))
    spot = soft_spot().resize((side, side), Image.Resampling.BILINEAR)
    if strength < 1:
        spot = spot.point(lambda v: v * strength)
    canvas.paste(tuple(colour), (round(x - radius), round(y - radius)), spot)


def stamp(canvas: Image.Image, picture: Image.Image, x: float, y: float) -> None:
    """Put an RGBA picture on the canvas, its middle at x, y."""
    corner = (round(x - picture.width / 2), round(y - picture.height / 2))
    if canvas.mode == "RGBA":
        left, top = max(0, -corner[0]), max(0, -corner[1])
        if left < picture.width and top < picture.height:
            canvas.alpha_composite(picture, (max(0, corner[0]), max(0, corner[1])), (left, top))
    else:
        canvas.paste(picture, corner, picture)


LEAF_COLOURS = (
    (214, 92, 28),
    (232, 138, 30),
    (190, 52, 30),
    (240, 182, 56),
    (150, 84, 38),
    (204, 112, 52),
)


@cache
def leaves() -> tuple[Image.Image, ...]:
    """Autumn leaves in several shapes, colours and turns, about 40 pixels long, RGBA."""
    drawn = []
    for k, colour in enumerate(LEAF_COLOURS):
        for pointed in (False, True):
            leaf = Image.new("RGBA", (160, 160), (*colour, 0))
            pen = ImageDraw.Draw(leaf)
            vein = mixed(colour, (70, 30, 10), 0.45)
            if pointed:  # a maple leaf: long and short points in turns
                points = []
                for n in range(14):
                    radius = (74, 34, 62, 30, 70, 34, 56)[n % 7] if n else 76
                    turn = n * math.pi / 7 - math.pi / 2
                    points.append((80 + radius * math.cos(turn), 80 + radius * math.sin(turn)))
                pen.polygon(points, fill=(*colour, 255))
                for n in (0, 4, 10):
                    pen.line([(80, 84), points[n]], fill=(*vein, 255), width=4)
            else:  # two arcs that meet in a tip
                side = [(80 + s * 36 * math.sin(t * math.pi), 10 + 140 * t)
                        for s in (1, -1) for t in np.linspace(0, 1, 15)[:: s]]  # fmt: skip
                pen.polygon(side, fill=(*colour, 255))
                pen.line([(80, 14), (80, 158)], fill=(*vein, 255), width=5)
            for n in range(4):
                turned = leaf.rotate(n * 90 + 23 * k, Image.Resampling.BICUBIC)
                drawn.append(turned.resize((40, 40), Image.Resampling.LANCZOS))
    return tuple(drawn)


FLOWER_COLOURS = ((246, 108, 150), (250, 206, 70), (244, 244, 250), (170, 120, 220), (236, 84, 74))


@cache
def flowers() -> tuple[Image.Image, ...]:
    """Small flowers of five petals, about 28 pixels wide, RGBA."""
    drawn = []
    for colour in FLOWER_COLOURS:
        flower = Image.new("RGBA", (112, 112), (*colour, 0))
        pen = ImageDraw.Draw(flower)
        for n in range(5):
            turn = n * math.tau / 5
            x, y = 56 + 28 * math.cos(turn), 56 + 28 * math.sin(turn)
            pen.ellipse([x - 23, y - 23, x + 23, y + 23], fill=(*colour, 255))
        middle = (250, 190, 40) if colour != FLOWER_COLOURS[1] else (150, 90, 30)
        pen.ellipse([42, 42, 70, 70], fill=(*middle, 255))
        drawn.append(flower.resize((28, 28), Image.Resampling.LANCZOS))
    return tuple(drawn)


@cache
def clouds() -> tuple[Image.Image, ...]:
    """White clouds of a few round parts, about 90 pixels wide, RGBA."""
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(6):
        cloud = Image.new("RGBA", (200, 110), (255, 255, 255, 0))
        pen = ImageDraw.Draw(cloud)
        pen.rounded_rectangle([16, 62, 184, 100], 19, fill=(255, 255, 255, 255))
        for x in np.linspace(46, 154, 4):
            radius = rng.uniform(22, 40)
            y = 70 - rng.uniform(0, 18)
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(255, 255, 255, 255))
        shade = Image.new("RGBA", cloud.size, (214, 226, 240, 255))
        mask = Image.new("L", cloud.size)
        ImageDraw.Draw(mask).rectangle([0, 84, 200, 110], fill=150)
        mask = mask.filter(ImageFilter.GaussianBlur(7))
        alpha = cloud.getchannel("A")
        cloud.paste(shade, mask=mask)
        cloud.putalpha(alpha)
        drawn.append(cloud.resize((100, 55), Image.Resampling.LANCZOS))
    return tuple(drawn)


@cache
def trees(snowy: bool = False) -> tuple[Image.Image, ...]:
    """Pines and, without snow, round trees, about 90 pixels high, RGBA."""
    rng = np.random.default_rng(7)
    drawn = []
    for k in range(8):
        tree = Image.new("RGBA", (120, 200))
        pen = ImageDraw.Draw(tree)
        pen.rectangle([53, 140, 67, 199], fill=(*jittered((98, 64, 40), rng, 8), 255))
        green = jittered((36, 104, 62), rng, 16)
        if k % 2 or snowy:
            for n in range(3):
                top, width = 10 + 42 * n, 30 + 13 * n
                pen.polygon(
                    [(60, top), (60 - width, top + 76), (60 + width, top + 76)], fill=(*green, 255)
                )
                if snowy:
                    left, right = (60 - width * 0.5, top + 38), (60 + width * 0.5, top + 38)
                    cap = [(60, top), left, (60, top + 28), right]
                    pen.polygon(cap, fill=(246, 250, 255, 255))
        else:
            for x, y, radius in ((60, 60, 46), (38, 92, 36), (82, 92, 36), (60, 104, 40)):
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=(*green, 255))
            pen.ellipse([38, 30, 74, 62], fill=(*mixed(green, (200, 230, 120), 0.3), 255))
        drawn.append(tree.resize((60, 100), Image.Resampling.LANCZOS))
    return tuple(drawn)


def blades(
    canvas: Image.Image,
    rng: np.random.Generator,
    line: NDArray[np.float64],
    colours: Sequence[Sequence[int]],
    count: int,
    height: float,
) -> None:
    """Grass: thin triangles that stand on the line."""
    pen = ImageDraw.Draw(canvas)
    xs, tall = rng.uniform(0, CANVAS, count), rng.uniform(0.5, 1, count) * height
    lean, which = rng.uniform(-7, 7, count), rng.integers(len(colours), size=count)
    below = rng.uniform(0, 14, count)
    for k in range(count):
        x = float(xs[k])
        y = float(line[int(x)]) + 10 + float(below[k])
        tip = (x + float(lean[k]), y - float(tall[k]))
        colour = tuple(colours[which[k]])
        fill = (*colour, 255) if canvas.mode == "RGBA" else colour
        pen.polygon([(x - 3, y), tip, (x + 3, y)], fill=fill)


def dots(
    canvas: Image.Image,
    rng: np.random.Generator,
    count: int,
    radius: tuple[float, float],
    colour: Sequence[int],
    area: tuple[float, float] = (0, CANVAS),
) -> None:
    """Round dots: stars, snowflakes, bubbles; `area` is the lowest and the highest y."""
    pen = ImageDraw.Draw(canvas)
    for x, y, r in zip(
        rng.uniform(0, CANVAS, count),
        rng.uniform(*area, count),
        rng.uniform(*radius, count),
        strict=True,
    ):
        pen.ellipse([x - r, y - r, x + r, y + r], fill=tuple(colour))
