"""Latents to pictures, through the bundle's decoder."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediff import image
from edgediff.bundle import Manifest
from edgediff.conditioning import RunStage
from edgediff.errors import ProviderError


class Vae:
    """A bundle's autoencoder. `provider` is named where values are not finite."""

    def __init__(self, manifest: Manifest, run_stage: RunStage, provider: str) -> None:
        self._manifest = manifest
        self._run_stage = run_stage
        self._provider = provider

    def decode(self, latents: NDArray[np.float32]) -> list[Image.Image]:
        """latents (n, c, h/8, w/8) float32 → n RGB pictures. Raises ProviderError where they, or
        the decoder's values, are not finite."""
        if not np.isfinite(latents).all():
            raise ProviderError(
                f"the latents are not finite on {self._provider}: run `edgediff verify` to see"
                " whether a stage is at fault, or ask for less guidance"
            )
        # One by one: a picture of a batch is bit for bit what it would be alone.
        return [
            picture
            for one in self.decoder_input(latents)[:, None]
            for picture in image.to_pictures(self._decode(one))
        ]

    def decoder_input(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents as the UNet has them → as the VAE has them, of the same shape and dtype."""
        space = self._manifest.latent
        return (latents / space.scaling_factor + space.shift_factor).astype(np.float32)

    def _decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """The decoder alone: (1, c, h/8, w/8) → (1, 3, h, w) float32 in [-1, 1], or a little past
        them. Raises ProviderError where they are not finite."""
        graph = self._manifest.graphs["vae_decoder"]
        outputs = self._run_stage("vae_decoder", {graph.inputs[0].name: latents})
        decoded = outputs[graph.outputs[0].name]
        if not np.isfinite(decoded).all():
            raise ProviderError(
                f"{graph.file}: gave values that are not finite on {self._provider}:"
                " run `edgediff verify` to see which stage is at fault"
            )
        return decoded
