"""Every licensed drawing as pixels with alpha, rendered once into one packed file.

`build` writes `sprites.npy` (n, 160, 160, 4) uint8, straight alpha, and `sprites.json`: the emoji,
style and bounding box of each. Reading them needs no renderer. `pack` puts both into `sprites.zip`,
a twentieth of the size, to be taken to another machine, where `build` unpacks it.
"""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_model import dataset
from demo_model.scenes import clipart

SIDE = 160  # pixels; scenes are 128 wide, and a close-up shows a drawing larger than that
LEAST_ALPHA = 24  # of 255; below it a pixel belongs to no drawing
# Clip art is kept if it is drawn like a sticker: so much of it painted, so much of that in colour.
LEAST_PAINTED, LEAST_COLOURED = 0.3, 0.3
# Titles that say one thing and drawings that show another, or several.
REFUSED = (
    "open_book", "horse_1_konstant", "elephant_symbol", "tree_01", "dolphin_01", "burger_linda",
    "factory_gabriell", "house_gabrielle", "shield_matt_todd",
)  # fmt: skip


PACKED = "sprites.zip"
# Emoji, style, bounding box and file name.
Entry = tuple[str, str, tuple[int, int, int, int], str]


def default_cache() -> Path:
    """Where sprites are kept unless an option says otherwise."""
    return Path.home() / ".cache" / "edgediff-demo-model"


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One drawing: its place in the packed file, what it shows, and the pixels that it covers."""

    index: int
    emoji: str
    style: str
    box: tuple[int, int, int, int]  # left, top, right, bottom


class Sprites:
    """The packed drawings, memory-mapped."""

    def __init__(self, cache: Path) -> None:
        listed = json.loads((cache / "sprites.json").read_text())
        self._pixels: NDArray[np.uint8] = np.load(cache / "sprites.npy", mmap_mode="r")
        self.sprites = [
            Sprite(index=k, emoji=emoji, style=style, box=tuple(box))
            for k, (emoji, style, box, _) in enumerate(listed)
        ]

    def image(self, sprite: Sprite) -> Image.Image:
        """The drawing, RGBA, cut to its bounding box."""
        left, top, right, bottom = sprite.box
        return Image.fromarray(
            np.ascontiguousarray(self._pixels[sprite.index, top:bottom, left:right])
        )


def fetch(packages: Path) -> None:
    """Fetch every package that drawings come from; those that are there are only checked."""
    dataset.fetch(packages)
    clipart.fetch(packages)


def build(packages: Path, cache: Path) -> None:
    """Put all drawings into cache/sprites.npy, unless they are there: unpack or render them."""
    if (cache / "sprites.json").exists():  # written last
        return
    cache.mkdir(parents=True, exist_ok=True)
    if (cache / PACKED).exists():
        _write(cache, *_unpacked(cache / PACKED))
        return
    pixels: list[NDArray[np.uint8]] = []
    listed: list[Entry] = []
    for emoji, style, name, picture in _rendered(packages):
        alpha = np.asarray(picture)[..., 3] > LEAST_ALPHA
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        if not rows.size:
            continue
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        pixels.append(np.asarray(picture))
        listed.append((emoji, style, box, name))
    _write(cache, np.stack(pixels), listed)


def _write(cache: Path, pixels: NDArray[np.uint8], listed: list[Entry]) -> None:
    np.save(cache / "sprites.npy", pixels)
    beside = cache / "sprites.json.part"
    beside.write_text(json.dumps(listed, ensure_ascii=False))
    beside.replace(cache / "sprites.json")


def pack(cache: Path) -> Path:
    """Write cache/sprites.zip: every drawing as a lossless WebP file, and the list of them."""
    listed = json.loads((cache / "sprites.json").read_text())
    pixels = np.load(cache / "sprites.npy", mmap_mode="r")
    beside = cache / f"{PACKED}.part"
    with zipfile.ZipFile(beside, "w") as packed:
        packed.writestr("sprites.json", json.dumps(listed, ensure_ascii=False))
        for k, drawing in enumerate(pixels):
            buffer = io.BytesIO()
            # `exact` keeps the colours under full transparency, which resizing reads.
            Image.fromarray(np.array(drawing)).save(buffer, "WEBP", lossless=True, exact=True)
            packed.writestr(f"{k:05d}.webp", buffer.getvalue())
    beside.replace(cache / PACKED)
    return cache / PACKED


def _unpacked(path: Path) -> tuple[NDArray[np.uint8], list[Entry]]:
    with zipfile.ZipFile(path) as packed:
        listed = json.loads(packed.read("sprites.json"))
        pixels = np.empty((len(listed), SIDE, SIDE, 4), np.uint8)
        for k in range(len(listed)):
            pixels[k] = np.asarray(Image.open(io.BytesIO(packed.read(f"{k:05d}.webp"))))
    return pixels, [tuple(entry) for entry in listed]


def _rendered(packages: Path) -> Iterator[tuple[str, str, str, Image.Image]]:
    """Yield (emoji, style, file name, RGBA image) of every drawing."""
    archives = {p.name: dataset.Archive(packages, p) for p in dataset.PACKAGES}
    by_emoji = archives["unicode-emoji-json"].json("data-by-emoji.json")
    keywords = archives["emojilib"].json("dist/emoji-en-US.json")
    concepts = dataset.name_concepts(by_emoji, keywords)
    charts = archives["@iconify-json/noto"].json("chars.json")
    for package in dataset.PACKAGES:
        if not package.name.startswith("@iconify-json/"):
            continue
        icons = dataset.IconSet(archives[package.name], charts)
        for c in concepts:
            svg = icons.svg(c.emoji, (by_emoji[c.emoji]["name"], *c.names))
            if svg is not None:
                yield c.emoji, str(package.style), c.names[0], _render(svg)
    solid = dataset.named_package("@lobehub/fluent-emoji-3d")
    for c in concepts:
        for points in dataset.codepoints(c.emoji):
            data = archives[solid.name].get(f"assets/{points}.webp")
            if data is not None:
                yield c.emoji, str(solid.style), c.names[0], _fitted(Image.open(io.BytesIO(data)))
                break
    names = {name: c.emoji for c in reversed(concepts) for name in c.names}
    seen: set[bytes] = set()
    for name, emoji, svg in clipart.drawings(packages, names):
        if name.startswith(REFUSED):
            continue
        try:
            picture = _render(svg)
        except ValueError:  # an old file that resvg does not read
            continue
        if _is_painted(picture) and picture.tobytes() not in seen:
            seen.add(picture.tobytes())
            yield emoji, clipart.STYLE, name, picture


def _is_painted(picture: Image.Image) -> bool:
    box = picture.getchannel("A").point(lambda a: 255 * (a > LEAST_ALPHA)).getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < SIDE // 2:
        return False
    cut = picture.crop(box)
    alpha = np.asarray(cut.getchannel("A")) > 128
    saturation = np.asarray(cut.convert("RGB").convert("HSV"))[..., 1] > 64
    painted = float(alpha.mean())
    return painted > LEAST_PAINTED and float(saturation[alpha].mean()) > LEAST_COLOURED


def _render(svg: str) -> Image.Image:
    import resvg_py  # here, so that reading packed sprites needs no renderer

    return _fitted(Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE)))))


def _fitted(picture: Image.Image) -> Image.Image:
    """Any size → (160, 160) RGBA, scaled to fit and centred."""
    picture = picture.convert("RGBA")
    scale = SIDE / max(picture.size)
    if scale != 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE, SIDE))
    canvas.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return canvas
