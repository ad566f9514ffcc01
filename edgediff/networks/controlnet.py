"""Control networks, which steer a denoiser (Zhang et al. 2023, arXiv:2302.05543)."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgediff.arrays import Array
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.latent import LatentSpec
from edgediff.bundle.manifest import Manifest, Stage, TensorSpec
from edgediff.bundle.tensor_names import (
    CONTROL_IMAGE,
    CONTROL_SCALE,
    ENCODER_HIDDEN_STATES,
    SAMPLE,
    TIMESTEP,
)
from edgediff.errors import BundleError
from edgediff.networks.unet import GraphUNet, batched, taken, timestep_input
from edgediff.sampling.denoiser import UNet, read_only
from edgediff.sampling.plan import Plan

Residuals = dict[str, Array]


_HALVINGS = (1, 2, 4, 8, 16, 32)


class Steering(Protocol):
    """How a call uses one control network; `edgediff.Control` has this interface."""

    @property
    def scale(self) -> float:
        """The strength of the network: its outputs are multiplied by this."""

    def acts(self, step: int, steps: int) -> bool:
        """Whether the network runs at step `step` (from 0) of `steps`."""

    def pixels(self, width: int, height: int) -> Array:
        """The image to follow: (1, 3, height, width) float32 in [0, 1]."""


def choose_unet(
    manifest: Manifest, run_stage: RunStage, controls: Mapping[str, Steering]
) -> Callable[[Plan], UNet]:
    """The denoiser for a call, as a function of its plan. controls: opened, by the names of their
    networks.

    If no control has an effect it is the plain denoiser, and the controlled one is never loaded.
    Raises BundleError if the bundle has no denoiser that takes the outputs of these networks."""
    acting = {name: c for name, c in controls.items() if c.scale != 0}
    if not acting:
        plain = GraphUNet(manifest.denoiser, run_stage)
        return lambda _: plain
    controlled = manifest.controlled_denoiser
    if controlled is None:
        raise BundleError(
            f"{manifest.name} has no denoiser that control networks can steer: export the bundle"
            " again"
        )
    for name in acting:
        for residual in manifest.controlnets[name].graph.outputs:
            controlled.graph.require_input(residual.name)
    steered = GraphUNet(controlled, run_stage)
    return lambda plan: ControlledUNet(manifest, steered, run_stage, acting, plan)


class ControlledUNet:
    """A `denoiser.UNet` that control networks steer (Zhang et al. 2023, arXiv:2302.05543): their
    outputs for a sample are added to the UNet's skip connections and to its middle block.

    unet: the UNet with these residuals, by name, as further inputs.
    controls: opened, by the names of their networks; at least one.
    plan: gives the timesteps at which each control acts.
    The residuals of several networks add up. They are zero on steps in which no network runs."""

    def __init__(
        self,
        manifest: Manifest,
        unet: UNet,
        run_stage: RunStage,
        controls: Mapping[str, Steering],
        plan: Plan,
    ) -> None:
        self._unet = unet
        self._latent = manifest.latent
        self._zeros: dict[tuple[int, ...], Residuals] = {}
        networks = manifest.controlnets
        self._networks = [
            _Network(networks[name], manifest.latent, run_stage, control, _timesteps(control, plan))
            for name, control in controls.items()
        ]

    def __call__(
        self,
        sample: Array,
        timestep: float,
        encoder_hidden_states: Array,
        extra: Mapping[str, Array],
        /,
    ) -> Array:
        """One evaluation, see `denoiser.UNet`."""
        # A control network takes no mask and no masked image, which an inpainting UNet does.
        latents = sample[:, : self._latent.channels]
        total: Residuals = {}
        for network in self._networks:
            if timestep in network.timesteps:
                found = network(latents, timestep, encoder_hidden_states, extra)
                total = {k: total[k] + v for k, v in found.items()} if total else found
        if not total:
            total = self._no_residuals(sample.shape)
        return self._unet(sample, timestep, encoder_hidden_states, {**extra, **total})

    def _no_residuals(self, sample: tuple[int, ...]) -> Residuals:
        """Zeros for a sample of this shape, made once and read-only."""
        if sample not in self._zeros:
            outputs = self._networks[0].graph.outputs
            self._zeros[sample] = {s.name: _zeros(s, sample) for s in outputs}
        return self._zeros[sample]


class _Network:
    """One control network in one call. timesteps: the timesteps at which it runs."""

    def __init__(
        self,
        stage: Stage,
        latent: LatentSpec,
        run_stage: RunStage,
        control: Steering,
        timesteps: frozenset[float],
    ) -> None:
        self.graph = stage.graph
        self.timesteps = timesteps
        self._stage = stage.name
        self._latent = latent
        self._run_stage = run_stage
        self._control = control
        self._scale = read_only(np.array(control.scale, np.float32))
        self._pixels: dict[tuple[int, ...], Array] = {}

    def __call__(
        self,
        latents: Array,
        timestep: float,
        encoder_hidden_states: Array,
        extra: Mapping[str, Array],
    ) -> Residuals:
        if self.graph.conditional_only and len(latents) == 2:  # guidance: negative, prompt
            halves = {name: value[-1:] for name, value in extra.items()}
            found = self(latents[1:], timestep, encoder_hidden_states[-1:], halves)
            return {k: np.concatenate((np.zeros_like(v), v)) for k, v in found.items()}
        rows = len(latents)
        width, height = self._latent.size(latents.shape)
        if (rows, width, height) not in self._pixels:
            pixels = batched(self._control.pixels(width, height), rows)
            self._pixels[rows, width, height] = read_only(pixels)
        inputs: dict[str, npt.NDArray[Any]] = {
            **{name: batched(value, rows) for name, value in extra.items()},
            SAMPLE: latents,
            TIMESTEP: timestep_input(self.graph, timestep),
            ENCODER_HIDDEN_STATES: encoder_hidden_states,
            CONTROL_IMAGE: self._pixels[rows, width, height],
            CONTROL_SCALE: self._scale,
        }
        return self._run_stage(self._stage, taken(self.graph, inputs))


def _timesteps(control: Steering, plan: Plan) -> frozenset[float]:
    """The timesteps at which a control acts: both of a step whose sampler evaluates twice."""
    steps = plan.steps
    acting = (step for i, step in enumerate(steps) if control.acts(i, len(steps)))
    return frozenset(t for step in acting for t in step.timesteps.values())


def _zeros(spec: TensorSpec, sample: tuple[int, ...]) -> Array:
    """A residual of zeros for a sample of shape (m, c, h, w). In `spec`, "height_4" is a quarter of
    the sample's height, rounded up, and so on."""
    m, _, h, w = sample
    sides = {"batch": m}
    for k in _HALVINGS:
        suffix = "" if k == 1 else f"_{k}"
        sides |= {f"height{suffix}": -(-h // k), f"width{suffix}": -(-w // k)}
    return read_only(np.zeros([d if isinstance(d, int) else sides[d] for d in spec.shape], "f4"))
