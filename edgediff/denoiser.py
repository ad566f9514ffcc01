"""From the network's prediction to x0: prediction type, guidance, and one image at a time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgediff.checks import is_number
from edgediff.errors import InputError, Name, Value
from edgediff.plan import Plan
from edgediff.schedule import PredictionType, alpha_sigma
from edgediff.step import Latents

_Inputs = dict[str, npt.NDArray[np.float32]]
_Row = tuple[npt.NDArray[np.float32], _Inputs]
"""One image's encoder_hidden_states and further inputs, or a batch of two for guidance."""


class UNet(Protocol):
    """The network, behind whatever runs it.

    sample (m, c, h, w) float32, timestep, encoder_hidden_states (m, t, d) float32, and any further
    inputs by name, each (m, …) float32 → prediction (m, c, h, w) float32. m is 1 or 2. The timestep
    is a Python float (euler's may be fractional); the callee casts it to the graph's dtype.

    Read-only arrays do not change as long as they live, so that they need reach a device once."""

    def __call__(
        self,
        sample: Latents,
        timestep: float,
        encoder_hidden_states: npt.NDArray[np.float32],
        extra: Mapping[str, npt.NDArray[np.float32]],
        /,
    ) -> Latents: ...


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What the images should show (or should not), as the text encoder put it.

    encoder_hidden_states: (n, t, d) float32, one for each image, or (1, t, d) for all.
    extra: further inputs of the network by name, each (n, …) or (1, …) float32.
    """

    encoder_hidden_states: npt.NDArray[np.float32]
    extra: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)


class Denoiser:
    """`denoise(x, sigma) -> x0` for one network, one plan and one set of prompts.

    unet: see `UNet`.
    plan: the noise levels that will be asked for, and the timestep of each.
    prediction_type: what the network predicts; see NoiseSchedule.
    prompt, negative: one Conditioning each; `negative` may be None where it is not needed.
    guidance_scale: 1 or below runs the prompt alone; above, Ho and Salimans 2022
        (arXiv:2207.12598), eq. 6, in the form uncond + guidance_scale·(cond - uncond), evaluated
        as one batch of two.
    guidance_embedding_dim: the size of the network's input `timestep_cond` where it has one, which
        takes the guidance scale as an embedding instead: the prompt alone runs, at any scale.
    guidance_rescale: phi of Lin et al. 2023 (arXiv:2305.08891), section 3.4, from 0 (off) to 1: the
        share of the guided prediction that is scaled back to the prompt's standard deviation.
    guidance_interval: guidance acts from the first to before the second fraction of the plan's
        steps, Kynkäänniemi et al. 2024 (arXiv:2404.07724); outside, the prompt alone runs, which
        costs half.
    beside: what the network takes beside the latents, along the channels: (n, k, h, w) float32, or
        (1, k, h, w) for all images; the same under guidance.

    Images run one by one, so each is bit for bit what it would be alone.

    Raises InputError for a guidance scale that is not finite or lacks its negative prompt, for a
    rescale or an interval out of range, and for inputs that do not go together.
    """

    def __init__(
        self,
        unet: UNet,
        *,
        plan: Plan,
        prediction_type: PredictionType,
        prompt: Conditioning,
        negative: Conditioning | None = None,
        guidance_scale: float = 1.0,
        guidance_embedding_dim: int | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        beside: Latents | None = None,
    ) -> None:
        self._unet = unet
        self._timesteps = plan.timesteps
        self._prediction_type = prediction_type
        self._guidance_scale = float(guidance_scale)
        self._guidance_rescale = check_rescale(guidance_rescale)
        interval = check_interval(guidance_interval)
        rows = [_row(prompt, k) for k in range(_check_rows(prompt, "prompt"))]
        self._guided: dict[float, bool] = {}  # sigma → whether guidance acts there
        self._pairs: list[_Row] = []
        if needs_negative(guidance_scale, guidance_embedding_dim):
            if negative is None:
                raise InputError(
                    f"guidance_scale is {guidance_scale} but there is no negative prompt:"
                    " encode one (it may be empty), or set guidance_scale to 1"
                )
            count = _check_rows(negative, "negative prompt")
            if count not in (1, len(rows)) and len(rows) != 1:
                raise InputError(
                    f"{count} negative prompts for {len(rows)} prompts: give one, or one for each"
                )
            against = [_row(negative, k) for k in range(count)]
            pairs = max(count, len(rows))
            rows = [rows[k % len(rows)] for k in range(pairs)]
            self._pairs = [_frozen(_stack(against[k % count], row)) for k, row in enumerate(rows)]
            self._guided = _guided_levels(plan, interval)
        if guidance_embedding_dim is not None:
            embedding = guidance_embedding(guidance_scale, guidance_embedding_dim)
            rows = [(states, {**extra, "timestep_cond": embedding}) for states, extra in rows]
        self._rows = [_frozen(row) for row in rows]
        self._beside = beside

    def __call__(self, x: Latents, sigma: float) -> Latents:
        """Latents x (n, c, h, w) float32 at noise level sigma → x0 (n, c, h, w) float32.

        x is in variance-preserving form: alpha·x0 + sigma_t·eps, see `edgediff.samplers`.
        Raises InputError for a sigma outside the plan and for another number of images."""
        timestep = self._timesteps.get(sigma)
        if timestep is None:
            raise InputError(f"sigma is {sigma}: not a noise level of the plan given")
        if len(self._rows) not in (1, len(x)):
            raise InputError(
                f"{len(x)} latents for {len(self._rows)} prompts: give one prompt, or one for each"
            )
        guided = self._guided.get(sigma, False)
        rows = self._pairs if guided else self._rows
        x0 = np.empty_like(x)
        for k in range(len(x)):
            one = x[k : k + 1]
            beside = None if self._beside is None else self._beside[k % len(self._beside)][None]
            out = self._predict(one, beside, timestep, rows[k % len(rows)], guided)
            x0[k] = self._x0(one, sigma, out)
        return x0

    def _predict(
        self, x: Latents, beside: Latents | None, timestep: float, row: _Row, guided: bool
    ) -> Latents:
        states, extra = row
        sample = x if beside is None else np.concatenate((x, beside), axis=1)
        if guided:
            sample = np.concatenate((sample, sample))
        out = self._unet(sample, timestep, states, extra)
        if out.shape != (len(sample), *x.shape[1:]):
            raise InputError(
                f"the network turned latents {sample.shape} into {out.shape}: it must predict one"
                " value for each; models that also predict a variance are not supported"
            )
        if not guided:
            return out
        uncond, cond = out[:1], out[1:]
        both = cond - uncond
        both *= self._guidance_scale
        both += uncond
        if self._guidance_rescale > 0.0:
            both *= _rescale(both, cond, self._guidance_rescale)
        return both

    def _x0(self, x: Latents, sigma: float, out: Latents) -> Latents:
        """Salimans and Ho 2022 (arXiv:2202.00512), section 4 and appendix D."""
        alpha, sigma_t = alpha_sigma(sigma)
        if self._prediction_type == "sample":
            return out
        if self._prediction_type == "v_prediction":
            x0 = x * alpha
            x0 -= out * sigma_t
            return x0
        x0 = x - out * sigma_t
        x0 /= alpha
        return x0


def needs_negative(guidance_scale: float, guidance_embedding_dim: int | None = None) -> bool:
    """Whether a Denoiser of this guidance evaluates the negative prompt as well.

    Raises InputError where guidance_scale is not a finite number."""
    if not math.isfinite(guidance_scale):
        raise InputError(f"guidance_scale is {guidance_scale}: give a finite number")
    return guidance_scale > 1.0 and guidance_embedding_dim is None


def check_rescale(guidance_rescale: float) -> float:
    """Raise InputError unless it is a number from 0 to 1."""
    if not is_number(guidance_rescale) or not 0.0 <= guidance_rescale <= 1.0:  # nan too
        raise InputError(
            Name("guidance_rescale"),
            f" is {guidance_rescale!r}: give a number from 0 (off) to 1",
        )
    return float(guidance_rescale)


def check_interval(guidance_interval: Sequence[float]) -> tuple[float, float]:
    """Raise InputError unless it is two rising fractions, from 0 to 1."""
    pair = tuple(guidance_interval) if isinstance(guidance_interval, Sequence) else ()
    if len(pair) != 2 or not all(map(is_number, pair)) or not 0.0 <= pair[0] < pair[1] <= 1.0:
        raise InputError(
            Name("guidance_interval"),
            " is ",
            Value("guidance_interval", guidance_interval),
            ": give where guidance starts and where it ends, as rising fractions of the steps, such"
            " as ",
            Value("guidance_interval", (0.0, 0.8)),
        )
    return float(pair[0]), float(pair[1])


def guided_steps(interval: tuple[float, float], steps: int) -> tuple[int, ...]:
    """Which of so many steps, counted from 0, begin inside the interval."""
    start, end = interval
    return tuple(k for k in range(steps) if start <= k / steps < end)


def _guided_levels(plan: Plan, interval: tuple[float, float]) -> dict[float, bool]:
    """sigma → whether it belongs to a step of the interval, for each that the sampler visits."""
    guided = guided_steps(interval, len(plan.steps))
    return {sigma: k in guided for k, step in enumerate(plan.steps) for sigma in step.timesteps}


def _rescale(guided: Latents, cond: Latents, phi: float) -> float:
    """Lin et al. 2023, eq. 15 and 16, as one factor. A prediction that is the same everywhere has
    no deviation to scale."""
    deviation = float(guided.std(dtype=np.float64))
    if deviation == 0.0:
        return 1.0
    return phi * float(cond.std(dtype=np.float64)) / deviation + (1.0 - phi)


def guidance_embedding(guidance_scale: float, dim: int) -> npt.NDArray[np.float32]:
    """Guidance scale → its embedding (1, dim) float32, for a network's input `timestep_cond`.

    Luo et al. 2023 (arXiv:2310.04378), section 4.2: sines, then cosines, of w = guidance_scale - 1
    over dim / 2 frequencies; an odd dim ends in 0. Raises InputError for a dim below 4."""
    half = dim // 2
    if half < 2:
        raise InputError(f"guidance embedding of size {dim}: it must be 4 or more")
    # The phase reaches thousands, where float32 rounding shows: round where training did.
    w = np.float32(guidance_scale - 1.0) * np.float32(1000.0)
    rate = np.float32(-math.log(10000.0)) / np.float32(half - 1)
    frequency = np.exp((np.arange(half, dtype=np.float32) * rate).astype(np.float64))
    phase = w * frequency.astype(np.float32)
    out = np.zeros((1, dim), np.float32)
    out[0, :half] = np.sin(phase)
    out[0, half : 2 * half] = np.cos(phase)
    return out


def _check_rows(conditioning: Conditioning, name: str) -> int:
    """The number of images that a Conditioning is for. Raises InputError where its parts differ."""
    count = len(conditioning.encoder_hidden_states)
    for key, value in conditioning.extra.items():
        if len(value) not in (1, count):
            raise InputError(f"{name}: {key} has {len(value)} rows, the text embedding {count}")
    if count == 0:
        raise InputError(f"{name}: the text embedding has no rows: give at least one")
    return count


def _row(conditioning: Conditioning, k: int) -> _Row:
    extra = {name: value[k % len(value)][None] for name, value in conditioning.extra.items()}
    return conditioning.encoder_hidden_states[k : k + 1], extra


def _frozen(row: _Row) -> _Row:
    states, extra = row
    return read_only(states), {name: read_only(value) for name, value in extra.items()}


def read_only(array: Latents) -> Latents:
    """The same values, which nothing changes from now on: see `UNet`."""
    view = array.view()
    view.flags.writeable = False
    return view


def _stack(uncond: _Row, cond: _Row) -> _Row:
    """Two rows of inputs → one batch of two. Raises InputError where they do not match."""
    if uncond[0].shape != cond[0].shape or uncond[1].keys() != cond[1].keys():
        raise InputError(
            f"negative prompt is {uncond[0].shape} with {sorted(uncond[1])}, prompt is"
            f" {cond[0].shape} with {sorted(cond[1])}: encode both the same way"
        )
    extra = {name: np.concatenate((uncond[1][name], cond[1][name])) for name in cond[1]}
    return np.concatenate((uncond[0], cond[0])), extra
