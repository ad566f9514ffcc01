"""Latents to images and images to latents, through the bundle's autoencoder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediff.arrays import Array
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.latent import LatentSpec
from edgediff.bundle.manifest import Manifest, Stage
from edgediff.bundle.tensor_names import LATENTS
from edgediff.checks import whole_number
from edgediff.errors import InputError, ProviderError
from edgediff.networks.tiling import OVERLAP, tiled
from edgediff.sampling.samplers import Noise


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """The latents of n images, (n, c, h/8, w/8) float32, scaled for the denoiser; or the normal
    distribution N(mean, std²) of each element (Kingma and Welling 2014, arXiv:1312.6114, eq. 9).
    `std` is None if the encoder returns the latents themselves."""

    mean: Array
    std: Array | None

    def sample(self, noise: Noise) -> Array:
        """Latents of the mean's shape, or of the noise's shape if one image is used for several.
        Noise is drawn only from a distribution, as in diffusers."""
        return self.mean if self.std is None else self.mean + self.std * noise(0)


class Vae:
    """A bundle's autoencoder.

    provider: the name to report if values are not finite.
    tile: the side, in pixels, of the tiles in which images are decoded and encoded; None = whole.

    Raises InputError if `check_tile` refuses the tile."""

    def __init__(
        self, manifest: Manifest, run_stage: RunStage, provider: str, *, tile: int | None = None
    ) -> None:
        self._manifest = manifest
        self._run_stage = run_stage
        self._provider = provider
        downscale = manifest.latent.downscale
        self._tile = None if tile is None else check_tile(tile, downscale) // downscale

    def decode(self, latents: Array) -> list[Image.Image]:
        """latents (n, c, h/8, w/8) float32 → n RGB images. Raises ProviderError if the latents or
        the decoder's outputs are not finite."""
        if not np.isfinite(latents).all():
            raise ProviderError(
                f"the latents are not finite on {self._provider}: run `edgediff verify` to see"
                " whether a stage is at fault, or use less guidance"
            )
        # One by one, so that an image in a batch is bit for bit the same as by itself.
        return [
            image
            for one in decoder_input(self._manifest.latent, latents)[:, None]
            for image in to_images(self._decode(one))
        ]

    def encode(self, sample: Array) -> Encoded:
        """sample (n, 3, h, w) float32 in [-1, 1], see `to_sample` → its latents.

        Raises InputError if the bundle has no encoder, ProviderError if the encoder's outputs are
        not finite."""
        encoder = require_encoder(self._manifest, "init_image")
        (output,) = encoder.graph.outputs
        space = self._manifest.latent

        def scale(z: Array) -> Array:
            return ((z - space.shift_factor) * space.scaling_factor).astype(np.float32)

        encoded = np.concatenate(
            [self._mapped(encoder, one, down=space.downscale, up=1) for one in sample[:, None]]
        )
        if output.name == LATENTS:
            return Encoded(mean=scale(encoded), std=None)
        mean, logvar = np.split(encoded, 2, axis=1)
        std = np.exp(np.clip(logvar, -30, 20) / 2) * space.scaling_factor
        return Encoded(mean=scale(mean), std=std.astype(np.float32))

    def _decode(self, latents: Array) -> Array:
        """Run the decoder: (1, c, h/8, w/8) → (1, 3, h, w) float32, about in [-1, 1]. Raises
        ProviderError if an output is not finite."""
        return self._mapped(
            self._manifest.decoder, latents, down=1, up=self._manifest.latent.downscale
        )

    def _mapped(self, stage: Stage, x: Array, *, down: int, up: int) -> Array:
        """Run a stage that has one input and one output, on all of `x` or in tiles; see `tiled`."""
        graph = stage.graph

        def run(part: Array) -> Array:
            outputs = self._run_stage(stage.name, {graph.inputs[0].name: part})
            values = outputs[graph.outputs[0].name]
            if not np.isfinite(values).all():
                raise ProviderError(
                    f"{graph.file}: gave values that are not finite on {self._provider}:"
                    " run `edgediff verify` to see which stage is at fault"
                )
            return values

        return run(x) if self._tile is None else tiled(run, x, self._tile, down=down, up=up)


def decoder_input(space: LatentSpec, latents: Array) -> Array:
    """Latents as scaled for the denoiser → as the decoder takes them: same shape, float32."""
    return (latents / space.scaling_factor + space.shift_factor).astype(np.float32)


def to_images(decoded: NDArray[np.float32]) -> list[Image.Image]:
    """decoded (n, 3, h, w) float32 in [-1, 1] → n RGB images of 8 bits; halves round to even."""
    unit = np.clip(decoded / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)
    pixels = (unit * 255).round().astype(np.uint8)
    return [Image.fromarray(p, mode=None) for p in pixels]


def to_sample(pixels: NDArray[np.uint8]) -> Array:
    """pixels (h, w, 3) uint8 → (1, 3, h, w) float32 in [-1, 1], rounded as in diffusers."""
    unit = pixels.astype(np.float32) / np.float32(255)
    return np.ascontiguousarray((2 * unit - 1).transpose(2, 0, 1)[None])


LEAST_TILE = 2 * OVERLAP
"""In latents a side. Smaller tiles overlap too little to hide the errors due to padding."""


def check_tile(tile: int, downscale: int) -> int:
    """A tile's side in pixels, checked. Raises InputError unless it is a multiple of `downscale`
    (pixels to a latent) and at least LEAST_TILE latents."""
    least = LEAST_TILE * downscale
    number = whole_number(tile)
    if number is None or number < least or number % downscale:
        raise InputError(
            f"`tile` is {tile!r}: expected pixels a side, a multiple of {downscale} from"
            f" {least} up; leave it out to decode whole images"
        )
    return number


def require_encoder(manifest: Manifest, option: str) -> Stage:
    """The bundle's encoder. Raises InputError if it has none, naming the option that needs it."""
    if manifest.encoder is None:
        raise InputError(
            f"`{option}`: {manifest.name} has no encoder for images: export it again with"
            " --with-encoder"
        )
    return manifest.encoder
