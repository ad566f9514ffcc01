"""What a call of `generate` asks for: defaults filled in, values checked."""

import difflib
import functools
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import numpy as np

from edgediff.bundle import Bundle, GraphSpec, Manifest
from edgediff.checks import MAX_SIDE, check_flag, check_number
from edgediff.control import Control, ControlSettings, resolve_controls
from edgediff.emphasis import parse_weights
from edgediff.errors import InputError, Name, Value
from edgediff.guidance import Guidance
from edgediff.hires import Mode, resolve_hires
from edgediff.inputs import (
    Inputs,
    PictureRecord,
    check_inputs,
    check_mask,
    open_inputs,
    record,
    size_of,
)
from edgediff.noise import check_seed, check_variation_strength
from edgediff.picture import Source
from edgediff.plan import Plan, make_plan
from edgediff.schedule import NoiseSchedule
from edgediff.spacing import Spacing

T = TypeVar("T")

MAX_GUIDANCE = 1000.0
"""Beyond any use, and below what makes float32 latents overflow."""


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


def resolve(
    bundle: Bundle,
    prompt: str,
    options: Options,
    *,
    provider: str = "auto",
    inputs: Inputs | None = None,
) -> Settings:
    """Fill in the bundle's defaults and check everything that needs no session.

    inputs: the options' pictures, where they were opened before.

    Raises InputError, and TypeError for an option that there is not."""
    _check_names(options)
    manifest = bundle.manifest
    defaults = manifest.defaults
    check_text("prompt", prompt)
    negative_prompt = options.get("negative_prompt")
    if negative_prompt is not None:
        check_text("negative_prompt", negative_prompt)
    if inputs is None:
        inputs = open_inputs(options.get("init_image"), options.get("mask"))
    check_inputs(manifest, inputs)
    size = options.get("size")
    if size is None:
        size = (defaults.width, defaults.height)
        if inputs.init_image is not None:
            size = size_of(inputs.init_image, manifest)
    width, height = check_size(size, manifest.latent.downscale)
    check_mask(inputs, width, height, manifest.latent.downscale)
    sampler = _or(options.get("sampler"), defaults.sampler)
    check_text("sampler", sampler)
    spacing = options.get("spacing")
    if spacing is not None:
        check_text("spacing", spacing)
    elif sampler == defaults.sampler:
        spacing = defaults.spacing
    strength = inputs.strength(options.get("strength"))
    plan = make_plan(
        manifest.schedule,
        sampler,
        _or(options.get("steps"), defaults.steps),
        spacing=spacing,
        strength=strength,
    )
    guidance = Guidance(
        scale=_check_guidance(_or(options.get("guidance_scale"), defaults.guidance_scale)),
        rescale=_or(options.get("guidance_rescale"), 0.0),
        interval=_or(options.get("guidance_interval"), (0.0, 1.0)),
    )
    variation_seed, variation_strength = _check_variation(options)
    settings = Settings(
        prompt=prompt,
        negative_prompt=negative_prompt,
        steps=plan.total,
        guidance_scale=guidance.scale,
        sampler=plan.sampler,
        width=width,
        height=height,
        model=manifest.name,
        bundle=bundle.id,
        provider=provider,
        spacing=plan.spacing,
        guidance_rescale=guidance.rescale,
        guidance_interval=guidance.interval,
        variation_seed=variation_seed,
        variation_strength=variation_strength,
        prompt_weights=_check_prompt_weights(
            options.get("prompt_weights"), prompt, negative_prompt
        ),
        long_prompts=_check_long_prompts(manifest, options.get("long_prompts")),
        clip_skip=_check_clip_skip(manifest, options.get("clip_skip")),
        control=resolve_controls(manifest, options.get("control"), len(plan.steps)),
        init_image=record(inputs.init_image),
        strength=strength,
        mask=record(inputs.mask),
        keep_unmasked=inputs.keep_unmasked(options.get("keep_unmasked")),
        **resolve_hires(manifest, options, (width, height), plan.total),
    )
    make_plans(manifest.schedule, settings)
    _check_guided(guidance, len(plan.steps))
    return settings


def make_plans(schedule: NoiseSchedule, settings: Settings) -> tuple[Plan, ...]:
    """The plan of each pass: one, or two under `hires`.

    Raises InputError for a strength that leaves no step."""
    plan = functools.partial(make_plan, schedule, settings.sampler, spacing=settings.spacing)
    first = plan(settings.steps, strength=settings.strength)
    if settings.hires_steps is None:
        return (first,)
    try:
        second = plan(settings.hires_steps, strength=settings.hires_strength)
    except InputError as e:
        raise e.spelled(_of_second_pass) from e
    return (first, second)


def _of_second_pass(part: Name | Value) -> str:
    return Name(f"hires_{part.option}") if part.option in ("steps", "strength") else part


