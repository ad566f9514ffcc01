"""Every sampler against diffusers' scheduler of that kind, step by step and free running.

Both sides ask the same smooth function for the model's output. An error is the largest difference
after a step relative to the largest latent, in variance-preserving form, and is held to 1e-5.

Where diffusers has no answer that can be compared to that, a test below says so and why:

* ddim, ddpm, lcm and tcd at zero signal, with a model that predicts epsilon, and pndm with zero
  terminal SNR: diffusers divides by zero.
* euler_a, dpmpp_sde and pndm with a model that predicts the sample: diffusers has not implemented
  them.
* euler, euler_a, heun, lms and dpmpp_sde above sigma 100 (zero terminal SNR, or schedules other
  than Stable Diffusion's): diffusers holds x0 + sigma·eps in float32, so x0 keeps an error of
  sigma·2**-24. There both sides are held to a float64 run, ours to 1e-5, diffusers to that error.
  pndm above sigma 100: eps is a small difference of large latents, on both sides.
* heun's step to a far smaller sigma_next: the second slope is over sigma_next, and so is a rounding
  error in the model's own output; the tolerance is sigma / sigma_next·2**-22. From zero signal on
  that makes noise of images, and heun takes such steps by Euler's method, as its float64 run
  does; diffusers' HeunDiscreteScheduler knows no zero terminal SNR. deis extrapolates eps,
  which counts sigma times in the latents: sigma·2**-22 for the first sigma, less than 1e-5 with
  Stable Diffusion's schedule.
* pndm with linspace timesteps, and trailing ones where the steps do not divide the schedule:
  diffusers steps to t - T // steps, which is not where the next step starts, and takes its second
  evaluation for one between two other levels. Here each step ends where the next one starts.
* pndm in part of its steps (strength): diffusers cuts its list of timesteps, in which one comes
  twice, without telling the scheduler, and ends a step too early. Here the steps left are a run of
  their own.
* lms in part of its steps (strength): diffusers takes weights for four slopes though there are
  fewer yet, so that their sum is not the step's length. Here they are a run of their own.
* euler_a between two levels less than a thousandth apart in ratio: diffusers takes the root of a
  rounding error, and gives nan where that is negative.
* zero terminal SNR, other than with scaled_linear: diffusers' table turns on the last bit of a
  square root, and torch's vectorised one is not correctly rounded. Samplers run on our table.
* trailing spacing with some numbers of steps, such as 61: diffusers takes one step more than asked,
  at timestep -1.
* as many steps as timesteps: diffusers repeats timesteps, or leaves the schedule.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from edgediff.errors import InputError
from edgediff.sampling.denoiser import Conditioning, Denoiser
from edgediff.sampling.noise import TorchGenerator
from edgediff.sampling.plan import Plan, make_plan
from edgediff.sampling.planned_step import PlannedStep
from edgediff.sampling.samplers import SAMPLERS, STOCHASTIC, Trajectory, initial_latents, sample
from edgediff.sampling.schedule import DiscreteSchedule, alphas_cumprod
from edgediff.sampling.sigmas import Spacing

# diffusers hands torch tensors to numpy functions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

TOLERANCE = 1e-5
SHAPE = (1, 4, 8, 8)
BETAS = {
    "scaled_linear": (0.00085, 0.012),
    "linear": (0.0001, 0.02),
    "squaredcos_cap_v2": (0.0001, 0.02),
}
# Stable Diffusion's among the fast tests.
EVERY_BETAS = ["scaled_linear", *(pytest.param(b, marks=pytest.mark.slow) for b in list(BETAS)[1:])]
PREDICTIONS = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
SPACINGS: tuple[Spacing, ...] = ("karras", "exponential", "beta")
SPACED = (
    *("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_2s_sde"),
    *("dpmpp_sde", "unipc", "deis"),
)
STEPS = (1, 2, 4, 20)
SLOW = ("lms",)
"""Whose weights diffusers integrates numerically, at every step."""


def fast_first(samplers: Iterable[str]) -> list[Any]:
    return [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in samplers]


SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "lcm": (LCMScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s": (DPMSolverSinglestepScheduler, {}),
    "dpmpp_2s_sde": (DPMSolverSinglestepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_sde": (DPMSolverSDEScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "deis": (DEISMultistepScheduler, {}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "tcd": (TCDScheduler, {}),
    "ddpm": (DDPMScheduler, {}),
    "lms": (LMSDiscreteScheduler, {}),
}
EULERS = ("euler", "euler_a", "lms")
OVER_SIGMA = ("euler", "euler_a", "heun", "lms", "dpmpp_sde")
"""Whose latents are x0 + sigma·eps in diffusers."""
LIMITED = (*OVER_SIGMA, "pndm")
"""Which are compared with diffusers only below LARGE_SIGMA."""
TWICE = ("heun", "dpmpp_sde")
"""Which evaluate the model twice a step."""
PATTERN = 1.5 * np.cos(np.arange(math.prod(SHAPE))).reshape(SHAPE)
IMAGE = np.sin(np.arange(math.prod(SHAPE), dtype=np.float32)).reshape(SHAPE)
LARGE_SIGMA = 100.0
IN_FLOAT64 = ("heun", "deis", "pndm")
"""Which are run in float64 in diffusers: its formulas of them cancel where there is little signal,
and leave too few digits to compare with."""
NOT_IN_DIFFUSERS = {(name, "sample") for name in ("euler_a", "dpmpp_sde", "pndm")}


def make_schedule(**changes: Any) -> DiscreteSchedule:
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
    return DiscreteSchedule(**(fields | changes))


def diffusers_scheduler(
    schedule: DiscreteSchedule, sampler: str, spacing: Spacing | None = None
) -> Any:
    cls, fixed = SCHEDULERS[sampler]
    known = cls.__init__.__wrapped__.__code__.co_varnames
    wanted = {f: getattr(schedule, f) for f in schedule.__dataclass_fields__}
    wanted |= fixed | ({} if spacing is None else {f"use_{spacing}_sigmas": True})
    scheduler = cls(**{k: v for k, v in wanted.items() if k in known and v is not None})
    unknown = schedule.rescale_betas_zero_snr and "rescale_betas_zero_snr" not in known
    if unknown or (schedule.rescale_betas_zero_snr and schedule.beta_schedule != "scaled_linear"):
        table = torch.tensor(alphas_cumprod(schedule))
        if sampler in ("ddim", "ddpm", "lcm", "tcd", "pndm"):
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


Evaluated = tuple[float, np.ndarray, np.ndarray | None]


def theirs(
    schedule: DiscreteSchedule,
    sampler: str,
    steps: int,
    seed: int = 0,
    *,
    spacing: Spacing | None = None,
    strength: float | None = None,
    replace: Callable[[int, np.ndarray], np.ndarray] | None = None,
) -> Iterator[Evaluated]:
    """(timestep, latents in variance-preserving form, x0 where diffusers gives it) by step.

    With a strength, from IMAGE on, as StableDiffusionImg2ImgPipeline does. replace: step index and
    latents → the latents to go on with."""
    scheduler = diffusers_scheduler(schedule, sampler, spacing)
    if schedule.timesteps is not None and len(schedule.timesteps) == steps:
        scheduler.set_timesteps(timesteps=list(schedule.timesteps))
    else:
        scheduler.set_timesteps(steps)
    timesteps, begin = scheduler.timesteps, 0
    if strength is not None:
        begin = (steps - min(int(steps * strength), steps)) * scheduler.order
        timesteps = timesteps[begin:]
    if sampler not in ("ddim", "ddpm", "pndm"):
        # Without this, diffusers skips a step where the first timestep repeats, and then crashes.
        scheduler.set_begin_index(begin)
    generator = torch.Generator("cpu").manual_seed(seed)
    x = torch.randn(SHAPE, generator=generator)
    if strength is None:
        x = x * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(torch.from_numpy(IMAGE), x, timesteps[:1])
    extra: dict[str, Any] = {}
    if sampler in IN_FLOAT64:
        x, scheduler.alphas_cumprod = x.double(), scheduler.alphas_cumprod.double()
        if sampler != "pndm":
            scheduler.sigmas = scheduler.sigmas.double()
    if sampler == "dpmpp_sde":
        scheduler.noise_sampler = brownian(generator)
    elif sampler in STOCHASTIC:
        extra = {"generator": generator}
    if sampler == "tcd":
        extra["eta"] = schedule.eta
    index, began = 0, float(timesteps[0])
    for i, t in enumerate(timesteps):
        out = torch.from_numpy(model(scheduler.scale_model_input(x, t).numpy(), float(t)))
        result = scheduler.step(out, t, x, **extra)
        x = result.prev_sample
        halfway = sampler == "pndm" and i == 0
        if sampler in TWICE:
            halfway = not scheduler.state_in_first_order
        if i == len(timesteps) - 1 or not halfway:
            level = float(scheduler.sigmas[begin + i + 1]) if sampler in OVER_SIGMA else 0.0
            x0 = getattr(result, "denoised", getattr(result, "pred_original_sample", None))
            latents = x.numpy() / math.hypot(1.0, level)
            yield began, latents, None if x0 is None else x0.numpy()
            if replace is not None:
                x = torch.from_numpy(replace(index, latents) * math.hypot(1.0, level))
            index, began = index + 1, float(timesteps[min(i + 1, len(timesteps) - 1)])


def brownian(generator: torch.Generator) -> Any:
    """A Brownian path over sigma for DPMSolverSDEScheduler, asked for half a step, then all of it:
    increments over the root of their length, as its own noise sampler's."""
    path: list[tuple[torch.Tensor, torch.Tensor]] = []

    def increment(sigma: torch.Tensor, sigma_next: torch.Tensor) -> torch.Tensor:
        length = sigma - sigma_next
        if not path:
            path.append((torch.randn(SHAPE, generator=generator), length))
            return path[0][0]
        first, half = path.pop()
        second = torch.randn(SHAPE, generator=generator)
        return (first * half.sqrt() + second * (length - half).sqrt()) / length.sqrt()

    return increment


