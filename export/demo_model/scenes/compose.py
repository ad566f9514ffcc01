"""From a scene to its image: 128×128 pixels, in about five milliseconds."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from demo_model.scenes import layout, light
from demo_model.scenes.catalogue import FLIERS, LARGE, SMALL
from demo_model.scenes.layout import Box
from demo_model.scenes.painting import SIZE
from demo_model.scenes.scene import Scene, Scenes, Thing
from demo_model.scenes.surroundings import PLAIN, SURROUNDINGS, Place

_SIDES = {1: (64, 90), 2: (48, 60), 3: (38, 48), 4: (35, 44)}  # pixels, by count
_INDOORS = ("room", "table")


def render(scene: Scene, scenes: Scenes) -> NDArray[np.uint8]:
    """The scene's image, (128, 128, 3) uint8. The same scene gives the same image."""
    rng = np.random.default_rng((scene.seed, 1))
    if scene.place in PLAIN:
        place = PLAIN[scene.place].paint(rng, scene.plain_colours)
    else:
        place = SURROUNDINGS[scene.place].paint(rng)
    outdoors = scene.place in SURROUNDINGS and scene.place not in _INDOORS
    canvas = light.before(place.back, scene.light, rng, outdoors=outdoors).copy()
    boxes = arrange(scene, scenes, place, rng)
    if place.ground is not None:
        for box in boxes:
            if box.grounded:
                _shadow(canvas, box)
    things = _drawn(boxes)
    if scene.framing == "outline":
        things = outlined(things)
    canvas.paste(things, (0, 0), things)
    if place.front is not None:
        canvas.paste(place.front, (0, 0), place.front)
    if scene.light:
        canvas = light.after(canvas, scene.light, rng)
    return np.asarray(canvas)


def arrange(scene: Scene, scenes: Scenes, place: Place, rng: np.random.Generator) -> list[Box]:
    """The scene's drawings as boxes, the farthest first."""
    if scene.relation:
        function, side_a, side_b = layout.RELATIONS[scene.relation]
        a, b = (layout.sized(scenes.image_of(t), side * _scale(t, relation=True))
                for t, side in zip(scene.things, (side_a, side_b), strict=True))  # fmt: skip
        boxes = function(a, b, scene.things[1].subject.name, rng)
        boxes = layout.fitted(boxes, most=rng.uniform(104, 120), least=96)
        return _settled(boxes, place, rng, floating=False)
    first = scene.things[0]
    if len(scene.things) > 1 or first.count > 1:
        pictures = [scenes.image_of(t) for t in scene.things for _ in range(t.count)]
        low, high = _SIDES[len(pictures)]
        boxes = [layout.sized(p, rng.uniform(low, high)) for p in pictures]
        arranged = layout.grid if place.ground is None and len(boxes) > 2 else layout.row
        boxes = layout.fitted(arranged(boxes, rng), most=rng.uniform(108, 120), least=92)
        return _settled(boxes, place, rng, floating=False)
    return _alone(scene, scenes.image_of(first), place, rng)


def _alone(scene: Scene, picture: Image.Image, place: Place, rng: np.random.Generator) -> list[Box]:
    thing = scene.things[0]
    if scene.framing == "close up":
        box = layout.sized(picture, rng.uniform(128, 158))
        return [
            layout.at(
                box,
                middle=64 + rng.uniform(-10, 10),
                bottom=128 + rng.uniform(8, 26),
                grounded=False,
            )
        ]
    if scene.framing == "far away":
        boxes = [layout.sized(picture, rng.uniform(26, 36))]
    elif thing.size:
        boxes = [
            layout.sized(
                picture, rng.uniform(18, 24) if thing.size == "tiny" else rng.uniform(116, 124)
            )
        ]
    elif place.ground is None:
        boxes = [layout.sized(picture, rng.uniform(80, 112) * _scale(thing))]
    else:
        boxes = [layout.sized(picture, rng.uniform(*_SIDES[1]) * _scale(thing))]
    if thing.pose == "curled up":
        return layout.placed(boxes, middle=64 + rng.uniform(-14, 14), bottom=rng.uniform(127, 134))
    if thing.pose == "jumping" and place.ground is not None:
        ground = rng.uniform(*place.ground)
        return layout.placed(
            boxes, middle=64 + rng.uniform(-12, 12), bottom=ground - rng.uniform(20, 32)
        )
    floating = thing.subject.name in FLIERS
    return _settled(boxes, place, rng, floating=floating)


