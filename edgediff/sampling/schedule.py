"""The noise schedule a model was trained with: discrete, over betas, or flow matching.

Notation, after Karras et al. 2022 (arXiv:2206.00364) and Lu et al. 2022 (arXiv:2211.01095): latents
under noise are x = alpha·x0 + sigma_t·eps, and `sigma` = sigma_t / alpha is their noise level, in
units of the latents: 0 for clean latents, infinite for pure noise. Samplers name a level by sigma
and take (alpha, sigma_t) from the schedule, so that x is always what the network was trained on:

* discrete: alpha² + sigma_t² = 1 (variance preserving), with alpha = sqrt(ᾱ), `alphas_cumprod`;
* flow matching: alpha + sigma_t = 1, with sigma_t = s, the fraction of noise;
* EDM: as discrete, over latents in units of their standard deviation in training, sigma_data.

The other consistent design keeps the latents of every model variance preserving, and multiplies
them by hypot(1 - s, s) before the network. It would spare the samplers the schedule, but costs a
pass over the latents and a rounding in each step, and latents that are shown, sent or compared
would not be those of the flow. Only pndm and tcd need variance to be preserved, and both are for
discrete schedules.

Models are trained on float32 betas, and at the noisy end of a schedule 1 - beta keeps only a few
of their bits. So the table of ᾱ is made in float32, as in training. The numbers computed from it
are float64 and handed out as Python floats, since an np.float64 would promote float32 latents.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from edgediff.errors import BundleError

BetaSchedule = Literal["scaled_linear", "linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
TimestepSpacing = Literal["leading", "linspace", "trailing"]
FlowTimestepSpacing = Literal["linspace", "trailing"]
SolverType = Literal["midpoint", "heun"]
FinalSigma = Literal["zero", "sigma_min"]
Variance = Literal["fixed_small", "fixed_large"]
TimeShift = Literal["exponential", "linear"]

MAX_TIMESTEPS = 100_000
_LAST_ALPHA_CUMPROD = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class DiscreteSchedule:
    """How a model was trained to see noise, and how its author meant it to be sampled.

    Field names and meanings are those of diffusers' scheduler configs.

    timestep_spacing: None leaves it to the sampler, as diffusers does if a config does not set it:
        "leading" for ddim and pndm, "linspace" for the others. lcm and tcd have timesteps of their
        own, and so has a sampler whose noise levels `make_plan` is to spread by a `spacing`.
    steps_offset: added to "leading" timesteps; 0 … num_train_timesteps - 1.
    set_alpha_to_one: whether ddim and pndm end at ᾱ = 1 rather than at ᾱ_0.
    clip_sample, clip_sample_range: whether, and to what magnitude, ddim, ddpm, heun and lcm clip
        x0.
    sigma_min, sigma_max: the ends between which euler, heun, lms, dpmpp_sde and unipc spread the
        noise levels of a `spacing`; None: those of the timesteps.
    final_sigmas_type: whether the DPM-Solvers, unipc and euler end at sigma 0, or at the lowest
        level of the schedule.
    solver_order, solver_type, lower_order_final, euler_at_final: see `orders.Solver`.
    skip_prk_steps: whether pndm does without Runge-Kutta steps, as Stable Diffusion was published;
        else its first three steps are such, in runs of four or more.
    variance_type: of the noise that ddpm adds, the lower or the upper bound of Ho et al. 2020.
    original_inference_steps: length of the grid that lcm and tcd were distilled on.
    timesteps: of lcm and tcd with as many steps, instead of those of that grid; descending. Models
        of one step may start below pure noise's timestep.
    timestep_scaling: s of lcm's boundary condition, per timestep.
    eta: tcd's share of fresh noise, gamma in its paper, from 0 (none) to 1 (all, as in lcm); in
        diffusers an argument of TCDScheduler.step.

    Raises BundleError for values out of range.
    """

    type: Literal["discrete"] = "discrete"
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
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: FinalSigma = "zero"
    solver_order: int = 2
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    skip_prk_steps: bool = True
    variance_type: Variance = "fixed_small"
    original_inference_steps: int = 50
    timesteps: tuple[int, ...] | None = None
    timestep_scaling: float = 10.0
    eta: float = 0.3

    def __post_init__(self) -> None:
        t = self.num_train_timesteps
        _choice("beta_schedule", self.beta_schedule, get_args(BetaSchedule))
        _choice("prediction_type", self.prediction_type, get_args(PredictionType))
        known = (*get_args(TimestepSpacing), None)
        _choice("timestep_spacing", self.timestep_spacing, known)
        _check_timesteps(t)
        _check(1e-8 <= self.beta_start < 1.0, "beta_start", self.beta_start, "from 1e-8 to below 1")
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
        _check_bounds(self.sigma_min, self.sigma_max)
        _choice("final_sigmas_type", self.final_sigmas_type, get_args(FinalSigma))
        _check_solver(self.solver_order, self.solver_type)
        _choice("variance_type", self.variance_type, get_args(Variance))
        original = self.original_inference_steps
        _check(1 <= original <= t, "original_inference_steps", original, f"from 1 to {t}")
        if self.timesteps is not None:
            _check(
                1 <= len(self.timesteps) <= original
                and all(0 <= i < t for i in self.timesteps)
                and all(a > b for a, b in itertools.pairwise(self.timesteps)),
                "timesteps",
                list(self.timesteps),
                f"1 to {original} whole numbers below {t}, descending",
            )
        _check(
            0.0 < self.timestep_scaling < math.inf,
            "timestep_scaling",
            self.timestep_scaling,
            "positive and finite",
        )
        _check(0.0 <= self.eta <= 1.0, "eta", self.eta, "from 0 to 1")

    def alpha_sigma(self, sigma: float) -> tuple[float, float]:
        """Noise level sigma (0 … inf) → (alpha, sigma_t) with alpha² + sigma_t² = 1."""
        return _variance_preserving(sigma)

    def time(self, sigma: float) -> float:
        """The time of the ODE that Heun's method solves: sigma, over x / alpha, as Karras et al.
        2022 chose it."""
        return sigma


@dataclass(frozen=True, kw_only=True)
class EDMSchedule:
    """EDM, Karras et al. 2022 (arXiv:2206.00364), table 1: continuous noise levels, which the
    network is given as c_noise = log(sigma) / 4 for its timestep.

    Latents are in units of sigma_data, their standard deviation in training. So the levels handed
    to samplers are sigma / sigma_data, latents under noise preserve variance, and the network's
    input is those latents: c_in is in them. A bundle's latent scaling factor makes up for it.

    sigma_min, sigma_max, rho: of the noise levels, eq. 5, in units of the autoencoder's latents.
    sigma_schedule: how they are spread without a `spacing`; rho counts for "karras".
    prediction_type: "edm": F of eq. 7, as EDM defines it, which is -v in these latents;
        "v_prediction": v itself. diffusers calls the first one "epsilon".
    final_sigmas_type, solver_order, solver_type, lower_order_final, euler_at_final: as in
        DiscreteSchedule.

    Raises BundleError for values out of range."""

    type: Literal["edm"] = "edm"
    num_train_timesteps: int = 1000
    prediction_type: Literal["edm", "v_prediction"]
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_schedule: Literal["karras", "exponential"] = "karras"
    rho: float = 7.0
    final_sigmas_type: FinalSigma = "zero"
    solver_order: int = 2
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False

    def __post_init__(self) -> None:
        _check_timesteps(self.num_train_timesteps)
        _choice("prediction_type", self.prediction_type, ("edm", "v_prediction"))
        _check_bounds(self.sigma_min, self.sigma_max)
        data = self.sigma_data
        _check(1e-3 <= data <= 1e3, "sigma_data", data, "from 0.001 to 1000")
        _check(1.0 <= self.rho <= 100.0, "rho", self.rho, "from 1 to 100")
        _choice("sigma_schedule", self.sigma_schedule, ("karras", "exponential"))
        _choice("final_sigmas_type", self.final_sigmas_type, get_args(FinalSigma))
        _check_solver(self.solver_order, self.solver_type)

    def alpha_sigma(self, sigma: float) -> tuple[float, float]:
        """Noise level in units of sigma_data (0 … inf) → (alpha, sigma_t), variance preserving."""
        return _variance_preserving(sigma)

    def time(self, sigma: float) -> float:
        """As in DiscreteSchedule."""
        return sigma


@dataclass(frozen=True, kw_only=True)
class DynamicShift:
    """A shift that grows with the size of the image, Esser et al. 2024 (arXiv:2403.03206), section
    5.3.2, in the form that FLUX was published with.

    mu goes linearly from base_shift for base_image_seq_len tokens to max_shift for
    max_image_seq_len, and on. The shift is e^mu for an "exponential" time_shift_type, mu for a
    "linear" one.
    patch_size: latents a side of a token.
    Raises BundleError for values out of range."""

    patch_size: int = 2
    time_shift_type: TimeShift = "exponential"
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15

    def __post_init__(self) -> None:
        _check(1 <= self.patch_size <= 64, "patch_size", self.patch_size, "from 1 to 64")
        _choice("time_shift_type", self.time_shift_type, get_args(TimeShift))
        base = self.base_image_seq_len
        _check(base >= 1, "base_image_seq_len", base, "1 or more")
        _check(
            self.max_image_seq_len > base,
            "max_image_seq_len",
            self.max_image_seq_len,
            f"more than base_image_seq_len ({base})",
        )
        for name, least in (("base_shift", 0.0), ("max_shift", self.base_shift)):
            value = getattr(self, name)
            ok = least <= value <= 100.0 and (value > 0.0 or self.time_shift_type != "linear")
            _check(ok, name, value, f"from {least:g} to 100, and above 0 for a linear shift")

    def image_seq_len(self, width: int, height: int) -> int:
        """The tokens of latents of that size; a part of a patch makes one too."""
        return math.ceil(width / self.patch_size) * math.ceil(height / self.patch_size)

    def shift(self, image_seq_len: int) -> float:
        """The shift for an image of so many tokens."""
        base = self.base_image_seq_len
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - base)
        mu = image_seq_len * slope + (self.base_shift - slope * base)
        return math.exp(mu) if self.time_shift_type == "exponential" else mu


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """Flow matching, Lipman et al. 2023 (arXiv:2210.02747), with straight paths, Liu et al. 2023
    (arXiv:2209.03003): x = (1 - s)·x0 + s·noise for s from 1 (noise) to 0. The network predicts the
    velocity, noise - x0.

    Field names and meanings are those of diffusers' FlowMatchEulerDiscreteScheduler, but for:

    num_train_timesteps: the multiplier of s that makes the network's timestep.
    timestep_spacing: of euler and heun, before the shift: "linspace" goes from s = 1 to the lowest
        trained level, "trailing" to 1 / steps (diffusers' pipelines ask for it with `sigmas`).
    shift: s becomes shift·s / (1 + (shift - 1)·s); above 1, more steps are at high noise.
    dynamic_shift: None, or takes the place of `shift`.
    shift_terminal: None, or the s that the last step begins at, which the others are stretched to.

    Raises BundleError for values out of range."""

    type: Literal["flow"] = "flow"
    num_train_timesteps: int = 1000
    prediction_type: Literal["flow"] = "flow"
    timestep_spacing: FlowTimestepSpacing = "linspace"
    shift: float = 1.0
    dynamic_shift: DynamicShift | None = None
    shift_terminal: float | None = None

    def __post_init__(self) -> None:
        t = self.num_train_timesteps
        _choice("prediction_type", self.prediction_type, ("flow",))
        _choice("timestep_spacing", self.timestep_spacing, get_args(FlowTimestepSpacing))
        _check_timesteps(t)
        _check(0.0 < self.shift <= 1000.0, "shift", self.shift, "above 0 and up to 1000")
        terminal = self.shift_terminal
        ok = terminal is None or 0.0 < terminal < 1.0
        _check(ok, "shift_terminal", terminal, "between 0 and 1, or null")

    def alpha_sigma(self, sigma: float) -> tuple[float, float]:
        """Noise level sigma = s / (1 - s) (0 … inf) → (alpha, sigma_t) = (1 - s, s)."""
        if math.isinf(sigma):
            return 0.0, 1.0
        return 1.0 / (1.0 + sigma), sigma / (1.0 + sigma)

    def time(self, sigma: float) -> float:
        """The time of the ODE that Heun's method solves: s, over x."""
        return self.alpha_sigma(sigma)[1]


Schedule = DiscreteSchedule | FlowSchedule | EDMSchedule
"""Tagged by `type`. `alpha_sigma(sigma)` gives the form of a level's latents, `time(sigma)` the
time of the probability flow ODE."""


def alphas_cumprod(schedule: DiscreteSchedule) -> list[float]:
    """ᾱ_t = Π (1 - β) for each training timestep, each a float32 value; the last is 0 with
    `rescale_betas_zero_snr`."""
    return [float(a) for a in _alphas_cumprod(schedule)]


def sigmas(schedule: DiscreteSchedule) -> list[float]:
    """sigma for each training timestep, each a float32 value; all finite: at zero terminal SNR, ᾱ
    stays at 2**-24 and sigma at 4096."""
    return [float(s) for s in _sigmas(schedule)]


def sigma_of(alpha_cumprod: float) -> float:
    """ᾱ (0 … 1) → noise level sigma, infinite for ᾱ = 0."""
    if alpha_cumprod == 0.0:
        return math.inf
    return math.sqrt((1.0 - alpha_cumprod) / alpha_cumprod)


def sigma_to_timestep(schedule: DiscreteSchedule, levels: list[float]) -> list[float]:
    """Noise levels → fractional timesteps, by linear interpolation of log sigma over the
    training timesteps (`sigmas`); levels outside the schedule get its ends."""
    table = _sigmas(schedule)
    log_table = np.log(table)
    log_sigma = np.log(np.maximum(np.asarray(levels, np.float64), 1e-10))
    # The last level not above: a zero-SNR table may fall at its very end, since ᾱ is held up there.
    below = log_table[None, :] <= log_sigma[:, None]
    low = len(table) - 1 - np.argmax(below[:, ::-1], axis=1)
    low = np.where(below.any(axis=1), np.minimum(low, len(table) - 2), 0)
    span = (log_table[low] - log_table[low + 1]).astype(np.float64)
    w = np.clip((log_table[low] - log_sigma) / span, 0.0, 1.0)
    return [float(t) for t in (1.0 - w) * low + w * (low + 1)]


def _betas(schedule: DiscreteSchedule) -> npt.NDArray[np.float32]:
    """ "linear": Ho et al. 2020 (arXiv:2006.11239), section 4; "scaled_linear": Rombach et al. 2022
    (arXiv:2112.10752), linear in sqrt(β); "squaredcos_cap_v2": Nichol and Dhariwal 2021
    (arXiv:2102.09672), eq. 17."""
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


def _alphas_cumprod(schedule: DiscreteSchedule) -> npt.NDArray[np.float32]:
    return _cumprod(np.float32(1.0) - _betas(schedule))


def _sigmas(schedule: DiscreteSchedule) -> npt.NDArray[np.float32]:
    alpha = _alphas_cumprod(schedule)
    if schedule.rescale_betas_zero_snr:
        alpha[-1] = _LAST_ALPHA_CUMPROD
    sigma: npt.NDArray[np.float32] = np.sqrt((np.float32(1.0) - alpha) / alpha)
    return sigma


def _variance_preserving(sigma: float) -> tuple[float, float]:
    sigma_t = 1.0 / math.hypot(1.0, 1.0 / sigma) if sigma > 0.0 else 0.0
    return 1.0 / math.hypot(1.0, sigma), sigma_t


def _check_bounds(sigma_min: float | None, sigma_max: float | None) -> None:
    low = 1e-6 if sigma_min is None else sigma_min
    _check(1e-6 <= low < 1e6, "sigma_min", sigma_min, "from 1e-6 to below 1e6, or null")
    if sigma_max is not None:
        _check(low < sigma_max <= 1e6, "sigma_max", sigma_max, f"above {low:g}, up to 1e6, or null")


def _check_solver(order: int, solver_type: str) -> None:
    _check(1 <= order <= 3, "solver_order", order, "1, 2 or 3")
    _choice("solver_type", solver_type, get_args(SolverType))


def _check_timesteps(timesteps: int) -> None:
    ok = 2 <= timesteps <= MAX_TIMESTEPS
    _check(ok, "num_train_timesteps", timesteps, f"from 2 to {MAX_TIMESTEPS}")


def _choice(field: str, value: object, valid: tuple[object, ...]) -> None:
    _check(value in valid, field, value, f"one of {', '.join(map(repr, valid))}")


def _check(ok: bool, field: str, value: object, expected: str) -> None:
    if not ok:
        raise BundleError(
            f"schedule: {field} is {value!r}, expected {expected}: export the bundle again"
        )