def _or(value: T | None, default: T) -> T:
    """None means unset; zero is a value."""
    return default if value is None else value


def _check_names(options: Mapping[str, object]) -> None:
    for name in options:
        if name not in Options.__annotations__:
            near = difflib.get_close_matches(name, Options.__annotations__, 1)
            remedy = f"did you mean {near[0]!r}?" if near else "see edgediff.Options"
            raise TypeError(f"unexpected option {name!r}: {remedy}")


def _check_guidance(guidance: float) -> float:
    check_number("guidance_scale", guidance)
    if not abs(guidance) <= MAX_GUIDANCE:  # nan too
        raise InputError(
            Name("guidance_scale"),
            f" is {guidance}: expected a number from {-MAX_GUIDANCE:g} to {MAX_GUIDANCE:g}",
        )
    return float(guidance)


def _check_guided(guidance: Guidance, steps: int) -> None:
    """Raise InputError for guidance that would act on no step."""
    if guidance.acts and not guidance.steps(steps):
        raise InputError(
            Name("guidance_interval"),
            " is ",
            Value("guidance_interval", guidance.interval),
            f": none of {steps} steps begins there: give a wider part, or more steps",
        )


def _check_variation(options: Options) -> tuple[int | None, float]:
    """(variation seed, strength); (None, 0.0) where there is nothing to vary."""
    seed, strength = options.get("variation_seed"), options.get("variation_strength")
    if seed is None and strength is None:
        return None, 0.0
    if strength is None:
        raise InputError(
            Name("variation_seed"),
            f" is {seed!r}: give ",
            Name("variation_strength"),
            " too, such as 0.2",
        )
    strength = check_variation_strength(strength)
    if strength == 0.0:
        return None, 0.0
    if seed is None:
        raise InputError(
            Name("variation_strength"), f" is {strength}: give ", Name("variation_seed"), " too"
        )
    return check_seed(seed, "variation_seed"), strength


def _check_prompt_weights(value: object, prompt: str, negative_prompt: str | None) -> bool:
    wanted = check_flag("prompt_weights", value)
    if wanted:
        parse_weights(prompt)
        parse_weights(negative_prompt or "")
    return wanted


def _check_long_prompts(manifest: Manifest, value: object) -> bool:
    wanted = check_flag("long_prompts", value)
    states = manifest.graphs["unet"].input("encoder_hidden_states")
    if wanted and states is not None and isinstance(states.shape[1], int):
        raise InputError(
            Name("long_prompts"),
            f": the UNet of this bundle takes {states.shape[1]} tokens, no more and no less: leave"
            " it out, or export the bundle again",
        )
    return wanted


def _check_clip_skip(manifest: Manifest, value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(
            Name("clip_skip"),
            f" is {value!r}: expected a whole number from 1 up; leave it out for all layers",
        )
    for encoder in manifest.tokenizers:
        states_output(manifest.graphs[encoder], int(value))
    return int(value)


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


def check_text(name: str, text: object) -> None:
    """Raise InputError unless `text` is a str that UTF-8 can hold; `name` says what it is."""
    if not isinstance(text, str):
        raise InputError(Name(name), f" is {type(text).__name__}, expected text (str)")
    try:
        text.encode()
    except UnicodeEncodeError as e:  # lone surrogates, from argv that is not UTF-8
        raise InputError(Name(name), f" is not valid text ({e.reason}): pass it as UTF-8") from e


def check_size(size: int | tuple[int, int], multiple: int) -> tuple[int, int]:
    """(width, height), or one side of a square, in pixels → (width, height).

    Raises InputError unless both are multiples of `multiple` from that to MAX_SIDE."""
    try:
        sides = [operator.index(side) for side in (size if np.iterable(size) else (size, size))]
    except TypeError as e:
        raise InputError(Name("size"), f" is {size!r}: expected whole numbers of pixels") from e
    if len(sides) != 2:
        raise InputError(Name("size"), f" is {size!r}: expected (width, height) in pixels")
    width, height = sides
    if max(sides) > MAX_SIDE:
        raise InputError(Name("size"), f" {width}x{height}: at most {MAX_SIDE} pixels a side")
    if min(sides) < 1 or width % multiple or height % multiple:
        near = "x".join(str(max(multiple, round(s / multiple) * multiple)) for s in sides)
        raise InputError(
            Name("size"),
            f" {width}x{height}: both sides must be multiples of {multiple} from {multiple} up;"
            f" {near} is near",
        )
    return width, height


def resolve_seeds(seed: int | Iterable[int] | None) -> list[int]:
    """One seed for each picture; None draws one.

    Raises InputError for an empty list and for what is no seed."""
    if seed is None:
        return [secrets.randbelow(2**32)]
    seeds = list(seed) if isinstance(seed, Iterable) else [seed]
    if not seeds:
        raise InputError(Name("seed"), " is an empty list: give one seed for each picture")
    return [check_seed(s) for s in seeds]
