"""A diffusers scheduler's config → the bundle's noise schedule, and what to sample with."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from edgediff.errors import BundleError, ExportError
from edgediff.schedule import BetaSchedule, NoiseSchedule, PredictionType
from edgediff_export.quiet import quiet

_SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddim",
    "PNDMScheduler": "dpmpp_2m",
    "LMSDiscreteScheduler": "dpmpp_2m",
    "DEISMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "dpmpp_2m",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "LCMScheduler": "lcm",
}
"""Scheduler class → the nearest of edgediff's samplers, the default of the bundle."""

# What changes the noise levels or x0, and which the samplers do not know.
_UNSUPPORTED = {
    "trained_betas": None,
    "thresholding": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
}
# The original SD 1.x and 2.x pipelines; other steps and scales are in the tables below.
_STEPS, _GUIDANCE = 20, 7.5
_LCM_STEPS, _LCM_GUIDANCE = 4, 8.5
_TURBO_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The defaults that follow from the scheduler and the UNet."""

    sampler: str
    steps: int
    guidance_scale: float


def read_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """scheduler_config.json → NoiseSchedule; what it leaves out are the diffusers class's defaults,
    but for the timestep spacing, which is left to the sampler.

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
    fields = {f.name for f in dataclasses.fields(NoiseSchedule)}
    known = {k: v for k, v in full.items() if k in fields and v is not None}
    try:
        return NoiseSchedule(**known)
    except BundleError as e:
        raise ExportError(f"scheduler {name}: {str(e).rpartition(':')[0]}") from e


def _class_defaults(name: str) -> dict[str, Any]:
    """What a scheduler class assumes where its config is silent."""
    with quiet():
        import diffusers

        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {k: p.default for k, p in parameters.items() if p.default is not p.empty}


def choose_sampling(config: Mapping[str, Any], *, name: str, guidance_embedding: bool) -> Sampling:
    """What to sample with where the user says nothing.

    name: the model's; models distilled by adversarial diffusion (Sauer et al. 2023,
        arXiv:2311.17042) say so nowhere else.
    guidance_embedding: whether the UNet takes the guidance scale as an input."""
    sampler = _SAMPLERS[str(config["_class_name"])]
    if sampler == "dpmpp_2m" and config.get("use_karras_sigmas"):
        sampler = "dpmpp_2m_karras"
    if sampler == "lcm":
        # Without the embedding the guidance is distilled in at one scale.
        guidance = _LCM_GUIDANCE if guidance_embedding else 1.0
        return Sampling(sampler=sampler, steps=_LCM_STEPS, guidance_scale=guidance)
    if "turbo" in name.lower() and config.get("timestep_spacing") == "trailing":
        return Sampling(sampler=sampler, steps=_TURBO_STEPS, guidance_scale=0.0)
    return Sampling(sampler=sampler, steps=_STEPS, guidance_scale=_GUIDANCE)
