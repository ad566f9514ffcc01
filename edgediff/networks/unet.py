"""A bundle's denoiser: the graph that predicts noise, x0 or velocity from noisy latents."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgediff.arrays import Array
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.manifest import GraphSpec, Stage
from edgediff.bundle.tensor_names import (
    ENCODER_HIDDEN_STATES,
    SAMPLE,
    TIMESTEP,
)


class GraphUNet:
    """A `denoiser.UNet` that runs a graph of the bundle."""

    def __init__(self, stage: Stage, run_stage: RunStage) -> None:
        self._graph = stage.graph
        self._run_stage = run_stage
        self._stage = stage.name

    def __call__(
        self,
        sample: Array,
        timestep: float,
        encoder_hidden_states: Array,
        extra: Mapping[str, Array],
        /,
    ) -> Array:
        """One evaluation, see `denoiser.UNet`."""
        outputs = self._run_stage(
            self._stage,
            taken(
                self._graph,
                {
                    SAMPLE: sample,
                    TIMESTEP: timestep_input(self._graph, timestep),
                    ENCODER_HIDDEN_STATES: encoder_hidden_states,
                    **{name: batched(value, len(sample)) for name, value in extra.items()},
                },
            ),
        )
        return outputs[self._graph.outputs[0].name]


def taken(graph: GraphSpec, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Those of the inputs that the graph has: an export drops an input that no output depends on,
    such as the prompt of a control network without attention."""
    return {name: value for name, value in inputs.items() if graph.input(name) is not None}


def timestep_input(graph: GraphSpec, timestep: float) -> npt.NDArray[Any]:
    """The timestep in the graph's dtype, as a scalar or a vector of one, as the graph takes it.
    Raises BundleError if the graph has no such input."""
    spec = graph.require_input(TIMESTEP)
    value = np.asarray(timestep, dtype=spec.dtype)
    return value.reshape((1,) * len(spec.shape))


def batched(value: Array, rows: int) -> Array:
    """(1, …) or (rows, …) → (rows, …): one row is repeated."""
    return value if len(value) == rows else np.repeat(value, rows // len(value), axis=0)
