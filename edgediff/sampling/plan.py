"""The steps of a run: the noise levels and timesteps that a sampler goes through."""

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgediff.checks import is_number
from edgediff.errors import InputError
from edgediff.sampling.discrete import DISCRETE_SAMPLERS, SPACED, discrete_steps, starts_pure
from edgediff.sampling.edm import EDM_SAMPLERS, edm_noise_scale, edm_steps
from edgediff.sampling.flow import FLOW_SAMPLERS, FLOW_SPACED, flow_shift, flow_steps
from edgediff.sampling.orders import ORDERS, solver_of
from edgediff.sampling.planned_step import PlannedStep
from edgediff.sampling.schedule import (
    DiscreteSchedule,
    EDMSchedule,
    FlowSchedule,
    Schedule,
    SolverType,
    sigmas,
)
from edgediff.sampling.sigmas import SPACINGS, Spacing


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sampling plan: the steps from the noisiest on, and the constants that go with them.

    spacing: as asked for; None with dpmpp_2m_karras, whose name says it.
    total: the number of steps without `strength`, which keeps only the last ones.
    noise_scale: standard deviation of the initial latents if they are only noise. 1, except for
        euler, euler_a, heun, lms and dpmpp_sde with "linspace" or "trailing" timesteps of a
        discrete schedule, which start from noise only, of standard deviation sigma_t; and for EDM.
    clip_range: the magnitude that ddim, ddpm, heun and lcm clip x0 to, or None.
    timestep_scaling: as in DiscreteSchedule, for lcm.
    solver_type: as in DiscreteSchedule, for the DPM-Solvers.
    large_variance: whether ddpm takes the upper bound of its noise's variance.
    zero_signal: whether the first step begins at a discrete schedule's zero terminal SNR: at sigma
        infinite, or at the large value that stands for it (see `schedule.sigmas`).
    schedule: that of the model; it gives alpha and sigma_t of each level. Plans that step alike are
        equal, whatever else their schedules say.
    """

    sampler: str
    spacing: Spacing | None
    steps: tuple[PlannedStep, ...]
    total: int
    noise_scale: float
    clip_range: float | None
    timestep_scaling: float
    zero_signal: bool
    solver_type: SolverType = "midpoint"
    large_variance: bool = False
    schedule: Schedule = field(compare=False)

    @property
    def start(self) -> float:
        """The noise level that the first step expects. A run that begins with an image starts from
        alpha·x0 + sigma_t·noise with `alpha, sigma_t = plan.alpha_sigma(plan.start)`."""
        return self.steps[0].sigma

    def alpha_sigma(self, sigma: float) -> tuple[float, float]:
        """Noise level sigma (0 … inf) → (alpha, sigma_t) of the latents alpha·x0 + sigma_t·eps."""
        return self.schedule.alpha_sigma(sigma)

    @property
    def timesteps(self) -> dict[float, float]:
        """sigma → the network's timestep, for each level at which the sampler evaluates it."""
        return {sigma: t for step in self.steps for sigma, t in step.timesteps.items()}


def make_plan(
    schedule: Schedule,
    sampler: str,
    steps: int,
    *,
    spacing: Spacing | None = None,
    strength: float | None = None,
    image_seq_len: int | None = None,
) -> Plan:
    """The noise levels and timesteps that diffusers' scheduler of that kind would step through.

    sampler: a name in `edgediff.sampling.samplers.SAMPLERS`.
    steps: 1 … num_train_timesteps; for lcm and tcd, 1 … original_inference_steps.
    spacing: how the noise levels are spread, instead of by timesteps: "karras", "exponential" or
        "beta" (see `sigmas`). Not for ddim, ddpm, pndm, euler_a, lcm and tcd, which have none
        in diffusers; dpmpp_2m_karras is dpmpp_2m with "karras". Flow matching has them for euler
        and heun, over s instead of sigma. EDM's schedules have one of their own if it is None.
    strength: for a run that begins with an image, how much of it to change, above 0 and up to 1:
        only the last int(steps·strength) steps are taken. None takes them all.
    image_seq_len: how many tokens the network makes of the latents, for flow matching with a
        dynamic shift.

    Raises InputError for an unknown sampler or one that cannot sample such a schedule, for a number
    of steps that the schedule has no room for, for a strength that leaves no step, and for a model
    that cannot start where the sampler does."""
    if sampler not in DISCRETE_SAMPLERS:  # those of flow matching are among them
        raise InputError(f"`sampler` is {sampler!r}: choose one of {', '.join(DISCRETE_SAMPLERS)}")
    known, spaced, kind = _SAMPLERS[schedule.type]
    if sampler not in known:
        raise InputError(
            f"`sampler` is {sampler!r}, which cannot sample {kind}: choose one of"
            f" {', '.join(known)}"
        )
    spacing = _check_spacing(sampler, spacing, spaced)
    steps = _whole(steps, _most_steps(schedule, sampler), sampler)
    kept = steps if strength is None else _kept(steps, strength)
    steps_of = _steps_of(schedule, sampler, spacing, image_seq_len)
    planned = steps_of(steps)
    if not _fits(schedule, planned):
        fewer = next(n for n in range(steps - 1, 0, -1) if _fits(schedule, steps_of(n)))
        raise InputError(
            f"`steps` is {steps}: with this model's timesteps, {sampler} would repeat one or"
            f" leave 0 … {_last_timestep(schedule)}: use {fewer} or fewer"
        )
    if sampler in ORDERS:
        orders = ORDERS[sampler](solver_of(schedule), steps)
        planned = tuple(s._replace(order=k) for s, k in zip(planned, orders, strict=True))
    planned = planned[steps - kept :]
    if math.isinf(planned[0].sigma) and schedule.prediction_type == "epsilon":
        raise InputError(
            f"`sampler` is {sampler!r}: it starts at zero signal, where a model that predicts"
            " epsilon says nothing of the image: use euler, or a model that predicts v"
        )
    noise_scale, clip_range, zero_signal = 1.0, None, False
    timestep_scaling, large_variance = 1.0, False
    solver_type: SolverType = "midpoint"
    if not isinstance(schedule, FlowSchedule):
        solver_type = schedule.solver_type
    if isinstance(schedule, EDMSchedule):
        noise_scale = edm_noise_scale(schedule)
    if isinstance(schedule, DiscreteSchedule):
        start = planned[0].sigma
        if starts_pure(schedule, sampler):
            noise_scale = schedule.alpha_sigma(start)[1]
        if schedule.clip_sample and sampler in ("ddim", "ddpm", "heun", "lcm"):
            clip_range = schedule.clip_sample_range
        large_variance = schedule.variance_type == "fixed_large"
        timestep_scaling = schedule.timestep_scaling
        zero_signal = schedule.rescale_betas_zero_snr and start > sigmas(schedule)[-2]
    return Plan(
        sampler=sampler,
        spacing=None if sampler == "dpmpp_2m_karras" else spacing,
        steps=planned,
        total=steps,
        noise_scale=noise_scale,
        clip_range=clip_range,
        timestep_scaling=timestep_scaling,
        zero_signal=zero_signal,
        solver_type=solver_type,
        large_variance=large_variance,
        schedule=schedule,
    )


