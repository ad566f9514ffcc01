"""The options that a call of `generate` may give."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from edgediff.images.source import Source
from edgediff.request.control import Control
from edgediff.sampling.sigmas import Spacing


class Options(TypedDict, total=False):
    """What a call of `generate` or `stream` may ask for. What is left out, or None, comes from the
    bundle's defaults.

    negative_prompt: what to steer away from; has an effect where guidance_scale > 1.
    steps: denoising steps.
    guidance_scale: classifier-free guidance; up to 1 there is none.
    seed: torch's; one, or one for each image. None draws one, which the result tells.
    size: (width, height) in pixels, or one side of a square.
    sampler: a name in `edgediff.sampling.samplers.SAMPLERS`.
    spacing: how the sampler's noise levels are spread, instead of by timesteps: "karras",
        "exponential" or "beta". The bundle's default, if any, goes with its default sampler.
    guidance_rescale: from 0 (off) to 1, how much of a guided prediction is scaled back to the
        deviation that it has without guidance, against overexposure.
    guidance_interval: guidance on part of the steps alone, as fractions of them from 0 to 1: (0.0,
        0.8) leaves it out of the last fifth, whose steps then cost half. A step belongs to the part
        that it begins in; one where none begins is refused.
    variation_seed, variation_strength: the noise of each image is drawn between its seed's and
        the variation seed's, from 0 (its own) to 1 (the other's); the two go together.
    prompt_weights: brackets in both prompts weigh words, `(word:1.3)`, `(word)`, `[word]`, as in
        AUTOMATIC1111's web UI; otherwise they are text. Weights go from -100 to 100; brackets
        without a partner, and what follows a colon and is no such number (nan, 1e9), are text.
    long_prompts: what does not fit the text encoder goes on in further chunks of tokens instead of
        being cut; the word BREAK starts a new one.
    clip_skip: how many of the text encoder's last layers to leave out for the prompt, though not
        for the negative one, as in diffusers (the web UI counts one more, and does both); needs a
        text encoder that was exported with those outputs.
    control: name of a control network of the bundle → the image that it is to follow.
    init_image: an image to change: a path, a pillow image, or an array (h, w, 3) uint8. Without a
        size, its own is taken, in whole latents, if the bundle's default is not far from it, and
        else about as many pixels as that has; with one, it is stretched to that. `Result.notes` say
        what became of its size. Needs a bundle with an encoder.
    strength: how much of it is made anew, above 0 and up to 1: the last int(steps·strength) steps
        are taken. 0.8, or 1 with a mask.
    mask: as large as init_image, given likewise: white where to paint anew, black where to keep,
        divided at half the brightness. What is kept goes through the autoencoder.
    keep_unmasked: give back what lies outside the mask as it was, pixel for pixel.
    hires: make the image this many times larger in a second pass, image to image; to the nearest
        whole latents, which `Result.notes` say where they are not just that.
    hires_strength: of the second pass, 0.25 if unset, which keeps what the first has drawn. More
        draws more anew; a model of few steps, such as the built-in one, then loses the composition.
    hires_steps: of the second pass before hires_strength; if unset, as many as `steps`, 4 at least.
    hires_mode: what is made larger in between: "pixel", which needs an encoder and is the default
        where there is one, or "latent", which is quicker and blurs, the more the less strength.
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
