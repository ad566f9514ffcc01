"""The images that a call sets out from: one to change, and a mask of what to paint anew."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediff.bundle.manifest import Manifest
from edgediff.bundle.tensor_names import SAMPLE
from edgediff.checks import MAX_SIDE, check_flag, check_number
from edgediff.errors import BundleError, InputError
from edgediff.images.source import OpenedImage, Source, open_image
from edgediff.networks.autoencoder import require_encoder

DEFAULT_STRENGTH = 0.8
"""Of image to image; of inpainting it is 1. Both as in diffusers."""
_SPARE = 4
"""An image keeps its own size where it has up to so many times the pixels of the bundle's default,
and as few as that part of them."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An image that was given, as the record of the one made from it keeps it: its file's name
    without the folders, and SHA-256, in hex, of its pixels as (h, w, 3) uint8, upright."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """An opened image and its mask, each of which may be missing."""

    init_image: OpenedImage | None
    mask: OpenedImage | None

    def notes(self, width: int, height: int, *, asked: bool) -> tuple[str, ...]:
        """What was done to them, at the size of the image made, that one might not expect.

        asked: whether the call asked for that size."""
        found = [n for p in (self.init_image, self.mask) if p is not None for n in p.notes]
        if self.init_image is not None:
            found += self.init_image.notes_at(width, height, asked=asked)
        return tuple(found)

    def strength(self, asked: object) -> float | None:
        """The strength asked for or, where that is None, the default; None without an image.

        Raises InputError for what is no number, and for a strength without an image."""
        if self.init_image is None and asked is None:
            return None
        if self.init_image is None:
            raise InputError(
                f"`strength` is {asked!r}, but there is no `init_image`: give an image"
            )
        if asked is None:
            return DEFAULT_STRENGTH if self.mask is None else 1.0
        return check_number("strength", asked)

    def keep_unmasked(self, asked: object) -> bool:
        """Raises InputError for what is neither True nor False, and for True without a mask."""
        keep = check_flag("keep_unmasked", asked)
        if keep and self.mask is None:
            raise InputError("`keep_unmasked` is given, but there is no `mask`: give one")
        return keep

    def restored(self, image: Image.Image) -> Image.Image:
        """An image, made from these, with what the mask keeps as it was given, in RGB."""
        if self.init_image is None or self.mask is None:
            return image
        size = image.size
        pixels = np.array(image)
        kept = ~mask_at(self.mask, *size)
        pixels[kept] = self.init_image.at(*size)[kept]
        return Image.fromarray(pixels)


def open_inputs(init_image: Source | None, mask: Source | None) -> Inputs:
    """Read the images, each once. Raises InputError for what cannot be read, and for a mask that
    has no image, another size than it, transparency, or nothing white."""
    image = None if init_image is None else open_image(init_image, "`init_image`")
    if mask is None:
        return Inputs(init_image=image, mask=None)
    if image is None:
        raise InputError("`mask` is given, but `init_image` is not: give the image that it lies on")
    opened = open_image(mask, "`mask`")
    name = opened.name
    if opened.size != image.size:
        (w, h), (mask_w, mask_h) = image.size, opened.size
        raise InputError(
            f"`mask` {name}: is {mask_w}x{mask_h}, and the image {w}x{h} (upright): give one"
            " of the image's size"
        )
    if opened.transparent:
        raise InputError(
            f"`mask` {name}: has transparent parts, which say neither keep nor repaint: save"
            " it without transparency, white where to paint anew and black where to keep"
        )
    if not mask_at(opened, *opened.size).any():
        raise InputError(
            f"`mask` {name}: nothing in it is white, so there is nothing to paint anew"
        )
    return Inputs(init_image=image, mask=opened)


def inpaints(manifest: Manifest) -> bool:
    """Whether the UNet takes a mask, and the latents of what is kept, beside those to denoise.

    Raises BundleError where it takes something else."""
    graph = manifest.denoiser.graph
    spec = graph.input(SAMPLE)
    taken = spec.shape[1] if spec is not None else None
    channels = manifest.latent.channels
    if taken not in (channels, 2 * channels + 1):
        raise BundleError(
            f"{graph.file}: takes {taken} channels, expected {channels}, or {2 * channels + 1} to"
            " inpaint: export the bundle again"
        )
    return taken != channels


def check_inputs(manifest: Manifest, inputs: Inputs) -> None:
    """Raise InputError where the bundle cannot take these images, or needs some."""
    if inputs.init_image is not None:
        require_encoder(manifest, "init_image")
    if inputs.mask is None and inpaints(manifest):
        raise InputError(
            f"{manifest.name} paints parts of an image anew: give `init_image` and `mask`"
        )


def record(image: OpenedImage | None) -> ImageRecord | None:
    return None if image is None else ImageRecord(name=image.name, sha256=image.sha256)


def mask_at(mask: OpenedImage, width: int, height: int) -> NDArray[np.bool_]:
    """A mask at a size in pixels, as diffusers' VaeImageProcessor makes it: True, which is white,
    from half the brightness on; (height, width)."""
    grey = np.asarray(Image.fromarray(mask.at(width, height)).convert("L"))
    return grey.astype(np.float32) / 255 >= 0.5


def latent_mask(mask: NDArray[np.bool_], downscale: int) -> NDArray[np.float32]:
    """A mask (h, w) → (1, 1, h/downscale, w/downscale) float32 of 0 and 1, the nearest pixel each,
    as torch's interpolate has it."""
    return mask[::downscale, ::downscale][None, None].astype(np.float32)


def check_mask(inputs: Inputs, width: int, height: int, downscale: int) -> None:
    """Raise InputError where nothing of the mask is left in latents of an image of that size."""
    if inputs.mask is not None:
        mask = latent_mask(mask_at(inputs.mask, width, height), downscale)
        if not mask.any():
            raise InputError(
                f"`mask` {inputs.mask.name}: what is white in it is too fine for latents of"
                f" {downscale} pixels a side: make it thicker"
            )


def size_of(image: OpenedImage, manifest: Manifest) -> tuple[int, int]:
    """The size to make of an image, where none is asked for, in pixels.

    Its own, cut down to whole latents as in diffusers, unless it has far more or far fewer pixels
    than the bundle's default size: then about as many as that, in its proportions.

    Raises InputError where a side is longer than any image's."""
    multiple = manifest.latent.downscale
    pixels = manifest.defaults.width * manifest.defaults.height
    width, height = image.size
    near = pixels / _SPARE <= width * height <= pixels * _SPARE
    scale = 1.0 if near else math.sqrt(pixels / (width * height))
    made = [max(1, int(side * scale) // multiple) * multiple for side in (width, height)]
    if max(made) > MAX_SIDE:
        raise InputError(
            f"`init_image` {image.name}: is {width}x{height} pixels, and at most {MAX_SIDE} a"
            " side are made: crop it, or give `size`"
        )
    return made[0], made[1]
