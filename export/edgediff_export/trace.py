"""Torch modules to float32 graphs, through optimum's exporter, one stage at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgediff.errors import ExportError, first_line
from edgediff_export.quiet import quiet
from edgediff_export.tidy import tidy

OPSET = 18

Axes = Mapping[str, Mapping[int, str]]


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A stage's inputs and outputs: name → {axis: the name of its free dimension}."""

    inputs: Axes
    outputs: Axes


CONTRACTS = {
    "text_encoder": Contract(
        inputs={"input_ids": {0: "batch"}},
        outputs={"last_hidden_state": {0: "batch"}},
    ),
    "unet": Contract(
        inputs={
            "sample": {0: "batch", 2: "height", 3: "width"},
            "timestep": {},
            "encoder_hidden_states": {0: "batch", 1: "sequence"},
        },
        outputs={"out_sample": {0: "batch", 2: "height", 3: "width"}},
    ),
    "vae_decoder": Contract(
        inputs={"latent_sample": {0: "batch", 2: "height", 3: "width"}},
        outputs={"sample": {0: "batch", 2: "picture_height", 3: "picture_width"}},
    ),
}
"""`height` and `width` count latents. timestep is a float32 scalar, since some samplers stop
between the timesteps of training."""


def trace(module: Any, stage: str, example: Mapping[str, Any], work: Path) -> ir.Model:
    """A stage's torch module → its float32 graph, whose weights lie in files under `work`.

    example: the stage's inputs by name, torch tensors; the shapes and dtypes that are not free.
    work: an existing folder; it must outlive the graph.

    Raises ExportError where the module cannot be traced."""
    contract = CONTRACTS[stage]
    if "timestep_cond" in example:
        contract = Contract(
            inputs={**contract.inputs, "timestep_cond": {0: "batch"}}, outputs=contract.outputs
        )
    path = work / f"{stage}.onnx"
    with quiet():
        from optimum.exporters.onnx.convert import export

        config = _stage_config(module.config, contract, example)
        if stage == "vae_decoder":
            module.forward = lambda latent_sample: module.decode(latent_sample)
        try:
            export(module, config, path, opset=OPSET, disable_dynamic_axes_fix=True)
        except OSError:
            raise
        except Exception as e:  # the exporter and torch raise anything
            raise ExportError(f"{stage}: cannot be traced ({first_line(e)})") from e
    model = ir.load(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        free = {**contract.inputs, **contract.outputs}[value.name or ""]
        if value.shape is None:
            raise ExportError(f"{stage}: {value.name} has no shape: the exporter has changed")
        # The exporter names what it could not infer after its own nodes.
        value.shape = ir.Shape(
            [free.get(i, d if isinstance(d, int) else None) for i, d in enumerate(value.shape)]
        )
        unknown = [i for i, d in enumerate(value.shape) if i not in free and not isinstance(d, int)]
        if unknown:
            value.shape = _known_shape(value, unknown, module, stage)
    return tidy(model)


def _known_shape(value: ir.Value, unknown: list[int], module: Any, stage: str) -> ir.Shape:
    """Fill in a fixed dimension that the exporter lost: only an output's channels can be."""
    channels = {
        "text_encoder": lambda: {
            1: module.config.max_position_embeddings,
            2: module.config.hidden_size,
        },
        "unet": lambda: {1: module.config.out_channels},
        "vae_decoder": lambda: {1: module.config.out_channels},
    }[stage]()
    dims = list(value.shape or [])
    for i in unknown:
        dims[i] = channels[i]
    return ir.Shape(dims)


def _stage_config(config: Any, contract: Contract, example: Mapping[str, Any]) -> Any:
    """Optimum's description of a stage, made of ours. Its own cannot describe AutoencoderTiny, and
    take their example inputs at full size, which costs minutes and gigabytes."""
    from optimum.exporters.onnx.base import OnnxConfig
    from optimum.utils import NormalizedConfig

    class StageConfig(OnnxConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedConfig
        DUMMY_INPUT_GENERATOR_CLASSES = ()

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {name: dict(axes) for name, axes in contract.inputs.items()}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {name: dict(axes) for name, axes in contract.outputs.items()}

        @property
        def torch_to_onnx_output_map(self) -> dict[str, str]:
            return {"sample": "out_sample"} if "out_sample" in contract.outputs else {}

        def generate_dummy_inputs(self, **_: Any) -> dict[str, Any]:
            return dict(example)

    return StageConfig(config, task="semantic-segmentation")
