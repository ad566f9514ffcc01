"""The steps of a run: the noise levels and timesteps that a sampler goes through."""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgediff.checks import is_number
from edgediff.errors import InputError, Name
from edgediff.flow import FLOW_SAMPLERS, FLOW_SPACED, flow_levels, flow_shift
from edgediff.sampling.schedule import (
    DiscreteSchedule,
    FlowSchedule,
    Schedule,
    TimestepSpacing,
    alphas_cumprod,
    sigma_of,
    sigma_to_timestep,
    sigmas,
)
from edgediff.sampling.sigmas import SPACINGS, Spacing

_Timesteps = npt.NDArray[np.float64]


class PlannedStep(NamedTuple):
    """One step of a sampler: evaluate the model at `sigma`, where the network wants to be told
    `timestep`, and go on to noise level `sigma_next`.

    sigma_mid: a level on the way, None where there is none. dpmpp_sde evaluates the model there
        too, at `timestep_mid`; tcd goes down to it without noise and up from it with."""

    sigma: float
    sigma_next: float
    timestep: float
    sigma_mid: float | None = None
    timestep_mid: float | None = None

    @property
    def timesteps(self) -> dict[float, float]:
        """sigma → timestep, for each level at which this step evaluates the model. (heun and pndm
        evaluate at `sigma_next` as well, which is the next step's `sigma`.)"""
        levels = {self.sigma: self.timestep}
        if self.sigma_mid is not None and self.timestep_mid is not None:
            levels[self.sigma_mid] = self.timestep_mid
        return levels


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sampler does: its steps from the noisiest on, and the constants that go with them.

    spacing: as asked for; None with dpmpp_2m_karras, whose name says it.
    total: how many steps there are without `strength`, which leaves the last of them.
    noise_scale: standard deviation of the initial latents if they are only noise. 1, except for
        euler, euler_a, heun and dpmpp_sde with "linspace" or "trailing" timesteps of a discrete
        schedule, which start from pure noise without the signal's share.
    clip_range: the magnitude that ddim, heun and lcm clip x0 to, or None.
    timestep_scaling: as in DiscreteSchedule, for lcm.
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
    schedule: Schedule = field(compare=False)

    @property
    def start(self) -> float:
        """The noise level that the first step expects: for a run that begins with an image, noise
        z0 to alpha·z0 + sigma_t·noise with `alpha, sigma_t = plan.alpha_sigma(plan.start)`."""
        return self.steps[0].sigma

    def alpha_sigma(self, sigma: float) -> tuple[float, float]:
        """Noise level sigma (0 … inf) → (alpha, sigma_t) of the latents alpha·x0 + sigma_t·eps."""
        return self.schedule.alpha_sigma(sigma)

    @property
    def timesteps(self) -> dict[float, float]:
        """sigma → the timestep to tell the network, for each sigma that the sampler visits."""
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
        "beta" (see `sigmas`). Not for ddim, pndm, euler_a, lcm and tcd, which have none
        in diffusers; dpmpp_2m_karras is dpmpp_2m with "karras". Flow matching has them for euler
        and heun, over s instead of sigma.
    strength: for a run that begins with an image, how much of it is made anew, above 0 and up to 1:
        the last int(steps·strength) steps are taken. None takes them all.
    image_seq_len: how many tokens the network makes of the latents, for flow matching with a
        dynamic shift.

    Raises InputError for an unknown sampler or one that cannot sample such a schedule, for a number
    of steps that the schedule has no room for, for a strength that leaves no step, and for a model
    that cannot start where the sampler does."""
    if sampler not in _GRIDS:
        raise InputError(Name("sampler"), f" is {sampler!r}: choose one of {', '.join(_GRIDS)}")
    flow = isinstance(schedule, FlowSchedule)
    if flow and sampler not in FLOW_SAMPLERS:
        raise InputError(
            Name("sampler"),
            f" is {sampler!r}, which cannot sample a model of flow matching: choose one of"
            f" {', '.join(FLOW_SAMPLERS)}",
        )
    spacing = _check_spacing(sampler, spacing, FLOW_SPACED if flow else SPACED)
    steps = _whole(steps, _most_steps(schedule, sampler), sampler)
    kept = steps if strength is None else _kept(steps, strength)
    grid = _grid(schedule, sampler, spacing, image_seq_len)
    planned = grid(steps)
    if not _fits(schedule, planned):
        fewer = next(n for n in range(steps - 1, 0, -1) if _fits(schedule, grid(n)))
        raise InputError(
            Name("steps"),
            f" is {steps}: with this model's timesteps, {sampler} would repeat one or leave"
            f" 0 … {schedule.num_train_timesteps - 1}: use {fewer} or fewer",
        )
    planned = planned[steps - kept :]
    if math.isinf(planned[0].sigma) and schedule.prediction_type == "epsilon":
        raise InputError(
            Name("sampler"),
            f" is {sampler!r}: it starts at zero signal, where a model that predicts epsilon says"
            " nothing of the image: use euler, or a model that predicts v",
        )
    noise_scale, clip_range, zero_signal = 1.0, None, False
    timestep_scaling = 1.0
    if isinstance(schedule, DiscreteSchedule):
        start = planned[0].sigma
        if sampler in _FROM_PURE_NOISE and _timestep_spacing(schedule, "linspace") != "leading":
            noise_scale = schedule.alpha_sigma(start)[1]
        if schedule.clip_sample and sampler in ("ddim", "heun", "lcm"):
            clip_range = schedule.clip_sample_range
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
        schedule=schedule,
    )


def _most_steps(schedule: Schedule, sampler: str) -> int:
    if isinstance(schedule, DiscreteSchedule) and sampler in ("lcm", "tcd"):
        return schedule.original_inference_steps
    return schedule.num_train_timesteps


def _grid(
    schedule: Schedule, sampler: str, spacing: Spacing | None, image_seq_len: int | None
) -> Callable[[int], tuple[PlannedStep, ...]]:
    """Number of steps → the steps."""
    if isinstance(schedule, DiscreteSchedule):
        return lambda n: _GRIDS[sampler](schedule, n, spacing)
    shift = flow_shift(schedule, image_seq_len)
    return lambda n: _chain(*flow_levels(schedule, sampler, n, spacing, shift))


def _check_spacing(
    sampler: str, spacing: Spacing | None, spaced: tuple[str, ...]
) -> Spacing | None:
    if spacing is None:
        return "karras" if sampler == "dpmpp_2m_karras" else None
    if spacing not in SPACINGS:
        raise InputError(Name("spacing"), f" is {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if sampler == "dpmpp_2m_karras" and spacing != "karras":
        raise InputError(
            Name("spacing"), f" is {spacing!r}: sampler dpmpp_2m_karras is fixed: use dpmpp_2m"
        )
    if sampler not in (*spaced, "dpmpp_2m_karras"):
        raise InputError(
            Name("spacing"),
            f" is {spacing!r}: sampler {sampler} takes none: use {', '.join(spaced)}",
        )
    return spacing


def _kept(steps: int, strength: float) -> int:
    """How many of the last steps remain, as in diffusers' get_timesteps."""
    if not is_number(strength) or not 0.0 < strength <= 1.0:  # nan too
        raise InputError(
            Name("strength"),
            f" is {strength!r}: give a number above 0 (the image as it is) and up to 1",
        )
    kept = int(steps * strength)
    if kept == 0:
        least = math.ceil(1000 / steps) / 1000
        raise InputError(
            Name("strength"),
            f" is {strength}: of {steps} steps it leaves none: use a strength of {least:g} or more,"
            f" or {math.ceil(1 / strength)} steps or more",
        )
    return kept


