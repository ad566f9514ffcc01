"""A call of `generate`, resolved once: defaults filled in, values checked, images read."""

import difflib
import functools
import itertools
import math
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import Manifest
from edgediff.bundle.tensor_names import ENCODER_HIDDEN_STATES
from edgediff.checks import MAX_SIDE, check_flag, check_number, whole_number
from edgediff.errors import InputError
from edgediff.images.source import OpenedImage
from edgediff.networks.text_encoder import states_output
from edgediff.request.control import (
    Control,
    check_controls,
    control_notes,
    control_records,
    open_controls,
)
from edgediff.request.hires import larger, resolve_hires, rounding
from edgediff.request.init_image import (
    Inputs,
    check_inputs,
    check_mask,
    open_inputs,
    record,
    size_of,
)
from edgediff.request.options import Options
from edgediff.request.settings import Settings
from edgediff.sampling.guidance import Guidance
from edgediff.sampling.noise import check_seed, check_variation_strength
from edgediff.sampling.plan import Plan, make_plan
from edgediff.sampling.schedule import FlowSchedule, Schedule
from edgediff.sampling.sigmas import Spacing
from edgediff.text.emphasis import parse_weights
from edgediff.text.tokenizer import MAX_CHARACTERS

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_BYTES = (bytes, bytearray, memoryview)
"""Python iterates over them as numbers, which no one means."""
MAX_SEEDS = 10_000
"""Of one call, whose images are all in memory."""
MAX_GUIDANCE = 1000.0
"""Beyond any use, and below the scale at which float32 latents overflow."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One call, resolved: `Pipeline.run` needs nothing else, and may run it any number of times.

    settings: everything that determines an image, except its seed. `provider` is "auto" until a
        pipeline runs the request.
    seeds: one for each image.
    inputs: the opened image to change, and its mask.
    controls: by the names of their networks, with their images opened.
    plans: one for each pass: one, or two with `hires`.
    notes: changes to input images or sizes that a caller might not expect, a sentence each."""

    settings: Settings
    seeds: tuple[int, ...]
    inputs: Inputs
    controls: Mapping[str, Control]
    plans: tuple[Plan, ...]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """The number of denoising steps of all passes."""
        return sum(len(plan.steps) for plan in self.plans)

    @property
    def pixels(self) -> int:
        """The number of pixels of all images that it holds."""
        images = (
            self.inputs.init_image,
            self.inputs.mask,
            *(c.image for c in self.controls.values()),
        )
        return sum(math.prod(image.size) for image in images if isinstance(image, OpenedImage))


def resolve(bundle: Bundle, prompt: str, options: Options) -> Request:
    """Fill in the bundle's defaults, read the images, and check everything that can be checked
    without a session.

    Raises InputError for a value out of range, TypeError for an unknown option."""
    _check_names(options)
    manifest = bundle.manifest
    defaults = manifest.defaults
    check_prompt("prompt", prompt)
    negative_prompt = options.get("negative_prompt")
    if negative_prompt is not None:
        check_prompt("negative_prompt", negative_prompt)
    seeds = resolve_seeds(options.get("seed"))
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
    steps = _or(options.get("steps"), defaults.steps)
    tokens = _image_seq_len(manifest, (width, height))
    plan = _plan(manifest.schedule, sampler, steps, spacing, strength, tokens)
    guidance = Guidance(
        scale=_check_guidance(_or(options.get("guidance_scale"), defaults.guidance_scale)),
        rescale=_or(options.get("guidance_rescale"), 0.0),
        interval=_or(options.get("guidance_interval"), (0.0, 1.0)),
    )
    variation_seed, variation_strength = _check_variation(options)
    controls = open_controls(manifest, options.get("control"))
    check_controls(controls, len(plan.steps))
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
        provider="auto",
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
        control=control_records(controls),
        init_image=record(inputs.init_image),
        strength=strength,
        mask=record(inputs.mask),
        keep_unmasked=inputs.keep_unmasked(options.get("keep_unmasked")),
        **resolve_hires(manifest, options, (width, height), plan.total),
    )
    plans = (plan, *_second_pass(manifest, settings))
    _check_guided(guidance, len(plan.steps))
    notes = (
        *inputs.notes(width, height, asked=options.get("size") is not None),
        *control_notes(controls, width, height),
        *rounding((width, height), settings.hires, manifest.latent.downscale),
    )
    return Request(
        settings=settings,
        seeds=seeds,
        inputs=inputs,
        controls=MappingProxyType(controls),
        plans=plans,
        notes=notes,
    )


