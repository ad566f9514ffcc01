"""A diffusers scheduler's config → the bundle's noise schedule, and what to sample with."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from edgediff.errors import BundleError, ExportError
from edgediff.sampling.discrete import SPACED
from edgediff.sampling.schedule import (
    BetaSchedule,
    DiscreteSchedule,
    EDMSchedule,
    PredictionType,
    SolverType,
    TimestepSpacing,
)
from edgediff.sampling.sigmas import SPACINGS, Spacing
from edgediff_export.source.few_steps import FewSteps, find_few_steps, unknown_few_steps
from edgediff_export.source.scheduler_options import check_options, class_defaults, is_edm
from edgediff_export.source.statements import Statements

_SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "PNDMScheduler": "pndm",
    "LMSDiscreteScheduler": "lms",
    "DEISMultistepScheduler": "deis",
    "UniPCMultistepScheduler": "unipc",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2s",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
    "EDMEulerScheduler": "euler",
    "EDMDPMSolverMultistepScheduler": "dpmpp_2m",
}
"""Scheduler class → edgediff's sampler of that kind, the default of the bundle."""

# The original SD 1.x and 2.x pipelines; other steps and scales are in the tables below.
_STEPS, _GUIDANCE = 20, 7.5
_LCM_STEPS, _LCM_GUIDANCE = 4, 8.5
_XL_GUIDANCE = 5.0
_TCD_STEPS = 4
_LCM = "LCMScheduler"
# diffusers' own pipelines change an outdated config when they are built; ControlNet's does not.
_MENDS_OFFSET_AND_CLIP = (
    *("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    *("StableDiffusionPipelineSafe", "StableDiffusionInpaintPipelineLegacy"),
)
_MENDS_OFFSET_AND_PRK = ("StableDiffusionInpaintPipeline",)
_EDM = "EDMDPMSolverMultistepScheduler"
_ZERO_SNR_CLASS = "DDIMScheduler"
"""The scheduler for zero terminal SNR where the pipeline's own class has no such option."""
_SPACED_CLASS = "EulerDiscreteScheduler"
"""Likewise, for few-step models that are sampled at timesteps of their own."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The defaults that follow from the scheduler and the UNet."""

    sampler: str
    steps: int
    guidance_scale: float
    spacing: Spacing | None = None

    @property
    def few_steps(self) -> bool:
        """Whether weights that were distilled to a few steps suggest it."""
        return self.steps != _STEPS


def mend(config: Mapping[str, Any], *, pipeline: str, class_name: str | None) -> dict[str, Any]:
    """A scheduler's config as diffusers' pipeline has it once it is built.

    pipeline: the pipeline's class. class_name: the scheduler's in model_index.json, which counts
        there, and not the one in the scheduler's folder.

    Raises ExportError for a class that edgediff does not know."""
    mended = {**config, "_class_name": class_name or config.get("_class_name")}
    defaults = _known_class(mended)
    full = {**defaults, **mended}
    mends = (*_MENDS_OFFSET_AND_CLIP, *_MENDS_OFFSET_AND_PRK)
    if pipeline in mends and full.get("steps_offset", 1) != 1 and "steps_offset" in defaults:
        mended["steps_offset"] = 1
    if pipeline in _MENDS_OFFSET_AND_CLIP and full.get("clip_sample") is True:
        mended["clip_sample"] = False
    if pipeline in _MENDS_OFFSET_AND_PRK and full.get("skip_prk_steps") is False:
        mended["skip_prk_steps"] = True
    return mended


def read_schedule(config: Mapping[str, Any]) -> DiscreteSchedule | EDMSchedule:
    """scheduler_config.json → the schedule; values that it leaves out are the diffusers class's
    defaults, but for the timestep spacing, which is left to the sampler.

    Raises ExportError, naming the value, for what edgediff's samplers cannot do."""
    name = config.get("_class_name")
    defaults = _known_class(config)
    check_options(str(name), config)
    given = {k: v for k, v in config.items() if k in defaults}
    full = {**defaults, **given}
    if full.get("solver_type") not in get_args(SolverType):
        full["solver_type"] = "midpoint"  # as diffusers takes other solvers' types
    if full.get("variance_type") != "fixed_large":
        full["variance_type"] = "fixed_small"
    if is_edm(str(name), config):
        return _edm_schedule(str(name), full)
    # Left out, it is up to the sampler: diffusers does the same where a pipeline changes scheduler.
    full["timestep_spacing"] = given.get("timestep_spacing")
    full[_TIMESTEPS] = config.get(_TIMESTEPS)
    for key, valid in (
        ("beta_schedule", get_args(BetaSchedule)),
        ("prediction_type", get_args(PredictionType)),
    ):
        if full.get(key) not in valid:
            raise ExportError(
                f"scheduler {name}: {key} is {full.get(key)!r}: expected one of {', '.join(valid)}"
            )
    return _build(DiscreteSchedule, str(name), full)


def sigma_data(config: Mapping[str, Any]) -> float:
    """The number that latents are divided by for the denoiser: EDM's by their standard deviation,
    others by 1."""
    schedule = read_schedule(config)
    return schedule.sigma_data if isinstance(schedule, EDMSchedule) else 1.0


_EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "v_prediction"}


