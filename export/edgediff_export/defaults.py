"""The latent space of a pipeline, and how it is sampled by default."""

import math

from edgediff.bundle.latent import LatentSpec
from edgediff.bundle.manifest import ConditioningSpec, Defaults, Preset
from edgediff.errors import InputError
from edgediff.request.request import check_size
from edgediff.sampling.plan import make_plan
from edgediff.sampling.schedule import EDMSchedule, Schedule
from edgediff_export.options import Options
from edgediff_export.source.few_steps import find_few_steps
from edgediff_export.source.lora import Matched
from edgediff_export.source.pipeline import Source
from edgediff_export.source.scheduler import Sampling, choose_sampling, sigma_data
from edgediff_export.source.tiny_vae import FITTING, TINY_VAES

DISTILLED = ("lcm", "tcd")
"""Samplers of weights that were distilled to a few steps."""


def latent_space(source: Source) -> LatentSpec:
    """The VAE's, in the units of the denoiser's latents."""
    vae = source.vae
    tiny = vae["_class_name"] == "AutoencoderTiny"
    blocks = vae.get("decoder_block_out_channels" if tiny else "block_out_channels")
    # AutoencoderTiny's own default; AutoencoderKL's is one block, which no pipeline has.
    depth = len(blocks) if blocks else 4
    scaling_factor = float(vae.get("scaling_factor") or (1.0 if tiny else 0.18215))
    return LatentSpec(
        channels=vae.get("latent_channels", 4),
        downscale=2 ** (depth - 1),
        scaling_factor=scaling_factor / sigma_data(source.scheduler),
        shift_factor=float(vae.get("shift_factor") or 0.0),
    )


def conditioning(source: Source) -> ConditioningSpec:
    """SDXL's UNet reads the states of both text encoders, and the second one's embedding of the
    whole prompt (Podell et al. 2023, arXiv:2307.01952, section 2.1)."""
    encoders = tuple(source.text_encoders)
    return ConditioningSpec(states=(encoders,), pooled=encoders[1:])


def timesteps_of(schedule: Schedule) -> tuple[float, float]:
    """Two timesteps that the denoiser was trained for, near both ends; the second is a fraction,
    as some samplers' are."""
    if isinstance(schedule, EDMSchedule):
        first, *_, last = make_plan(schedule, "euler", 8).steps
        return first.timestep, last.timestep
    return 981.0, 261.5


def named(options: Options, source: Source) -> tuple[str, ...]:
    """The names that may say how the model is to be sampled: of LoRAs, the user's, its own. Those
    of LoRAs in `doubts` are left out."""
    loras = [name for matched in source.loras if not _doubt(matched) for name in matched.names]
    return (*loras, *([options.name] if options.name else []), *source.names)


def _doubt(matched: Matched) -> str:
    """The name of a LoRA that only seems to say that it is one of few steps; "" for others."""
    found = find_few_steps(matched.names)
    return "" if found is None or matched.few_steps else found[0]


def doubts(source: Source) -> tuple[str, ...]:
    """Names of LoRAs that may be those of few-step models, for the report."""
    return tuple(
        f"the LoRA's name {name!r} is not taken for that of a few-step model: if it is one, give"
        " `--steps` and `--guidance` as its model card does"
        for matched in source.loras
        if matched.lora.scale != 0 and (name := _doubt(matched))
    )


def _suggested(options: Options, source: Source) -> Sampling:
    """The values that the pipeline suggests."""
    return choose_sampling(
        source.scheduler,
        name=named(options, source),
        xl="text_encoder_2" in source.text_encoders,
        guidance_embedding=source.unet.get("time_cond_proj_dim") is not None,
    )


def _can_sample(schedule: Schedule, sampler: str, steps: int) -> bool:
    try:
        make_plan(schedule, sampler, steps)
    except InputError:
        return False
    return True


def record_preset(options: Options, source: Source, defaults: Defaults) -> Preset | None:
    """The choices of the preset, for the bundle; None if there is none."""
    preset = options.chosen
    if options.preset is None or preset is None:
        return None
    own = _suggested(options, source).few_steps
    steps = options.steps is None and not own and defaults.steps == preset.steps
    sampler = options.sampler is None and not own and defaults.sampler == preset.sampler
    tiny = None
    if options.vae is None and source.credits:
        tiny = TINY_VAES[FITTING[source.pipeline]].repository
    return Preset(
        name=options.preset,
        steps=preset.steps if steps else None,
        sampler=preset.sampler if sampler else None,
        vae=tiny,
        precision=options.resolved_precision if options.precision is None else None,
        averaged_attention=options.averages_attention and options.average_attention is None,
    )


def choose_defaults(
    options: Options, source: Source, schedule: Schedule, latent: LatentSpec
) -> Defaults:
    """The user's choices, or else those that the pipeline suggests. Raises InputError."""
    suggested = _suggested(options, source)
    preset = None if suggested.few_steps else options.chosen
    unit = latent.downscale
    if options.size is None:
        size = source.unet.get("sample_size") or 64
        rows, columns = size if isinstance(size, list | tuple) else (size, size)
        width, height = latent.size((rows, columns))
    else:
        width, height = options.size
    width, height = check_size((width, height), unit)
    guidance = options.guidance_scale
    guidance = suggested.guidance_scale if guidance is None else guidance
    if not math.isfinite(guidance):
        raise InputError(f"`guidance_scale` is {guidance}: give a finite number")
    sampler = options.sampler or suggested.sampler
    if (
        preset is not None
        and options.sampler is None
        and _can_sample(schedule, preset.sampler, options.steps or preset.steps)
    ):
        sampler = preset.sampler
    if options.steps is not None:
        steps = options.steps
    elif preset is not None and sampler not in DISTILLED:
        steps = preset.steps
    elif options.sampler in (None, suggested.sampler):
        steps = suggested.steps
    else:
        steps = 4 if sampler in DISTILLED else 20
    spacing = suggested.spacing if sampler == suggested.sampler else None
    # Raises InputError if they do not go together.
    make_plan(schedule, sampler, steps, spacing=spacing)
    return Defaults(
        sampler=sampler,
        steps=steps,
        guidance_scale=float(guidance),
        width=width,
        height=height,
        spacing=spacing,
    )
