"""The noise schedule a model was trained with, and the noise levels a sampler steps through.

Notation, after Karras et al. 2022 (arXiv:2206.00364) and Lu et al. 2022 (arXiv:2211.01095):
`alphas_cumprod` is ᾱ_t; `sigma` = sqrt((1 - ᾱ) / ᾱ) is the noise level, in units of the latents;
the network sees x = alpha·x0 + sigma_t·eps with alpha = sqrt(ᾱ) and sigma_t = sqrt(1 - ᾱ).
sigma is 0 for a clean latent and infinite where ᾱ is 0.

Models are trained on float32 betas, and at the noisy end of a schedule 1 - beta keeps only a few
of their bits. So the table of ᾱ is made in float32, as in training; what is computed from it is
float64 and handed out as Python floats, since an np.float64 would promote float32 latents.
"""

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from edgediff.errors import BundleError, InputError

BetaSchedule = Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "linspace", "trailing"]

_Array = npt.NDArray[np.float64]
_LAST_ALPHA_CUMPROD = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """How a model was trained to see noise, and how its author meant it to be sampled.

    Field names and meanings are those of diffusers' scheduler configs.

    timestep_spacing: None leaves it to the sampler, as diffusers does where the config at hand does
        not set it: "leading" for ddim, "linspace" for euler, euler_a and dpmpp_2m. The other two
        have a spacing of their own.
    steps_offset: added to the timesteps of "leading" spacing; 0 … num_train_timesteps - 1.
    set_alpha_to_one: whether ddim ends at ᾱ = 1 rather than at ᾱ_0.
    clip_sample, clip_sample_range: whether, and to what magnitude, ddim and lcm clip x0.
    original_inference_steps: length of the grid that lcm was distilled on.
    timestep_scaling: s of lcm's boundary condition, per timestep.

    Raises BundleError for values out of range.
    """

    num_train_timesteps: int = 1000
    beta_start: float
    beta_end: float
    beta_schedule: BetaSchedule
    prediction_type: PredictionType
    timestep_spacing: TimestepSpacing | None = None
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        t = self.num_train_timesteps
        _choice("beta_schedule", self.beta_schedule, get_args(BetaSchedule))
        _choice("prediction_type", self.prediction_type, get_args(PredictionType))
        spacings = (*get_args(TimestepSpacing), None)
        _choice("timestep_spacing", self.timestep_spacing, spacings)
        _check(t >= 2, "num_train_timesteps", t, "2 or more")
        _check(0.0 < self.beta_start < 1.0, "beta_start", self.beta_start, "between 0 and 1")
        _check(
            self.beta_start <= self.beta_end < 1.0,
            "beta_end",
            self.beta_end,
            f"from beta_start ({self.beta_start}) to below 1",
        )
        _check(0 <= self.steps_offset < t, "steps_offset", self.steps_offset, f"from 0 to {t - 1}")
        _check(
            0.0 < self.clip_sample_range < math.inf,
            "clip_sample_range",
            self.clip_sample_range,
            "positive and finite",
        )
        original = self.original_inference_steps
        _check(1 <= original <= t, "original_inference_steps", original, f"from 1 to {t}")
        _check(
            0.0 < self.timestep_scaling < math.inf,
            "timestep_scaling",
            self.timestep_scaling,
            "positive and finite",
        )


