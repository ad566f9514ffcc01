"""How much each layer costs: int8 activations are switched on layer by layer, in one graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

import edgediff
from edgediff.bundle.folder import Bundle
from edgediff.bundle.tensor_names import LATENT_SAMPLE, SAMPLE
from edgediff_export.fidelity.cases import Array
from edgediff_export.fidelity.shots import Shot, trajectory
from edgediff_export.graph.build import Builder
from edgediff_export.graph.observe import session
from edgediff_export.progress import Reporter
from edgediff_export.targets.cpu.calibration import rounding_error
from edgediff_export.targets.cpu.dense import Format
from edgediff_export.targets.cpu.passes import Choices, layers, write_out
from edgediff_export.targets.cpu.prepare import Prepared, quantizable

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


def layer_costs(
    prepared: Mapping[str, Prepared], floats: Path, shots: Sequence[Shot], report: Reporter
) -> dict[str, float]:
    """`stage/weight` → mean square error of the images, as far as latents show it, for each
    multiplication in bytes.

    floats: the float bundle. shots: of which the first are run, in a few steps."""
    # An encoder's layers cost nothing, and go to int4 first: no image passes through it.
    manifest = Bundle.open(floats).manifest
    stages = [stage for stage in prepared if manifest.graphs[stage].role != "encoder"]
    decoder = manifest.decoder.name
    probes = {stage: make_probe(prepared[stage].model, prepared[stage].source) for stage in stages}
    work = {(stage, y.name): p.work(y) for stage, p in prepared.items() for y in p.layers}
    short = [replace(shot, steps=min(shot.steps, 4)) for shot in shots[:2]]

    def probed(stage: str, inputs: dict[str, Array]) -> dict[str, Array]:
        return probes[stage].run(inputs)

    with edgediff.load(floats, provider="cpu", check_hashes=False) as pipe:

        def latents() -> list[Array]:
            runs = [trajectory(pipe, shot, lambda _: probed) for shot in short]
            return [list(run)[-1].latents for run in runs]

        def pixels(of: list[Array]) -> list[Array]:
            return [probed(decoder, {LATENT_SAMPLE: pipe.decoder_input(x)})[SAMPLE] for x in of]

        exact = latents()
        shown = pixels(exact)
        # How an error of the latents shows in pixels: from all of the UNet's layers at once.
        unet = probes[manifest.denoiser.name]
        unet.on = set(unet.names)
        far = latents()
        ratio = _error(pixels(far), shown) / max(_error(far, exact), 1e-30)
        unet.on = set()
        costs: dict[str, float] = {}
        works = {stage: 0.1 if stage == decoder else 1.0 for stage in probes}  # only it is run
        total = sum(works[stage] * len(probe.names) for stage, probe in probes.items())
        measuring = report.phase("sensitivity of each layer", total)
        measuring.begin()
        for stage, probe in probes.items():
            for name in probe.names:
                probe.on = {name}
                if stage == decoder:
                    error = _error(pixels(exact), shown)
                else:
                    error = _error(latents(), exact) * ratio
                costs[f"{stage}/{name}"] = error / work[stage, name]
                measuring.advance(works[stage])
            probe.on = set()
    return costs


def _error(a: list[Array], b: list[Array]) -> float:
    return float(np.mean([mean_square(x, y) for x, y in zip(a, b, strict=True)]))