def _timestep_spacing(schedule: DiscreteSchedule, unset: TimestepSpacing) -> TimestepSpacing:
    return unset if schedule.timestep_spacing is None else schedule.timestep_spacing


def _spread(
    schedule: DiscreteSchedule, timestep_spacing: TimestepSpacing, points: int
) -> _Timesteps:
    """`points` descending timesteps: Lin et al. 2023 (arXiv:2305.08891), table 2."""
    t = schedule.num_train_timesteps
    if timestep_spacing == "linspace":
        return np.linspace(0.0, t - 1, points)[::-1]
    if timestep_spacing == "leading":
        multiples: _Timesteps = np.arange(points, dtype=np.float64)[::-1] * (t // points)
        return multiples + schedule.steps_offset
    # The cut is for the step sizes whose last multiple falls just short of t.
    fractions: _Timesteps = np.arange(t, 0, -t / points)[:points]
    return fractions.round() - 1.0


def _euler_levels(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[list[float], list[float]]:
    """(sigmas, timesteps), fractional where they fall so; `spacing` goes between their ends."""
    # diffusers tells the network float32 timesteps.
    t = _spread(schedule, _timestep_spacing(schedule, "linspace"), steps).astype(np.float32)
    table = sigmas(schedule)
    levels: list[float] = np.interp(t, np.arange(len(table)), table).tolist()
    if spacing is None:
        return levels, t.tolist()
    levels = SPACINGS[spacing](levels[-1], levels[0], steps)
    return levels, sigma_to_timestep(schedule, levels)


def _euler_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    return _chain(*_euler_levels(schedule, steps, spacing))


def _dpmpp_sde_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    """Each step but the last has its middle, in log sigma."""
    *planned, last = _chain(*_euler_levels(schedule, steps, spacing))
    middles = [math.sqrt(step.sigma * step.sigma_next) for step in planned]
    t = sigma_to_timestep(schedule, middles)
    return (
        *(
            step._replace(sigma_mid=middle, timestep_mid=timestep)
            for step, middle, timestep in zip(planned, middles, t, strict=True)
        ),
        last,
    )


def _ddim_grid(
    schedule: DiscreteSchedule, steps: int, _: Spacing | None
) -> tuple[PlannedStep, ...]:
    t = _spread(schedule, _timestep_spacing(schedule, "leading"), steps).round()
    table = alphas_cumprod(schedule)
    # diffusers steps to t - T // steps, even if the next step is at another timestep.
    t_next = t - schedule.num_train_timesteps // steps
    return tuple(
        PlannedStep(_sigma(table, now), _sigma_or_last(schedule, table, then), now)
        for now, then in zip(t.tolist(), t_next.tolist(), strict=True)
    )


def _pndm_grid(
    schedule: DiscreteSchedule, steps: int, _: Spacing | None
) -> tuple[PlannedStep, ...]:
    """As ddim's where each step ends at the next one's start, which a history of steps needs."""
    t = _spread(schedule, _timestep_spacing(schedule, "leading"), steps).round().tolist()
    table = alphas_cumprod(schedule)
    end = _sigma_or_last(schedule, table, t[-1] - schedule.num_train_timesteps // steps)
    return _chain([_sigma(table, now) for now in t], t, end)


def _dpmpp_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    if spacing is None:
        return _whole_timesteps(schedule, steps)
    # diffusers rounds karras' timesteps, except with the cosine schedule, and cuts the others'.
    rounds = spacing == "karras" and schedule.beta_schedule != "squaredcos_cap_v2"
    return _spaced(schedule, steps, spacing, np.round if rounds else np.floor)


def _unipc_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    if spacing is None:
        return _whole_timesteps(schedule, steps)
    return _spaced(schedule, steps, spacing, np.round if spacing == "karras" else np.floor)


def _deis_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    """As unipc's, but down to the schedule's lowest level: log sigma is integrated over. With a
    spacing that is where the last step stands already, and it changes nothing."""
    planned = _unipc_grid(schedule, steps, spacing)
    end = sigmas(schedule)[0] if spacing is None else planned[-1].sigma
    return (*planned[:-1], planned[-1]._replace(sigma_next=end))


def _whole_timesteps(schedule: DiscreteSchedule, steps: int) -> tuple[PlannedStep, ...]:
    timestep_spacing = _timestep_spacing(schedule, "linspace")
    if timestep_spacing == "trailing":
        t = _spread(schedule, timestep_spacing, steps)
    else:
        # diffusers counts t = 0 among the points, and leaves it to the final sigma of 0.
        t = _spread(schedule, timestep_spacing, steps + 1).round()[:-1]
    table = sigmas(schedule)
    return _chain(np.interp(t, np.arange(len(table)), table).tolist(), t.tolist())


def _spaced(
    schedule: DiscreteSchedule,
    steps: int,
    spacing: Spacing,
    whole: Callable[[_Timesteps], _Timesteps],
) -> tuple[PlannedStep, ...]:
    """`spacing` over all of the schedule's levels, with whole timesteps."""
    table = sigmas(schedule)
    levels = SPACINGS[spacing](table[0], table[-1], steps)
    return _chain(levels, whole(np.array(sigma_to_timestep(schedule, levels))).tolist())


def _distilled_timesteps(schedule: DiscreteSchedule, steps: int) -> list[int]:
    """Luo et al. 2023 (arXiv:2310.04378), section 4.3: steps of the distillation's own grid."""
    original = schedule.original_inference_steps
    skip = schedule.num_train_timesteps // original
    grid = np.arange(original, 0, -1) * skip - 1
    t = grid[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]
    return [int(i) for i in t]


def _lcm_grid(schedule: DiscreteSchedule, steps: int, _: Spacing | None) -> tuple[PlannedStep, ...]:
    t = _distilled_timesteps(schedule, steps)
    table = alphas_cumprod(schedule)
    return _chain([_sigma(table, i) for i in t], [float(i) for i in t])


def _tcd_grid(schedule: DiscreteSchedule, steps: int, _: Spacing | None) -> tuple[PlannedStep, ...]:
    """Zheng et al. 2024 (arXiv:2402.19159): on the way to each t lies s = (1 - gamma)·t; the last t
    is 0."""
    t = _distilled_timesteps(schedule, steps)
    table = alphas_cumprod(schedule)
    # In float32, as diffusers, whose products fall on either side of a whole number.
    s = [int(np.float32(1.0 - schedule.eta) * np.float32(i)) for i in [*t[1:], 0]]
    planned = _chain([_sigma(table, i) for i in t], [float(i) for i in t], _sigma(table, 0))
    return tuple(
        p._replace(sigma_mid=_sigma(table, mid)) for p, mid in zip(planned, s, strict=True)
    )


_GRIDS: dict[str, Callable[[DiscreteSchedule, int, Spacing | None], tuple[PlannedStep, ...]]] = {
    "euler": _euler_grid,
    "euler_a": _euler_grid,
    "heun": _euler_grid,
    "ddim": _ddim_grid,
    "pndm": _pndm_grid,
    "dpmpp_2m": _dpmpp_grid,
    "dpmpp_2m_karras": _dpmpp_grid,
    "dpmpp_2m_sde": _dpmpp_grid,
    "dpmpp_sde": _dpmpp_sde_grid,
    "unipc": _unipc_grid,
    "deis": _deis_grid,
    "lcm": _lcm_grid,
    "tcd": _tcd_grid,
}
SPACED = ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_sde", "unipc", "deis")
_FROM_PURE_NOISE = ("euler", "euler_a", "heun", "dpmpp_sde")


def _chain(
    levels: list[float], timesteps: list[float], end: float = 0.0
) -> tuple[PlannedStep, ...]:
    """Each step goes on to where the next one starts, the last to `end`."""
    return tuple(map(PlannedStep, levels, [*levels[1:], end], timesteps))


def _sigma(table: list[float], timestep: float) -> float:
    """The noise level at a whole timestep; one past the table's end gets the end, for `_fits`."""
    return sigma_of(table[min(int(timestep), len(table) - 1)])


def _sigma_or_last(schedule: DiscreteSchedule, table: list[float], timestep: float) -> float:
    """The noise level at a whole timestep, or where ddim and pndm end for one below 0."""
    if timestep >= 0:
        return _sigma(table, timestep)
    return 0.0 if schedule.set_alpha_to_one else sigma_of(table[0])


def _fits(schedule: Schedule, steps: tuple[PlannedStep, ...]) -> bool:
    """Whether the timesteps lie in the schedule and noise goes down at every step."""
    last = schedule.num_train_timesteps - (1 if isinstance(schedule, DiscreteSchedule) else 0)
    inside = all(0 <= s.timestep <= last for s in steps)
    falls = all(a.sigma > b.sigma for a, b in itertools.pairwise(steps))
    return inside and falls and all(s.sigma >= s.sigma_next for s in steps)


def _whole(steps: int, most: int, sampler: str) -> int:
    try:
        number = operator.index(steps)
    except TypeError:
        number = 0
    if isinstance(steps, bool) or not 1 <= number <= most:
        raise InputError(
            Name("steps"), f" is {steps!r}: {sampler} takes a whole number from 1 to {most}"
        )
    return number
