"""Every scheduler class of diffusers, with each of its options away from the default in turn.

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
from edgediff_export.source.scheduler import choose_sampling, read_schedule, sigma_data
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
    pytest.mark.filterwarnings("ignore:invalid value encountered in sin:RuntimeWarning"),
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
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
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
    "skip_prk_steps": (True, False),
    "predict_x0": (False,),
    "disable_corrector": ([0, 1],),
    "solver_p": ("DDIMScheduler",),
    "original_inference_steps": (40,),
    "timestep_scaling": (5.0,),
    "sigma_data": (1.0,),
    "sigma_schedule": ("exponential",),
    "rho": (5.0,),
}
"""Option → values to try; the class's default among them is left out."""
_ENDS = {"sigma_min": 0.002, "sigma_max": 120.0}
WITH: dict[str, tuple[dict[str, Any], ...]] = {
    "algorithm_type": (
        {"final_sigmas_type": "sigma_min"},
        {"solver_order": 1},
        {"solver_order": 3},
        {"solver_type": "heun"},
    ),
    "clip_sample_range": ({"clip_sample": True},),
    "dynamic_thresholding_ratio": ({"thresholding": True},),
    "euler_at_final": ({"final_sigmas_type": "sigma_min"},),
    "final_sigmas_type": ({"use_karras_sigmas": True}, {"use_exponential_sigmas": True}),
    "flow_shift": ({"use_flow_sigmas": True},),
    "lower_order_final": (
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "solver_order": 3},
    ),
    "rescale_betas_zero_snr": ({"prediction_type": "v_prediction"},),
    "rho": ({"sigma_schedule": "exponential"},),
    "sample_max_value": ({"thresholding": True},),
    "set_alpha_to_one": ({"steps_offset": 1},),
    "sigma_data": ({"prediction_type": "v_prediction", "sigma_max": 120.0},),
    "sigma_max": ({"use_exponential_sigmas": True},),
    "sigma_min": ({"use_karras_sigmas": True}, {"use_beta_sigmas": True}),
    "solver_type": ({"solver_order": 3}, {"use_karras_sigmas": True}),
    "skip_prk_steps": (
        {"prediction_type": "v_prediction"},
        {"set_alpha_to_one": True, "steps_offset": 1},
    ),
    "steps_offset": ({"timestep_spacing": "leading"},),
    "timestep_type": (
        {"prediction_type": "v_prediction"},
        {"prediction_type": "v_prediction", "use_karras_sigmas": True, **_ENDS},
        {"prediction_type": "v_prediction", "use_exponential_sigmas": True, **_ENDS},
    ),
    "use_karras_sigmas": ({"beta_schedule": "squaredcos_cap_v2"},),
    "variance_type": ({"steps_offset": 1},),
}
"""Options that say little without others: they are tried once more with them."""
Values = tuple[Any, ...] | None
REFUSED: dict[str, Values] = {
    "beta_schedule": ("sigmoid",),
    "trained_betas": None,
    "thresholding": None,
    "variance_type": ("learned", "learned_range"),
    "use_flow_sigmas": None,
    "lambda_min_clipped": None,
    "interpolation_type": None,
    "solver_p": None,
    "DPMSolverMultistepScheduler.variance_type": ("fixed_small_log", "learned", "learned_range"),
    "DPMSolverSinglestepScheduler.variance_type": ("fixed_small_log", "learned", "learned_range"),
    "EDMEulerScheduler.prediction_type": ("sample",),
    "EDMDPMSolverMultistepScheduler.prediction_type": ("sample",),
}
"""Option, or option of one class → the values that are refused; None for all of them."""
WITHOUT_LEVELS = {"EulerDiscreteScheduler-prediction_type=v_prediction,timestep_type=continuous"}
"""Cells with EDM's timesteps, but not its noise levels, which are refused too."""
NOTED: dict[str, Values] = {
    "algorithm_type": ("dpmsolver", "sde-dpmsolver"),
    "noise_sampler_seed": None,
    "use_lu_lambdas": None,
    "predict_x0": None,
    "disable_corrector": None,
    "PNDMScheduler.timestep_spacing": ("linspace", "trailing"),
    "DEISMultistepScheduler.algorithm_type": ("sde-dpmsolver", "sde-dpmsolver++"),
    "DEISMultistepScheduler.solver_order": (3,),
    "UniPCMultistepScheduler.solver_type": ("bh1",),
}
"""Likewise, the values that are sampled in another way than diffusers', as the report says."""
BROKEN = {
    # At zero signal, epsilon says nothing of the image: edgediff refuses to sample it.
    *("LCMScheduler-rescale_betas_zero_snr=True", "TCDScheduler-rescale_betas_zero_snr=True"),
    # lambda is infinite at the end, which only a step of order 1 over x0 can reach.
    "UniPCMultistepScheduler-lower_order_final=False",
    # A last step of no length, which is divided by.
    "EDMDPMSolverMultistepScheduler-final_sigmas_type=sigma_min,solver_order=3,"
    "lower_order_final=False",
}
"""Cells in which diffusers' latents are not finite."""
NOT_IN_DIFFUSERS = {
    "PNDMScheduler-prediction_type=sample",
    "EulerAncestralDiscreteScheduler-prediction_type=sample",
    "DPMSolverSDEScheduler-prediction_type=sample",
    "UniPCMultistepScheduler-use_dynamic_shifting=True",
    "UniPCMultistepScheduler-shift_terminal=0.1",
}
"""Cells that diffusers' own class refuses."""
LOOSE = 1e-3
ROUNDED = {
    # The first step goes down from sigma 20000, at which rounding errors count for more.
    "HeunDiscreteScheduler-beta_schedule=squaredcos_cap_v2",
    # If a step spans an odd number of timesteps, diffusers takes two middles for one.
    "PNDMScheduler-num_train_timesteps=500",
}
"""Cells that are compared with LOOSE."""
DPM_SOLVERS = (
    *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    "EDMDPMSolverMultistepScheduler",
)
"""Whose third order is sampled with the second, if noise is added."""


