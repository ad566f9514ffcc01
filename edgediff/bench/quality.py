"""Compare the image that a benchmark timed with the float model's."""

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
    """The fixture with the same settings, or None."""
    names = ("prompt", "seed", "steps", "guidance_scale", "sampler", "width", "height")
    return next(
        (
            image
            for image in bundle.manifest.fidelity.images
            if all(getattr(image, name) == getattr(config, name) for name in names)
        ),
        None,
    )


def compare(path: Path | None, config: Config, png: str) -> Quality | None:
    """Compare an image (a PNG in base64) with the float model's in the bundle at `path`."""
    if path is None:
        return None
    bundle = Bundle.open(path)
    fixture = matching(bundle, config)
    fixtures = read_fixtures(bundle)
    if fixture is None or fixtures is None:
        return Quality(
            psnr_db=None,
            reason="the bundle has no reference image with these settings; an export with"
            " --fidelity full has those of its defaults",
        )
    reference = fixtures[f"image/{fixture.name}"]
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"))
    decibels = psnr(image, reference)
    return Quality(psnr_db=decibels, equal=decibels is None)
