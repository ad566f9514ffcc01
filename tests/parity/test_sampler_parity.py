"""Every sampler against diffusers' scheduler of that kind, step by step and free running.

Both sides ask the same smooth function for the model's output. An error is the largest difference
after a step relative to the largest latent, in variance-preserving form, and is held to 1e-5.

Where diffusers has no answer that can be compared to that, a test below says so and why:

* ddim and lcm at zero signal, with a model that predicts epsilon: diffusers divides by zero.
* euler_a with a model that predicts the sample: diffusers has not implemented it.
* euler and euler_a above sigma 100 (zero terminal SNR, or schedules other than Stable Diffusion's):
  diffusers holds x0 + sigma·eps in float32, so x0 keeps an error of sigma·2**-24. There both sides
  are held to a float64 run, ours to 1e-5, diffusers to that error.
* euler_a between two levels less than a thousandth apart in ratio: diffusers takes the root of a
  rounding error, and gives nan where that is negative.
* zero terminal SNR, other than with scaled_linear: diffusers' table turns on the last bit of a
  square root, and torch's vectorised one is not correctly rounded. Samplers run on our table.
* trailing spacing with some numbers of steps, such as 61: diffusers takes one step more than asked,
  at timestep -1.
* as many steps as timesteps: diffusers repeats timesteps, or leaves the schedule.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from edgediff.denoiser import Conditioning, Denoiser
from edgediff.errors import InputError
from edgediff.noise import TorchGenerator
from edgediff.samplers import SAMPLERS, STOCHASTIC, Step, initial_latents, sample
from edgediff.schedule import NoiseSchedule, Plan, alphas_cumprod, betas, make_plan

# diffusers hands torch tensors to numpy functions.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOLERANCE = 1e-5
SHAPE = (1, 4, 8, 8)
BETAS = {
    "scaled_linear": (0.00085, 0.012),
    "linear": (0.0001, 0.02),
    "squaredcos_cap_v2": (0.0001, 0.02),
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "linspace", "trailing")
STEPS = (1, 2, 4, 20)
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "lcm": (LCMScheduler, {}),
}
EULERS = ("euler", "euler_a")
PATTERN = 1.5 * np.cos(np.arange(math.prod(SHAPE))).reshape(SHAPE)
LARGE_SIGMA = 100.0


def make_schedule(**changes: Any) -> NoiseSchedule:
    beta_schedule = changes.get("beta_schedule", "scaled_linear")
    start, end = BETAS[beta_schedule]
    fields = {
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": beta_schedule,
        "prediction_type": "epsilon",
        "steps_offset": 1,
        "set_alpha_to_one": False,
    }
    return NoiseSchedule(**(fields | changes))


def diffusers_scheduler(schedule: NoiseSchedule, sampler: str) -> Any:
    cls, fixed = SCHEDULERS[sampler]
    known = cls.__init__.__wrapped__.__code__.co_varnames
    wanted = {f: getattr(schedule, f) for f in schedule.__dataclass_fields__}
    scheduler = cls(**{k: v for k, v in wanted.items() if k in known and v is not None}, **fixed)
    if schedule.rescale_betas_zero_snr and schedule.beta_schedule != "scaled_linear":
        table = torch.tensor(alphas_cumprod(schedule))
        if sampler in ("ddim", "lcm"):
            if not schedule.set_alpha_to_one:
                scheduler.final_alpha_cumprod = table[0]
        else:
            table[-1] = 2**-24
        scheduler.alphas_cumprod = table
    return scheduler


def model(x: np.ndarray, timestep: float) -> np.ndarray:
    """A stand-in for the network: smooth, bounded, and different at every timestep."""
    t = x.dtype.type(timestep * 0.001)
    return np.sin(x + t) * x.dtype.type(0.3) + PATTERN.astype(x.dtype)


def theirs(
    schedule: NoiseSchedule, sampler: str, steps: int, seed: int = 0
) -> Iterator[tuple[float, np.ndarray, np.ndarray | None]]:
    """(timestep, latents in variance-preserving form, x0 where diffusers gives it) by step."""
    scheduler = diffusers_scheduler(schedule, sampler)
    scheduler.set_timesteps(steps)
    if sampler != "ddim":
        # Without this, diffusers skips a step where the first timestep repeats, and then crashes.
        scheduler.set_begin_index(0)
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    extra = {"generator": generator} if sampler in STOCHASTIC else {}
    for i, t in enumerate(scheduler.timesteps):
        out = torch.from_numpy(model(scheduler.scale_model_input(x, t).numpy(), float(t)))
        result = scheduler.step(out, t, x, **extra)
        x = result.prev_sample
        level = float(scheduler.sigmas[i + 1]) if sampler in EULERS else 0.0
        x0 = getattr(result, "denoised", getattr(result, "pred_original_sample", None))
        yield float(t), x.numpy() / math.hypot(1.0, level), None if x0 is None else x0.numpy()


def our_denoiser(schedule: NoiseSchedule, plan: Plan) -> Denoiser:
    return Denoiser(
        lambda x, timestep, states, extra: model(x, timestep),  # noqa: ARG005
        plan=plan,
        prediction_type=schedule.prediction_type,
        prompt=Conditioning(encoder_hidden_states=np.zeros((1, 1, 1), np.float32)),
    )


def ours(schedule: NoiseSchedule, sampler: str, steps: int, seed: int = 0) -> Iterator[Step]:
    plan = make_plan(schedule, sampler, steps)
    generator = TorchGenerator(seed)
    x = initial_latents(generator.randn(SHAPE), plan)
    return sample(our_denoiser(schedule, plan), x, plan, lambda _: generator.randn(SHAPE))


def in_float64(
    schedule: NoiseSchedule, sampler: str, steps: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """Euler and ancestral Euler in float64 over x0 + sigma·eps, as Karras et al. write it."""
    plan = make_plan(schedule, sampler, steps)
    generator = TorchGenerator(seed)
    first = plan.steps[0].sigma
    x = generator.randn(SHAPE).astype(np.float64) * plan.noise_scale * math.hypot(1.0, first)
    for sigma, sigma_next, timestep in plan.steps:
        scale = math.hypot(1.0, sigma)
        out = model(x / scale, timestep)
        if schedule.prediction_type == "epsilon":
            x0 = x - sigma * out
        elif schedule.prediction_type == "v_prediction":
            x0 = x / scale**2 - out * sigma / scale
        else:
            x0 = out
        down, up = sigma_next, 0.0
        if sampler == "euler_a":
            up = sigma_next / sigma * math.sqrt(sigma**2 - sigma_next**2)
            down = sigma_next**2 / sigma
        x = x + (x - x0) / sigma * (down - sigma)
        if sampler == "euler_a":
            x = x + generator.randn(SHAPE) * up
        yield x / math.hypot(1.0, sigma_next)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference over the largest value of b; a must be finite float32."""
    assert a.dtype == np.float32
    assert np.isfinite(a).all()
    return float(np.abs(a - b).max() / np.abs(b).max())


