"""Places for scenes: their painters and the words for them.

A painter takes a random generator and returns a `Place`: the background, the part that stands
before the things (leaves that cover a fox's paws), and the band of y in which things stand.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from demo_model.scenes.painting import (
    CANVAS,
    SIZE,
    Colour,
    blades,
    clouds,
    dots,
    empty,
    fill_below,
    finished,
    flowers,
    glow,
    gradient,
    jittered,
    leaves,
    mixed,
    peaks,
    ridge,
    stamp,
    trees,
)

COLOURS: dict[str, Colour] = {
    "red": (222, 62, 58), "orange": (244, 146, 52), "yellow": (252, 218, 84),
    "green": (96, 182, 98), "blue": (76, 140, 226), "purple": (146, 96, 206),
    "pink": (248, 160, 196), "brown": (146, 100, 66), "grey": (156, 160, 166),
    "black": (24, 24, 28),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """A painted surrounding. Images are 128×128; `ground` is the range of y where things stand."""

    back: Image.Image  # RGB
    front: Image.Image | None  # RGBA
    ground: tuple[float, float] | None  # None: things float


def _place(
    back: Image.Image, front: Image.Image | None, ground: tuple[float, float] | None
) -> Place:
    """From canvases to the size of a scene."""
    small = None if front is None else finished(front)
    return Place(back=finished(back), front=small, ground=ground)


def _sky(rng: np.random.Generator, cloudy: int = 3) -> Image.Image:
    canvas = gradient(jittered((104, 178, 240), rng), jittered((206, 234, 250), rng))
    for _ in range(int(rng.integers(cloudy + 1))):
        cloud = clouds()[rng.integers(len(clouds()))]
        stamp(canvas, cloud, rng.uniform(0, CANVAS), rng.uniform(14, 90))
    return canvas


def autumn_leaves(rng: np.random.Generator) -> Place:
    """A floor of fallen leaves, trees far off; leaves lie before the things too."""
    level = rng.uniform(110, 150)
    back = gradient(jittered((250, 222, 160), rng), jittered((232, 168, 92), rng))
    for _ in range(int(rng.integers(5, 9))):
        x, width = rng.uniform(0, CANVAS), rng.uniform(5, 14)
        trunk = jittered((150, 104, 68), rng, 10)
        ImageDraw.Draw(back).rectangle([x - width / 2, 0, x + width / 2, level + 8], fill=trunk)
    for _ in range(7):
        crown = mixed(jittered((232, 140, 50), rng, 24), (250, 222, 160), 0.35)
        glow(back, rng.uniform(0, CANVAS), rng.uniform(-10, 50), rng.uniform(34, 60), crown, 0.9)
    fill_below(back, ridge(rng, level, 5), jittered((168, 96, 40), rng, 10))
    _strew(back, rng, leaves(), 120, (level, CANVAS + 10))
    for _ in range(int(rng.integers(2, 8))):  # in the air
        stamp(
            back,
            leaves()[rng.integers(len(leaves()))],
            rng.uniform(0, CANVAS),
            rng.uniform(0, level),
        )
    front = empty()
    _strew(front, rng, leaves(), 40, (228, CANVAS + 10))
    return _place(back, front, (100, 116))


def _strew(
    canvas: Image.Image,
    rng: np.random.Generator,
    stamps: tuple[Image.Image, ...],
    count: int,
    area: tuple[float, float],
) -> None:
    """Many stamps, the far ones first, so that near ones lie on top."""
    ys = np.sort(rng.uniform(*area, count))
    for x, y, k in zip(
        rng.uniform(0, CANVAS, count), ys, rng.integers(len(stamps), size=count), strict=True
    ):
        stamp(canvas, stamps[k], x, y)


_GREENS = ((86, 166, 70), (112, 188, 80), (66, 144, 62), (140, 204, 92))


def grass(rng: np.random.Generator) -> Place:
    """Green hills under a blue sky."""
    back = _sky(rng)
    fill_below(back, ridge(rng, rng.uniform(130, 155), 12), jittered((140, 200, 104), rng))
    line = ridge(rng, rng.uniform(160, 180), 7)
    fill_below(back, line, jittered((104, 180, 76), rng))
    blades(back, rng, line, _GREENS, 60, 20)
    front = empty()
    blades(front, rng, np.full(CANVAS, 236.0), _GREENS, 70, 30)
    return _place(back, front, (104, 117))


def flower_field(rng: np.random.Generator) -> Place:
    """A meadow full of flowers."""
    back = _sky(rng)
    line = ridge(rng, rng.uniform(130, 160), 8)
    fill_below(back, line, jittered((112, 184, 84), rng))
    blades(back, rng, line, _GREENS, 40, 16)
    _strew(back, rng, flowers(), 44, (line.max(), CANVAS))
    front = empty()
    blades(front, rng, np.full(CANVAS, 238.0), _GREENS, 40, 26)
    _strew(front, rng, flowers(), 11, (230, CANVAS))
    return _place(back, front, (102, 116))


def forest(rng: np.random.Generator) -> Place:
    """Trees behind trees, the far ones pale."""
    pale = jittered((206, 228, 206), rng)
    back = gradient(jittered((226, 240, 226), rng), jittered((170, 206, 160), rng))
    for row, level in enumerate((110, 134, 158)):
        for x in np.linspace(0, CANVAS, 7) + rng.uniform(-16, 16, 7):
            tree = trees()[rng.integers(len(trees()))]
            grown = tree.resize((round(tree.width * (0.8 + 0.3 * row)),
                                 round(tree.height * (0.8 + 0.3 * row))))  # fmt: skip
            if row < 2:
                veil = Image.new("RGBA", grown.size, (*pale, 255))
                veil.putalpha(grown.getchannel("A"))
                grown = Image.blend(grown, veil, 0.6 - 0.3 * row)
            stamp(back, grown, x, level - grown.height / 2 + 22)
    line = ridge(rng, 164, 6)
    fill_below(back, line, jittered((84, 140, 66), rng))
    blades(back, rng, line, _GREENS[:3], 50, 16)
    front = empty()
    blades(front, rng, np.full(CANVAS, 240.0), _GREENS[:3], 50, 26)
    return _place(back, front, (104, 117))


def snow(rng: np.random.Generator) -> Place:
    """White hills, pines, and flakes in the air."""
    back = gradient(jittered((158, 190, 226), rng), jittered((226, 236, 248), rng))
    far = ridge(rng, rng.uniform(128, 150), 12)
    fill_below(back, far, jittered((214, 226, 242), rng, 6))
    for x in rng.uniform(0, CANVAS, int(rng.integers(2, 6))):
        tree = trees(snowy=True)[rng.integers(8)]
        stamp(back, tree, x, far[int(x)] - 30)
    fill_below(back, ridge(rng, rng.uniform(158, 178), 7), jittered((242, 246, 252), rng, 5))
    dots(back, rng, 40, (2, 4.5), (255, 255, 255))
    front = empty()
    line = ridge(rng, 238, 4)
    fill_below(front, line, (250, 252, 255, 255))
    dots(front, rng, 16, (2.5, 5), (255, 255, 255, 255))
    return _place(back, front, (105, 118))


def _waves(
    canvas: Image.Image, rng: np.random.Generator, top: float, colours: tuple[Colour, ...]
) -> None:
    """Rows of waves from `top` down, nearer ones taller."""
    y, row = top, 0
    x = np.arange(CANVAS)
    while y < CANVAS:
        length, phase = 30 + 7 * row, rng.uniform(0, 6.3)
        line = y + (2 + 1.2 * row) * np.sin(x / length * 6.3 + phase)
        colour = colours[row % len(colours)]
        opaque = (255,) if canvas.mode == "RGBA" else ()
        fill_below(canvas, line - 2, (*mixed(colour, (255, 255, 255), 0.4), *opaque))
        fill_below(canvas, line + 1, (*colour, *opaque))
        y, row = y + 16 + 5 * row, row + 1


def sea(rng: np.random.Generator) -> Place:
    """Waves to the horizon; the nearest ones before the things."""
    back = _sky(rng)
    blues = tuple(jittered(c, rng, 10) for c in ((58, 140, 204), (46, 122, 190)))
    level = rng.uniform(128, 150)
    _waves(back, rng, level, blues)
    front = empty()
    _waves(front, rng, 222, blues[::-1])
    return _place(back, front, (108, 119))


def underwater(rng: np.random.Generator) -> Place:
    """Deep blue with rays of light, bubbles, weeds and sand."""
    back = gradient(jittered((72, 184, 222), rng), jittered((18, 78, 140), rng))
    for x in rng.uniform(0, CANVAS, 4):
        ray = Image.new("L", back.size)
        width = rng.uniform(10, 26)
        ImageDraw.Draw(ray).polygon(
            [(x, 0), (x + width, 0), (x - 40 + 2 * width, 230), (x - 60, 230)], fill=26
        )
        back.paste((220, 250, 255), mask=ray)
    floor = ridge(rng, 226, 6)
    fill_below(back, floor, jittered((206, 186, 132), rng, 10))
    pen = ImageDraw.Draw(back)
    for x in rng.uniform(0, CANVAS, int(rng.integers(4, 9))):
        tall, green = rng.uniform(36, 100), jittered((40, 142, 96), rng, 20)
        points = [(x + 7 * math.sin(t * 7 + x), 238 - t * tall) for t in np.linspace(0, 1, 10)]
        pen.line(points, fill=green, width=7, joint="curve")
    for _ in range(int(rng.integers(9, 18))):
        x, y, r = rng.uniform(0, CANVAS), rng.uniform(0, 210), rng.uniform(3, 8)
        pen.ellipse([x - r, y - r, x + r, y + r], outline=(206, 240, 250), width=2)
    front = empty()
    ImageDraw.Draw(front).line(
        [(20 + 7 * math.sin(t * 6), 262 - t * 60) for t in np.linspace(0, 1, 9)],
        fill=(52, 160, 104, 255), width=9, joint="curve",
    )  # fmt: skip
    return _place(back, front if rng.random() < 0.5 else None, None)


def beach(rng: np.random.Generator) -> Place:
    """Sand, a strip of sea, sky."""
    back = _sky(rng)
    level = rng.uniform(112, 128)
    fill_below(back, np.full(CANVAS, level), jittered((62, 158, 206), rng))
    shore = ridge(rng, level + 34, 5)
    fill_below(back, shore - 5, (236, 248, 250))
    sand = jittered((240, 214, 154), rng, 8)
    fill_below(back, shore, sand)
    dots(back, rng, 60, (1, 2), mixed(sand, (140, 110, 60), 0.4), (level + 46, CANVAS))
    if rng.random() < 0.5:
        dots(back, rng, 3, (4, 6), (250, 150, 130), (190, CANVAS))  # shells
    return _place(back, None, (100, 118))


def desert(rng: np.random.Generator) -> Place:
    """Dunes."""
    back = gradient(jittered((120, 186, 232), rng), jittered((250, 226, 178), rng))
    shades = ((240, 190, 116), (230, 170, 94), (220, 154, 80))
    for level, shade in zip((138, 160, 188), shades, strict=True):
        fill_below(back, ridge(rng, level, 13, 2), jittered(shade, rng, 8))
    return _place(back, None, (102, 118))


def starry_night(rng: np.random.Generator) -> Place:
    """A dark sky with stars and sometimes a moon, a dark hill."""
    back = gradient(jittered((14, 18, 52), rng, 8), jittered((58, 60, 118), rng))
    dots(back, rng, 60, (0.8, 2.6), (255, 250, 220), (0, 180))
    if rng.random() < 0.5:
        x, y, r = rng.uniform(30, 226), rng.uniform(24, 60), rng.uniform(13, 20)
        glow(back, x, y, 3 * r, (190, 196, 230), 0.5)
        ImageDraw.Draw(back).ellipse([x - r, y - r, x + r, y + r], fill=(250, 244, 214))
    fill_below(back, ridge(rng, rng.uniform(176, 200), 9), jittered((30, 44, 62), rng, 8))
    return _place(back, None, (106, 118))


def space(rng: np.random.Generator) -> Place:
    """Black, with stars, mist and a planet or two."""
    back = gradient(
        jittered((8, 8, 22), rng, 6), jittered((26, 14, 52), rng, 10), rng.uniform(0.1, 3)
    )
    for _ in range(4):
        mist = ((110, 50, 160), (40, 70, 170), (170, 60, 120))[rng.integers(3)]
        glow(back, rng.uniform(0, CANVAS), rng.uniform(0, CANVAS), rng.uniform(50, 110), mist, 0.45)
    dots(back, rng, 80, (0.7, 2.4), (255, 255, 255))
    for _ in range(int(rng.integers(1, 3))):
        x, y, r = (
            rng.uniform(0, CANVAS),
            rng.choice((rng.uniform(10, 60), rng.uniform(200, 250))),
            rng.uniform(13, 26),
        )
        world = jittered(
            ((206, 120, 80), (110, 160, 210), (190, 170, 120))[rng.integers(3)], rng, 24
        )
        pen = ImageDraw.Draw(back)
        pen.ellipse([x - r, y - r, x + r, y + r], fill=mixed(world, (0, 0, 0), 0.35))
        pen.ellipse([x - r, y - r, x + r * 0.7, y + r * 0.7], fill=world)
    return _place(back, None, None)


def city(rng: np.random.Generator) -> Place:
    """Houses with windows along a street."""
    back = _sky(rng, 1)
    pen = ImageDraw.Draw(back)
    for row, base in enumerate(((150, 166, 190), (118, 130, 158))):
        x = rng.uniform(-30, 0)
        while x < CANVAS:
            width, top = rng.uniform(34, 56), rng.uniform(24, 100) + 30 * row
            wall = jittered(base, rng, 22)
            pen.rectangle([x, top, x + width, 200], fill=wall)
            lit = mixed(wall, (255, 236, 150), 0.75)
            dark = mixed(wall, (40, 50, 80), 0.45)
            for wy in np.arange(top + 8, 182, 15):
                for wx in np.arange(x + 6, x + width - 9, 13):
                    pen.rectangle(
                        [wx, wy, wx + 6, wy + 8], fill=lit if rng.random() < 0.4 else dark
                    )
            x += width + rng.uniform(0, 8)
    pen.rectangle([0, 190, CANVAS, 202], fill=jittered((186, 186, 186), rng, 8))
    pen.rectangle([0, 202, CANVAS, CANVAS], fill=jittered((92, 94, 102), rng, 8))
    shift = rng.uniform(0, 50)
    for x in np.arange(-50, CANVAS, 50):
        pen.rectangle([x + shift, 226, x + shift + 24, 230], fill=(240, 230, 190))
    return _place(back, None, (106, 118))


def room(rng: np.random.Generator) -> Place:
    """A wall with a window or a framed image, a wooden floor, often a rug."""
    wall = jittered(
        ((236, 214, 190), (196, 214, 226), (214, 226, 200), (238, 206, 208))[rng.integers(4)], rng
    )
    back = gradient(mixed(wall, (255, 255, 255), 0.2), wall)
    pen = ImageDraw.Draw(back)
    level = rng.uniform(168, 184)
    x, y = rng.uniform(20, 150), rng.uniform(16, 36)
    if rng.random() < 0.6:
        pen.rectangle([x, y, x + 84, y + 84], fill=(250, 250, 248))
        pen.rectangle([x + 7, y + 7, x + 77, y + 77], fill=jittered((150, 208, 244), rng))
        pen.line([(x + 42, y), (x + 42, y + 84)], fill=(250, 250, 248), width=6)
        pen.line([(x, y + 42), (x + 84, y + 42)], fill=(250, 250, 248), width=6)
    else:
        pen.rectangle([x, y, x + 64, y + 50], fill=(140, 94, 58))
        pen.rectangle([x + 6, y + 6, x + 58, y + 44], fill=jittered((220, 226, 200), rng, 24))
        pen.polygon(
            [(x + 6, y + 44), (x + 26, y + 18), (x + 46, y + 44)],
            fill=jittered((110, 150, 130), rng),
        )
    floor = jittered((190, 138, 92), rng)
    pen.rectangle([0, level, CANVAS, CANVAS], fill=floor)
    pen.rectangle([0, level - 6, CANVAS, level], fill=(250, 248, 244))
    for y in np.arange(level + 16, CANVAS, 18):
        pen.line([(0, y), (CANVAS, y)], fill=mixed(floor, (90, 56, 30), 0.35), width=2)
    if rng.random() < 0.6:
        rug = jittered(((196, 76, 76), (84, 120, 176), (222, 176, 92))[rng.integers(3)], rng)
        pen.ellipse([28, 200, 228, 252], fill=rug)
        pen.ellipse([42, 205, 214, 247], outline=mixed(rug, (255, 255, 255), 0.5), width=4)
    return _place(back, None, (104, 116))


def mountains(rng: np.random.Generator) -> Place:
    """Peaks with snow on top, a green valley."""
    back = _sky(rng, 2)
    pen = ImageDraw.Draw(back)
    for level, height, base in ((170, 120, (148, 164, 196)), (176, 84, (108, 124, 160))):
        corners = peaks(rng, level, height, 2 if height > 100 else 3)
        colour = jittered(base, rng, 10)
        pen.polygon([(-40, CANVAS), *corners, (CANVAS + 40, CANVAS)], fill=colour)
        for k in range(1, len(corners) - 1, 2):
            (x, y), left, right = corners[k], corners[k - 1], corners[k + 1]
            cap = [(x + (c[0] - x) * 0.3, y + (c[1] - y) * 0.3) for c in (left, right)]
            pen.polygon(
                [(x, y), cap[0], (x - 3, y + 12), (x + 5, y + 20), cap[1]], fill=(248, 250, 254)
            )
    line = ridge(rng, 182, 6)
    fill_below(back, line, jittered((114, 178, 92), rng))
    blades(back, rng, line, _GREENS, 30, 12)
    return _place(back, None, (106, 118))


def cloudy_sky(rng: np.random.Generator) -> Place:
    """High up among clouds."""
    back = gradient(jittered((88, 166, 236), rng), jittered((190, 226, 250), rng))
    for _ in range(int(rng.integers(4, 8))):
        cloud = clouds()[rng.integers(len(clouds()))]
        scale = rng.uniform(0.7, 1.5)
        grown = cloud.resize((round(cloud.width * scale), round(cloud.height * scale)))
        stamp(back, grown, rng.uniform(0, CANVAS), rng.uniform(0, CANVAS))
    front = empty()
    for x in (rng.uniform(0, 90), rng.uniform(160, CANVAS)):
        stamp(front, clouds()[rng.integers(len(clouds()))], x, rng.uniform(236, 254))
    return _place(back, front, None)


def rain(rng: np.random.Generator) -> Place:
    """Grey clouds, slanting drops, puddles."""
    back = gradient(jittered((112, 124, 142), rng), jittered((176, 186, 196), rng))
    for _ in range(5):
        shade = mixed((90, 98, 114), (150, 158, 170), rng.random())
        glow(back, rng.uniform(0, CANVAS), rng.uniform(0, 40), rng.uniform(40, 70), shade, 0.9)
    fill_below(back, np.full(CANVAS, 188.0), jittered((112, 118, 124), rng))
    pen = ImageDraw.Draw(back)
    for _ in range(int(rng.integers(2, 5))):
        x, y, w = rng.uniform(0, CANVAS), rng.uniform(204, 246), rng.uniform(20, 46)
        pen.ellipse([x - w, y - 6, x + w, y + 6], fill=jittered((150, 172, 194), rng, 8))
    front = empty()
    _drops(back, rng, 70, (214, 228, 240))
    _drops(front, rng, 26, (226, 236, 246, 255))
    return _place(back, front, (104, 118))


def _drops(
    canvas: Image.Image, rng: np.random.Generator, count: int, colour: tuple[int, ...]
) -> None:
    pen = ImageDraw.Draw(canvas)
    for x, y in zip(rng.uniform(0, CANVAS, count), rng.uniform(0, CANVAS, count), strict=True):
        pen.line([(x, y), (x - 4, y + 14)], fill=colour, width=2)


def table(rng: np.random.Generator) -> Place:
    """A wooden table top before a wall."""
    wall = jittered(((222, 206, 184), (188, 204, 204), (230, 196, 176))[rng.integers(3)], rng)
    back = gradient(mixed(wall, (255, 255, 255), 0.25), wall)
    if rng.random() < 0.5:  # tiles
        pen = ImageDraw.Draw(back)
        for k in range(0, CANVAS, 32):
            pen.line([(0, k), (CANVAS, k)], fill=mixed(wall, (255, 255, 255), 0.5), width=2)
            pen.line([(k, 0), (k, CANVAS)], fill=mixed(wall, (255, 255, 255), 0.5), width=2)
    wood = jittered((182, 124, 74), rng)
    level = rng.uniform(166, 184)
    pen = ImageDraw.Draw(back)
    pen.rectangle([0, level, CANVAS, CANVAS], fill=wood)
    for y in np.sort(rng.uniform(level, CANVAS, 6)):
        pen.line(
            [(0, y), (CANVAS, y + rng.uniform(-3, 3))],
            fill=mixed(wood, (100, 60, 30), 0.4),
            width=2,
        )
    pen.rectangle([0, level, CANVAS, level + 4], fill=mixed(wood, (255, 230, 190), 0.4))
    return _place(back, None, (104, 116))


Colours = Sequence[str]  # words of COLOURS


def polka_dots(rng: np.random.Generator, colours: Colours) -> Place:
    """Rows of dots in a lighter tone."""
    colour = jittered(COLOURS[colours[0]], rng, 10)
    canvas = Image.new("RGB", (CANVAS, CANVAS), colour)
    pen, light = ImageDraw.Draw(canvas), mixed(colour, (255, 255, 255), 0.55)
    for row, y in enumerate(range(0, CANVAS + 20, 28)):
        for x in range(0, CANVAS + 32, 32):
            at = x + 16 * (row % 2)
            pen.ellipse([at - 8, y - 8, at + 8, y + 8], fill=light)
    return _place(canvas, None, None)


def stripes(rng: np.random.Generator, colours: Colours) -> Place:
    """Slanting stripes in two tones."""
    colour = jittered(COLOURS[colours[0]], rng, 10)
    canvas = Image.new("RGB", (CANVAS, CANVAS), colour)
    pen, light = ImageDraw.Draw(canvas), mixed(colour, (255, 255, 255), 0.4)
    for x in range(-CANVAS, CANVAS, 44):
        corners = [(x, CANVAS), (x + 22, CANVAS), (x + 22 + CANVAS, 0), (x + CANVAS, 0)]
        pen.polygon(corners, fill=light)
    return _place(canvas, None, None)


def white(_: np.random.Generator, __: Colours) -> Place:
    """Nothing but white, as stickers and icons have it."""
    return Place(back=Image.new("RGB", (SIZE, SIZE), "white"), front=None, ground=None)


def plain(rng: np.random.Generator, colours: Colours) -> Place:
    """One colour."""
    colour = jittered(COLOURS[colours[0]], rng, 10)
    return Place(back=Image.new("RGB", (SIZE, SIZE), colour), front=None, ground=None)


def two_colours(rng: np.random.Generator, colours: Colours) -> Place:
    """One colour that turns into another, from the top down."""
    top, bottom = (jittered(COLOURS[word], rng, 10) for word in colours)
    return _place(gradient(top, bottom, rng.uniform(-0.4, 0.4)), None, None)


@dataclass(frozen=True, kw_only=True)
class Surrounding:
    """A kind of place: its painter, how often it is taken, and the words for it, likeliest first.

    `lights`: those that can be seen in it.
    """

    paint: Callable[[np.random.Generator], Place]
    weight: float
    words: tuple[str, ...]
    lights: tuple[str, ...] = ("morning", "sunset", "night", "fog")


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A background of so many colours, which its words name as {0} and {1}."""

    paint: Callable[[np.random.Generator, Colours], Place]
    weight: float
    words: tuple[str, ...]
    colours: int
    lights: tuple[str, ...] = ()


