"""Samplers of flow matching against diffusers' schedulers, step by step and free running.

Both sides ask the same smooth function for the velocity. An error is the largest difference after a
step relative to the largest latent, and is held to 2e-6. heun's second slope is divided by the
next level, and so is a rounding error in the velocity, on both sides: its bound is 2**-24 times the
ratio of the two levels in a step to a far lower one.

These are left out, and refused, since diffusers has nothing to compare with:

* ddim, pndm, euler_a, dpmpp_sde, tcd: none for flow matching (and with straight paths, ddim is
  euler). lcm: FlowMatchLCMScheduler has no boundary condition.
* deis: diffusers ends at the last level instead of 0, which leaves noise in the image.
* spacings with dpmpp_2m, dpmpp_2m_sde and unipc: diffusers spreads levels of a table of betas.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.flow import FLOW_SAMPLERS
from edgediff.sampling.noise import TorchGenerator
from edgediff.sampling.plan import make_plan
from edgediff.sampling.samplers import STOCHASTIC, initial_latents, sample
from edgediff.sampling.schedule import DynamicShift, FlowSchedule, FlowTimestepSpacing, TimeShift
from edgediff.sampling.sigmas import Spacing

# diffusers hands torch tensors to numpy functions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

TOLERANCE = 2e-6
SHAPE = (1, 4, 8, 8)
PATTERN = 1.5 * np.cos(np.arange(math.prod(SHAPE), dtype=np.float32)).reshape(SHAPE)
IMAGE = np.sin(np.arange(math.prod(SHAPE), dtype=np.float32)).reshape(SHAPE)
STEPS = (1, 2, 3, 4, 20, 50)
SHIFTS = (1.0, 3.0)
SIZES = (1024, 4096)
"""Tokens of images of 512 and of 1024 pixels a side, with patches of 16 pixels."""
MULTISTEP: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (UniPCMultistepScheduler, {}),
}


def velocity(x: np.ndarray, timestep: float) -> np.ndarray:
    """A stand-in for the network: smooth, bounded, and different at every timestep."""
    out: np.ndarray = np.sin(x + np.float32(timestep * 0.001)) * np.float32(0.3) + PATTERN
    return out


def theirs(scheduler: Any, x: torch.Tensor, seed: int = 0, begin: int = 0) -> Iterator[Any]:
    """(timestep, latents) of each step."""
    scheduler.set_begin_index(begin)
    generator = torch.Generator("cpu").manual_seed(seed)
    torch.randn(SHAPE, generator=generator)  # the initial latents
    extra = {"generator": generator} if isinstance(scheduler, DPMSolverMultistepScheduler) else {}
    timesteps = scheduler.timesteps[begin:]
    for i, t in enumerate(timesteps):
        x = scheduler.step(torch.from_numpy(velocity(x.numpy(), float(t))), t, x, **extra)[0]
        last = i == len(timesteps) - 1
        if last or getattr(scheduler, "state_in_first_order", True):
            yield float(t), x.numpy()


def check(
    schedule: FlowSchedule,
    sampler: str,
    steps: int,
    scheduler: Any,
    *,
    spacing: Spacing | None = None,
    image_seq_len: int | None = None,
    strength: float | None = None,
) -> None:
    plan = make_plan(
        schedule,
        sampler,
        steps,
        spacing=spacing,
        image_seq_len=image_seq_len,
        strength=strength,
    )
    generator = TorchGenerator(0)
    noise = generator.randn(SHAPE)
    begin = (steps - len(plan.steps)) * scheduler.order
    if strength is None:
        x = initial_latents(noise, plan)
        start = torch.from_numpy(noise)
    else:
        alpha, sigma_t = plan.alpha_sigma(plan.start)
        x = alpha * IMAGE + sigma_t * noise
        scheduler.set_begin_index(begin)
        t = scheduler.timesteps[begin : begin + 1]
        start = scheduler.scale_noise(torch.from_numpy(IMAGE), t, torch.from_numpy(noise))
    denoise = Denoiser(
        lambda x, timestep, states, extra: velocity(x, timestep),  # noqa: ARG005
        plan=plan,
        prompt=Conditioning(encoder_hidden_states=np.zeros((1, 1, 1), np.float32)),
    )
    taken = sample(denoise, x, plan, lambda _: generator.randn(SHAPE))
    count, worst = 0, TOLERANCE
    for step, planned, (timestep, latents) in zip(
        taken, plan.steps, theirs(scheduler, start, begin=begin), strict=True
    ):
        if sampler != "heun":  # whose second evaluation is at another timestep
            assert planned.timestep == pytest.approx(timestep, rel=1e-6)
        assert step.latents.dtype == np.float32
        assert np.isfinite(step.latents).all()
        error = np.abs(step.latents - latents).max() / np.abs(latents).max()
        allowed = TOLERANCE
        if sampler == "heun" and planned.sigma_next > 0.0:
            ratio = schedule.time(planned.sigma) / schedule.time(planned.sigma_next)
            allowed = max(allowed, 2.0**-24 * ratio)
        worst = max(worst, allowed)
        assert error < worst, (steps, step.index)
        count += 1
    assert count == len(plan.steps)


def euler_of(
    steps: int, spacing: FlowTimestepSpacing, mu: float | None = None, **config: Any
) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    sigmas = np.linspace(1.0, 1.0 / steps, steps) if spacing == "trailing" else None
    scheduler.set_timesteps(None if sigmas is not None else steps, sigmas=sigmas, mu=mu)
    return scheduler


@pytest.mark.parametrize("timestep_spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("shift", [*SHIFTS, 0.5, 1.15, 12.0])
@pytest.mark.parametrize("steps", STEPS)
def test_euler(steps: int, shift: float, timestep_spacing: FlowTimestepSpacing) -> None:
    schedule = FlowSchedule(shift=shift, timestep_spacing=timestep_spacing)
    check(schedule, "euler", steps, euler_of(steps, timestep_spacing, shift=shift))


@pytest.mark.parametrize("timestep_spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("size", SIZES)
def test_euler_with_a_dynamic_shift(
    size: int, kind: TimeShift, timestep_spacing: FlowTimestepSpacing
) -> None:
    dynamic = DynamicShift(time_shift_type=kind)
    schedule = FlowSchedule(dynamic_shift=dynamic, timestep_spacing=timestep_spacing)
    mu = 0.5 + (size - 256) * (1.15 - 0.5) / (4096 - 256)
    for steps in STEPS:
        scheduler = euler_of(
            steps, timestep_spacing, mu=mu, use_dynamic_shifting=True, time_shift_type=kind
        )
        check(schedule, "euler", steps, scheduler, image_seq_len=size)


@pytest.mark.parametrize("timestep_spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_euler_with_a_terminal_shift(shift: float, timestep_spacing: FlowTimestepSpacing) -> None:
    schedule = FlowSchedule(shift=shift, shift_terminal=0.1, timestep_spacing=timestep_spacing)
    for steps in STEPS[1:]:  # diffusers divides 0 by 0 in one step
        scheduler = euler_of(steps, timestep_spacing, shift=shift, shift_terminal=0.1)
        check(schedule, "euler", steps, scheduler)


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_euler_with_a_spacing(shift: float, spacing: Spacing) -> None:
    for steps in STEPS:
        config = {f"use_{spacing}_sigmas": True}
        scheduler = euler_of(steps, "linspace", shift=shift, **config)
        check(FlowSchedule(shift=shift), "euler", steps, scheduler, spacing=spacing)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("shift", SHIFTS)
def test_euler_from_an_image(shift: float, strength: float) -> None:
    scheduler = euler_of(20, "linspace", shift=shift)
    check(FlowSchedule(shift=shift), "euler", 20, scheduler, strength=strength)


@pytest.mark.parametrize("shift", SHIFTS)
def test_heun(shift: float) -> None:
    """Over s, not over sigma: the mean of two slopes depends on the time that they are over."""
    for steps in STEPS:
        scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(steps)
        check(FlowSchedule(shift=shift), "heun", steps, scheduler)


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("sampler", MULTISTEP)
@pytest.mark.parametrize("steps", STEPS)
def test_multistep(steps: int, sampler: str, shift: float) -> None:
    cls, fixed = MULTISTEP[sampler]
    scheduler = cls(
        **fixed, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=shift
    )
    scheduler.set_timesteps(steps)
    check(FlowSchedule(shift=shift), sampler, steps, scheduler)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sampler", MULTISTEP)
def test_multistep_with_a_dynamic_shift(sampler: str, size: int) -> None:
    cls, fixed = MULTISTEP[sampler]
    mu = 0.5 + (size - 256) * (1.15 - 0.5) / (4096 - 256)
    schedule = FlowSchedule(dynamic_shift=DynamicShift())
    for steps in STEPS:
        scheduler = cls(
            **fixed,
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            use_dynamic_shifting=True,
        )
        scheduler.set_timesteps(steps, mu=mu)
        check(schedule, sampler, steps, scheduler, image_seq_len=size)


def test_unipc_with_a_terminal_shift() -> None:
    for steps in STEPS[1:]:
        scheduler = UniPCMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", shift_terminal=0.1
        )
        scheduler.set_timesteps(steps)
        check(FlowSchedule(shift_terminal=0.1), "unipc", steps, scheduler)


def test_every_sampler_is_compared() -> None:
    assert set(FLOW_SAMPLERS) == {"euler", "heun", *MULTISTEP}
    assert {*FLOW_SAMPLERS} & {*STOCHASTIC} == {"dpmpp_2m_sde"}
