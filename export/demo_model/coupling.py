"""Noise that already says which of several drawings it becomes.

A prompt without a style fits up to six drawings. Where noise and drawing are paired at random, the
best first step is a blur of all six, and only many small steps find one of them. Paired by a rule
instead, each noise has one drawing, paths are nearly straight and few steps follow them
(multisample flow matching, Pooladian et al. 2023; immiscible diffusion, Li et al. 2024). Over all
styles the noise is still standard normal, so samplers need not know.
"""

from torch import Tensor

from demo_model.captions import STYLES


def preferences(noise: Tensor) -> Tensor:
    """noise (n, c, h, w), c >= 6 -> how much it asks for each of the six styles (n, 6).

    The means of the first channels: independent, alike, and easily seen by a convolutional network.
    """
    return noise[:, : len(STYLES)].mean((2, 3))