def scheduler_classes() -> list[str]:
    """All of diffusers' schedulers in torch."""
    found = {name: getattr(diffusers.schedulers, name) for name in dir(diffusers.schedulers)}
    return sorted(
        name
        for name, cls in found.items()
        if inspect.isclass(cls) and issubclass(cls, SchedulerMixin) and cls is not SchedulerMixin
    )


def cells() -> Iterator[Any]:
    """(class, options) for each option, value and company."""
    for name in SAMPLED:
        defaults = class_defaults(name)
        yield pytest.param(name, {}, id=name)
        for option, default in defaults.items():
            for value in VALUES.get(option, ()):
                if value == default:
                    continue
                for company in ({}, *WITH.get(option, ())):
                    if all(key in defaults for key in company):
                        changes = {**company, option: value}
                        text = ",".join(f"{k}={short(v)}" for k, v in changes.items())
                        yield pytest.param(name, changes, id=f"{name}-{text}")


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
        # Without this, diffusers skips a step if the first timestep repeats.
        scheduler.set_begin_index(0)
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    extra: dict[str, Any] = {}
    if name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler = brownian(generator)
    elif "generator" in inspect.signature(scheduler.step).parameters:
        extra = {"generator": generator}
    over_sigma = name in ("EulerDiscreteScheduler", "EDMEulerScheduler")
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
    return last.latents * np.float32(sigma_data(config))


def matches(table: dict[str, Values], name: str, changes: dict[str, Any]) -> list[str]:
    """The options that a table lists for these values."""
    found = []
    for option, value in changes.items():
        key = f"{name}.{option}" if f"{name}.{option}" in table else option
        if key in table:
            values = table[key]
            if values is None or value in values:
                found.append(option)
    return found


def test_every_class_is_decided() -> None:
    others = [name for names in OTHER_CLASSES.values() for name in names]
    assert sorted([*SAMPLED, *others]) == scheduler_classes()
    for name in others:
        with pytest.raises(ExportError, match=f"scheduler {name}: expected one of"):
            read_schedule({"_class_name": name})


@pytest.mark.parametrize("name", SAMPLED)
def test_every_option_has_another_value(name: str) -> None:
    for option, default in class_defaults(name).items():
        assert any(value != default for value in VALUES[option]), option


@pytest.mark.parametrize(("name", "changes"), list(cells()))
def test_an_option_is_equal_or_refused_or_noted(
    name: str, changes: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    config = {"_class_name": name, **changes}
    refused = matches(REFUSED, name, changes)
    if request.node.callspec.id in WITHOUT_LEVELS:
        refused.append("timestep_type")
    if refused:
        with pytest.raises(ExportError, match=f"scheduler {name}: ({'|'.join(refused)}) is"):
            read_schedule(config)
        return
    notes = check_options(name, config)
    noted = matches(NOTED, name, changes)
    third = name in DPM_SOLVERS and changes.get("solver_order") == 3
    if third and changes.get("algorithm_type") == "sde-dpmsolver++":
        noted.append("solver_order")
    assert len(notes) == len(noted)
    for option in noted:
        assert any(option in note for note in notes)
    if noted:
        assert all(np.isfinite(ours(config, steps)).all() for steps in STEPS)
        return
    if request.node.callspec.id in BROKEN:
        assert not all(np.isfinite(theirs(name, changes, steps)).all() for steps in STEPS)
        return
    for steps in STEPS:
        try:
            expected = theirs(name, changes, steps)
        except (NotImplementedError, ValueError):
            assert request.node.callspec.id in NOT_IN_DIFFUSERS
            return
        error = np.abs(ours(config, steps) - expected).max() / np.abs(expected).max()
        assert error < (LOOSE if request.node.callspec.id in ROUNDED else TOLERANCE), steps


def test_the_tables_name_cells_that_exist() -> None:
    ids = {cell.id for cell in cells()}
    assert ids >= {*BROKEN, *WITHOUT_LEVELS, *NOT_IN_DIFFUSERS, *ROUNDED}