class PlannedStep(NamedTuple):
    """One step of a sampler: evaluate the model at `sigma`, where the network wants to be told
    `timestep`, and go on to noise level `sigma_next`."""

    sigma: float
    sigma_next: float
    timestep: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a sampler does: its steps from the noisiest on, and the constants that go with them.

    noise_scale: standard deviation of the initial latents. 1, except for euler and euler_a with
        "linspace" or "trailing" spacing, which start from pure noise without the signal's share.
    clip_range: the magnitude that ddim and lcm clip x0 to, or None.
    timestep_scaling: as in NoiseSchedule, for lcm.
    """

    sampler: str
    steps: tuple[PlannedStep, ...]
    noise_scale: float
    clip_range: float | None
    timestep_scaling: float

    @property
    def timesteps(self) -> dict[float, float]:
        """sigma → the timestep to tell the network, for each sigma that the sampler visits."""
        return {step.sigma: step.timestep for step in self.steps}


def alpha_sigma(sigma: float) -> tuple[float, float]:
    """Noise level sigma (0 … inf) → (alpha, sigma_t) with alpha² + sigma_t² = 1."""
    sigma_t = 1.0 / math.hypot(1.0, 1.0 / sigma) if sigma > 0.0 else 0.0
    return 1.0 / math.hypot(1.0, sigma), sigma_t


def betas(schedule: NoiseSchedule) -> list[float]:
    """β_t for each training timestep, each a float32 value.

    "linear": Ho et al. 2020 (arXiv:2006.11239), section 4; "scaled_linear": Rombach et al. 2022
    (arXiv:2112.10752), linear in sqrt(β); "squaredcos_cap_v2": Nichol and Dhariwal 2021
    (arXiv:2102.09672), eq. 17."""
    return [float(b) for b in _betas(schedule)]


def alphas_cumprod(schedule: NoiseSchedule) -> list[float]:
    """ᾱ_t = Π (1 - β) for each training timestep, each a float32 value; the last is 0 with
    `rescale_betas_zero_snr`."""
    return [float(a) for a in _alphas_cumprod(schedule)]


def make_plan(schedule: NoiseSchedule, sampler: str, steps: int) -> Plan:
    """The noise levels and timesteps that diffusers' scheduler of that kind would step through.

    sampler: one of "euler", "euler_a", "ddim", "dpmpp_2m", "dpmpp_2m_karras", "lcm".
    steps: 1 … num_train_timesteps; for lcm, 1 … original_inference_steps.

    Raises InputError for an unknown sampler, for a number of steps that the schedule has no room
    for, and for a model that cannot start where the sampler does."""
    if sampler not in _GRIDS:
        raise InputError(f"sampler is {sampler!r}: choose one of {', '.join(_GRIDS)}")
    grid = _GRIDS[sampler]
    most = schedule.original_inference_steps if sampler == "lcm" else schedule.num_train_timesteps
    steps = _whole(steps, most, sampler)
    planned = grid(schedule, steps)
    if not _fits(schedule, planned):
        fewer = next(n for n in range(steps - 1, 0, -1) if _fits(schedule, grid(schedule, n)))
        raise InputError(
            f"steps is {steps}: with this model's timesteps, {sampler} would repeat one or leave"
            f" 0 … {schedule.num_train_timesteps - 1}: use {fewer} or fewer"
        )
    if math.isinf(planned[0].sigma) and schedule.prediction_type == "epsilon":
        raise InputError(
            f"sampler is {sampler!r}: it starts at zero signal, where a model that predicts epsilon"
            " says nothing of the image: use euler, or a model that predicts v"
        )
    euler = sampler in ("euler", "euler_a")
    start = euler and _spacing(schedule, "linspace") != "leading"
    clips = schedule.clip_sample and sampler in ("ddim", "lcm")
    return Plan(
        sampler=sampler,
        steps=planned,
        noise_scale=alpha_sigma(planned[0].sigma)[1] if start else 1.0,
        clip_range=schedule.clip_sample_range if clips else None,
        timestep_scaling=schedule.timestep_scaling,
    )


def karras_sigmas(sigma_min: float, sigma_max: float, steps: int, rho: float = 7.0) -> list[float]:
    """`steps` noise levels from sigma_max down to sigma_min: Karras et al. 2022, eq. 5, without
    its final 0. One step stays at sigma_max."""
    ramp = np.linspace(0.0, 1.0, steps)
    low, high = sigma_min ** (1.0 / rho), sigma_max ** (1.0 / rho)
    return [float(s) for s in (high + ramp * (low - high)) ** rho]


def sigma_to_timestep(schedule: NoiseSchedule, sigmas: list[float]) -> list[float]:
    """Noise levels → fractional timesteps, by linear interpolation of log sigma over the
    training timesteps; levels outside the schedule get its ends.

    With `rescale_betas_zero_snr` the last level is 4096, as in `make_plan`."""
    table = _sigmas(schedule)
    log_table = np.log(table)
    log_sigma = np.log(np.maximum(np.asarray(sigmas, np.float64), 1e-10))
    # The last level not above: a zero-SNR table may fall at its very end, where ᾱ is held up.
    below = log_table[None, :] <= log_sigma[:, None]
    low = len(table) - 1 - np.argmax(below[:, ::-1], axis=1)
    low = np.where(below.any(axis=1), np.minimum(low, len(table) - 2), 0)
    span = (log_table[low] - log_table[low + 1]).astype(np.float64)
    w = np.clip((log_table[low] - log_sigma) / span, 0.0, 1.0)
    return [float(t) for t in (1.0 - w) * low + w * (low + 1)]


def _betas(schedule: NoiseSchedule) -> npt.NDArray[np.float32]:
    t = schedule.num_train_timesteps
    if schedule.beta_schedule == "squaredcos_cap_v2":
        bar = [math.cos((i / t + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(t + 1)]
        beta = np.array([min(1.0 - bar[i + 1] / bar[i], 0.999) for i in range(t)], np.float32)
    elif schedule.beta_schedule == "scaled_linear":
        root = np.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, t)
        beta = np.square(root.astype(np.float32))
    else:
        beta = np.linspace(schedule.beta_start, schedule.beta_end, t).astype(np.float32)
    return _zero_terminal_snr(beta) if schedule.rescale_betas_zero_snr else beta


def _zero_terminal_snr(beta: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Lin et al. 2023 (arXiv:2305.08891), algorithm 1: shift and scale sqrt(ᾱ) to end at 0."""
    root = np.sqrt(_cumprod(np.float32(1.0) - beta))
    first, last = root[0], root[-1]
    bar = ((root - last) * (first / (first - last))) ** 2
    alpha = np.concatenate([bar[:1], bar[1:] / bar[:-1]])
    return np.asarray(np.float32(1.0) - alpha, np.float32)