def with_prompt(request: Request, prompt: str, seed: int | Iterable[int] | None) -> Request:
    """A request with another prompt and other seeds, as `resolve` would give it.

    Raises InputError."""
    check_prompt("prompt", prompt)
    if request.settings.prompt_weights:
        parse_weights(prompt)
    # A tenth of what dataclasses.replace takes, for thousands of lines.
    settings, made = object.__new__(Settings), object.__new__(Request)
    settings.__dict__.update(request.settings.__dict__, prompt=prompt)
    made.__dict__.update(request.__dict__, settings=settings, seeds=resolve_seeds(seed))
    return made


def _image_seq_len(manifest: Manifest, size: tuple[int, int]) -> int | None:
    """How many tokens an image of that size, (width, height) in pixels, is to the denoiser, if its
    schedule depends on it."""
    schedule, downscale = manifest.schedule, manifest.latent.downscale
    if not isinstance(schedule, FlowSchedule) or schedule.dynamic_shift is None:
        return None
    return schedule.dynamic_shift.image_seq_len(size[0] // downscale, size[1] // downscale)


def _plan(
    schedule: Schedule,
    sampler: str,
    steps: int,
    spacing: Spacing | None,
    strength: float | None,
    image_seq_len: int | None,
) -> Plan:
    """As `make_plan`, remembered: thousands of lines of a file share a few."""
    try:
        hash((steps, spacing, strength))
    except TypeError:  # of a wrong type, which is refused
        return make_plan(schedule, sampler, steps, spacing=spacing, strength=strength)
    return _remembered_plan(schedule, sampler, steps, spacing, strength, image_seq_len)


@functools.lru_cache(maxsize=64, typed=True)  # typed: True is not a number of steps, though 1 is
def _remembered_plan(
    schedule: Schedule,
    sampler: str,
    steps: int,
    spacing: Spacing | None,
    strength: float | None,
    image_seq_len: int | None,
) -> Plan:
    return make_plan(
        schedule,
        sampler,
        steps,
        spacing=spacing,
        strength=strength,
        image_seq_len=image_seq_len,
    )


def _second_pass(manifest: Manifest, settings: Settings) -> tuple[Plan, ...]:
    """The plan of the second pass, if there is one. Raises InputError for a strength that leaves
    no step."""
    if settings.hires is None or settings.hires_steps is None:
        return ()
    size = larger((settings.width, settings.height), settings.hires, manifest.latent.downscale)
    try:
        plan = _plan(
            manifest.schedule,
            settings.sampler,
            settings.hires_steps,
            settings.spacing,
            settings.hires_strength,
            _image_seq_len(manifest, size),
        )
    except InputError as e:
        raise e.spelled(_of_second_pass) from e
    return (plan,)


def _of_second_pass(option: str, _value: object) -> str | None:
    return f"`hires_{option}`" if option in ("steps", "strength") else None


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
            f"`guidance_scale` is {guidance}: expected a number from {-MAX_GUIDANCE:g} to"
            f" {MAX_GUIDANCE:g}"
        )
    return float(guidance)


def _check_guided(guidance: Guidance, steps: int) -> None:
    """Raise InputError if the interval of guidance contains no step."""
    if guidance.acts and not guidance.steps(steps):
        raise InputError(
            f"`guidance_interval={guidance.interval!r}`: none of {steps} steps begins there:"
            " give a wider interval, or more steps"
        )


def _check_variation(options: Options) -> tuple[int | None, float]:
    """(variation seed, strength), or (None, 0.0) for no variation."""
    seed, strength = options.get("variation_seed"), options.get("variation_strength")
    if seed is None and strength is None:
        return None, 0.0
    if strength is None:
        raise InputError(
            f"`variation_seed` is {seed!r}: give `variation_strength` too, such as 0.2"
        )
    strength = check_variation_strength(strength)
    if strength == 0.0:
        return None, 0.0
    if seed is None:
        raise InputError(f"`variation_strength` is {strength}: give `variation_seed` too")
    return check_seed(seed, "variation_seed"), strength


