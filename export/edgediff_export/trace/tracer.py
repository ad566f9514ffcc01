"""From a component to a checked float32 graph: load, run the fixtures, trace, compare."""

import gc
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.bundle.latent import LatentSpec
from edgediff.bundle.manifest import Defaults, GraphSpec, StageFidelity
from edgediff.bundle.tensor_names import SAMPLE
from edgediff.errors import ExportError
from edgediff.text.tokenizer import Tokenizer
from edgediff_export.fidelity.cases import Case, Named
from edgediff_export.fidelity.measure import FLOAT_LIMIT, judge, measure
from edgediff_export.graph.write import graph_spec, write_graph
from edgediff_export.source.controlnet import ControlNet
from edgediff_export.source.pipeline import Source
from edgediff_export.trace import fixtures
from edgediff_export.trace.controlled_unet import find_joins, write_controlled
from edgediff_export.trace.reference import run_torch
from edgediff_export.trace.stage import UNET, Stage, controlled, network_stage
from edgediff_export.trace.to_onnx import trace


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A traced stage: its float32 graph on disk, and the cases that torch ran, with all the inputs
    of the torch module.

    overflows: whether it is known to give wrong results in float16."""

    spec: GraphSpec
    torch_cases: list[Case]
    fidelity: StageFidelity
    parameters: int
    overflows: bool = False

    @property
    def cases(self) -> list[Case]:
        """The cases as the graph takes them."""
        return taken_by(self.spec, self.torch_cases)


def taken_by(spec: GraphSpec, cases: Sequence[Case]) -> list[Case]:
    """The cases without the inputs that the graph does not have: tracing drops an input that no
    output depends on, such as the text of a control network without attention."""
    return [
        replace(case, inputs={k: v for k, v in case.inputs.items() if spec.input(k) is not None})
        for case in cases
    ]


@dataclass(frozen=True, kw_only=True)
class Tracer:
    """Traces the stages of one source into `floats`, in the order in which they run.

    tokenizers: of each text encoder, in the order in which the UNet reads their outputs.
    timesteps: two of those that the UNet was trained for, near both ends."""

    source: Source
    tokenizers: Mapping[str, Tokenizer]
    latent: LatentSpec
    defaults: Defaults
    timesteps: tuple[float, float]
    floats: Path
    scratch: Path
    networks: Mapping[str, ControlNet] = field(default_factory=dict)
    """Control networks by the names of their stages."""

    def trace(self, stage: Stage, done: Mapping[str, Traced]) -> Traced:
        """Load a component, run the fixtures through it, trace it, let go of it, check the graph.

        done: the stages before. Raises ExportError, also if graph and torch differ."""
        inputs = self._inputs(stage, done)
        module = self._load(stage)
        parameters = sum(p.numel() for p in module.parameters())
        cases = run_torch(module, stage, inputs)
        example = _example(cases[0].inputs)
        if stage.role == "denoiser":
            example[SAMPLE] = _odd_latents(self.source.unet, example[SAMPLE])
        shapes = {k: v.shape for k, v in cases[0].outputs.items()}
        self.scratch.mkdir()
        model = trace(module, stage, example, shapes, self.scratch)
        del module
        gc.collect()
        path = self.floats / f"{stage.name}.onnx"
        data = write_graph(model, path)
        spec = graph_spec(model, path, data, "fp32", stage.role)
        network = self.networks.get(stage.component)
        if network is not None and network.pools:
            spec = replace(spec, conditional_only=True)
        del model
        gc.collect()
        shutil.rmtree(self.scratch)
        return Traced(
            spec=spec,
            torch_cases=cases,
            fidelity=self._judged(stage, spec, cases),
            parameters=parameters,
            overflows=self.source.overflows(stage.component),
        )

    def trace_controlled(self, network: ControlNet, done: Mapping[str, Traced]) -> Traced:
        """The UNet with a control network's residuals as inputs: made of its own float graph, and
        compared with torch. Raises ExportError as `trace`."""
        of = done[network_stage(network).name]
        stage = controlled(UNET, network)
        module = self._load(stage)
        inputs = fixtures.controlled_inputs(done[UNET.name].torch_cases, of.torch_cases)
        cases = run_torch(module, stage, inputs)
        del module
        gc.collect()
        spec = write_controlled(
            self.floats, done[UNET.name].spec, find_joins(self.floats), of.spec.outputs
        )
        return Traced(
            spec=spec,
            torch_cases=cases,
            fidelity=self._judged(stage, spec, cases),
            parameters=done[UNET.name].parameters,
        )

    def _load(self, stage: Stage) -> Any:
        network = self.networks.get(stage.component)
        return self.source.load(stage.component) if network is None else network.load()

    def _judged(self, stage: Stage, spec: GraphSpec, cases: Sequence[Case]) -> StageFidelity:
        error, max_abs_error = measure(self.floats / spec.file, spec, taken_by(spec, cases))
        if not error <= FLOAT_LIMIT:
            raise ExportError(
                f"{stage.name}: the exported graph differs from torch by {error:.1e} of its"
                f" output's norm, more than {FLOAT_LIMIT:.0e}: report this with the"
                " pipeline's configs"
            )
        return judge(error, max_abs_error, "fp32")

    def _inputs(self, stage: Stage, done: Mapping[str, Traced]) -> Mapping[str, Named]:
        """The fixtures of a stage."""
        if stage.component in self.networks:
            return fixtures.network_inputs(done[UNET.name].torch_cases, self.latent)
        side = fixtures.sample_side(self.source.unet)
        if stage.name in self.tokenizers:
            tokens = [learned.token for learned in self.source.embeddings]
            return fixtures.text_encoder_inputs(self.tokenizers[stage.name], tokens)
        if stage.role == "denoiser":
            return fixtures.unet_inputs(
                self.source.unet,
                [done[name].torch_cases for name in self.tokenizers],
                guidance_scale=self.defaults.guidance_scale,
                size=(self.defaults.width, self.defaults.height),
                timesteps=self.timesteps,
            )
        if stage.role == "encoder":
            return fixtures.vae_encoder_inputs(self.latent, side)
        return fixtures.vae_decoder_inputs(self.latent, side)


def _example(inputs: Named) -> dict[str, Any]:
    """Inputs to trace with: a case's, in a batch of two, so that no batch of one is baked in."""
    import torch

    return {
        k: torch.from_numpy(np.concatenate([v, v]) if np.ndim(v) else np.asarray(v))
        for k, v in inputs.items()
    }


def _odd_latents(config: Mapping[str, Any], sample: Any) -> Any:
    """Latents like `sample` whose sides the UNet cannot halve evenly. Traced with these, it resizes
    to the size of each skip connection, and so takes latents of any size."""
    side = 2 ** (len(config["block_out_channels"]) - 1)
    return sample.new_zeros((*sample.shape[:2], 2 * side + 1, 2 * side + 3))
