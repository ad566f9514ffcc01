"""Which options of diffusers' schedulers edgediff honours.

This is an allow-list: a value other than its class's default is read, has no effect on images, or
is reported as a difference in the rule of a step. Any other is refused, since it would change the
noise levels or x0, and with them every image.
"""

import inspect
import reprlib
from collections.abc import Mapping
from typing import Any

from edgediff.errors import ExportError
from edgediff_export.quiet import quiet

_ALL = frozenset(
    (
        *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"),
        *("timestep_spacing", "steps_offset", "rescale_betas_zero_snr"),
    )
)
_SPACINGS = frozenset(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))
_BOUNDS = frozenset(("sigma_min", "sigma_max"))
_END = frozenset(("final_sigmas_type",))
_ORDERS = frozenset(("solver_order", "lower_order_final"))
_SOLVER = _ORDERS | {"solver_type"}
_EDM = frozenset(
    (
        *("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho"),
        *("num_train_timesteps", "prediction_type", "final_sigmas_type"),
    )
)
_CAN_BE_NONE = frozenset(("steps_offset", "clip_sample_range"))
"""Numbers that may be left empty, if the scheduler does not use them."""
_CLIP = frozenset(("clip_sample", "clip_sample_range"))
_DISTILLED = frozenset(("original_inference_steps",))

READ: Mapping[str, frozenset[str]] = {
    "DDIMScheduler": _ALL | _CLIP | {"set_alpha_to_one"},
    "DDPMScheduler": _ALL | _CLIP,
    "PNDMScheduler": _ALL | {"set_alpha_to_one", "skip_prk_steps"},
    "LMSDiscreteScheduler": _ALL | _SPACINGS,
    "DEISMultistepScheduler": _ALL | _SPACINGS | {"lower_order_final"},
    "UniPCMultistepScheduler": _ALL | _SPACINGS | _BOUNDS | _END | _ORDERS,
    "DPMSolverMultistepScheduler": _ALL | _SPACINGS | _END | _SOLVER | {"euler_at_final"},
    "DPMSolverSinglestepScheduler": _ALL | _SPACINGS | _END | _SOLVER,
    "DPMSolverSDEScheduler": _ALL | _SPACINGS,
    "EulerDiscreteScheduler": _ALL | _SPACINGS | _BOUNDS | _END | {"timestep_type"},
    "HeunDiscreteScheduler": _ALL | _SPACINGS | _CLIP,
    "EulerAncestralDiscreteScheduler": _ALL,
    "LCMScheduler": _ALL | _CLIP | _DISTILLED | {"timestep_scaling"},
    "TCDScheduler": _ALL | _DISTILLED,
    "EDMEulerScheduler": _EDM,
    "EDMDPMSolverMultistepScheduler": _EDM | _SOLVER | {"euler_at_final"},
}
"""Scheduler class → the options that are read, whatever their value."""

_INERT = frozenset(
    (
        # Only with `thresholding` or `use_flow_sigmas`, which are refused.
        *("dynamic_thresholding_ratio", "sample_max_value"),
        *("flow_shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal"),
    )
)
_INERT_IN: Mapping[str, frozenset[str]] = {
    # Their last step goes on to the previous one's own timestep, or to timestep 0.
    "LCMScheduler": frozenset(("set_alpha_to_one",)),
    "TCDScheduler": frozenset(("set_alpha_to_one", "timestep_scaling", *_CLIP)),
}
_STEP_RULES: Mapping[str, str] = {
    "solver_order": "is sampled with order 2",
    "solver_type": "is sampled as {default!r}, the default",
    "algorithm_type": "is sampled as {default!r}, the default",
    "lower_order_final": "is sampled as {default!r}, the default",
    "predict_x0": "is sampled as {default!r}, the default",
    "disable_corrector": "is sampled with the corrector in every step",
    "use_lu_lambdas": "is sampled with exponential spacing: at the same noise levels, but with"
    " timesteps that are cut to whole numbers and not rounded",
    "noise_sampler_seed": "has no effect: noise comes from the seed of each call",
}
"""Options that change how a step is taken, and not the noise levels; for the report."""
_SDE = "sde-dpmsolver++"
_SAME_VALUES: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("DDPMScheduler", "variance_type"): ("fixed_large", "fixed_small_log"),
    ("DEISMultistepScheduler", "solver_order"): (1,),
    # diffusers' classes take these for their own.
    ("DEISMultistepScheduler", "algorithm_type"): ("dpmsolver", "dpmsolver++"),
    ("DEISMultistepScheduler", "solver_type"): ("midpoint", "heun", "bh1", "bh2"),
    ("UniPCMultistepScheduler", "solver_type"): ("midpoint", "heun", "logrho"),
    ("DPMSolverMultistepScheduler", "algorithm_type"): (_SDE, "deis"),
    ("DPMSolverSinglestepScheduler", "algorithm_type"): (_SDE, "deis"),
    ("EDMDPMSolverMultistepScheduler", "algorithm_type"): (_SDE, "deis"),
    ("DPMSolverMultistepScheduler", "variance_type"): ("fixed_small", "fixed_large"),
    ("DPMSolverSinglestepScheduler", "variance_type"): ("fixed_small", "fixed_large"),
}
"""Further values of options that are honoured, or have no effect."""
_THIRD_ORDER = (
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    "EDMDPMSolverMultistepScheduler",
)
"""Classes whose third order is sampled, but not that of the SDE."""