def _check_prompt_weights(value: object, prompt: str, negative_prompt: str | None) -> bool:
    wanted = check_flag("prompt_weights", value)
    if wanted:
        parse_weights(prompt)
        parse_weights(negative_prompt or "")
    return wanted


def _check_long_prompts(manifest: Manifest, value: object) -> bool:
    wanted = check_flag("long_prompts", value)
    states = manifest.denoiser.graph.input(ENCODER_HIDDEN_STATES)
    if wanted and states is not None and isinstance(states.shape[1], int):
        raise InputError(
            f"`long_prompts`: the UNet of this bundle takes {states.shape[1]} tokens exactly:"
            " leave it out, or export the bundle again"
        )
    return wanted


def _check_clip_skip(manifest: Manifest, value: object) -> int | None:
    if value is None:
        return None
    layers = whole_number(value)
    if layers is None or layers < 1:
        raise InputError(
            f"`clip_skip` is {value!r}: expected a whole number from 1 up; leave it out for"
            " all layers"
        )
    for group in manifest.conditioning.states:
        for encoder in group:
            states_output(manifest.graphs[encoder], layers)
    return layers


def check_text(name: str, text: object) -> None:
    """Raise InputError unless `text` is a str that UTF-8 can encode, without ASCII's control
    characters: NUL ends text elsewhere, and ESC commands a terminal. White space is taken.
    name: the option's name."""
    if not isinstance(text, str):
        raise InputError(f"`{name}` is {type(text).__name__}, expected text (str)")
    control = _CONTROL.search(text)
    if control is not None:
        raise InputError(f"`{name}` has the control character {control[0]!r}: leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as e:  # lone surrogates, from argv that is not UTF-8
        raise InputError(f"`{name}` is not valid text ({e.reason}): pass it as UTF-8") from e


def check_prompt(name: str, text: object) -> None:
    """Raise InputError unless `text` is text of at most MAX_CHARACTERS; `name` names it in the
    error."""
    if isinstance(text, str) and len(text) > MAX_CHARACTERS:  # before anything goes through it
        raise InputError(f"`{name}` has {len(text)} characters: at most {MAX_CHARACTERS} are read")
    check_text(name, text)


def check_size(size: int | tuple[int, int], multiple: int) -> tuple[int, int]:
    """(width, height), or one side of a square, in pixels → (width, height).

    Raises InputError unless both are multiples of `multiple` from that to MAX_SIDE."""
    given = (size, size) if not np.iterable(size) or isinstance(size, _BYTES) else size
    sides = [whole_number(side) for side in itertools.islice(given, 3)]
    whole = [side for side in sides if side is not None]
    if len(whole) < len(sides):
        raise InputError(f"`size` is {size!r}: expected whole numbers of pixels")
    if len(whole) != 2:
        raise InputError(f"`size` is {size!r}: expected (width, height) in pixels")
    width, height = whole
    if max(whole) > MAX_SIDE:
        raise InputError(f"`size` {width}x{height}: at most {MAX_SIDE} pixels a side")
    if min(whole) < 1 or width % multiple or height % multiple:
        near = "x".join(str(max(multiple, round(s / multiple) * multiple)) for s in whole)
        raise InputError(
            f"`size` {width}x{height}: both sides must be multiples of {multiple} from"
            f" {multiple} up; {near} is near"
        )
    return width, height


def resolve_seeds(seed: int | Iterable[int] | None) -> tuple[int, ...]:
    """The seeds, one for each image; None draws one.

    Raises InputError for an empty list, and for a value that is not a seed."""
    if seed is None:
        return (secrets.randbelow(2**32),)
    if type(seed) is int:
        return (check_seed(seed),)
    if not isinstance(seed, Iterable) or isinstance(seed, (str, Mapping, *_BYTES)):
        seeds: list[object] = [seed]
    elif isinstance(seed, np.ndarray) and seed.ndim == 0:
        seeds = [seed]
    else:
        seeds = list(itertools.islice(seed, MAX_SEEDS + 1))
    if not seeds:
        raise InputError("`seed` is an empty list: give one seed for each image")
    if len(seeds) > MAX_SEEDS:
        raise InputError(f"`seed` is a list of more than {MAX_SEEDS}: give fewer")
    return tuple(check_seed(s) for s in seeds)
