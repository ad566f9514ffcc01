"""The steps of a run: the noise levels and timesteps that a sampler goes through."""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgediff.checks import is_number
from edgediff.errors import InputError, Name
from edgediff.sampling.schedule import (
    NoiseSchedule,
    PredictionType,
    TimestepSpacing,
    alpha_sigma,
    alphas_cumprod,
    sigma_of,
    sigma_to_timestep,
    sigmas,
)
from edgediff.sampling.sigmas import SPACINGS, Spacing

_Array = npt.NDArray[np.float64]


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
    noise_scale: standard deviation of the initial latents where they are noise alone. 1, except for
        euler, euler_a, heun and dpmpp_sde with "linspace" or "trailing" timesteps, which start from
        pure noise without the signal's share.
    clip_range: the magnitude that ddim, heun and lcm clip x0 to, or None.
    timestep_scaling: as in NoiseSchedule, for lcm.
    prediction_type: as in NoiseSchedule; pndm keeps a history of what the network predicts.
    zero_signal: whether the first step begins where zero terminal SNR leaves nothing of the image:
        at sigma infinite, or what stands for it (see `edgediff.sampling.schedule.sigmas`).
    """

    sampler: str
    spacing: Spacing | None
    steps: tuple[PlannedStep, ...]
    total: int
    noise_scale: float
    clip_range: float | None
    timestep_scaling: float
    prediction_type: PredictionType
    zero_signal: bool

    @property
    def start(self) -> float:
        """The noise level that the first step expects: for a run that begins with an image, noise
        z0 to alpha·z0 + sigma_t·noise with `alpha, sigma_t = alpha_sigma(plan.start)`."""
        return self.steps[0].sigma

    @property
    def timesteps(self) -> dict[float, float]:
        """sigma → the timestep to tell the network, for each sigma that the sampler visits."""
        return {sigma: t for step in self.steps for sigma, t in step.timesteps.items()}


def make_plan(
    schedule: NoiseSchedule,
    sampler: str,
    steps: int,
    *,
    spacing: Spacing | None = None,
    strength: float | None = None,
) -> Plan:
    """The noise levels and timesteps that diffusers' scheduler of that kind would step through.

    sampler: a name in `edgediff.sampling.samplers.SAMPLERS`.
    steps: 1 … num_train_timesteps; for lcm and tcd, 1 … original_inference_steps.
    spacing: how the noise levels are spread, instead of by timesteps: "karras", "exponential" or
        "beta" (see `sigmas`). Not for ddim, pndm, euler_a, lcm and tcd, which have none
        in diffusers; dpmpp_2m_karras is dpmpp_2m with "karras".
    strength: for a run that begins with an image, how much of it is made anew, above 0 and up to 1:
        the last int(steps·strength) steps are taken. None takes them all.

    Raises InputError for an unknown sampler, for a number of steps that the schedule has no room
    for, for a strength that leaves no step, and for a model that cannot start where the sampler
    does."""
    if sampler not in _GRIDS:
        raise InputError(Name("sampler"), f" is {sampler!r}: choose one of {', '.join(_GRIDS)}")
    spacing = _check_spacing(sampler, spacing)
    distilled = sampler in ("lcm", "tcd")
    most = schedule.original_inference_steps if distilled else schedule.num_train_timesteps
    steps = _whole(steps, most, sampler)
    kept = steps if strength is None else _kept(steps, strength)
    grid = _GRIDS[sampler]
    planned = grid(schedule, steps, spacing)
    if not _fits(schedule, planned):
        fewer = next(
            n for n in range(steps - 1, 0, -1) if _fits(schedule, grid(schedule, n, spacing))
        )
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
    pure = sampler in _FROM_PURE_NOISE and _timestep_spacing(schedule, "linspace") != "leading"
    clips = schedule.clip_sample and sampler in ("ddim", "heun", "lcm")
    return Plan(
        sampler=sampler,
        spacing=None if sampler == "dpmpp_2m_karras" else spacing,
        steps=planned,
        total=steps,
        noise_scale=alpha_sigma(planned[0].sigma)[1] if pure else 1.0,
        clip_range=schedule.clip_sample_range if clips else None,
        timestep_scaling=schedule.timestep_scaling,
        prediction_type=schedule.prediction_type,
        zero_signal=schedule.rescale_betas_zero_snr and planned[0].sigma > sigmas(schedule)[-2],
    )


def _check_spacing(sampler: str, spacing: Spacing | None) -> Spacing | None:
    if spacing is None:
        return "karras" if sampler == "dpmpp_2m_karras" else None
    if spacing not in SPACINGS:
        raise InputError(Name("spacing"), f" is {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if sampler == "dpmpp_2m_karras" and spacing != "karras":
        raise InputError(
            Name("spacing"), f" is {spacing!r}: sampler dpmpp_2m_karras is fixed: use dpmpp_2m"
        )
    if sampler not in (*SPACED, "dpmpp_2m_karras"):
        raise InputError(
            Name("spacing"),
            f" is {spacing!r}: sampler {sampler} takes none: use {', '.join(SPACED)}",
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


def _timestep_spacing(schedule: NoiseSchedule, unset: TimestepSpacing) -> TimestepSpacing:
    return unset if schedule.timestep_spacing is None else schedule.timestep_spacing


def _spread(schedule: NoiseSchedule, spacing: TimestepSpacing, points: int) -> _Array:
    """`points` descending timesteps: Lin et al. 2023 (arXiv:2305.08891), table 2."""
    t = schedule.num_train_timesteps
    if spacing == "linspace":
        return np.linspace(0.0, t - 1, points)[::-1]
    if spacing == "leading":
        multiples: _Array = np.arange(points, dtype=np.float64)[::-1] * (t // points)
        return multiples + schedule.steps_offset
    # The cut is for the step sizes whose last multiple falls just short of t.
    fractions: _Array = np.arange(t, 0, -t / points)[:points]
    return fractions.round() - 1.0


def _euler_levels(
    schedule: NoiseSchedule, steps: int, spacing: Spacing | None
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
    schedule: NoiseSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    return _chain(*_euler_levels(schedule, steps, spacing))


def _dpmpp_sde_grid(
    schedule: NoiseSchedule, steps: int, spacing: Spacing | None
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


def _ddim_grid(schedule: NoiseSchedule, steps: int, _: Spacing | None) -> tuple[PlannedStep, ...]:
    t = _spread(schedule, _timestep_spacing(schedule, "leading"), steps).round()
    table = alphas_cumprod(schedule)
    # diffusers steps to t - T // steps whichever the spacing, even where the next timestep differs.
    t_next = t - schedule.num_train_timesteps // steps
    return tuple(
        PlannedStep(_sigma(table, now), _sigma_or_last(schedule, table, then), now)
        for now, then in zip(t.tolist(), t_next.tolist(), strict=True)
    )


def _pndm_grid(schedule: NoiseSchedule, steps: int, _: Spacing | None) -> tuple[PlannedStep, ...]:
    """As ddim's where each step ends at the next one's start, which a history of steps needs."""
    t = _spread(schedule, _timestep_spacing(schedule, "leading"), steps).round().tolist()
    table = alphas_cumprod(schedule)
    end = _sigma_or_last(schedule, table, t[-1] - schedule.num_train_timesteps // steps)
    return _chain([_sigma(table, now) for now in t], t, end)


def _dpmpp_grid(
    schedule: NoiseSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    if spacing is None:
        return _whole_timesteps(schedule, steps)
    # diffusers rounds karras' timesteps, except with the cosine schedule, and cuts the others'.
    rounds = spacing == "karras" and schedule.beta_schedule != "squaredcos_cap_v2"
    return _spaced(schedule, steps, spacing, np.round if rounds else np.floor)


def _unipc_grid(
    schedule: NoiseSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    if spacing is None:
        return _whole_timesteps(schedule, steps)
    return _spaced(schedule, steps, spacing, np.round if spacing == "karras" else np.floor)


def _deis_grid(
    schedule: NoiseSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    """As unipc's, but down to the schedule's lowest level: log sigma is integrated over. With a
    spacing that is where the last step stands already, and it changes nothing."""
    planned = _unipc_grid(schedule, steps, spacing)
    end = sigmas(schedule)[0] if spacing is None else planned[-1].sigma
    return (*planned[:-1], planned[-1]._replace(sigma_next=end))


def _whole_timesteps(schedule: NoiseSchedule, steps: int) -> tuple[PlannedStep, ...]:
    timestep_spacing = _timestep_spacing(schedule, "linspace")
    if timestep_spacing == "trailing":
        t = _spread(schedule, timestep_spacing, steps)
    else:
        # diffusers counts t = 0 among the points, and leaves it to the final sigma of 0.
        t = _spread(schedule, timestep_spacing, steps + 1).round()[:-1]
    table = sigmas(schedule)
    return _chain(np.interp(t, np.arange(len(table)), table).tolist(), t.tolist())


def _spaced(
    schedule: NoiseSchedule, steps: int, spacing: Spacing, whole: Callable[[_Array], _Array]
) -> tuple[PlannedStep, ...]:
    """`spacing` over all of the schedule's levels, with whole timesteps."""
    table = sigmas(schedule)
    levels = SPACINGS[spacing](table[0], table[-1], steps)
    return _chain(levels, whole(np.array(sigma_to_timestep(schedule, levels))).tolist())