def _cumprod(alpha: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The running product, held in float64 and rounded at every entry."""
    return np.cumprod(alpha.astype(np.float64)).astype(np.float32)


def _alphas_cumprod(schedule: NoiseSchedule) -> npt.NDArray[np.float32]:
    return _cumprod(np.float32(1.0) - _betas(schedule))


def _sigmas(schedule: NoiseSchedule) -> npt.NDArray[np.float32]:
    """sigma for each training timestep, all finite: at zero terminal SNR, ᾱ stays at 2**-24."""
    alpha = _alphas_cumprod(schedule)
    if schedule.rescale_betas_zero_snr:
        alpha[-1] = _LAST_ALPHA_CUMPROD
    sigma: npt.NDArray[np.float32] = np.sqrt((np.float32(1.0) - alpha) / alpha)
    return sigma


def _spacing(schedule: NoiseSchedule, unset: TimestepSpacing) -> TimestepSpacing:
    return unset if schedule.timestep_spacing is None else schedule.timestep_spacing


def _spread(schedule: NoiseSchedule, spacing: TimestepSpacing, points: int) -> _Array:
    """`points` descending timesteps: Lin et al. 2023, table 2."""
    t = schedule.num_train_timesteps
    if spacing == "linspace":
        return np.linspace(0.0, t - 1, points)[::-1]
    if spacing == "leading":
        multiples: _Array = np.arange(points, dtype=np.float64)[::-1] * (t // points)
        return multiples + schedule.steps_offset
    # The cut is for the step sizes whose last multiple falls just short of t.
    fractions: _Array = np.arange(t, 0, -t / points)[:points]
    return fractions.round() - 1.0


def _euler_grid(schedule: NoiseSchedule, steps: int) -> tuple[PlannedStep, ...]:
    t = _spread(schedule, _spacing(schedule, "linspace"), steps).astype(np.float32)
    table = _sigmas(schedule)
    return _chain(np.interp(t, np.arange(len(table)), table).tolist(), t.tolist())


def _ddim_grid(schedule: NoiseSchedule, steps: int) -> tuple[PlannedStep, ...]:
    t = _spread(schedule, _spacing(schedule, "leading"), steps).round()
    table = _alphas_cumprod(schedule)
    # diffusers steps to t - T // steps whichever the spacing, even where the next timestep differs.
    t_next = t - schedule.num_train_timesteps // steps
    last = 1.0 if schedule.set_alpha_to_one else float(table[0])
    return tuple(
        PlannedStep(_sigma(table, now), _sigma_of(last) if then < 0 else _sigma(table, then), now)
        for now, then in zip(t.tolist(), t_next.tolist(), strict=True)
    )


def _dpmpp_grid(schedule: NoiseSchedule, steps: int) -> tuple[PlannedStep, ...]:
    spacing = _spacing(schedule, "linspace")
    if spacing == "trailing":
        t = _spread(schedule, spacing, steps)
    else:
        # diffusers counts t = 0 among the points, and leaves it to the final sigma of 0.
        t = _spread(schedule, spacing, steps + 1).round()[:-1]
    table = _sigmas(schedule)
    return _chain(np.interp(t, np.arange(len(table)), table).tolist(), t.tolist())


def _karras_grid(schedule: NoiseSchedule, steps: int) -> tuple[PlannedStep, ...]:
    table = _sigmas(schedule)
    sigmas = karras_sigmas(float(table[0]), float(table[-1]), steps)
    t = np.array(sigma_to_timestep(schedule, sigmas))
    # diffusers rounds, except with the cosine schedule, where it cuts.
    t = np.floor(t) if schedule.beta_schedule == "squaredcos_cap_v2" else t.round()
    return _chain(sigmas, t.tolist())


def _lcm_grid(schedule: NoiseSchedule, steps: int) -> tuple[PlannedStep, ...]:
    """Luo et al. 2023 (arXiv:2310.04378), section 4.3: steps of the distillation's own grid."""
    original = schedule.original_inference_steps
    skip = schedule.num_train_timesteps // original
    grid = np.arange(original, 0, -1) * skip - 1
    t = grid[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]
    table = _alphas_cumprod(schedule)
    return _chain([_sigma(table, i) for i in t.tolist()], [float(i) for i in t])


_GRIDS: dict[str, Callable[[NoiseSchedule, int], tuple[PlannedStep, ...]]] = {
    "euler": _euler_grid,
    "euler_a": _euler_grid,
    "ddim": _ddim_grid,
    "dpmpp_2m": _dpmpp_grid,
    "dpmpp_2m_karras": _karras_grid,
    "lcm": _lcm_grid,
}


def _chain(sigmas: list[float], timesteps: list[float]) -> tuple[PlannedStep, ...]:
    """Each step goes on to where the next one starts, the last to 0."""
    return tuple(map(PlannedStep, sigmas, [*sigmas[1:], 0.0], timesteps))


def _sigma(table: npt.NDArray[np.float32], timestep: float) -> float:
    """The noise level at a whole timestep; one past the table's end gets the end, for `_fits`."""
    return _sigma_of(float(table[min(int(timestep), len(table) - 1)]))


def _sigma_of(alpha_cumprod: float) -> float:
    if alpha_cumprod == 0.0:
        return math.inf
    return math.sqrt((1.0 - alpha_cumprod) / alpha_cumprod)


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
        raise InputError(f"steps is {steps!r}: {sampler} takes a whole number from 1 to {most}")
    return number


def _choice(field: str, value: object, valid: tuple[object, ...]) -> None:
    _check(value in valid, field, value, f"one of {', '.join(map(repr, valid))}")


def _check(ok: bool, field: str, value: object, expected: str) -> None:
    if not ok:
        raise BundleError(
            f"schedule: {field} is {value!r}, expected {expected}: export the bundle again"
        )
