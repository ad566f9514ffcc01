"""Reads a caller's images, from a file, pillow or numpy, as upright 8-bit RGB.

`edgediff.images.png` writes images.
"""

import contextlib
import functools
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from edgediff.errors import InputError, first_line
from edgediff.files import open_regular

MAX_PIXELS = 64_000_000
"""Larger images are refused before they are decoded: in RGB they take 192 MB or more."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""The formats that are read, by pillow's names. Pillow reads more, some (EPS) by other programs."""
IN_MEMORY = "in memory"
_ALIKE = 1.05
"""Proportions that differ by less than this factor look the same."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenedImage:
    """A caller's image, upright.

    rgb: its pixels, in mode RGB.
    name: its file's name without folders, or IN_MEMORY.
    what: its name in notes: its path or, without one, its option.
    notes: changes to it that a caller might not expect, a sentence each.
    transparent: whether parts of it were transparent, which are now white.
    """

    rgb: Image.Image
    name: str
    what: str
    notes: tuple[str, ...] = ()
    transparent: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.size

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256, in hex, of the pixels as (h, w, 3) uint8."""
        return hashlib.sha256(self.rgb.tobytes()).hexdigest()

    def at(self, width: int, height: int) -> NDArray[np.uint8]:
        """The image at a size in pixels, by Lanczos as in diffusers: (height, width, 3) uint8."""
        return np.asarray(self.rgb.resize((width, height), Image.Resampling.LANCZOS))

    def notes_at(self, width: int, height: int, *, asked: bool) -> tuple[str, ...]:
        """Notes on a change by `at` that a caller might not expect: to its proportions or, unless
        that size was asked for, to its size. width, height: in pixels."""
        now, then = f"{width}x{height}", "{}x{}".format(*self.size)
        ratio = (width / self.size[0]) / (height / self.size[1])
        if not 1 / _ALIKE < ratio < _ALIKE:
            return (f"{self.what}: was stretched from {then} to {now} pixels",)
        return () if asked or now == then else (f"{self.what}: was resized from {then} to {now}",)


Source = str | os.PathLike[str] | Image.Image | NDArray[np.uint8] | OpenedImage
"""The forms of an input image: a file's path, a pillow image, an array (h, w), (h, w, 3) or
(h, w, 4) uint8, or an image that was opened before."""


def open_image(source: Source, what: str) -> OpenedImage:
    """Read an image and decode it. what: its option, in backticks, for messages.

    It is turned upright by its EXIF orientation, and its transparent parts become white. Grey,
    16-bit (scaled), palette and CMYK images become RGB; colour profiles are ignored. Only the first
    of several frames is read.

    Raises InputError if it cannot be read, has no pixels, or has more than MAX_PIXELS."""
    if isinstance(source, OpenedImage):
        return source
    if isinstance(source, np.ndarray):
        return _convert(_from_array(source, what), what, what, IN_MEMORY)
    if isinstance(source, Image.Image):
        with pillow_errors(what):  # it may be decoded only now
            return _convert(source, what, what, IN_MEMORY)
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"{what} is {type(source).__name__}: expected a path, a pillow image or a numpy array",
        )
    path = Path(source)
    where = f"{what} {path}"
    with pillow_errors(where), open_regular(path) as file, identify(file) as image:
        return _convert(image, where, str(path), path.name)


@contextlib.contextmanager
def pillow_errors(where: str, *, formats: Sequence[str] = FORMATS) -> Iterator[None]:
    """Turn whatever reading an image raises into InputError: on damaged files, pillow's decoders
    raise almost anything. `where` names the image; formats: those that can be read."""
    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError as e:
        raise InputError(
            f"{where}: is not an image that can be read: give one of {', '.join(formats)}"
        ) from e
    except Exception as e:
        if isinstance(e, OSError) and e.strerror:
            raise InputError(f"{where}: cannot be read ({e.strerror})") from e
        raise InputError(f"{where}: the image is damaged ({first_line(e)})") from e


def identify(file: IO[bytes], formats: Sequence[str] = FORMATS) -> Image.Image:
    """As Image.open, whose own limit of size is not ours: it warns, and does not say the size.

    Raises UnidentifiedImageError, and anything else that pillow raises for a damaged file."""
    Image.init()
    start = file.read(16)
    failed: Exception = UnidentifiedImageError()
    for name in formats:
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(start) is True:
            file.seek(0)
            try:
                return factory(file, "")
            except (SyntaxError, IndexError, TypeError, struct.error) as e:
                failed = e  # of a file of this format, or of another one that begins alike
    raise failed


def _from_array(array: NDArray[np.uint8], what: str) -> Image.Image:
    channels = array.shape[2:]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in ((), (3,), (4,)):
        raise InputError(
            f"{what} is an array of {array.dtype} {array.shape}: expected uint8 (h, w),"
            " (h, w, 3) or (h, w, 4)",
        )
    if 0 in array.shape:
        raise InputError(f"{what} is {array.shape[1]}x{array.shape[0]} pixels: it has none")
    return Image.fromarray(array)


def _convert(image: Image.Image, where: str, what: str, name: str) -> OpenedImage:
    """A pillow image of any mode → an OpenedImage. `where` names it in errors, `what` in notes."""
    width, height = image.size
    if width < 1 or height < 1:
        raise InputError(f"{where}: is {width}x{height} pixels: it has none")
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{where}: is {width}x{height} pixels: at most {MAX_PIXELS // 1_000_000} megapixels are"
            " read: make it smaller first",
        )
    notes = []
    if name != IN_MEMORY and getattr(image, "is_animated", False):
        notes.append(f"{what}: of several frames, the first was taken")
    upright = _eight_bits(ImageOps.exif_transpose(image), where)
    transparent = False
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        transparent = int(np.asarray(rgba)[..., 3].min()) < 255
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = upright.convert("RGB")
    if transparent:
        notes.append(f"{what}: transparent parts were laid on white")
    if image.mode == "CMYK":
        notes.append(f"{what}: CMYK was converted without its colour profile")
    return OpenedImage(rgb=rgb, name=name, what=what, notes=tuple(notes), transparent=transparent)


def _eight_bits(image: Image.Image, where: str) -> Image.Image:
    """16-bit grey → 8-bit grey, scaled; pillow's own conversion would clip it."""
    if image.mode == "F":
        raise InputError(
            f"{where}: has floating-point pixels, whose range is not said: use 16 bits"
        )
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 0xFFFF:
        raise InputError(
            f"{where}: has values from {grey.min()} to {grey.max()}: use 8 or 16 bits a channel"
        )
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))