def _distilled_timesteps(schedule: NoiseSchedule, steps: int) -> list[int]:
    """Luo et al. 2023 (arXiv:2310.04378), section 4.3: steps of the distillation's own grid."""
    original = schedule.original_inference_steps
    skip = schedule.num_train_timesteps // original
    grid = np.arange(original, 0, -1) * skip - 1
    t = grid[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]
    return [int(i) for i in t]


def _lcm_grid(schedule: NoiseSchedule, steps: int, _: Spacing | None) -> tuple[PlannedStep, ...]:
    t = _distilled_timesteps(schedule, steps)
    table = alphas_cumprod(schedule)
    return _chain([_sigma(table, i) for i in t], [float(i) for i in t])


def _tcd_grid(schedule: NoiseSchedule, steps: int, _: Spacing | None) -> tuple[PlannedStep, ...]:
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


_GRIDS: dict[str, Callable[[NoiseSchedule, int, Spacing | None], tuple[PlannedStep, ...]]] = {
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


def _sigma_or_last(schedule: NoiseSchedule, table: list[float], timestep: float) -> float:
    """The noise level at a whole timestep, or where ddim and pndm end for one below 0."""
    if timestep >= 0:
        return _sigma(table, timestep)
    return 0.0 if schedule.set_alpha_to_one else sigma_of(table[0])


def _fits(schedule: NoiseSchedule, steps: tuple[PlannedStep, ...]) -> bool:
    """Whether the timesteps lie in the schedule and noise goes down at every step."""
    inside = all(0 <= s.timestep < schedule.num_train_timesteps for s in steps)
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
