"""How good the very picture was that a benchmark timed."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from edgediff.bench.results import Config, Quality
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import PictureFidelity
from edgediff.images.metrics import psnr


def matching(bundle: Bundle, config: Config) -> PictureFidelity | None:
    """The fixture that was made with the same settings, None where there is none."""
    names = ("prompt", "seed", "steps", "guidance_scale", "sampler", "width", "height")
    return next(
        (
            made
            for made in bundle.manifest.fidelity.pictures
            if all(getattr(made, name) == getattr(config, name) for name in names)
        ),
        None,
    )


def compare(path: Path | None, config: Config, png: str) -> Quality | None:
    """The picture (base64 of a PNG) against the float model's in the bundle at `path`."""
    if path is None:
        return None
    bundle = Bundle.open(path)
    made = matching(bundle, config)
    if made is None or bundle.manifest.fixtures is None:
        return Quality(psnr_db=None, reason="the bundle holds no picture of these settings")
    with np.load(bundle.path(bundle.manifest.fixtures), allow_pickle=False) as fixtures:
        reference = fixtures[f"picture/{made.name}"]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
    decibels = psnr(picture, reference)
    return Quality(psnr_db=decibels, equal=decibels is None)
