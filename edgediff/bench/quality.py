"""How good the very image was that a benchmark timed."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from edgediff.bench.results import Config, Quality
from edgediff.bundle.folder import Bundle, read_fixtures
from edgediff.bundle.manifest import ImageFidelity
from edgediff.images.metrics import psnr


def matching(bundle: Bundle, config: Config) -> ImageFidelity | None:
    """The fixture that was made with the same settings, None where there is none."""
    names = ("prompt", "seed", "steps", "guidance_scale", "sampler", "width", "height")
    return next(
        (
            made
            for made in bundle.manifest.fidelity.images
            if all(getattr(made, name) == getattr(config, name) for name in names)
        ),
        None,
    )


def compare(path: Path | None, config: Config, png: str) -> Quality | None:
    """The image (base64 of a PNG) against the float model's in the bundle at `path`."""
    if path is None:
        return None
    bundle = Bundle.open(path)
    made = matching(bundle, config)
    fixtures = read_fixtures(bundle)
    if made is None or fixtures is None:
        return Quality(psnr_db=None, reason="the bundle holds no image of these settings")
    reference = fixtures[f"image/{made.name}"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
    decibels = psnr(image, reference)
    return Quality(psnr_db=decibels, equal=decibels is None)
