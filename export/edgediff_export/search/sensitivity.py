"""How much each layer costs: one graph in which int8 activations are switched on layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from edgediff_export.graph.build import Builder
from edgediff_export.graph.observe import session
from edgediff_export.targets.cpu.calibration import rounding_error
from edgediff_export.targets.cpu.dense import Format
from edgediff_export.targets.cpu.passes import Choices, layers, write_out
from edgediff_export.targets.cpu.prepare import quantizable

SWITCHES = "int8_layers"


@dataclass(kw_only=True)
class Probe:
    """A stage whose weights are int8 and whose activations are, for the layers in `on`.

    names: the layers that can be switched, in order."""

    running: ort.InferenceSession
    names: tuple[str, ...]
    on: set[str] = field(default_factory=set)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Like `Session.run`."""
        switches = np.array([n in self.on for n in self.names], np.float32)
        outputs = [o.name for o in self.running.get_outputs()]
        values = self.running.run(outputs, {**inputs, SWITCHES: switches})
        return dict(zip(outputs, values, strict=True))


def make_probe(restructured: ir.Model, source: Path) -> Probe:
    """The probe of a restructured graph, which is left as it is; `source` as in `calibrate`."""
    model = restructured.clone()
    graph = model.graph
    found = [layer for layer in layers(model) if quantizable(layer)]
    switches = ir.Value(
        name=SWITCHES,
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([len(found)]),
    )
    graph.inputs.append(switches)
    errors: dict[ir.Value, ir.Value] = {}
    for k, layer in enumerate(found):
        builder = Builder(graph, layer.node)
        x = layer.x
        if x not in errors:
            errors[x] = rounding_error(builder, x)
        switch = builder.op("Gather", [switches, builder.constant(k, np.int64)], {"axis": 0})
        mixed = builder.op("Add", [x, builder.op("Mul", [errors[x], switch])])
        mixed.type, mixed.shape = x.type, x.shape
        layer.node.replace_input_with(0, mixed)
    formats: dict[str, Format] = {layer.name: "int8-weights" for layer in found}
    write_out(model, Choices(formats=formats))
    with session(model, source, {"session.disable_quant_qdq": "1"}) as running:
        return Probe(running=running, names=tuple(layer.name for layer in found))


def mean_square(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """The mean of (a − b)² in float64."""
    return float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