def _edm_schedule(name: str, full: dict[str, Any]) -> EDMSchedule:
    if name == "EulerDiscreteScheduler":
        # Over latents as they are.
        exponential = full["use_exponential_sigmas"]
        full |= {
            "sigma_data": 1.0,
            "sigma_schedule": "exponential" if exponential else "karras",
        }
    for key, valid in (
        ("prediction_type", tuple(_EDM_PREDICTIONS)),
        ("sigma_schedule", ("karras", "exponential")),
    ):
        if full.get(key) not in valid:
            raise ExportError(
                f"scheduler {name}: {key} is {full.get(key)!r}: expected one of {', '.join(valid)}"
            )
    prediction = _EDM_PREDICTIONS[full["prediction_type"]]
    return _build(EDMSchedule, name, {**full, "prediction_type": prediction})


_Schedule = TypeVar("_Schedule", DiscreteSchedule, EDMSchedule)


def _build(kind: type[_Schedule], name: str, full: Mapping[str, Any]) -> _Schedule:
    fields = {f.name for f in dataclasses.fields(kind)} - {"type"}
    known = {k: v for k, v in full.items() if k in fields and v is not None}
    try:
        return kind(**known)
    except BundleError as e:
        raise ExportError(f"scheduler {name}: {str(e).rpartition(':')[0]}") from e