def our_denoiser(plan: Plan) -> Denoiser:
    return Denoiser(
        lambda x, timestep, states, extra: model(x, timestep),  # noqa: ARG005
        plan=plan,
        prompt=Conditioning(encoder_hidden_states=np.zeros((1, 1, 1), np.float32)),
    )


def ours(
    schedule: DiscreteSchedule,
    sampler: str,
    steps: int,
    seed: int = 0,
    *,
    spacing: Spacing | None = None,
    strength: float | None = None,
) -> Trajectory:
    plan = make_plan(schedule, sampler, steps, spacing=spacing, strength=strength)
    generator = TorchGenerator(seed)
    noise = generator.randn(SHAPE)
    if strength is None:
        x = initial_latents(noise, plan)
    else:
        alpha, sigma_t = plan.alpha_sigma(plan.start)
        x = alpha * IMAGE + sigma_t * noise
    return sample(our_denoiser(plan), x, plan, lambda _: generator.randn(SHAPE))


def in_float64(
    schedule: DiscreteSchedule, sampler: str, steps: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """The samplers of OVER_SIGMA in float64 over x0 + sigma·eps, as Karras et al. write it."""
    plan = make_plan(schedule, sampler, steps)
    generator = TorchGenerator(seed)
    first = plan.steps[0].sigma
    x = generator.randn(SHAPE).astype(np.float64) * plan.noise_scale * math.hypot(1.0, first)

    def slope(x: np.ndarray, sigma: float) -> np.ndarray:
        """(x - x0) / sigma"""
        scale = math.hypot(1.0, sigma)
        out = model(x / scale, plan.timesteps[sigma])
        if schedule.prediction_type == "epsilon":
            return out
        if schedule.prediction_type == "v_prediction":
            return (x - (x / scale**2 - out * sigma / scale)) / sigma
        return (x - out) / sigma

    def ancestral(
        x: np.ndarray, d: np.ndarray, noise: np.ndarray, sigma: float, sigma_next: float
    ) -> np.ndarray:
        up = sigma_next / sigma * math.sqrt(sigma**2 - sigma_next**2)
        return x + d * (sigma_next**2 / sigma - sigma) + noise * up

    slopes: list[tuple[float, np.ndarray]] = []
    for step in plan.steps:
        sigma, sigma_next, middle = step.sigma, step.sigma_next, step.sigma_mid
        d = slope(x, sigma)
        slopes = [*slopes[-3:], (sigma, d)]
        by_euler = plan.zero_signal and sigma > 4.0 * sigma_next  # in heun
        if sampler == "lms":
            x = x + integral(slopes, sigma, sigma_next)
        elif sigma_next == 0.0 or sampler == "euler" or (sampler == "heun" and by_euler):
            x = x + d * (sigma_next - sigma)
        elif sampler == "heun":
            ahead = x + d * (sigma_next - sigma)
            x = x + (d + slope(ahead, sigma_next)) / 2 * (sigma_next - sigma)
        elif middle is None:
            x = ancestral(x, d, generator.randn(SHAPE), sigma, sigma_next)
        else:
            first, second = (generator.randn(SHAPE).astype(np.float64) for _ in range(2))
            there = ancestral(x, d, first, sigma, middle)
            x0 = there - middle * slope(there, middle)
            path = first * math.sqrt(sigma - middle) + second * math.sqrt(middle - sigma_next)
            noise = path / math.sqrt(sigma - sigma_next)
            x = ancestral(x, (x - x0) / sigma, noise, sigma, sigma_next)
        yield x / math.hypot(1.0, sigma_next)


def integral(slopes: list[tuple[float, np.ndarray]], start: float, end: float) -> np.ndarray:
    """Of the polynomial through the slopes, by Gauss and Legendre's rule, which is exact for it."""
    levels = np.array([level for level, _ in slopes])
    values = np.array([d.reshape(-1) for _, d in slopes])
    nodes, weights = np.polynomial.legendre.leggauss(4)
    at = (start + end) / 2 + nodes * (end - start) / 2
    total = np.zeros(values.shape[1])
    for k, level in enumerate(levels):
        others = np.delete(levels, k)
        basis = np.prod((at[:, None] - others) / (level - others), axis=1)
        total += values[k] * (weights @ basis) * (end - start) / 2
    return total.reshape(slopes[0][1].shape)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference over the largest value of b; a must be finite float32."""
    assert a.dtype == np.float32
    assert np.isfinite(a).all()
    return float(np.abs(a - b).max() / np.abs(b).max())


def largest_error(
    schedule: DiscreteSchedule, sampler: str, steps: int, seed: int = 0, **changes: Any
) -> float:
    """Over all steps, of latents and x0 against diffusers; timesteps must be the same."""
    planned = make_plan(schedule, sampler, steps, **changes).steps
    a = ours(schedule, sampler, steps, seed, **changes)
    b = theirs(schedule, sampler, steps, seed, **changes)
    worst = 0.0
    for step, ours_now, (timestep, latents, x0) in zip(planned, a, b, strict=True):
        # Fractional ones are float64 in DPMSolverSDEScheduler, and depend on a table's last bits.
        assert step.timestep == pytest.approx(timestep, abs=1e-3)
        worst = max(worst, difference(ours_now.latents, latents))
        if x0 is not None and sampler not in EULERS:
            worst = max(worst, difference(ours_now.x0, x0))
    return worst


def tolerance(sampler: str, steps: tuple[PlannedStep, ...]) -> float:
    """1e-5, or more where a sampler makes more of a rounding error in the model's own output."""
    if sampler == "deis":
        return max(TOLERANCE, 2.0**-22 * steps[0].sigma)
    if sampler == "heun":
        ratios = [s.sigma / s.sigma_next for s in steps if s.sigma_next > 0.0]
        return max([TOLERANCE, *(2.0**-22 * ratio for ratio in ratios)])
    return TOLERANCE


def comparable(schedule: DiscreteSchedule, sampler: str, steps: int) -> bool:
    if (sampler, schedule.prediction_type) in NOT_IN_DIFFUSERS:
        return False
    try:
        first = make_plan(schedule, sampler, steps).start
    except InputError:
        return False
    if sampler == "pndm" and (
        schedule.timestep_spacing == "linspace" or schedule.rescale_betas_zero_snr
    ):
        return False
    return sampler not in LIMITED or first < LARGE_SIGMA


@pytest.mark.parametrize("zero_snr", [False, True], ids=["", "zero_snr"])
@pytest.mark.parametrize("beta_schedule", EVERY_BETAS)
@pytest.mark.parametrize("timestep_spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", fast_first(SAMPLERS))
def test_every_step_equals_diffusers(
    sampler: str, prediction: str, timestep_spacing: str, beta_schedule: str, zero_snr: bool
) -> None:
    schedule = make_schedule(
        prediction_type=prediction,
        timestep_spacing=timestep_spacing,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=zero_snr,
    )
    for steps in STEPS:
        if comparable(schedule, sampler, steps):
            allowed = tolerance(sampler, make_plan(schedule, sampler, steps).steps)
            assert largest_error(schedule, sampler, steps) < allowed, steps


def test_what_the_comparison_leaves_out() -> None:
    """For Stable Diffusion's own schedule nothing is left out but what diffusers has not."""
    for sampler in SAMPLERS:
        for prediction in PREDICTIONS:
            for timestep_spacing in TIMESTEP_SPACINGS:
                schedule = make_schedule(
                    prediction_type=prediction, timestep_spacing=timestep_spacing
                )
                expected = (sampler, prediction) not in NOT_IN_DIFFUSERS
                expected &= (sampler, timestep_spacing) != ("pndm", "linspace")
                assert all(comparable(schedule, sampler, n) == expected for n in STEPS)


@pytest.mark.parametrize("zero_snr", [False, True], ids=["", "zero_snr"])
@pytest.mark.parametrize("beta_schedule", EVERY_BETAS)
@pytest.mark.parametrize("timestep_spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", fast_first(OVER_SIGMA))
def test_any_sigma_equals_float64(
    sampler: str, prediction: str, timestep_spacing: str, beta_schedule: str, zero_snr: bool
) -> None:
    schedule = make_schedule(
        prediction_type=prediction,
        timestep_spacing=timestep_spacing,
        beta_schedule=beta_schedule,
        rescale_betas_zero_snr=zero_snr,
    )
    for steps in STEPS:
        planned = make_plan(schedule, sampler, steps).steps
        allowed = tolerance(sampler, planned)
        a = [step.latents for step in ours(schedule, sampler, steps)]
        exact = list(in_float64(schedule, sampler, steps))
        assert max(map(difference, a, exact)) < allowed, steps
        if sampler in IN_FLOAT64 or (sampler, prediction) in NOT_IN_DIFFUSERS:
            continue
        largest = 5.0 * planned[0].sigma  # of x0 + sigma·eps, in the first step
        theirs_now = [latents for _, latents, _ in theirs(schedule, sampler, steps)]
        for step, b, c in zip(planned, theirs_now, exact, strict=True):
            if sampler in STOCHASTIC and not np.isfinite(b).all():
                assert step.sigma_next < 1e-3 * step.sigma
                break
            rounding = largest * 2.0**-22 / math.hypot(1.0, step.sigma_next)
            assert np.abs(b - c).max() < allowed * np.abs(c).max() + rounding, steps


@pytest.mark.parametrize("sampler", fast_first(SAMPLERS))
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
    plan = make_plan(schedule, sampler, steps)
    # DPMSolverSinglestepScheduler has no such option.
    explicit = make_schedule(timestep_spacing=scheduler.config.get("timestep_spacing", "linspace"))
    assert make_plan(explicit, sampler, steps) == plan
    assert largest_error(explicit, sampler, steps, seed) < TOLERANCE


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("timestep_spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("beta_schedule", EVERY_BETAS)
@pytest.mark.parametrize("sampler", fast_first(SPACED))
def test_spacings_equal_diffusers(
    sampler: str, beta_schedule: str, timestep_spacing: str, spacing: Spacing
) -> None:
    schedule = make_schedule(
        timestep_spacing=timestep_spacing,
        beta_schedule=beta_schedule,
        prediction_type="v_prediction",
    )
    for steps in STEPS:
        if comparable(schedule, sampler, steps):
            planned = make_plan(schedule, sampler, steps, spacing=spacing).steps
            error = largest_error(schedule, sampler, steps, spacing=spacing)
            assert error < tolerance(sampler, planned), steps


def test_dpmpp_2m_karras_is_dpmpp_2m_with_karras_spacing() -> None:
    schedule = make_schedule()
    named = make_plan(schedule, "dpmpp_2m_karras", 7)
    assert named.steps == make_plan(schedule, "dpmpp_2m", 7, spacing="karras").steps
    assert named == make_plan(schedule, "dpmpp_2m_karras", 7, spacing="karras")


@pytest.mark.parametrize("strength", [0.01, 0.3, 0.5, 0.75, 0.99, 1.0])
@pytest.mark.parametrize("timestep_spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in ("lms", "pndm")])
def test_strength_takes_the_steps_that_diffusers_takes(
    sampler: str, timestep_spacing: str, strength: float
) -> None:
    """From the image's noise on: StableDiffusionImg2ImgPipeline.get_timesteps and add_noise."""
    schedule = make_schedule(timestep_spacing=timestep_spacing, prediction_type="v_prediction")
    for steps in (1, 2, 4, 20, 40):
        if int(steps * strength) == 0:
            with pytest.raises(InputError, match="leaves none"):
                make_plan(schedule, sampler, steps, strength=strength)
        else:
            planned = make_plan(schedule, sampler, steps, strength=strength).steps
            error = largest_error(schedule, sampler, steps, strength=strength)
            assert error < tolerance(sampler, planned), steps


def test_pndm_of_part_of_its_steps_is_a_run_of_its_own() -> None:
    """What diffusers' scheduler does where it is given the steps left, their second one twice."""
    schedule = make_schedule(timestep_spacing="leading")
    scheduler = diffusers_scheduler(schedule, "pndm")
    scheduler.set_timesteps(8)
    left = scheduler.timesteps[-4:]
    timesteps = [left[0], left[1], *left[1:]]
    x = scheduler.add_noise(torch.from_numpy(IMAGE), torch.from_numpy(PATTERN), timesteps[0])
    start = x.numpy().astype(np.float32)
    for t in timesteps:
        x = scheduler.step(torch.from_numpy(model(x.numpy(), float(t))), t, x).prev_sample
    plan = make_plan(schedule, "pndm", 8, strength=0.5)
    *_, last = sample(our_denoiser(plan), start, plan)
    assert len(plan.steps) == 4
    assert difference(last.latents, x.numpy()) < TOLERANCE


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 5, 20])
def test_pndm_with_runge_kutta_steps(prediction: str, steps: int) -> None:
    schedule = make_schedule(
        prediction_type=prediction, timestep_spacing="leading", skip_prk_steps=False
    )
    scheduler = PNDMScheduler(
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule,
        prediction_type=prediction,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    x = torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(0)).double()
    for t in scheduler.timesteps:
        out = torch.from_numpy(model(x.numpy(), float(t)))
        x = scheduler.step(out, t, x).prev_sample
    *_, last = ours(schedule, "pndm", steps)
    assert difference(last.latents, x.numpy()) < TOLERANCE


def test_lms_of_part_of_its_steps_is_a_run_of_its_own() -> None:
    """As in diffusers' scheduler, if it is given no more levels than the steps left."""
    schedule = make_schedule(timestep_spacing="leading")
    scheduler = diffusers_scheduler(schedule, "lms")
    scheduler.set_timesteps(8)
    left, scheduler.sigmas = scheduler.timesteps[-4:], scheduler.sigmas[-5:]
    scheduler.set_begin_index(0)
    plan = make_plan(schedule, "lms", 8, strength=0.5)
    alpha, _ = plan.alpha_sigma(plan.start)
    start = PATTERN.astype(np.float32)
    x = torch.from_numpy(start / np.float32(alpha))
    for t in left:
        out = torch.from_numpy(model(scheduler.scale_model_input(x, t).numpy(), float(t)))
        x = scheduler.step(out, t, x).prev_sample
    *_, last = sample(our_denoiser(plan), start, plan)
    assert len(plan.steps) == 4
    assert difference(last.latents, x.numpy()) < TOLERANCE


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_sent_in_their_place_equal_latents_replaced_between_steps(sampler: str) -> None:
    """Inpainting: half of the latents are set after every step."""
    schedule = make_schedule(timestep_spacing="leading", prediction_type="v_prediction")
    known = np.arange(SHAPE[-1]) < SHAPE[-1] // 2

    def blend(latents: np.ndarray, level: float) -> np.ndarray:
        alpha, sigma_t = schedule.alpha_sigma(level)
        return np.where(known, alpha * IMAGE + sigma_t * PATTERN, latents).astype(latents.dtype)

    levels = [step.sigma_next for step in make_plan(schedule, sampler, 6).steps]
    b = theirs(schedule, sampler, 6, replace=lambda i, latents: blend(latents, levels[i]))
    a = ours(schedule, sampler, 6)
    step = next(a)
    for i, (_, latents, _) in enumerate(b):
        assert difference(step.latents, latents) < TOLERANCE, i
        if i < 5:
            step = a.send(blend(step.latents, levels[i]))


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_tcd_at_any_eta(prediction: str, eta: float) -> None:
    """Hyper-SD's unified models are sampled at eta 1, fewer steps of TCD models at less."""
    schedule = make_schedule(prediction_type=prediction, eta=eta)
    for steps in (1, 2, 3, 4, 7, 8, 20, 50):
        assert largest_error(schedule, "tcd", steps) < TOLERANCE, steps


@pytest.mark.parametrize(("steps", "prediction"), [(1, "sample"), (2, "epsilon"), (8, "epsilon")])
def test_lightning(steps: int, prediction: str) -> None:
    """SDXL-Lightning's published settings: Euler, trailing; its one-step model predicts x0."""
    schedule = make_schedule(prediction_type=prediction, timestep_spacing="trailing")
    assert largest_error(schedule, "euler", steps) < TOLERANCE


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "lcm"])
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


