"""Pixels, PNGs that are written whole or not at all, and their metadata."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from edgediff.errors import InputError
from edgediff.images.metrics import psnr
from edgediff.images.png import check_metadata, check_output, save_image
from edgediff.networks.autoencoder import to_images
from edgediff.request.a1111 import parameters
from edgediff.request.record import read_record

RECORD: dict[str, Any] = {
    "edgediff": "1.2.3",
    "prompt": "a fox, 日本 ☀",
    "negative_prompt": "blurry",
    "steps": 20,
    "guidance_scale": 7.5,
    "sampler": "dpmpp_2m_karras",
    "seed": 0,
    "width": 512,
    "height": 256,
    "model": "emoji",
    "bundle": "0123456789abcdef",
}


def test_pixels_are_those_of_diffusers_image_processor() -> None:
    values = np.array([-2, -1, 0, 1 / 255, 0.5, 1, 3], np.float32)
    decoded = np.broadcast_to(values, (2, 3, 1, 7)).copy()
    images = to_images(decoded)
    assert [p.size for p in images] == [(7, 1), (7, 1)]
    assert [p.mode for p in images] == ["RGB", "RGB"]
    assert np.asarray(images[0])[0, :, 0].tolist() == [0, 0, 128, 128, 191, 255, 255]


def test_channels_stay_red_green_blue() -> None:
    decoded = np.full((1, 3, 8, 8), -1, np.float32)
    decoded[:, 0] = 1
    assert to_images(decoded)[0].getpixel((0, 0)) == (255, 0, 0)


def test_psnr() -> None:
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a) is None
    assert psnr(a, a + 255) == 0
    assert psnr(a, a + 1) == pytest.approx(48.13, abs=0.01)


def test_parameters_are_in_the_form_that_other_tools_read() -> None:
    assert parameters(RECORD) == (
        "a fox, 日本 ☀\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 0, Size: 512x256, "
        "Model hash: 0123456789, Model: emoji, Version: edgediff 1.2.3"
    )


def test_parameters_without_a_negative_prompt_and_with_an_awkward_name() -> None:
    text = parameters({**RECORD, "negative_prompt": None, "model": "a, b: c"})
    assert "Negative" not in text
    assert 'Model: "a, b: c"' in text


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"clip_skip": 1}, "Clip skip: 2"),
        ({"clip_skip": 2}, "Clip skip: 3"),
        ({"prompt": "a (fox)"}, "Emphasis: None"),
        ({"negative_prompt": "[fog]"}, "Emphasis: None"),
    ],
)
def test_parameters_have_the_options_of_prompts(changes: dict[str, Any], field: str) -> None:
    assert f", {field}, Version" in parameters(RECORD | changes)
    weighted = parameters(RECORD | changes | {"prompt_weights": True})
    assert ("Emphasis" in weighted) is False


def test_a_png_carries_both_texts_and_survives_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = Image.new("RGB", (8, 8), "red")
    save_image(image, path, parameters=parameters(RECORD), record=RECORD)
    with Image.open(path) as read:
        assert read.size == (8, 8)
        assert read.info["parameters"] == parameters(RECORD)
        assert json.loads(read.info["edgediff"]) == RECORD
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(InputError, match="No space left"):
        save_image(Image.new("RGB", (8, 8)), path, parameters="", record={})
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.png", parameters="", record={})
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_written_are_refused_early(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.png, \.jpg or \.webp"):
        check_output(tmp_path / "a.gif")
    with pytest.raises(InputError, match="no such folder"):
        check_output(tmp_path / "absent" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path / "folder.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "fifo.png")
    for name in ("loop.png", "fifo.png", "a\0b.png", "a" * 255 + ".png"):
        with pytest.raises(InputError, match="cannot be written to"):
            check_output(tmp_path / name)
    for name in ("a.PNG", "a.jpg", "a.JPEG", "a.webp"):
        check_output(tmp_path / name)


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InputError, match="not writable"):
        check_output(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_a_jpeg_and_a_webp_carry_both_texts_in_exif(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    made = RECORD | {"prompt": "a füchs 🦊", "negative_prompt": None}
    image = Image.effect_noise((64, 64), 40).convert("RGB")
    save_image(image, path, parameters=parameters(made), record=made)
    with Image.open(path) as read:
        assert read.format == {"a.jpg": "JPEG", "a.webp": "WEBP"}[name]
        comment = read.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
        assert comment[:8] == b"UNICODE\0"
        assert comment[8:].decode("utf-16-be") == parameters(made)
        far = np.asarray(read.convert("RGB"), np.float64) - np.asarray(image)
        assert np.abs(far).mean() < 5
    assert read_record(path) == made


def test_metadata_that_a_jpeg_does_not_hold_are_refused_early(tmp_path: Path) -> None:
    long = RECORD | {"prompt": "é" * 20_000}
    with pytest.raises(InputError, match=r"too long for a JPEG's metadata.*\.png"):
        check_metadata(tmp_path / "a.jpg", parameters(long), long)
    for name in ("a.png", "a.webp"):
        check_metadata(tmp_path / name, parameters(long), long)
        image = Image.new("RGB", (8, 8))
        save_image(image, tmp_path / name, parameters=parameters(long), record=long)
        assert read_record(tmp_path / name) == long


def test_the_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.png").touch()
    (tmp_path / "link.png").symlink_to("absent/target.png")
    (tmp_path / "below.png").symlink_to("file.png/target.png")
    for path, message in (
        ("absent/a.png", f"{tmp_path}/absent: no such folder: create it first (mkdir -p "),
        ("link.png", f"{tmp_path}/link.png is a link into {tmp_path}/absent: no such folder: "),
        ("below.png", f"{tmp_path}/below.png is a link into {tmp_path}/file.png: is a file, not"),
        ("file.png/a.png", f"{tmp_path}/file.png: is a file, not a folder: choose another place"),
        ("file.png/b/a.png", f"{tmp_path}/file.png: is a file, not a folder: choose"),
    ):
        with pytest.raises(InputError) as e:
            check_output(tmp_path / path)
        assert str(e.value).startswith(message)
