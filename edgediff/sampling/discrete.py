"""The noise levels and timesteps of discrete schedules, which differ from one sampler to another.

They are those of diffusers' scheduler of the same name.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgediff.sampling.planned_step import PlannedStep, chain
from edgediff.sampling.schedule import (
    DiscreteSchedule,
    TimestepSpacing,
    alphas_cumprod,
    sigma_of,
    sigma_to_timestep,
    sigmas,
)
from edgediff.sampling.sigmas import SPACINGS, Spacing

_Timesteps = npt.NDArray[np.float64]


def discrete_steps(
    schedule: DiscreteSchedule, sampler: str, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    """The steps of a sampler in DISCRETE_SAMPLERS. They may leave the schedule if there are more
    than it has room for. spacing: only with those in SPACED, and dpmpp_2m_karras."""
    return _GRIDS[sampler](schedule, steps, spacing)


def starts_pure(schedule: DiscreteSchedule, sampler: str) -> bool:
    """Whether the sampler starts from noise without the signal's share, as diffusers' schedulers
    over x0 + sigma·eps do unless timesteps are "leading"."""
    return sampler in _FROM_PURE_NOISE and _timestep_spacing(schedule, "linspace") != "leading"


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
    """(sigmas, timesteps), which may be fractional; `spacing` keeps the two ends."""
    # diffusers hands the network float32 timesteps.
    t = _spread(schedule, _timestep_spacing(schedule, "linspace"), steps).astype(np.float32)
    table = sigmas(schedule)
    levels: list[float] = np.interp(t, np.arange(len(table)), table).tolist()
    if spacing is None:
        return levels, t.tolist()
    levels = _between(schedule, spacing, levels[-1], levels[0], steps)
    return levels, sigma_to_timestep(schedule, levels)


def _euler_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    return chain(*_euler_levels(schedule, steps, spacing))


def _euler_or_min_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    levels, t = _euler_levels(schedule, steps, spacing)
    return chain(levels, t, min(_end(schedule), levels[-1]))


def _dpmpp_sde_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    """Each step but the last has its middle, in log sigma."""
    *planned, last = chain(*_euler_levels(schedule, steps, spacing))
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


_RUNGE_KUTTA_STEPS = 3
"""Of pndm, as many as its formula looks back."""


def _pndm_grid(
    schedule: DiscreteSchedule, steps: int, _: Spacing | None
) -> tuple[PlannedStep, ...]:
    """As ddim's, but each step ends at the next one's start, which a history of steps needs. Steps
    of Runge and Kutta have a middle."""
    t = _spread(schedule, _timestep_spacing(schedule, "leading"), steps).round().tolist()
    table = alphas_cumprod(schedule)
    end = _sigma_or_last(schedule, table, t[-1] - schedule.num_train_timesteps // steps)
    planned = chain([_sigma(table, now) for now in t], t, end)
    if schedule.skip_prk_steps or steps <= _RUNGE_KUTTA_STEPS:
        return planned
    half = schedule.num_train_timesteps // steps // 2
    middles = [then + half for then in t[1 : 1 + _RUNGE_KUTTA_STEPS]]
    begun = [
        step._replace(sigma_mid=_sigma(table, middle), timestep_mid=middle)
        for step, middle in zip(planned, middles, strict=False)
    ]
    return (*begun, *planned[_RUNGE_KUTTA_STEPS:])


def _ddpm_grid(
    schedule: DiscreteSchedule, steps: int, _: Spacing | None
) -> tuple[PlannedStep, ...]:
    """As pndm's, but down to sigma 0."""
    t = _spread(schedule, _timestep_spacing(schedule, "leading"), steps).round().tolist()
    table = alphas_cumprod(schedule)
    return chain([_sigma(table, now) for now in t], t)


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
    planned = _spaced(schedule, steps, spacing, np.round if spacing == "karras" else np.floor)
    if schedule.final_sigmas_type == "zero":
        return planned
    # diffusers' last step stays at its level, unlike that of the other samplers.
    return (*planned[:-1], planned[-1]._replace(sigma_next=planned[-1].sigma))


def _singlestep_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    """As dpmpp_2m's with "linspace" timesteps, the only ones that diffusers has for it."""
    if spacing is not None:
        return _spaced(schedule, steps, spacing, np.round if spacing == "karras" else np.floor)
    return _whole_timesteps(replace(schedule, timestep_spacing="linspace"), steps)


