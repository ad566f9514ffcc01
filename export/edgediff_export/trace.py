"""Torch modules to float32 graphs, through optimum's exporter, one stage at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgediff.errors import ExportError, first_line
from edgediff_export.quiet import quiet
from edgediff_export.stages import Stage
from edgediff_export.tidy import tidy

OPSET = 18


def trace(
    module: Any,
    stage: Stage,
    example: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    work: Path,
) -> ir.Model:
    """A stage's torch module → its float32 graph, whose weights lie in files under `work`.

    example: the stage's inputs by name, torch tensors; the shapes and dtypes that are not free.
    shapes: output → what is known of its shape where it is not free either.
    work: an existing folder; it must outlive the graph.

    Raises ExportError where the module cannot be traced."""
    path = work / f"{stage.name}.onnx"
    with quiet():
        from optimum.exporters.onnx.convert import export

        config = _stage_config(module.config, stage, example)
        stage.bind(module, list(example))
        try:
            export(module, config, path, opset=OPSET, disable_dynamic_axes_fix=True)
        except OSError:
            raise
        except Exception as e:  # the exporter and torch raise anything
            raise ExportError(f"{stage.name}: cannot be traced ({first_line(e)})") from e
    model = ir.load(path)
    known = {**{k: v.shape for k, v in example.items()}, **shapes}
    _name_dimensions(model.graph, stage, known)
    tidy(model)
    # An output that turned out to be an intermediate value has the shape that was inferred of that.
    _name_dimensions(model.graph, stage, known)
    return model


def _name_dimensions(graph: ir.Graph, stage: Stage, known: Mapping[str, Sequence[int]]) -> None:
    """Give inputs and outputs their shapes; the exporter names what it could not infer after its
    own nodes."""
    for value in (*graph.inputs, *graph.outputs):
        name = value.name or ""
        value.shape = ir.Shape([stage.axes(name).get(i, d) for i, d in enumerate(known[name])])


def _stage_config(config: Any, stage: Stage, example: Mapping[str, Any]) -> Any:
    """Optimum's description of a stage, made of ours. Its own cannot describe AutoencoderTiny, and
    take their example inputs at full size, which costs minutes and gigabytes."""
    from optimum.exporters.onnx.base import OnnxConfig
    from optimum.utils import NormalizedConfig

    class StageConfig(OnnxConfig):  # type: ignore[misc]
        NORMALIZED_CONFIG_CLASS = NormalizedConfig
        DUMMY_INPUT_GENERATOR_CLASSES = ()

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            return {name: dict(stage.axes(name)) for name in example}

        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {name: dict(axes) for name, axes in stage.outputs.items()}

        def generate_dummy_inputs(self, **_: Any) -> dict[str, Any]:
            return dict(example)

    return StageConfig(config, task="semantic-segmentation")
