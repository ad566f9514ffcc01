"""Shards of latents with their captions, which the denoiser learns from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray

from demo_model import checkpoint
from demo_model.first_stage.model import encode
from demo_model.scenes import pool


def write_shard(
    images: NDArray[np.uint8],
    entries: Sequence[dict[str, Any]],
    model: AutoencoderTiny,
    path: Path,
) -> None:
    """Encode the images (n, 128, 128, 3) of the scenes `entries` into the folder `path`.

    It then holds `latents.npy` (n, c, 16, 16) float16 and `scenes.json`.
    """
    latents = encode(model, images).to(torch.float16).numpy()

    def write(beside: Path) -> None:
        beside.mkdir()
        np.save(beside / "latents.npy", latents)
        (beside / "scenes.json").write_text(json.dumps(list(entries)))

    checkpoint.replace_folder(path, write)


def read(folder: Path) -> tuple[list[NDArray[np.float16]], list[list[str]]]:
    """The latents of every shard, memory-mapped, and the captions of all their scenes in order."""
    parts, captions = [], []
    for path in pool.shards(folder):
        parts.append(np.load(path / "latents.npy", mmap_mode="r"))
        captions += [entry["captions"] for entry in json.loads((path / "scenes.json").read_text())]
    return parts, captions


def scaling_factor(parts: Sequence[NDArray[np.float16]]) -> float:
    """The factor that gives the latents unit deviation, which the pipeline applies."""
    sample = np.concatenate([np.asarray(part[:256], np.float32) for part in parts])
    return round(float(1 / sample.std()), 5)
