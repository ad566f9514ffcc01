"""What a call of `generate` may ask for, and what it asks for once every default is filled in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from edgediff.bundle import GraphSpec
from edgediff.control import Control, ControlSettings
from edgediff.errors import InputError, Name
from edgediff.guidance import Guidance
from edgediff.hires import Mode
from edgediff.inputs import PictureRecord
from edgediff.picture import Source
from edgediff.spacing import Spacing


class Options(TypedDict, total=False):
    """What a call of `generate` or `stream` may ask for. What is left out, or None, comes from the
    bundle's defaults.

    negative_prompt: what to steer away from; has an effect where guidance_scale > 1.
    steps: denoising steps.
    guidance_scale: classifier-free guidance; up to 1 there is none.
    seed: torch's; one, or one for each picture. None draws one, which the result tells.
    size: (width, height) in pixels, or one side of a square.
    sampler: a name in `edgediff.samplers.SAMPLERS`.
    spacing: how the sampler's noise levels are spread, instead of by timesteps: "karras",
        "exponential" or "beta". The bundle's default, if any, goes with its default sampler.
    guidance_rescale: from 0 (off) to 1, how much of a guided prediction is scaled back to the
        deviation that it has without guidance, against overexposure.
    guidance_interval: guidance on part of the steps alone, as fractions of them from 0 to 1: (0.0,
        0.8) leaves it out of the last fifth, whose steps then cost half. A step belongs to the part
        that it begins in; one where none begins is refused.
    variation_seed, variation_strength: the noise of each picture is drawn between its seed's and
        the variation seed's, from 0 (its own) to 1 (the other's); the two go together.
    prompt_weights: brackets in both prompts weigh words, `(word:1.3)`, `(word)`, `[word]`, as in
        AUTOMATIC1111's web UI; otherwise they are text. Weights go from -100 to 100; brackets
        without a partner, and what follows a colon and is no such number (nan, 1e9), are text.
    long_prompts: what does not fit the text encoder goes on in further chunks of tokens instead of
        being cut; the word BREAK starts a new one.
    clip_skip: how many of the text encoder's last layers to leave out for the prompt, though not
        for the negative one, as in diffusers (the web UI counts one more, and does both); needs a
        text encoder that was exported with those outputs.
    control: name of a control network of the bundle → the picture that it is to follow.
    init_image: a picture to change: a path, a pillow image, or an array (h, w, 3) uint8. Without a
        size, its own is taken, in whole latents, if the bundle's default is not far from it, and
        else about as many pixels as that has; with one, it is stretched to that. `Result.notes` say
        what became of its size. Needs a bundle with an encoder.
    strength: how much of it is made anew, above 0 and up to 1: the last int(steps·strength) steps
        are taken. 0.8, or 1 with a mask.
    mask: as large as init_image, given likewise: white where to paint anew, black where to keep,
        divided at half the brightness. What is kept goes through the autoencoder.
    keep_unmasked: give back what lies outside the mask as it was, pixel for pixel.
    hires: make the picture this many times larger in a second pass, image to image; to the nearest
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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides a picture but its seed; each default has been filled in.

    It goes into the picture's PNG as JSON, and is read back by name: a field has the name of its
    option (width and height: size), and a new one a default, None or what is off, which is how an
    older picture is read. A picture that was given is recorded as {"name": …, "sha256": …}."""

    prompt: str
    negative_prompt: str | None
    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    model: str
    bundle: str
    provider: str
    spacing: Spacing | None = None
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    variation_seed: int | None = None
    variation_strength: float = 0.0
    prompt_weights: bool = False
    long_prompts: bool = False
    clip_skip: int | None = None
    control: tuple[ControlSettings, ...] | None = None
    init_image: PictureRecord | None = None
    strength: float | None = None
    mask: PictureRecord | None = None
    keep_unmasked: bool = False
    hires: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    hires_mode: Mode | None = None

    def guidance(self, embedding_dim: int | None) -> Guidance:
        """How this call is guided; embedding_dim: see `Guidance`."""
        return Guidance(
            scale=self.guidance_scale,
            rescale=self.guidance_rescale,
            interval=self.guidance_interval,
            embedding_dim=embedding_dim,
        )


def clip_skip_output(clip_skip: int) -> str:
    """The name of the output of a text encoder that leaves out so many of its last layers."""
    return f"clip_skip_{clip_skip}"


def states_output(graph: GraphSpec, clip_skip: int | None) -> str:
    """The output of a text encoder that conditions the UNet: the first, or that of clip_skip.

    Raises InputError where the graph has no such output."""
    outputs = [spec.name for spec in graph.outputs]
    if clip_skip is None:
        return outputs[0]
    if clip_skip_output(clip_skip) in outputs:
        return clip_skip_output(clip_skip)
    able = [str(k) for k in range(1, len(outputs)) if clip_skip_output(k) in outputs]
    if able:
        raise InputError(
            Name("clip_skip"),
            f" is {clip_skip}: this bundle's text encoder can leave out {' or '.join(able)} of its"
            " layers, or none",
        )
    raise InputError(
        Name("clip_skip"),
        f" is {clip_skip}: this bundle's text encoder gives its last layer alone: export the bundle"
        " again",
    )