@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
@pytest.mark.parametrize("timesteps", [(800,), (399,), (999, 749, 499, 249), (801, 800, 0)])
def test_timesteps_of_its_own(sampler: str, timesteps: tuple[int, ...]) -> None:
    schedule = make_schedule(timesteps=timesteps, timestep_spacing="leading")
    plan = make_plan(schedule, sampler, len(timesteps))
    assert [step.timestep for step in plan.steps] == [*timesteps]
    for steps in (1, 2, 3, 4):  # as many steps as that, and others, which have the usual ones
        assert largest_error(schedule, sampler, steps) < TOLERANCE
    for other in SAMPLERS:
        if other not in ("lcm", "tcd"):
            plain = make_plan(make_schedule(timestep_spacing="leading"), other, len(timesteps))
            assert make_plan(schedule, other, len(timesteps)) == plain


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
    np.testing.assert_allclose(alphas_cumprod(schedule), scheduler.alphas_cumprod, rtol=1e-6)


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
def test_the_zero_snr_table_equals_diffusers(beta_schedule: str) -> None:
    schedule = make_schedule(beta_schedule=beta_schedule, rescale_betas_zero_snr=True)
    table = diffusers_scheduler(schedule, "ddim").alphas_cumprod.numpy()
    assert alphas_cumprod(schedule)[-1] == table[-1] == 0.0
    np.testing.assert_allclose(alphas_cumprod(schedule), table, rtol=5e-5, atol=2e-7)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "lcm", "tcd"])