_INSIDE = ("morning", "sunset", "night")
SURROUNDINGS: dict[str, Surrounding] = {
    "leaves": Surrounding(paint=autumn_leaves, weight=1.3, words=(
        "in autumn leaves", "in fallen leaves", "among autumn leaves", "on a bed of leaves",
        "in a pile of leaves", "in autumn")),
    "grass": Surrounding(paint=grass, weight=1.3, words=(
        "on the grass", "in the grass", "on a green meadow", "in a field", "on a lawn",
        "on a hill")),
    "flowers": Surrounding(paint=flower_field, weight=1, words=(
        "in a field of flowers", "among flowers", "in a flower meadow", "surrounded by flowers",
        "in a garden")),
    "forest": Surrounding(paint=forest, weight=1, words=(
        "in a forest", "in the woods", "among trees", "in the forest")),
    "snow": Surrounding(paint=snow, weight=1.3, words=(
        "in the snow", "in snow", "on a snowy day", "in winter", "in a snowy landscape")),
    "sea": Surrounding(paint=sea, weight=1.2, words=(
        "in the sea", "on the sea", "in the ocean", "on the water", "among waves")),
    "underwater": Surrounding(paint=underwater, weight=1, lights=(), words=(
        "underwater", "under the sea", "under water", "deep in the ocean")),
    "beach": Surrounding(paint=beach, weight=1.2, words=(
        "on the beach", "at the beach", "on a beach", "by the sea", "on the sand")),
    "desert": Surrounding(paint=desert, weight=0.9, words=(
        "in the desert", "in a desert", "on a sand dune", "among sand dunes")),
    "stars": Surrounding(paint=starry_night, weight=1.2, lights=("fog",), words=(
        "under a starry sky", "under the stars", "under a starry night sky", "on a starry night")),
    "space": Surrounding(paint=space, weight=1.1, lights=(), words=(
        "in space", "in outer space", "floating in space", "among the stars and planets")),
    "city": Surrounding(paint=city, weight=1.2, words=(
        "in the city", "in a city", "on a city street", "in the street", "downtown")),
    "room": Surrounding(paint=room, weight=1.1, lights=_INSIDE, words=(
        "in a room", "at home", "in the living room", "indoors", "inside a house")),
    "mountains": Surrounding(paint=mountains, weight=1, words=(
        "in the mountains", "in front of mountains", "with mountains behind", "in the alps")),
    "sky": Surrounding(paint=cloudy_sky, weight=1.1, lights=("morning", "sunset", "night"), words=(
        "in the sky", "among clouds", "in the clouds", "up in the sky")),
    "rain": Surrounding(paint=rain, weight=1, lights=("night", "fog"), words=(
        "in the rain", "on a rainy day", "in rainy weather")),
    "table": Surrounding(paint=table, weight=0.9, lights=_INSIDE, words=(
        "on a table", "on a wooden table", "on the kitchen table")),
}  # fmt: skip
PLAIN: dict[str, Plain] = {
    "white": Plain(paint=white, weight=3, colours=0, words=(
        "", "on white", "on a white background", "on a plain white background")),
    "plain": Plain(paint=plain, weight=2.2, colours=1, lights=("spotlight",), words=(
        "on a {0} background", "on {0}", "{0} background", "on a plain {0} background")),
    "gradient": Plain(paint=two_colours, weight=1.2, colours=2, lights=("spotlight",), words=(
        "on a {0} and {1} gradient", "on a gradient from {0} to {1}",
        "{0} and {1} gradient background", "on a {0} to {1} gradient background")),
    "dots": Plain(paint=polka_dots, weight=0.5, colours=1, words=(
        "on {0} polka dots", "on a {0} polka dot background")),
    "stripes": Plain(paint=stripes, weight=0.5, colours=1, words=(
        "on {0} stripes", "on a {0} striped background")),
}  # fmt: skip
