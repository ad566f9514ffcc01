"""Every scheduler class of diffusers, with each of its options away from the default, one at a time.

A config is read as an export reads it. Then one of three things must be so: the bundle's sampler
gives the latents of the scheduler, the config is refused by a message that names the option, or a
note names the option. The tables say which: a new class, a new option, and an option that changes
from one column to another all fail here.
"""

import inspect
import math
from collections.abc import Iterator
from typing import Any

import diffusers.schedulers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from edgediff_export.source.scheduler import choose_sampling, read_schedule
from edgediff_export.source.scheduler_options import check_options, class_defaults

from edgediff.errors import ExportError
from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.noise import TorchGenerator
from edgediff.sampling.plan import make_plan
from edgediff.sampling.samplers import initial_latents, sample

# diffusers hands torch tensors to numpy functions, and warns of options that it deprecates.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
]

TOLERANCE = 1e-4
SHAPE = (1, 4, 8, 8)
STEPS = (5, 20)
"""On both sides of 15, below which diffusers' solvers take their last steps with a lower order."""

SAMPLED = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LCMScheduler",
    "TCDScheduler",
)
OTHER_CLASSES = {
    "over tokens": (
        *("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler"),
        *("EntropyBoundScheduler", "VQDiffusionScheduler"),
    ),
    "of flow matching, whose pipelines are not exported": (
        *("FlowMapEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
        *("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler"),
        *("HeliosDMDScheduler", "HeliosScheduler", "LTXEulerAncestralRFScheduler", "SCMScheduler"),
    ),
    "for video or audio": (
        *("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "CosineDPMSolverMultistepScheduler"),
    ),
    "of one model whose pipeline is not exported": (
        *("CMStochasticIterativeScheduler", "ConsistencyDecoderScheduler", "IPNDMScheduler"),
        *("DDPMWuerstchenScheduler", "KarrasVeScheduler", "RePaintScheduler", "UnCLIPScheduler"),
        *("ScoreSdeVeScheduler", "ScoreSdeVpScheduler"),
    ),
    "from image to noise": ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"),
    "for several images of one trajectory": ("DDIMParallelScheduler", "DDPMParallelScheduler"),
    "not implemented": (
        *("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"),
        *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "SASolverScheduler"),
    ),
}
"""Reason → the classes that an export refuses by name."""

VALUES: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (500,),
    "beta_start": (0.0005,),
    "beta_end": (0.015,),
    "beta_schedule": ("scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "trained_betas": ([*np.linspace(0.001, 0.01, 1000).tolist()],),
    "prediction_type": ("v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "steps_offset": (1,),
    "rescale_betas_zero_snr": (True,),
    "clip_sample": (True, False),
    "clip_sample_range": (0.5,),
    "set_alpha_to_one": (True, False),
    "thresholding": (True,),
    "dynamic_thresholding_ratio": (0.9,),
    "sample_max_value": (2.0,),
    "variance_type": ("fixed_large", "fixed_small_log", "learned", "learned_range"),
    "use_karras_sigmas": (True,),
    "use_exponential_sigmas": (True,),
    "use_beta_sigmas": (True,),
    "use_lu_lambdas": (True,),
    "use_flow_sigmas": (True,),
    "flow_shift": (3.0,),
    "use_dynamic_shifting": (True,),
    "time_shift_type": ("linear",),
    "shift_terminal": (0.1,),
    "sigma_min": (0.1,),
    "sigma_max": (12.0,),
    "solver_order": (1, 3),
    "solver_type": ("heun", "midpoint", "bh1"),
    "algorithm_type": ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"),
    "lower_order_final": (True, False),
    "euler_at_final": (True,),
    "final_sigmas_type": ("sigma_min",),
    "lambda_min_clipped": (-3.0,),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
    "noise_sampler_seed": (7,),
    "skip_prk_steps": (True,),
    "predict_x0": (False,),
    "disable_corrector": ([0, 1],),
    "solver_p": ("DDIMScheduler",),
    "original_inference_steps": (40,),
    "timestep_scaling": (5.0,),
}
"""Option → values to try; the class's default among them is left out."""
WITH: dict[str, dict[str, Any]] = {
    "clip_sample_range": {"clip_sample": True},
    "sigma_min": {"use_karras_sigmas": True},
    "sigma_max": {"use_exponential_sigmas": True},
    "steps_offset": {"timestep_spacing": "leading"},
    "dynamic_thresholding_ratio": {"thresholding": True},
    "sample_max_value": {"thresholding": True},
    "flow_shift": {"use_flow_sigmas": True},
    "timestep_type": {"prediction_type": "v_prediction"},
    "use_karras_sigmas": {"beta_schedule": "squaredcos_cap_v2"},
    "rescale_betas_zero_snr": {"prediction_type": "v_prediction"},
    "set_alpha_to_one": {"steps_offset": 1},
}
"""Options that say little without another: they are tried once more with it."""

REFUSED: dict[str, tuple[Any, ...] | None] = {
    "beta_schedule": ("sigmoid",),
    "trained_betas": None,
    "thresholding": None,
    "dynamic_thresholding_ratio": (),
    "sample_max_value": (),
    "variance_type": ("fixed_large", "fixed_small_log", "learned", "learned_range"),
    "use_lu_lambdas": None,
    "use_flow_sigmas": None,
    "sigma_min": None,
    "sigma_max": None,
    "euler_at_final": None,
    "final_sigmas_type": None,
    "lambda_min_clipped": None,
    "interpolation_type": None,
    "timestep_type": None,
    "solver_p": None,
}
"""Option → the values that are refused; None for all of them."""
NOTED: dict[str, tuple[Any, ...] | None] = {
    "solver_order": None,
    "solver_type": None,
    "algorithm_type": ("dpmsolver", "sde-dpmsolver"),
    "lower_order_final": None,
    "noise_sampler_seed": None,
    "skip_prk_steps": None,
    "predict_x0": None,
    "disable_corrector": None,
}
"""Option → the values that are sampled in another way than diffusers', which the report says."""


def scheduler_classes() -> list[str]:
    """All of diffusers' schedulers in torch."""
    found = {name: getattr(diffusers.schedulers, name) for name in dir(diffusers.schedulers)}
    return sorted(
        name
        for name, cls in found.items()
        if inspect.isclass(cls) and issubclass(cls, SchedulerMixin) and cls is not SchedulerMixin
    )


def cells() -> Iterator[Any]:
    """(class, option, options) for each option, value and company."""
    for name in SAMPLED:
        defaults = class_defaults(name)
        yield pytest.param(name, "", {}, id=name)
        for option, default in defaults.items():
            for value in VALUES.get(option, ()):
                companies = ({}, WITH[option]) if option in WITH else ({},)
                for company in companies:
                    changes = {**company, option: value}
                    known = all(key in defaults for key in changes)
                    if value != default and known:
                        text = ",".join(f"{k}={short(v)}" for k, v in changes.items())
                        yield pytest.param(name, option, changes, id=f"{name}-{text}")


def short(value: Any) -> str:
    return str(value) if len(str(value)) < 20 else "..."


def model(x: np.ndarray, timestep: float) -> np.ndarray:
    """A stand-in for the network: smooth, bounded, and different at every timestep."""
    pattern = 1.5 * np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    return np.asarray(np.sin(x + np.float32(timestep * 0.001)) * np.float32(0.3) + pattern)


def theirs(name: str, changes: dict[str, Any], steps: int) -> np.ndarray:
    """diffusers' final latents, in variance-preserving form."""
    scheduler = getattr(diffusers.schedulers, name)(**changes)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Without this, diffusers skips a step where the first timestep repeats.
        scheduler.set_begin_index(0)
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    extra: dict[str, Any] = {}
    if name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler = brownian(generator)
    elif "generator" in inspect.signature(scheduler.step).parameters:
        extra = {"generator": generator}
    over_sigma = type(scheduler).scale_model_input is not None and "Discrete" in name
    for t in scheduler.timesteps:
        out = model(scheduler.scale_model_input(x, t).numpy(), float(t))
        x = scheduler.step(torch.from_numpy(out), t, x, **extra).prev_sample
    last = float(scheduler.sigmas[-1]) if over_sigma else 0.0
    return x.numpy() / math.hypot(1.0, last)


def brownian(generator: torch.Generator) -> Any:
    """A Brownian path over sigma for DPMSolverSDEScheduler, whose own one starts from a seed of its
    own: asked for half a step, then all of it."""
    path: list[tuple[torch.Tensor, torch.Tensor]] = []

    def increment(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        length = sigma - sigma_next
        fresh = torch.randn(SHAPE, generator=generator)
        if not path:
            path.append((fresh, length))
            return fresh
        first, half = path.pop()
        return (first * half.sqrt() + fresh * (length - half).sqrt()) / length.sqrt()

    return increment


def ours(config: dict[str, Any], steps: int) -> np.ndarray:
    """The final latents of a bundle that was exported with this config."""
    schedule = read_schedule(config)
    chosen = choose_sampling(config, name="model", guidance_embedding=False)
    plan = make_plan(schedule, chosen.sampler, steps, spacing=chosen.spacing)
    denoiser = Denoiser(
        lambda x, timestep, states, extra: model(x, timestep),  # noqa: ARG005
        plan=plan,
        prompt=Conditioning(encoder_hidden_states=np.zeros((1, 1, 1), np.float32)),
    )
    generator = TorchGenerator(0)
    x = initial_latents(generator.randn(SHAPE), plan)
    *_, last = sample(denoiser, x, plan, lambda _: generator.randn(SHAPE))
    return last.latents


def difference(config: dict[str, Any], name: str, changes: dict[str, Any]) -> float:
    worst = 0.0
    for steps in STEPS:
        expected = theirs(name, changes, steps)
        worst = max(worst, np.abs(ours(config, steps) - expected).max() / np.abs(expected).max())
    return worst
