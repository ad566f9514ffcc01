"""The UNet under control: control networks first, and what they give into the UNet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgediff.bundle import Manifest, TensorSpec
from edgediff.conditioning import RunStage, timestep_input
from edgediff.control import NETWORK, Control
from edgediff.denoiser import UNet
from edgediff.samplers import Latents
from edgediff.schedule import Plan

Residuals = dict[str, npt.NDArray[np.float32]]
_HALVINGS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class _Network:
    """A control network in one call. cond: its picture, (1, 3, h, w) float32 in [0, 1].
    timesteps: those at which it runs."""

    stage: str
    cond: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    timesteps: frozenset[float]


class ControlledUNet:
    """A `denoiser.UNet` that control networks steer.

    unet: the UNet that takes their residuals among its further inputs.
    controls: opened ones, by the networks' names; at least one, and of one size.
    Residuals of several networks add up; on steps where none runs they are zero."""

    def __init__(
        self,
        manifest: Manifest,
        unet: UNet,
        run_stage: RunStage,
        controls: Mapping[str, Control],
        plan: Plan,
        size: tuple[int, int],
    ) -> None:
        self._graphs = manifest.graphs
        self._channels = manifest.latent.channels
        self._unet = unet
        self._run_stage = run_stage
        steps = [step.timestep for step in plan.steps]
        self._networks = [
            _Network(
                stage=NETWORK + name,
                cond=control.pixels(*size),
                scale=np.array(control.scale, np.float32),
                timesteps=frozenset(t for i, t in enumerate(steps) if control.acts(i, len(steps))),
            )
            for name, control in controls.items()
        ]

    def __call__(
        self,
        sample: Latents,
        timestep: float,
        encoder_hidden_states: npt.NDArray[np.float32],
        extra: Mapping[str, npt.NDArray[np.float32]],
        /,
    ) -> Latents:
        """One evaluation, as `denoiser.UNet` describes it."""
        total: Residuals = {}
        for network in self._networks:
            if timestep in network.timesteps:
                found = self._residuals(network, sample, timestep, encoder_hidden_states, extra)
                total = {k: total[k] + v for k, v in found.items()} if total else found
        if not total:
            outputs = self._graphs[self._networks[0].stage].outputs
            total = {spec.name: zeros(spec, sample.shape) for spec in outputs}
        return self._unet(sample, timestep, encoder_hidden_states, {**extra, **total})

    def _residuals(
        self,
        network: _Network,
        sample: Latents,
        timestep: float,
        encoder_hidden_states: npt.NDArray[np.float32],
        extra: Mapping[str, npt.NDArray[np.float32]],
    ) -> Residuals:
        graph = self._graphs[network.stage]
        rows = len(sample)
        inputs: dict[str, npt.NDArray[Any]] = {
            # An inpainting UNet has further channels, which say nothing to a control network.
            "sample": sample[:, : self._channels],
            "timestep": timestep_input(graph, timestep),
            "encoder_hidden_states": encoder_hidden_states,
            "controlnet_cond": np.repeat(network.cond, rows, axis=0),
            "conditioning_scale": network.scale,
        }
        for name, value in extra.items():
            if graph.input(name) is not None:  # SDXL's further conditioning, but no guidance scale
                inputs[name] = np.repeat(value, rows // len(value), axis=0)
        return self._run_stage(network.stage, inputs)


def zeros(spec: TensorSpec, sample: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """A residual of zeros for a sample of shape (m, c, h, w); `spec` names its sides "height_4" and
    the like where they are a quarter, rounded up."""
    m, _, h, w = sample
    sides = {"batch": m}
    for k in _HALVINGS:
        suffix = "" if k == 1 else f"_{k}"
        sides |= {f"height{suffix}": -(-h // k), f"width{suffix}": -(-w // k)}
    return np.zeros([d if isinstance(d, int) else sides[d] for d in spec.shape], np.float32)