def largest_error(schedule: NoiseSchedule, sampler: str, steps: int, seed: int = 0) -> float:
    """Over all steps, of latents and x0 against diffusers; timesteps must be the same."""
    planned = make_plan(schedule, sampler, steps).steps
    a = ours(schedule, sampler, steps, seed)
    b = theirs(schedule, sampler, steps, seed)
    worst = 0.0
    for step, ours_now, (timestep, latents, x0) in zip(planned, a, b, strict=True):
        assert step.timestep == timestep
        worst = max(worst, difference(ours_now.latents, latents))
        if x0 is not None and sampler not in EULERS:
            worst = max(worst, difference(ours_now.x0, x0))
    return worst


def comparable(schedule: NoiseSchedule, sampler: str, steps: int) -> bool:
    if sampler == "euler_a" and schedule.prediction_type == "sample":
        return False
    try:
        first = make_plan(schedule, sampler, steps).steps[0].sigma
    except InputError:
        return False
    return sampler not in EULERS or first < LARGE_SIGMA


@pytest.mark.parametrize("zero_snr", [False, True], ids=["", "zero_snr"])
@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_equals_diffusers(
    sampler: str, prediction: str, spacing: str, beta_schedule: str, zero_snr: bool
) -> None:
    schedule = make_schedule(
        prediction_type=prediction,
        timestep_spacing=spacing,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=zero_snr,
    )
    for steps in STEPS:
        if comparable(schedule, sampler, steps):
            assert largest_error(schedule, sampler, steps) < TOLERANCE, steps


def test_what_the_comparison_leaves_out() -> None:
    """For Stable Diffusion's own schedule nothing is left out but what diffusers has not."""
    for sampler in SAMPLERS:
        for prediction in PREDICTIONS:
            for spacing in SPACINGS:
                schedule = make_schedule(prediction_type=prediction, timestep_spacing=spacing)
                expected = (sampler, prediction) != ("euler_a", "sample")
                assert all(comparable(schedule, sampler, n) == expected for n in STEPS)