def _known_class(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of a config's class. Raises ExportError for one without a sampler."""
    name = config.get("_class_name")
    if name not in _SAMPLERS:
        why = "no sampler here takes its steps"
        if "Flow" in str(name):
            why = "it is for flow matching, which cannot be sampled here"
        raise ExportError(
            f"scheduler {name}: expected one of {', '.join(_SAMPLERS)}, since {why}: if the model"
            " was trained on the noise levels of one of these, name that in model_index.json"
        )
    return class_defaults(str(name))


_DISTILLED = ("LCMScheduler", "TCDScheduler")
_TIMESTEPS = "timesteps"
_ZERO_SNR = "rescale_betas_zero_snr"


def adapt(
    config: Mapping[str, Any],
    *,
    name: str | Sequence[str],
    timestep_spacing: TimestepSpacing | None,
    prediction_type: PredictionType | None,
    zero_terminal_snr: bool | None = None,
    said: Statements | None = None,
    bare: bool = False,
    guidance_embedding: bool = False,
) -> dict[str, Any]:
    """A scheduler's config for the UNet at hand: as the user says; else as the weights' file says;
    else as their names do, for few-step models (see `find_few_steps`).

    said: the statements of the file of the weights.
    bare: whether the weights come without a config of their own: as one file, a UNet or a LoRA.
    guidance_embedding: whether the UNet takes the guidance scale as an input, as only latent
        consistency models do (Luo et al. 2023, arXiv:2310.04378).

    Raises ExportError if they contradict each other, or for statements that edgediff cannot
    follow."""
    adapted = dict(config)
    found = find_few_steps([name] if isinstance(name, str) else name)
    rule = None if found is None else found[1]
    if guidance_embedding:
        adapted["_class_name"] = _LCM
    elif rule is not None and rule.scheduler is not None and (bare or _own_start(rule)):
        adapted["_class_name"] = rule.scheduler
    if rule is not None and (bare or rule.always):
        if rule.spacing is not None:
            if "timestep_spacing" not in class_defaults(str(adapted["_class_name"])):
                adapted["_class_name"] = _SPACED_CLASS
            adapted["timestep_spacing"] = rule.spacing
        if rule.prediction_type is not None:
            adapted["prediction_type"] = rule.prediction_type
    if rule is not None and rule.timesteps and adapted["_class_name"] in _DISTILLED:
        adapted[_TIMESTEPS] = rule.timesteps
    said = said or Statements()
    if said.unknown and prediction_type is None:
        raise ExportError(
            f"the file of the weights says {said.unknown}: expected one of"
            f" {', '.join(get_args(PredictionType))}, since models of flow matching cannot be"
            " sampled: give `--prediction-type` if it says so by mistake"
        )
    if said.edm is not None and not is_edm(str(adapted["_class_name"]), adapted):
        adapted = _edm_config(said.edm, v=said.prediction_type == "v_prediction")
    if said.prediction_type is not None:
        adapted["prediction_type"] = said.prediction_type
    zero = said.zero_terminal_snr if zero_terminal_snr is None else zero_terminal_snr
    if zero is not None:
        if zero and is_edm(str(adapted["_class_name"]), adapted):
            raise ExportError(
                "`zero_terminal_snr` is for schedules of betas, and this model was trained on that"
                " of EDM: leave it out"
            )
        if zero and _ZERO_SNR not in class_defaults(str(adapted["_class_name"])):
            adapted["_class_name"] = _ZERO_SNR_CLASS
        adapted[_ZERO_SNR] = zero
    if timestep_spacing is not None:
        if "timestep_spacing" not in class_defaults(str(adapted["_class_name"])):
            raise ExportError(
                f"`timestep_spacing` is {timestep_spacing!r}: {adapted['_class_name']} has no such"
                " option: leave it out, or choose another scheduler in model_index.json"
            )
        adapted["timestep_spacing"] = timestep_spacing
    if prediction_type is not None:
        adapted["prediction_type"] = prediction_type
    if adapted["_class_name"] != config.get("_class_name"):
        adapted.setdefault("clip_sample", False)  # DDIM's default is for pixels, not for latents
    return adapted


def _own_start(rule: FewSteps) -> bool:
    """Whether weights start where no scheduler's config would have them start."""
    return rule.always and rule.timesteps is not None


def _edm_config(ends: tuple[float, float], *, v: bool) -> dict[str, Any]:
    """For weights that say that they were trained on EDM's schedule: that of CosXL, which predicts
    v over latents as they are, or that of Playground v2.5."""
    sigma_min, sigma_max = ends
    return {
        "_class_name": _EDM,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "sigma_data": 1.0 if v else 0.5,
        "sigma_schedule": "exponential" if v else "karras",
    }


def choose_sampling(
    config: Mapping[str, Any],
    *,
    name: str | Sequence[str],
    guidance_embedding: bool,
    xl: bool = False,
) -> Sampling:
    """What to sample with where the user says nothing.

    config: `adapt`ed. xl: whether it is of SDXL's family.
    name: the model's, or all its names. Models distilled to few steps say so nowhere else, and in
        how many it may stand there too, as "8step".
    guidance_embedding: whether the UNet takes the guidance scale as an input."""
    found = find_few_steps([name] if isinstance(name, str) else name)
    rule = None if found is None else found[1]
    sampler = _SAMPLERS[str(config["_class_name"])]
    if config.get("algorithm_type") == "sde-dpmsolver++" and sampler in ("dpmpp_2m", "dpmpp_2s"):
        sampler += "_sde"
    known = class_defaults(str(config["_class_name"]))
    asked = {k for k, v in config.items() if v and k in known}
    spacing = next((s for s in SPACINGS if f"use_{s}_sigmas" in asked), None)
    if spacing is None and "use_lu_lambdas" in asked:
        spacing = "exponential"
    if sampler not in SPACED:
        spacing = None
    elif (sampler, spacing) == ("dpmpp_2m", "karras"):
        sampler, spacing = "dpmpp_2m_karras", None
    usual = _XL_GUIDANCE if xl else _GUIDANCE
    if sampler == "lcm":
        # Without the embedding the guidance is distilled in at one scale.
        steps = _LCM_STEPS if rule is None else rule.steps
        guidance = 1.0 if rule is None or rule.guidance_scale is None else rule.guidance_scale
        guidance = _LCM_GUIDANCE if guidance_embedding else guidance
        return Sampling(sampler=sampler, steps=steps, guidance_scale=guidance)
    trailing = config.get("timestep_spacing") == "trailing"
    if rule is not None and (sampler == "tcd" or trailing):
        guidance = usual if rule.guidance_scale is None else rule.guidance_scale
        return Sampling(sampler=sampler, steps=rule.steps, guidance_scale=guidance, spacing=spacing)
    if sampler == "tcd":
        return Sampling(sampler=sampler, steps=_TCD_STEPS, guidance_scale=0.0, spacing=spacing)
    return Sampling(sampler=sampler, steps=_STEPS, guidance_scale=usual, spacing=spacing)


def reasons(config: Mapping[str, Any], name: Sequence[str], *, embedding: bool) -> tuple[str, ...]:
    """Why a few-step model's defaults are what they are, for the report.

    config: `adapt`ed. embedding: whether the UNet takes the guidance scale as an input."""
    if embedding:
        return (
            "the UNet takes the guidance scale as an input (time_cond_proj_dim), as latent"
            " consistency models do: sampled with lcm",
        )
    found = find_few_steps(name)
    if found is None:
        unknown = unknown_few_steps(name)
        if unknown is None:
            return ()
        return (
            f"the name {unknown!r} is that of a few-step model whose settings edgediff does not"
            " know: give `--steps`, `--guidance` and `--sampler` as its model card does",
        )
    said, rule = found
    sampling = choose_sampling(config, name=name, guidance_embedding=False)
    if sampling.steps != rule.steps:
        return (
            f"the name {said!r} is that of a few-step model ({rule.label}), but its scheduler's"
            " config is not: sampled as the config says",
        )
    plural = "" if sampling.steps == 1 else "s"
    start = f" from timestep {config[_TIMESTEPS][0]}" if config.get(_TIMESTEPS) else ""
    return (
        f"few steps: the name {said!r} says {rule.label}: {sampling.steps} step{plural} of"
        f" {sampling.sampler}{start}, guidance {sampling.guidance_scale:g}, unless you say"
        " otherwise",
    )
