"""Decoded pixels to pictures, and pictures to PNG files that say how they were made."""

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgediff.errors import InputError


def to_pictures(decoded: NDArray[np.float32]) -> list[Image.Image]:
    """decoded (n, 3, h, w) float32 in [-1, 1] → n RGB pictures, 8 bits, halves rounded to even."""
    unit = np.clip(decoded / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    pixels = (unit * 255).round().astype(np.uint8)
    return [Image.fromarray(p, mode=None) for p in pixels]


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float | None:
    """Peak signal-to-noise ratio in dB of two 8-bit pictures of one shape; None where equal."""
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return None if mse == 0 else 10 * float(np.log10(255**2 / mse))


def check_output(path: Path) -> None:
    """Raise InputError, before any work is done, where a PNG cannot be written to `path`."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: edgediff writes PNG: give a path that ends in .png")
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: is no path for a picture ({e})") from e
    if path.is_dir():
        raise InputError(f"{path}: is a folder: give a file's path, such as {path / 'picture.png'}")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: create it first (mkdir -p {folder})")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: not writable: choose another folder")


def save_png(
    picture: Image.Image, path: Path, *, parameters: str | None, record: Mapping[str, Any]
) -> None:
    """Write a PNG whole or not at all: to a temporary file beside `path`, then renamed.

    `parameters`, where given, becomes the text chunk that other tools read; `record`, as JSON,
    the chunk `edgediff`."""
    info = PngInfo()
    if parameters is not None:
        info.add_itxt("parameters", parameters)
    info.add_itxt("edgediff", json.dumps(record, ensure_ascii=False))
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with temporary.open("wb") as f:
            picture.save(f, format="PNG", pnginfo=info)
        temporary.replace(path)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror})") from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


# How AUTOMATIC1111's web UI, and the tools that read its PNGs, name the samplers.
SAMPLER_LABELS = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "ddim": "DDIM",
    "pndm": "PLMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lcm": "LCM",
    "tcd": "TCD",
}
SPACING_LABELS = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}


def parameters(record: Mapping[str, Any]) -> str:
    """A picture's settings as the `parameters` text that other tools read.

    The form is AUTOMATIC1111's: the prompt, a line for the negative prompt, a line of fields."""
    lines = [record["prompt"]]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    fields = {
        "Steps": record["steps"],
        "Sampler": SAMPLER_LABELS.get(record["sampler"], record["sampler"]),
        **_noise_level_fields(record),
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        **_variation_fields(record),
        "Size": f"{record['width']}x{record['height']}",
        "Model hash": record["bundle"][:10],
        "Model": record["model"],
        **_text_fields(record),
        **_pass_fields(record),
        "Version": f"edgediff {record['edgediff']}",
    }
    lines.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in fields.items()))
    return "\n".join(lines)


def _noise_level_fields(record: Mapping[str, Any]) -> dict[str, object]:
    spacing = record.get("spacing")
    return {} if spacing is None else {"Schedule type": SPACING_LABELS[spacing]}


def _variation_fields(record: Mapping[str, Any]) -> dict[str, object]:
    if record.get("variation_seed") is None:
        return {}
    strength = f"{record['variation_strength']:g}"
    return {"Variation seed": record["variation_seed"], "Variation seed strength": strength}


def _text_fields(record: Mapping[str, Any]) -> dict[str, object]:
    """How the prompts were read, where that is not what the readers of this form take for granted:
    they count the last layer as clip skip 1, and give brackets weight."""
    fields: dict[str, object] = {}
    if record.get("clip_skip") is not None:
        fields["Clip skip"] = record["clip_skip"] + 1
    brackets = set(record["prompt"] + (record["negative_prompt"] or "")) & set("([")
    if brackets and not record.get("prompt_weights"):
        fields["Emphasis"] = "None"
    return fields


def _pass_fields(record: Mapping[str, Any]) -> dict[str, object]:
    """Of a picture that was given, and of a second pass, whose strength has the same name there."""
    if record.get("hires") is None:
        strength = record.get("strength")
        return {} if strength is None else {"Denoising strength": f"{strength:g}"}
    return {
        "Denoising strength": f"{record['hires_strength']:g}",
        "Hires upscale": f"{record['hires']:g}",
        "Hires steps": record["hires_steps"],
        "Hires upscaler": "Latent (bicubic)" if record["hires_mode"] == "latent" else "Lanczos",
    }


def _quote(value: str) -> str:
    """Values with separators in them go in JSON quotes, as the readers of this form expect."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value
