"""The options that a call of `generate` may give."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from edgediff.images.source import Source
from edgediff.request.control import Control
from edgediff.sampling.sigmas import Spacing


class Options(TypedDict, total=False):
    """The options of `generate` and `stream`. Those left out, or None, take the bundle's defaults.

    negative_prompt: text to steer away from; has an effect only if guidance_scale > 1.
    steps: denoising steps.
    guidance_scale: classifier-free guidance; up to 1 there is none.
    seed: as for torch.Generator: one, or one for each image. None draws one, which is in the
        result.
    size: (width, height) in pixels, or one side of a square.
    sampler: a name in `edgediff.sampling.samplers.SAMPLERS`.
    spacing: how the sampler's noise levels are spaced, instead of by timesteps: "karras",
        "exponential" or "beta". The bundle's default, if any, goes with its default sampler.
    guidance_rescale: from 0 (off) to 1, how far a guided prediction is scaled back to the standard
        deviation that it has without guidance, against overexposure.
    guidance_interval: guide only part of the steps, as fractions from 0 to 1: (0.0, 0.8) leaves
        the last fifth unguided, at half the cost. A step is guided if it begins inside; an interval
        in which no step begins is refused.
    variation_seed, variation_strength: the noise of each image is interpolated between that of its
        seed (strength 0) and that of the variation seed (1). Give both or neither.
    prompt_weights: brackets in both prompts weight words, `(word:1.3)`, `(word)`, `[word]`, as in
        AUTOMATIC1111's web UI; otherwise they are text. Weights go from -100 to 100. Unmatched
        brackets are text, and so is anything else after a colon (nan, 1e9).
    long_prompts: a prompt that does not fit the text encoder is encoded in several chunks of tokens
        instead of being cut; the word BREAK starts a new chunk.
    clip_skip: how many of the text encoder's last layers to skip, for the prompt but not for the
        negative prompt, as in diffusers (the web UI counts one more, and skips for both). Needs a
        text encoder that was exported with those outputs.
    control: name of a control network of the bundle → the image to follow.
    init_image: an image to change: a path, a pillow image, or an array (h, w, 3) uint8. If `size`
        is unset, the result has the image's own size, cut to whole latents, or if that is far from
        the bundle's default, about as many pixels as the default. If `size` is set, the image is
        stretched to it. `Result.notes` say how it was resized. Needs a bundle with an encoder.
    strength: how much of the image changes, above 0 and up to 1: only the last int(steps·strength)
        steps run. 0.8 if unset, or 1 with a mask.
    mask: an image of the same size as init_image: white for the parts to repaint, black for the
        parts to keep, divided at half the brightness. Kept parts go through the autoencoder.
    keep_unmasked: restore everything outside the mask, pixel for pixel.
    hires: make the image this many times larger, in a second image-to-image pass. The size is
        rounded to whole latents; `Result.notes` say if that changes it.
    hires_strength: the strength of the second pass, 0.25 if unset, which keeps the first pass's
        composition. A model of few steps, such as the built-in one, loses it at higher values.
    hires_steps: the steps of the second pass before hires_strength applies; if unset, `steps`, and
        at least 4.
    hires_mode: what to enlarge between the passes: "pixel", the default if the bundle has the
        encoder that it needs, or "latent", which is faster but blurs, more so at low strength.
    """

    negative_prompt: str | None
    steps: int | None
    guidance_scale: float | None
    seed: int | Sequence[int] | None
    size: int | tuple[int, int] | None
    sampler: str | None
    spacing: Spacing | None
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None
    variation_seed: int | None
    variation_strength: float | None
    prompt_weights: bool | None
    long_prompts: bool | None
    clip_skip: int | None
    control: Mapping[str, Control] | None
    init_image: Source | None
    strength: float | None
    mask: Source | None
    keep_unmasked: bool | None
    hires: float | None
    hires_strength: float | None
    hires_steps: int | None
    hires_mode: str | None