def _scale(thing: Thing, *, relation: bool = False) -> float:
    """How large a subject is drawn beside others."""
    if thing.subject.name in LARGE:
        return 1.15
    return (0.75 if relation else 0.85) if thing.subject.name in SMALL else 1.0


def _settled(
    boxes: Sequence[Box], place: Place, rng: np.random.Generator, *, floating: bool
) -> list[Box]:
    """The group put on the ground, in the air, or in the middle of a place without ground."""
    height = max(b.bottom for b in boxes) - min(b.y for b in boxes)
    middle = 64 + rng.uniform(-1, 1) * max(2.0, 0.3 * (SIZE - height))
    if place.ground is None:
        slack = max(0.0, (SIZE - height) / 2 - 4)
        return layout.placed(
            boxes, middle=middle, bottom=64 + height / 2 + rng.uniform(-0.5, 0.5) * slack
        )
    if floating:
        aloft = layout.placed(boxes, middle=middle, bottom=min(70, height + 8) + rng.uniform(0, 18))
        return [Box(picture=b.picture, x=b.x, y=b.y, width=b.width, height=b.height, grounded=False)
                for b in aloft]  # fmt: skip
    return layout.placed(boxes, middle=middle, bottom=rng.uniform(*place.ground))


def _drawn(boxes: Sequence[Box]) -> Image.Image:
    """The boxes on a transparent image, one over the other."""
    layer = Image.new("RGBA", (SIZE, SIZE))
    for box in boxes:
        size = (max(1, round(box.width)), max(1, round(box.height)))
        resized = box.picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        x, y = round(box.x), round(box.y)
        left, top = max(0, -x), max(0, -y)
        if left < size[0] and top < size[1] and x < SIZE and y < SIZE:
            layer.alpha_composite(resized, (max(0, x), max(0, y)), (left, top))
    return layer


def outlined(things: Image.Image) -> Image.Image:
    """The things as one sticker: a white outline around them, and a soft shadow."""
    alpha = things.getchannel("A")
    wide = alpha.filter(ImageFilter.GaussianBlur(2.4)).point(
        lambda v: min(255, max(0, (v - 22) * 7))
    )
    shadow = ImageChops.offset(wide.filter(ImageFilter.GaussianBlur(2)), 1, 2).point(
        lambda v: v * 0.4
    )
    sticker = Image.new("RGBA", things.size, (40, 40, 50, 0))
    sticker.putalpha(shadow)
    sheet = Image.new("RGBA", things.size, "white")
    sheet.putalpha(wide)
    sticker.alpha_composite(sheet)
    sticker.alpha_composite(things)
    return sticker


@cache
def _ellipse() -> Image.Image:
    x = np.linspace(-1, 1, 64)
    radius = np.hypot(x[None], x[:, None])
    return Image.fromarray((95 * np.clip(1.15 - radius, 0, 1) ** 0.8).astype(np.uint8))


def _shadow(canvas: Image.Image, box: Box) -> None:
    """The soft shadow that a box throws on the ground below it."""
    width, height = max(4, round(box.width * 0.96)), max(3, round(box.width * 0.17))
    mask = _ellipse().resize((width, height), Image.Resampling.BILINEAR)
    corner = (round(box.x + box.width * 0.02), round(box.bottom - height * 0.62))
    canvas.paste((20, 18, 30), corner, mask)