def class_defaults(name: str) -> dict[str, Any]:
    """The values that a scheduler class assumes if its config has none."""
    with quiet():
        import diffusers

        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {k: p.default for k, p in parameters.items() if p.default is not p.empty}


def is_edm(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a scheduler samples EDM's schedule: by its class, or as Euler's with continuous
    timesteps, for models that predict v."""
    continuous = config.get("timestep_type") == "continuous"
    v = config.get("prediction_type") == "v_prediction"
    return name.startswith("EDM") or (name == "EulerDiscreteScheduler" and continuous and v)


def check_options(name: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse the options of a scheduler that edgediff cannot honour → notes on those that it
    honours in another way. Keys that the class does not have are left over from another scheduler:
    diffusers ignores them too.

    Raises ExportError."""
    notes = []
    _check_numbers(name, config)
    if name == "EulerDiscreteScheduler" and is_edm(name, config):
        _check_continuous(config)
    for key, default in class_defaults(name).items():
        value = config.get(key, default)
        if value == default or value is None or key in READ[name]:
            continue
        if key in _INERT or key in _INERT_IN.get(name, ()):
            continue
        if value in _SAME_VALUES.get((name, key), ()):
            continue
        if key not in _STEP_RULES:
            raise ExportError(
                f"scheduler {name}: {key} is {reprlib.repr(value)}, which edgediff cannot sample"
                " with: only"
                f" {default!r} is supported: change it in scheduler/scheduler_config.json, if the"
                " model was trained without it"
            )
        rule = _STEP_RULES[key].format(default=default)
        notes.append(f"scheduler {name}: {key} {value!r} {rule}")
    spacing = config.get("timestep_spacing")
    if name == "PNDMScheduler" and spacing in ("linspace", "trailing"):
        notes.append(
            f"scheduler {name}: with timestep_spacing {spacing!r} each step ends at the timestep of"
            " the next one, which diffusers' steps do not for every number of steps"
        )
    solver = name in _THIRD_ORDER
    if solver and config.get("algorithm_type") == _SDE and config.get("solver_order", 2) > 2:
        notes.append(f"scheduler {name}: solver_order 3 of {_SDE} is sampled with order 2")
    return tuple(notes)


def _check_numbers(name: str, config: Mapping[str, Any]) -> None:
    """Refuse text, lists or nothing in the place of a number."""
    for key, default in class_defaults(name).items():
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if key not in READ[name] or key not in config or not (number or key in _BOUNDS):
            continue
        value = config[key]
        if value is None and (key in _CAN_BE_NONE or default is None):
            continue
        right = isinstance(value, int | float) and not isinstance(value, bool)
        whole = isinstance(default, int)
        if not right or (whole and isinstance(value, float) and not value.is_integer()):
            kind = "a whole number" if whole else "a number"
            raise ExportError(
                f"scheduler {name}: {key} is {reprlib.repr(value)}: expected {kind}: change it in"
                " scheduler/scheduler_config.json"
            )


def _check_continuous(config: Mapping[str, Any]) -> None:
    """Continuous timesteps are those of EDM, whose levels a scheduler over betas has only if it
    spreads them between given ends."""
    spread = config.get("use_karras_sigmas") or config.get("use_exponential_sigmas")
    ends = [config.get("sigma_min"), config.get("sigma_max")]
    if not spread or None in ends or config.get("final_sigmas_type", "zero") != "zero":
        raise ExportError(
            "scheduler EulerDiscreteScheduler: timestep_type is 'continuous', which edgediff"
            " samples only with use_karras_sigmas or use_exponential_sigmas, sigma_min and"
            " sigma_max, and final_sigmas_type zero: change it in scheduler/scheduler_config.json,"
            " if the model was trained without it"
        )
