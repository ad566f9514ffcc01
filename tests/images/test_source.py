"""A caller's images: every kind that is read, and every kind that is refused."""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediff.errors import InputError
from edgediff.images import source as image_module
from edgediff.images.source import IN_MEMORY, open_image


def gradient(height: int = 5, width: int = 7) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 40, x * 30, (x + y) * 20], axis=-1).astype(np.uint8)


def saved(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels(source: Any) -> np.ndarray:
    return np.asarray(open_image(source, "init_image").rgb)


def test_a_path_a_pillow_image_and_an_array_are_the_same(tmp_path: Path) -> None:
    path = saved(Image.fromarray(gradient()), tmp_path / "a.png")
    for source in (path, str(path), Image.open(path), gradient()):
        assert (pixels(source) == gradient()).all()
    opened = open_image(path, "init_image")
    assert (opened.name, opened.size, opened.notes) == ("a.png", (7, 5), ())
    assert opened.sha256 == hashlib.sha256(gradient().tobytes()).hexdigest()
    assert open_image(gradient(), "init_image").name == IN_MEMORY
    assert open_image(opened, "init_image") is opened


def test_images_are_resized_by_lanczos() -> None:
    opened = open_image(gradient(), "init_image")
    assert (opened.at(7, 5) == gradient()).all()
    expected = Image.fromarray(gradient()).resize((16, 8), Image.Resampling.LANCZOS)
    assert (opened.at(16, 8) == np.asarray(expected)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    """As the EXIF standard maps stored rows and columns to the upright image."""
    turned: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(Image.fromarray(gradient()), tmp_path / "a.png", exif=exif)
    assert (pixels(path) == turned[orientation](gradient())).all()


def test_transparent_parts_become_white_with_a_note(tmp_path: Path) -> None:
    rgba = np.dstack([gradient(), np.full((5, 7), 255, np.uint8)])
    opaque = open_image(saved(Image.fromarray(rgba), tmp_path / "a.png"), "init_image")
    assert (np.asarray(opaque.rgb) == gradient()).all()
    assert (opaque.notes, opaque.transparent) == ((), False)
    rgba[0, 0, 3], rgba[1, 1, 3] = 0, 128
    path = saved(Image.fromarray(rgba), tmp_path / "b.png")
    opened = open_image(path, "init_image")
    found = np.asarray(opened.rgb)
    assert (found[0, 0] == 255).all()
    assert np.abs(found[1, 1] - (gradient()[1, 1] / 2 + 127.5)).max() <= 1.5
    assert (found[2:] == gradient()[2:]).all()
    assert opened.notes == (f"{path}: transparent parts were laid on white",)
    assert opened.transparent
    assert (pixels(rgba) == found).all()


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    path = saved(image, tmp_path / "a.png", transparency=1)
    assert pixels(path).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert pixels(image).tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 127, 257, 300, 0x8000, 0xFFFF]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path / f"a{suffix}")
    assert pixels(path)[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert pixels(path).shape == (1, 6, 3)
    assert pixels(Image.fromarray(values.astype(np.int32)))[0, :, 0].tolist()[-1] == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_modes_become_rgb(mode: str) -> None:
    grey = Image.fromarray(np.full((3, 4), 255, np.uint8))
    found = open_image(grey.convert("RGB").convert(mode), "init_image")
    assert (np.asarray(found.rgb) >= 254).all()
    assert found.rgb.size == (4, 3)
    assert bool(found.notes) == (mode == "CMYK")


def test_grey_arrays() -> None:
    grey = gradient()[..., 0]
    assert (pixels(grey) == grey[..., None]).all()


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_the_first_frame_of_an_animation_is_read_with_a_note(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    path = saved(frames[0], tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    opened = open_image(path, "init_image")
    assert np.abs(np.asarray(opened.rgb).astype(int) - (255, 0, 0)).max() <= 4
    assert opened.notes == (f"{path}: of several frames, the first was taken",)


def test_an_opened_animation_keeps_its_current_frame() -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    image = Image.open(buffer)
    image.seek(1)
    assert pixels(image)[0, 0].tolist() == [0, 0, 255]


def noise(width: int = 64, height: int = 64) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".gif", ".bmp", ".tif"])
@pytest.mark.parametrize("part", [0.0, 0.02, 0.5])
def test_truncated_files(tmp_path: Path, suffix: str, part: float) -> None:
    whole = saved(noise(), tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(whole[: int(len(whole) * part)])
    said = "is not an image|the image is damaged|cannot be read"
    with pytest.raises(InputError, match=rf"a{suffix}: ({said})"):
        open_image(path, "init_image")


def test_a_corrupt_file(tmp_path: Path) -> None:
    path = saved(noise(), tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png: the image is damaged"):
        open_image(path, "init_image")


def test_files_that_are_not_images(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError, match=r"a\.png: is not an image that can be read: .* PNG, JPEG"):
        open_image(path, "init_image")
    with pytest.raises(InputError, match=r"none\.png: cannot be read \(No such file"):
        open_image(tmp_path / "none.png", "init_image")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        open_image(tmp_path, "init_image")
    with pytest.raises(InputError, match="cannot be read"):
        open_image("a\0.png", "init_image")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size but holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT\x35\xaf\x06\x1e"


@pytest.mark.parametrize("side", [8001, 10_000, 20_000, 100_000, 2**30])
def test_enormous_files_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    """Only by our own error: pillow warns from 89 megapixels, and from 179 raises an error without
    the size."""
    path = tmp_path / "a.png"
    path.write_bytes(png_header(side, side))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match=rf"a\.png: is {side}x{side} pixels: at most 64 mega"):
            open_image(path, "init_image")
    assert warned == []


def test_pixels_in_memory_are_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "MAX_PIXELS", 30)
    with pytest.raises(InputError, match="init_image: is 7x5 pixels"):
        open_image(gradient(), "init_image")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (7, "mask is int: expected a path"),
        (b"a.png", "mask is bytes"),
        (None, "mask is NoneType"),
        (Image.new("RGB", (0, 5)), "mask: is 0x5 pixels"),
        (np.zeros((0, 5, 3), np.uint8), "mask is 5x0 pixels"),
        (np.zeros((4, 5, 2), np.uint8), r"mask is an array of uint8 \(4, 5, 2\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), "mask is an array"),
        (np.zeros((4, 5, 3), np.float32), "mask is an array of float32"),
        (Image.new("F", (4, 5)), "floating-point pixels"),
        (Image.new("I", (4, 5), -1), "values from -1 to -1"),
        (Image.new("I", (4, 5), 2**20), "values from 1048576"),
    ],
)
def test_sources_that_are_refused(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_image(source, "mask")
