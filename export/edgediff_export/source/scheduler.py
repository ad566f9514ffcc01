"""A diffusers scheduler's config → the bundle's noise schedule, and what to sample with."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from edgediff.errors import BundleError, ExportError
from edgediff.sampling.discrete import SPACED
from edgediff.sampling.schedule import (
    BetaSchedule,
    DiscreteSchedule,
    PredictionType,
    TimestepSpacing,
)
from edgediff.sampling.sigmas import SPACINGS, Spacing
from edgediff_export.quiet import quiet

_SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddim",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "dpmpp_2m",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}
"""Scheduler class → the nearest of edgediff's samplers, the default of the bundle."""

# What changes the noise levels or x0, and which the samplers do not know.
_UNSUPPORTED = {
    "trained_betas": None,
    "thresholding": False,
    "use_flow_sigmas": False,
}
# The original SD 1.x and 2.x pipelines; other steps and scales are in the tables below.
_STEPS, _GUIDANCE = 20, 7.5
_LCM_STEPS, _LCM_GUIDANCE = 4, 8.5
_XL_GUIDANCE = 5.0
_FEW_STEPS = 4
_TURBO = re.compile(r"turbo", re.IGNORECASE)
_BARE = re.compile(r"lightning|hyper(?:[ _-]?sd|[^a-z]|$)", re.IGNORECASE)
"""In the names of few-step models whose UNets come without the rest of a pipeline."""
_STEPS_IN_NAME = re.compile(r"([1-9]\d?)[ _-]?steps?(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The defaults that follow from the scheduler and the UNet."""

    sampler: str
    steps: int
    guidance_scale: float
    spacing: Spacing | None = None


def read_schedule(config: Mapping[str, Any]) -> DiscreteSchedule:
    """scheduler_config.json → DiscreteSchedule; values that it leaves out are the diffusers class's
    defaults, but for the timestep spacing, which is left to the sampler.

    Raises ExportError, naming the value, for what edgediff's samplers cannot do."""
    name = config.get("_class_name")
    if name not in _SAMPLERS:
        raise ExportError(f"scheduler {name}: expected one of {', '.join(_SAMPLERS)}")
    full = {**_class_defaults(str(name)), **config}
    # Left out, it is up to the sampler: diffusers does the same where a pipeline changes scheduler.
    full["timestep_spacing"] = config.get("timestep_spacing")
    for key, usual in _UNSUPPORTED.items():
        if full.get(key, usual) != usual:
            raise ExportError(
                f"scheduler {name}: {key} is {full[key]!r}, which edgediff cannot sample with:"
                f" only {usual!r} is supported"
            )
    for key, valid in (
        ("beta_schedule", get_args(BetaSchedule)),
        ("prediction_type", get_args(PredictionType)),
    ):
        if full.get(key) not in valid:
            raise ExportError(
                f"scheduler {name}: {key} is {full.get(key)!r}: expected one of {', '.join(valid)}"
            )
    fields = {f.name for f in dataclasses.fields(DiscreteSchedule)} - {"type"}
    known = {k: v for k, v in full.items() if k in fields and v is not None}
    try:
        return DiscreteSchedule(**known)
    except BundleError as e:
        raise ExportError(f"scheduler {name}: {str(e).rpartition(':')[0]}") from e


def adapt(
    config: Mapping[str, Any],
    *,
    name: str,
    timestep_spacing: TimestepSpacing | None,
    prediction_type: PredictionType | None,
) -> dict[str, Any]:
    """A scheduler's config for the UNet at hand: as the user says; else, where `name` is that of a
    Lightning or Hyper-SD UNet, whose files come without a config, as it was distilled: with
    trailing timesteps, and Lightning's of one step to predict x0."""
    adapted = dict(config)
    if _BARE.search(name):
        adapted["timestep_spacing"] = "trailing"
        if "lightning" in name.lower() and _steps_in(name) == 1:
            adapted["prediction_type"] = "sample"
    if timestep_spacing is not None:
        adapted["timestep_spacing"] = timestep_spacing
    if prediction_type is not None:
        adapted["prediction_type"] = prediction_type
    return adapted


def _steps_in(name: str) -> int | None:
    """The number of steps that a name such as "sdxl_lightning_4step_unet" is of."""
    found = _STEPS_IN_NAME.search(name)
    return None if found is None else int(found[1])


def _class_defaults(name: str) -> dict[str, Any]:
    """What a scheduler class assumes where its config is silent."""
    with quiet():
        import diffusers

        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {k: p.default for k, p in parameters.items() if p.default is not p.empty}


def choose_sampling(
    config: Mapping[str, Any], *, name: str, guidance_embedding: bool, xl: bool = False
) -> Sampling:
    """What to sample with where the user says nothing.

    config: `adapt`ed. xl: whether it is of SDXL's family.
    name: the model's. Models distilled to few steps say so nowhere else (Sauer et al. 2023,
        arXiv:2311.17042: Turbo; Lin et al. 2024, arXiv:2402.13929: Lightning; Ren et al. 2024,
        arXiv:2404.13686: Hyper-SD), and in how many it may stand there too, as "8step".
    guidance_embedding: whether the UNet takes the guidance scale as an input."""
    sampler = _SAMPLERS[str(config["_class_name"])]
    if config.get("algorithm_type") == "sde-dpmsolver++" and sampler == "dpmpp_2m":
        sampler = "dpmpp_2m_sde"
    spacing = next((s for s in SPACINGS if config.get(f"use_{s}_sigmas")), None)
    if sampler not in SPACED:
        spacing = None
    elif (sampler, spacing) == ("dpmpp_2m", "karras"):
        sampler, spacing = "dpmpp_2m_karras", None
    if sampler == "lcm":
        # Without the embedding the guidance is distilled in at one scale.
        guidance = _LCM_GUIDANCE if guidance_embedding else 1.0
        return Sampling(sampler=sampler, steps=_LCM_STEPS, guidance_scale=guidance)
    few = (_TURBO.search(name) or _BARE.search(name)) is not None
    if sampler == "tcd" or (few and config.get("timestep_spacing") == "trailing"):
        steps = _steps_in(name) or _FEW_STEPS
        return Sampling(sampler=sampler, steps=steps, guidance_scale=0.0, spacing=spacing)
    guidance = _XL_GUIDANCE if xl else _GUIDANCE
    return Sampling(sampler=sampler, steps=_STEPS, guidance_scale=guidance, spacing=spacing)
