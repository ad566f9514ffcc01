"""How well the autoencoder keeps an image: decibels, and how much of the edges is left."""

import math

import numpy as np
from diffusers import AutoencoderTiny
from numpy.typing import NDArray

from demo_model.first_stage.model import decode, encode

Images = NDArray[np.uint8]


def edge_energy(images: Images) -> float:
    """Mean absolute difference of neighbouring pixels, in steps of 255."""
    x = images.astype(np.float32)
    return float(np.abs(np.diff(x, axis=1)).mean() + np.abs(np.diff(x, axis=2)).mean())


def psnr(a: Images, b: Images) -> NDArray[np.float64]:
    """Decibels of each pair, (n,)."""
    squared = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(squared, 1e-3))


def reconstruction(model: AutoencoderTiny, images: Images) -> tuple[dict[str, float], Images]:
    """Figures of the images sent through latents and back, and those images.

    psnr_db: mean over images. pooled_psnr_db: of the mean squared error over all of them.
    edges: edge energy, of the originals'. latent_std: of all latents.
    """
    latents = encode(model.eval(), images)
    back = decode(model, latents)
    pooled = np.square(images.astype(np.float64) - back).mean()
    figures = {
        "psnr_db": float(psnr(images, back).mean()),
        "pooled_psnr_db": 10 * math.log10(255**2 / pooled),
        "edges": edge_energy(back) / edge_energy(images),
        "latent_std": float(latents.std()),
    }
    return figures, back
