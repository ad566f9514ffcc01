"""From the network's prediction to x0: prediction type, guidance, and one image at a time."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgediff.arrays import Array
from edgediff.errors import InputError
from edgediff.sampling.guidance import NO_GUIDANCE, Guidance
from edgediff.sampling.plan import Plan

_Inputs = dict[str, Array]
_Row = tuple[Array, _Inputs]
"""One image's encoder_hidden_states and further inputs, or a batch of two for guidance."""


GUIDANCE_EMBEDDING = "timestep_cond"
"""The network's further input that takes `Guidance.embedding`."""


class UNet(Protocol):
    """The network, behind whatever runs it.

    sample (m, c, …) float32, timestep, encoder_hidden_states (m, t, d) float32, and any further
    inputs by name, each (m, …) float32 → prediction (m, c, …) float32. m is 1 or 2. The timestep is
    a Python float (euler's may be fractional); the callee casts it to the graph's dtype.

    Read-only arrays do not change as long as they live, so that they need reach a device once."""

    def __call__(
        self,
        sample: Array,
        timestep: float,
        encoder_hidden_states: Array,
        extra: Mapping[str, Array],
        /,
    ) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Prompts (or negative prompts) as the text encoder turned them into inputs of the network.

    encoder_hidden_states: (n, t, d) float32, one for each image, or (1, t, d) for all.
    extra: further inputs of the network by name, each (n, …) or (1, …) float32.
    """

    encoder_hidden_states: Array
    extra: Mapping[str, Array] = field(default_factory=dict)


class Denoiser:
    """`denoise(x, sigma) -> x0` for one network, one plan and one set of prompts.

    unet: see `UNet`.
    plan: the noise levels that will be asked for, the timestep of each, and, by its schedule, the
        network's prediction.
    prompt, negative: one Conditioning each; `negative` may be None if guidance needs none.
    guidance: see `Guidance`. In the steps at which it acts, both predictions are evaluated as one
        batch of two; the other steps evaluate only the prompt, which costs half.
    extra_channels: taken by the network after those of the latents: (n, k, …) float32, or
        (1, k, …) for all images; the same under guidance.

    Latents have any rank from 3: (n, c, h, w) for images, (n, c, f, h, w) for frames, (n, c, t) for
    one-dimensional ones such as audio.

    Images run one by one, so each is bit for bit the same in any batch.

    Raises InputError if guidance needs a negative prompt and there is none, and for inputs that do
    not go together.
    """

    def __init__(
        self,
        unet: UNet,
        *,
        plan: Plan,
        prompt: Conditioning,
        negative: Conditioning | None = None,
        guidance: Guidance = NO_GUIDANCE,
        extra_channels: Array | None = None,
    ) -> None:
        self._unet = unet
        self._plan = plan
        self._timesteps = plan.timesteps
        self._guidance = guidance
        rows = [_row(prompt, k) for k in range(_check_rows(prompt, "prompt"))]
        self._guided: dict[float, bool] = {}  # sigma → whether guidance acts there
        self._pairs: list[_Row] = []
        if guidance.needs_negative:
            if negative is None:
                raise InputError(
                    f"guidance_scale is {guidance.scale} but there is no negative prompt:"
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
            self._guided = _guided_levels(plan, guidance)
        embedding = guidance.embedding()
        if embedding is not None:
            rows = [(states, {**extra, GUIDANCE_EMBEDDING: embedding}) for states, extra in rows]
        self._rows = [_frozen(row) for row in rows]
        self._extra_channels = extra_channels

    def __call__(self, x: Array, sigma: float) -> Array:
        """Latents x (n, c, …) float32 at noise level sigma → x0, alike.

        x is alpha·x0 + sigma_t·eps, with the plan's alpha and sigma_t.
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
            channels = self._extra_channels
            own = None if channels is None else channels[k % len(channels)][None]
            out = self._predict(one, own, timestep, rows[k % len(rows)], guided)
            x0[k] = self._x0(one, sigma, out)
        return x0

    def _predict(
        self, x: Array, extra_channels: Array | None, timestep: float, row: _Row, guided: bool
    ) -> Array:
        states, extra = row
        sample = x if extra_channels is None else np.concatenate((x, extra_channels), axis=1)
        if guided:
            sample = np.concatenate((sample, sample))
        out = self._unet(sample, timestep, states, extra)
        if out.shape != (len(sample), *x.shape[1:]):
            raise InputError(
                f"the network turned latents {sample.shape} into {out.shape}: it must predict one"
                " value for each; models that also predict a variance are not supported"
            )
        return self._guidance.combine(out[:1], out[1:]) if guided else out

    def _x0(self, x: Array, sigma: float, out: Array) -> Array:
        """Salimans and Ho 2022 (arXiv:2202.00512), section 4 and appendix D; for the velocity of
        flow matching, Liu et al. 2023 (arXiv:2209.03003), eq. 1; for EDM's F, Karras et al. 2022
        (arXiv:2206.00364), eq. 7, with c_skip = alpha and c_out = sigma_t in units of sigma_data.
        """
        alpha, sigma_t = self._plan.alpha_sigma(sigma)
        match self._plan.schedule.prediction_type:
            case "sample":
                return out
            case "v_prediction":
                x0 = x * alpha
                x0 -= out * sigma_t
            case "epsilon":
                x0 = x - out * sigma_t
                x0 /= alpha
            case "edm":
                x0 = x * alpha
                x0 += out * sigma_t
            case "flow":
                x0 = x - out * sigma_t
        return x0


def _guided_levels(plan: Plan, guidance: Guidance) -> dict[float, bool]:
    """sigma → whether guidance acts there, for each level that the sampler visits."""
    guided = guidance.steps(len(plan.steps))
    return {sigma: k in guided for k, step in enumerate(plan.steps) for sigma in step.timesteps}


def _check_rows(conditioning: Conditioning, name: str) -> int:
    """The number of images that a Conditioning is for. Raises InputError if its parts differ."""
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


def read_only(array: Array) -> Array:
    """A read-only view, for arrays that nothing changes from now on: see `UNet`."""
    view = array.view()
    view.flags.writeable = False
    return view


def _stack(uncond: _Row, cond: _Row) -> _Row:
    """Two rows of inputs → one batch of two. Raises InputError if they do not match."""
    if uncond[0].shape != cond[0].shape or uncond[1].keys() != cond[1].keys():
        raise InputError(
            f"negative prompt is {uncond[0].shape} with {sorted(uncond[1])}, prompt is"
            f" {cond[0].shape} with {sorted(cond[1])}: encode both the same way"
        )
    extra = {name: np.concatenate((uncond[1][name], cond[1][name])) for name in cond[1]}
    return np.concatenate((uncond[0], cond[0])), extra
