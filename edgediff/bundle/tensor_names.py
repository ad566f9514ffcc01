"""The names of the inputs and outputs of a bundle's graphs.

They are diffusers' names, and the same for every family: an export gives its graphs these names
whatever the model calls its inputs, and puts into the graph everything else that the family needs
(patches, position ids). A graph has only the inputs that it needs. Arrays are float32 unless said
otherwise; b is the batch.
"""

from edgediff.sampling.denoiser import GUIDANCE_EMBEDDING as GUIDANCE_EMBEDDING

INPUT_IDS = "input_ids"
"""Text encoder: token ids (b, tokens) int64 or int32."""
ATTENTION_MASK = "attention_mask"
"""Text encoder: (b, tokens) in any dtype, 1 for tokens and 0 for padding."""

SAMPLE = "sample"
"""Denoiser, control network: noisy latents (b, c, ...); for an inpainting model, followed along the
channels by the mask and the latents of the masked image. Encoder: pixels (b, 3, h, w)."""
TIMESTEP = "timestep"
"""Denoiser, control network: a scalar, or (1,)."""
ENCODER_HIDDEN_STATES = "encoder_hidden_states"
"""Denoiser, control network: the text encoders' hidden states (b, tokens, features)."""
ENCODER_ATTENTION_MASK = "encoder_attention_mask"
"""Denoiser, control network: the mask of those states, (b, tokens) in any dtype."""
POOLED_STATES = "text_embeds"
"""Text encoder (output), denoiser, control network: an embedding of the whole prompt (b, features).
"""
TIME_IDS = "time_ids"
"""Denoiser, control network: SDXL's size conditioning, (b, 6)."""

CONTROL_IMAGE = "controlnet_cond"
"""Control network: the pixels of the image to follow (b, 3, h, w), in [0, 1]."""
CONTROL_SCALE = "conditioning_scale"
"""Control network: the factor on its outputs, a scalar. The outputs are the further inputs of the
controlled denoiser."""

LATENT_SAMPLE = "latent_sample"
"""Decoder: latents (b, c, ...) in the autoencoder's scale. Its output is SAMPLE, the pixels."""
LATENTS = "latents"
"""Encoder (output): latents, before scaling. An encoder that outputs a distribution has
LATENT_PARAMETERS instead."""
LATENT_PARAMETERS = "latent_parameters"
"""Encoder (output): the mean of latents and the logarithm of their variance, along the channels."""


def clip_skip_output(clip_skip: int) -> str:
    """The name of a text encoder's output without its last `clip_skip` layers."""
    return f"clip_skip_{clip_skip}"