def _deis_grid(
    schedule: DiscreteSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    """As unipc's, but down to the schedule's lowest level, since log sigma is integrated over. With
    a spacing the last step begins at that level, and changes nothing."""
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
    levels = np.interp(t, np.arange(len(table)), table).tolist()
    return chain(levels, t.tolist(), _end(schedule))


def _spaced(
    schedule: DiscreteSchedule,
    steps: int,
    spacing: Spacing,
    whole: Callable[[_Timesteps], _Timesteps],
) -> tuple[PlannedStep, ...]:
    """`spacing` over all of the schedule's levels, with whole timesteps."""
    table = sigmas(schedule)
    levels = _between(schedule, spacing, table[0], table[-1], steps)
    t = whole(np.array(sigma_to_timestep(schedule, levels)))
    # The lowest level may be below the schedule's own by a rounding.
    return chain(levels, t.tolist(), min(_end(schedule), levels[-1]))


def _between(
    schedule: DiscreteSchedule, spacing: Spacing, low: float, high: float, steps: int
) -> list[float]:
    """`spacing` between two levels, or those of the schedule."""
    low = low if schedule.sigma_min is None else schedule.sigma_min
    high = high if schedule.sigma_max is None else schedule.sigma_max
    return SPACINGS[spacing](low, high, steps)


def _end(schedule: DiscreteSchedule) -> float:
    """The level at which a run ends."""
    return 0.0 if schedule.final_sigmas_type == "zero" else sigmas(schedule)[0]


def _distilled_timesteps(schedule: DiscreteSchedule, steps: int) -> list[int]:
    """Luo et al. 2023 (arXiv:2310.04378), section 4.3: steps of the distillation's own grid; or the
    schedule's own, if it has as many."""
    if schedule.timesteps is not None and len(schedule.timesteps) == steps:
        return list(schedule.timesteps)
    original = schedule.original_inference_steps
    skip = schedule.num_train_timesteps // original
    grid = np.arange(original, 0, -1) * skip - 1
    t = grid[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]
    return [int(i) for i in t]


def _lcm_grid(schedule: DiscreteSchedule, steps: int, _: Spacing | None) -> tuple[PlannedStep, ...]:
    t = _distilled_timesteps(schedule, steps)
    table = alphas_cumprod(schedule)
    return chain([_sigma(table, i) for i in t], [float(i) for i in t])


def _tcd_grid(schedule: DiscreteSchedule, steps: int, _: Spacing | None) -> tuple[PlannedStep, ...]:
    """Zheng et al. 2024 (arXiv:2402.19159): on the way to each t lies s = (1 - gamma)·t; the last t
    is 0."""
    t = _distilled_timesteps(schedule, steps)
    table = alphas_cumprod(schedule)
    # In float32, as diffusers, whose products fall on either side of a whole number.
    s = [int(np.float32(1.0 - schedule.eta) * np.float32(i)) for i in [*t[1:], 0]]
    planned = chain([_sigma(table, i) for i in t], [float(i) for i in t], _sigma(table, 0))
    return tuple(
        p._replace(sigma_mid=_sigma(table, mid)) for p, mid in zip(planned, s, strict=True)
    )


_GRIDS: dict[str, Callable[[DiscreteSchedule, int, Spacing | None], tuple[PlannedStep, ...]]] = {
    "euler": _euler_or_min_grid,
    "euler_a": _euler_grid,
    "heun": _euler_grid,
    "lms": _euler_grid,
    "ddim": _ddim_grid,
    "ddpm": _ddpm_grid,
    "pndm": _pndm_grid,
    "dpmpp_2m": _dpmpp_grid,
    "dpmpp_2m_karras": _dpmpp_grid,
    "dpmpp_2m_sde": _dpmpp_grid,
    "dpmpp_2s": _singlestep_grid,
    "dpmpp_2s_sde": _singlestep_grid,
    "dpmpp_sde": _dpmpp_sde_grid,
    "unipc": _unipc_grid,
    "deis": _deis_grid,
    "lcm": _lcm_grid,
    "tcd": _tcd_grid,
}
DISCRETE_SAMPLERS = tuple(_GRIDS)
SPACED = (
    *("euler", "heun", "lms", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2s", "dpmpp_2s_sde"),
    *("dpmpp_sde", "unipc", "deis"),
)
_FROM_PURE_NOISE = ("euler", "euler_a", "heun", "lms", "dpmpp_sde")


def _sigma(table: list[float], timestep: float) -> float:
    """The noise level at a whole timestep; past the table's end, that of the end."""
    return sigma_of(table[min(int(timestep), len(table) - 1)])


def _sigma_or_last(schedule: DiscreteSchedule, table: list[float], timestep: float) -> float:
    """The noise level at a whole timestep; below 0, the one that ddim and pndm end at."""
    if timestep >= 0:
        return _sigma(table, timestep)
    return 0.0 if schedule.set_alpha_to_one else sigma_of(table[0])