_SAMPLERS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "discrete": (DISCRETE_SAMPLERS, SPACED, "a model of a discrete schedule"),
    "flow": (FLOW_SAMPLERS, FLOW_SPACED, "a model of flow matching"),
    "edm": (EDM_SAMPLERS, EDM_SAMPLERS, "a model of EDM"),
}
"""Type of schedule → its samplers, those of them that take a spacing, and its name."""


def _most_steps(schedule: Schedule, sampler: str) -> int:
    if isinstance(schedule, DiscreteSchedule) and sampler in ("lcm", "tcd"):
        return schedule.original_inference_steps
    return schedule.num_train_timesteps


def _steps_of(
    schedule: Schedule, sampler: str, spacing: Spacing | None, image_seq_len: int | None
) -> Callable[[int], tuple[PlannedStep, ...]]:
    """Number of steps → the steps."""
    if isinstance(schedule, DiscreteSchedule):
        return lambda n: discrete_steps(schedule, sampler, n, spacing)
    if isinstance(schedule, EDMSchedule):
        return lambda n: edm_steps(schedule, n, spacing)
    shift = flow_shift(schedule, image_seq_len)
    return lambda n: flow_steps(schedule, sampler, n, spacing, shift)


def _check_spacing(
    sampler: str, spacing: Spacing | None, spaced: tuple[str, ...]
) -> Spacing | None:
    if spacing is None:
        return "karras" if sampler == "dpmpp_2m_karras" else None
    if spacing not in SPACINGS:
        raise InputError(f"`spacing` is {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if sampler == "dpmpp_2m_karras" and spacing != "karras":
        raise InputError(
            f"`spacing` is {spacing!r}: sampler dpmpp_2m_karras is fixed: use dpmpp_2m"
        )
    if sampler not in (*spaced, "dpmpp_2m_karras"):
        raise InputError(
            f"`spacing` is {spacing!r}: sampler {sampler} takes none: use {', '.join(spaced)}"
        )
    return spacing


def _kept(steps: int, strength: float) -> int:
    """How many of the last steps remain, as in diffusers' get_timesteps."""
    if not is_number(strength) or not 0.0 < strength <= 1.0:  # nan too
        raise InputError(
            f"`strength` is {strength!r}: give a number above 0 (the image as it is) and up to 1"
        )
    kept = int(steps * strength)
    if kept == 0:
        least = math.ceil(1000 / steps) / 1000
        raise InputError(
            f"`strength` is {strength}: of {steps} steps it leaves none: use a strength of"
            f" {least:g} or more, or {math.ceil(1 / strength)} steps or more"
        )
    return kept


def _last_timestep(schedule: Schedule) -> int:
    """Discrete schedules count from 0; in flow matching, pure noise has the last timestep."""
    t = schedule.num_train_timesteps
    return t - 1 if isinstance(schedule, DiscreteSchedule) else t


def _fits(schedule: Schedule, steps: tuple[PlannedStep, ...]) -> bool:
    """Whether the timesteps lie in the schedule and noise goes down at every step."""
    inside = isinstance(schedule, EDMSchedule) or all(
        0 <= s.timestep <= _last_timestep(schedule) for s in steps
    )
    falls = all(a.sigma > b.sigma for a, b in itertools.pairwise(steps))
    return inside and falls and all(s.sigma >= s.sigma_next for s in steps)


def _whole(steps: int, most: int, sampler: str) -> int:
    try:
        number = operator.index(steps)
    except TypeError:
        number = 0
    if isinstance(steps, bool) or not 1 <= number <= most:
        raise InputError(f"`steps` is {steps!r}: {sampler} takes a whole number from 1 to {most}")
    return number
