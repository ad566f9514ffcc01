"""The images that a call starts from: one to change, and a mask of the parts to repaint."""

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
"""For image to image; for inpainting it is 1. Both as in diffusers."""
_SPARE = 4
"""An image keeps its own size if it has at most this many times the pixels of the bundle's default
size, and at least 1/_SPARE of them."""


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """An input image, as it is kept in the record of the result: its file name without folders, and
    the SHA-256, in hex, of its upright pixels as (h, w, 3) uint8."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """An opened image and its mask, each of which may be missing."""

    init_image: OpenedImage | None
    mask: OpenedImage | None

    def notes(self, width: int, height: int, *, asked: bool) -> tuple[str, ...]:
        """Notes on changes to them that a caller might not expect.

        width, height: of the result, in pixels. asked: whether the call asked for that size."""
        found = [n for p in (self.init_image, self.mask) if p is not None for n in p.notes]
        if self.init_image is not None:
            found += self.init_image.notes_at(width, height, asked=asked)
        return tuple(found)

    def strength(self, asked: object) -> float | None:
        """The strength asked for, or the default if that is None; None without an image.

        Raises InputError if it is not a number, or if there is no image."""
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
        """Whether to restore the pixels outside the mask.

        Raises InputError unless it is True, False or None, and for True without a mask."""
        keep = check_flag("keep_unmasked", asked)
        if keep and self.mask is None:
            raise InputError("`keep_unmasked` is given, but there is no `mask`: give one")
        return keep

    def restored(self, image: Image.Image) -> Image.Image:
        """An image made from these, in RGB, with the pixels outside the mask as in `init_image`."""
        if self.init_image is None or self.mask is None:
            return image
        size = image.size
        pixels = np.array(image)
        kept = ~mask_at(self.mask, *size)
        pixels[kept] = self.init_image.at(*size)[kept]
        return Image.fromarray(pixels)


def open_inputs(init_image: Source | None, mask: Source | None) -> Inputs:
    """Read the images, each once. Raises InputError for an image that cannot be read, and for a
    mask without an image, of another size, with transparency, or with nothing white."""
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
            f"`mask` {name}: has transparent parts, which mean neither keep nor repaint: save it"
            " without transparency, white to repaint and black to keep"
        )
    if not mask_at(opened, *opened.size).any():
        raise InputError(f"`mask` {name}: nothing in it is white, so there is nothing to repaint")
    return Inputs(init_image=image, mask=opened)


def inpaints(manifest: Manifest) -> bool:
    """Whether the denoiser takes a mask and the latents of the masked image as further channels.

    Raises BundleError for any other number of channels."""
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
    """Raise InputError if the bundle cannot take these images, or needs some."""
    if inputs.init_image is not None:
        require_encoder(manifest, "init_image")
    if inputs.mask is None and inpaints(manifest):
        raise InputError(
            f"{manifest.name} repaints parts of an image: give `init_image` and `mask`"
        )


def record(image: OpenedImage | None) -> ImageRecord | None:
    """The record of an image; None for None."""
    return None if image is None else ImageRecord(name=image.name, sha256=image.sha256)


def mask_at(mask: OpenedImage, width: int, height: int) -> NDArray[np.bool_]:
    """A mask at a size in pixels, (height, width) bool: True, for white, from half the brightness
    up, as in diffusers' VaeImageProcessor."""
    grey = np.asarray(Image.fromarray(mask.at(width, height)).convert("L"))
    return grey.astype(np.float32) / 255 >= 0.5


def latent_mask(mask: NDArray[np.bool_], downscale: int) -> NDArray[np.float32]:
    """A mask (h, w) bool → (1, 1, h/downscale, w/downscale) float32 of 0 and 1, by the nearest
    pixel, as torch's interpolate chooses it."""
    return mask[::downscale, ::downscale][None, None].astype(np.float32)


def check_mask(inputs: Inputs, width: int, height: int, downscale: int) -> None:
    """Raise InputError if nothing of the mask is left in the latents of an image of this size, in
    pixels. downscale: pixels a side to a latent."""
    if inputs.mask is not None:
        mask = latent_mask(mask_at(inputs.mask, width, height), downscale)
        if not mask.any():
            raise InputError(
                f"`mask` {inputs.mask.name}: its white parts are too fine for latents of"
                f" {downscale} pixels a side: make them thicker"
            )


def size_of(image: OpenedImage, manifest: Manifest) -> tuple[int, int]:
    """The (width, height) in pixels of an image to make from this one if no size is asked for.

    Its own size, cut to whole latents as in diffusers, unless it has far more or far fewer pixels
    than the bundle's default size: then about as many as that, with its proportions.

    Raises InputError if a side would be longer than MAX_SIDE."""
    multiple = manifest.latent.downscale
    pixels = manifest.defaults.width * manifest.defaults.height
    width, height = image.size
    near = pixels / _SPARE <= width * height <= pixels * _SPARE
    scale = 1.0 if near else math.sqrt(pixels / (width * height))
    made = [max(1, int(side * scale) // multiple) * multiple for side in (width, height)]
    if max(made) > MAX_SIDE:
        raise InputError(
            f"`init_image` {image.name}: is {width}x{height} pixels, but a side of the result has"
            f" at most {MAX_SIDE}: crop it, or give `size`"
        )
    return made[0], made[1]
