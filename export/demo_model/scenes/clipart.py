"""Drawings from Debian's `openclipart-svg` (public domain) of things that the emoji sets name too.

Only drawings whose title is the name of a thing are taken, so that a caption can say it. Files
whose metadata do not state the public domain are left out, as are icon themes, signs, buttons and
shapes.
"""

import gzip
import hashlib
import html
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

from demo_model.dataset import DatasetError

PACKAGE, VERSION = "openclipart-svg", "1:0.18+dfsg-19"
FILE = "openclipart-svg_1%3a0.18+dfsg-19_all.deb"
SHA256 = "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5"
STYLE = "clip art"
_FOLDERS = (
    "icons", "buttons", "flags", "shapes", "flowchart", "connectors", "diagrams", "special",
    "logos", "led", "roadsigns", "map_symbols", "aiga-symbols", "chess", "cards", "duplicates",
    "signs_and_symbols/clocks", "network", "callouts",
)  # fmt: skip


def fetch(folder: Path) -> None:
    """Put the .deb into the folder with `apt-get download`; one that is there is only checked."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    if not path.exists():
        apt = shutil.which("apt-get")
        if apt is None:
            raise DatasetError(f"{FILE}: not in {folder}, and there is no apt-get to fetch it with")
        subprocess.run([apt, "download", f"{PACKAGE}={VERSION}"], cwd=folder, check=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise DatasetError(
            f"{FILE}: sha256 {digest[:16]}… but {PACKAGE} {VERSION} is pinned to {SHA256[:16]}…: "
            "delete the file and fetch it again"
        )


def title_of(svg: str) -> str:
    """The title in the metadata as a plain name: "An Apple 01" → "apple"."""
    found = re.search(r"<dc:title>([^<]*)</dc:title>", svg)
    words = re.sub(r"[^a-z ]", " ", html.unescape(found.group(1)).lower() if found else "").split()
    while words and words[0] in ("a", "an", "the", "my", "simple", "cartoon", "little"):
        words = words[1:]
    while words and words[-1] in ("icon", "clipart", "symbol", "black", "white", "lineart"):
        words = words[:-1]
    return " ".join(words)


def is_public_domain(svg: str) -> bool:
    """Whether the metadata state the public domain and no other licence."""
    stated = set(re.findall(r'<(?:cc:)?license[^>]*rdf:resource="([^"]*)"', svg))
    return bool(stated) and all(
        licence.rstrip("/").lower().endswith(("publicdomain", "licenses/publicdomain"))
        for licence in stated
    )


def drawings(folder: Path, names: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (file name, key, SVG) of each drawing whose title `names` maps to a key."""
    for path, svg in _documents(folder):
        if any(f"/{part}" in path for part in _FOLDERS):
            continue
        key = names.get(title_of(svg))
        if key is not None and is_public_domain(svg):
            yield Path(path).name.split(".svg")[0], key, svg


def _documents(folder: Path) -> Iterator[tuple[str, str]]:
    unpacked = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", str(folder / FILE)], check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=BytesIO(unpacked)) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None and ".svg" in member.name:
                raw = file.read()
                raw = gzip.decompress(raw) if member.name.endswith("z") else raw
                yield member.name, raw.decode("utf-8", "replace")