@pytest.mark.parametrize("zero_snr", [False, True], ids=["", "zero_snr"])
@pytest.mark.parametrize("beta_schedule", BETAS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", EULERS)
def test_euler_at_any_sigma_equals_float64(
    sampler: str, prediction: str, spacing: str, beta_schedule: str, zero_snr: bool
) -> None:
    schedule = make_schedule(
        prediction_type=prediction,
        timestep_spacing=spacing,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=zero_snr,
    )
    for steps in STEPS:
        a = [step.latents for step in ours(schedule, sampler, steps)]
        exact = list(in_float64(schedule, sampler, steps))
        assert max(map(difference, a, exact)) < TOLERANCE, steps
        if prediction == "sample" and sampler == "euler_a":
            continue
        planned = make_plan(schedule, sampler, steps).steps
        largest = 5.0 * planned[0].sigma  # of x0 + sigma·eps, in the first step
        theirs_now = [latents for _, latents, _ in theirs(schedule, sampler, steps)]
        for step, b, c in zip(planned, theirs_now, exact, strict=True):
            if sampler == "euler_a" and not np.isfinite(b).all():
                assert step.sigma_next < 1e-3 * step.sigma
                break
            rounding = largest * 2.0**-22 / math.hypot(1.0, step.sigma_next)
            assert np.abs(b - c).max() < TOLERANCE * np.abs(c).max() + rounding, steps


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3, 7, 30, 50])
@pytest.mark.parametrize("seed", [0, 1])
def test_stable_diffusion_as_it_ships(sampler: str, steps: int, seed: int) -> None:
    """The scheduler config of Stable Diffusion 1.5, which sets no spacing: from_config then takes
    that of the scheduler asked for."""
    shipped = PNDMScheduler.from_config(
        {
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "set_alpha_to_one": False,
            "skip_prk_steps": True,
            "steps_offset": 1,
            "clip_sample": False,
        }
    )
    cls, fixed = SCHEDULERS[sampler]
    scheduler = cls.from_config(shipped.config, **fixed)
    schedule = make_schedule(timestep_spacing=None)
    scheduler.set_timesteps(steps)
    plan = make_plan(schedule, sampler, steps)
    assert [step.timestep for step in plan.steps] == scheduler.timesteps.tolist()
    explicit = make_schedule(timestep_spacing=scheduler.config.timestep_spacing)
    assert make_plan(explicit, sampler, steps) == plan
    assert largest_error(explicit, sampler, steps, seed) < TOLERANCE


@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [1.0, 0.5])
@pytest.mark.parametrize("to_one", [False, True])
def test_clipping_and_the_last_alpha(
    sampler: str, prediction: str, clip: float, to_one: bool
) -> None:
    schedule = make_schedule(
        prediction_type=prediction,
        clip_sample=True,
        clip_sample_range=clip,
        set_alpha_to_one=to_one,
        timestep_spacing="leading",
    )
    for steps in STEPS:
        assert largest_error(schedule, sampler, steps) < TOLERANCE, steps


@pytest.mark.parametrize(("original", "steps"), [(50, 50), (50, 7), (100, 8), (1000, 3), (1, 1)])
def test_lcm_skips_over_the_distillation_grid(original: int, steps: int) -> None:
    schedule = make_schedule(original_inference_steps=original, timestep_spacing="leading")
    assert largest_error(schedule, "lcm", steps) < TOLERANCE


def test_a_shorter_schedule() -> None:
    schedule = make_schedule(
        num_train_timesteps=100, original_inference_steps=25, timestep_spacing="leading"
    )
    for sampler in SAMPLERS:
        assert largest_error(schedule, sampler, 9) < TOLERANCE, sampler


@pytest.mark.parametrize("beta_schedule", BETAS)
def test_the_table_equals_diffusers(beta_schedule: str) -> None:
    schedule = make_schedule(beta_schedule=beta_schedule)
    scheduler = diffusers_scheduler(schedule, "ddim")
    np.testing.assert_allclose(betas(schedule), scheduler.betas.numpy(), rtol=1e-6)
    np.testing.assert_allclose(alphas_cumprod(schedule), scheduler.alphas_cumprod, rtol=1e-6)


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_the_zero_snr_table_equals_diffusers(beta_schedule: str) -> None:
    schedule = make_schedule(beta_schedule=beta_schedule, rescale_betas_zero_snr=True)
    table = diffusers_scheduler(schedule, "ddim").alphas_cumprod.numpy()
    assert alphas_cumprod(schedule)[-1] == table[-1] == 0.0
    np.testing.assert_allclose(alphas_cumprod(schedule), table, rtol=5e-5, atol=2e-7)


@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
def test_zero_signal_says_nothing_about_epsilon(sampler: str) -> None:
    schedule = make_schedule(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    _, latents, _ = next(theirs(schedule, sampler, 2))
    assert not np.isfinite(latents).all()
    with pytest.raises(InputError, match="predicts epsilon"):
        make_plan(schedule, sampler, 2)


def test_diffusers_has_no_ancestral_euler_for_sample_prediction() -> None:
    schedule = make_schedule(prediction_type="sample", timestep_spacing="trailing")
    with pytest.raises(NotImplementedError):
        next(theirs(schedule, "euler_a", 2))


def test_trailing_takes_as_many_steps_as_asked() -> None:
    schedule = make_schedule(timestep_spacing="trailing")
    scheduler = diffusers_scheduler(schedule, "ddim")
    scheduler.set_timesteps(61)
    plan = make_plan(schedule, "ddim", 61)
    assert [*(step.timestep for step in plan.steps), -1] == scheduler.timesteps.tolist()


@pytest.mark.parametrize(("spacing", "most"), [("leading", 998), ("linspace", 999)])
def test_more_steps_than_fit(spacing: str, most: int) -> None:
    schedule = make_schedule(timestep_spacing=spacing)
    scheduler = diffusers_scheduler(schedule, "dpmpp_2m")
    scheduler.set_timesteps(most + 1)
    timesteps = scheduler.timesteps.tolist()
    assert len(set(timesteps)) <= most or max(timesteps) > 999
    with pytest.raises(InputError, match=f"use {most} or fewer"):
        make_plan(schedule, "dpmpp_2m", most + 1)
    assert len(make_plan(schedule, "dpmpp_2m", most).steps) == most