def test_zero_signal_says_nothing_about_epsilon(sampler: str) -> None:
    schedule = make_schedule(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    _, latents, _ = next(theirs(schedule, sampler, 2))
    assert not np.isfinite(latents).all()
    with pytest.raises(InputError, match="predicts epsilon"):
        make_plan(schedule, sampler, 2)


@pytest.mark.parametrize(("sampler", "prediction"), sorted(NOT_IN_DIFFUSERS))
def test_what_diffusers_has_not_implemented(sampler: str, prediction: str) -> None:
    schedule = make_schedule(prediction_type=prediction, timestep_spacing="trailing")
    with pytest.raises((NotImplementedError, ValueError)):
        next(theirs(schedule, sampler, 2))


def test_diffusers_pndm_leaves_the_image_with_linspace_timesteps() -> None:
    """A network that knows the image: theirs ends far from it, ours at it."""
    schedule = make_schedule(
        prediction_type="epsilon", timestep_spacing="linspace", set_alpha_to_one=True
    )
    scheduler = diffusers_scheduler(schedule, "pndm")
    scheduler.set_timesteps(2)
    image = torch.from_numpy(IMAGE)
    x = torch.from_numpy(PATTERN).float()
    for t in scheduler.timesteps:
        abar = scheduler.alphas_cumprod[t]
        eps = (x - abar.sqrt() * image) / (1 - abar).sqrt()
        x = scheduler.step(eps, t, x).prev_sample
    assert difference(x.numpy(), IMAGE) > 0.5
    plan = make_plan(schedule, "pndm", 2)
    x = sample(lambda x, sigma: IMAGE, PATTERN.astype(np.float32), plan)  # noqa: ARG005
    *_, last = x
    assert difference(last.latents, IMAGE) < 1e-3


def test_trailing_takes_as_many_steps_as_asked() -> None:
    schedule = make_schedule(timestep_spacing="trailing")
    scheduler = diffusers_scheduler(schedule, "ddim")
    scheduler.set_timesteps(61)
    plan = make_plan(schedule, "ddim", 61)
    assert [*(step.timestep for step in plan.steps), -1] == scheduler.timesteps.tolist()


@pytest.mark.parametrize(("timestep_spacing", "most"), [("leading", 998), ("linspace", 999)])
def test_more_steps_than_fit(timestep_spacing: str, most: int) -> None:
    schedule = make_schedule(timestep_spacing=timestep_spacing)
    scheduler = diffusers_scheduler(schedule, "dpmpp_2m")
    scheduler.set_timesteps(most + 1)
    timesteps = scheduler.timesteps.tolist()
    assert len(set(timesteps)) <= most or max(timesteps) > 999
    with pytest.raises(InputError, match=f"use {most} or fewer"):
        make_plan(schedule, "dpmpp_2m", most + 1)
    assert len(make_plan(schedule, "dpmpp_2m", most).steps) == most
