"""int8 for the CPU: a traced float32 graph → one for ONNX Runtime's CPU provider."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edgediff.backend.create import PRECISE
from edgediff.bundle.tensor_names import LATENT_SAMPLE
from edgediff.errors import ExportError
from edgediff_export.graph.observe import store
from edgediff_export.targets.conversion import Converted, FloatStage
from edgediff_export.targets.cpu.averaged import average_keys_and_values
from edgediff_export.targets.cpu.calibration import Seen, calibrate
from edgediff_export.targets.cpu.dense import Format, Kernel, Layer, Range
from edgediff_export.targets.cpu.kernels import choose_kernels
from edgediff_export.targets.cpu.passes import Choices, layers, restructure, write_out
from edgediff_export.targets.cpu.smoothing import smooth
from edgediff_export.targets.cpu.upsample import merge_upsampling
from edgediff_export.targets.weights import (
    FULL_RANGE,
    REDUCED_RANGE,
    SESSION_CONFIG,
    SMALL,
    quantize_embeddings,
)

FEW = 8
"""Channels; the layers that read the input and write the output have few weights, and are the most
sensitive."""
ACTIVATION_LIMIT = 0.01
"""`Seen.error` beyond which a layer's activations should stay float. Evenly spread values give
0.004 to 0.01; a few large ones, which the scale must cover, give more."""
ACTIVATION_END = 0.1
"""`Seen.error` beyond which they do in any case."""
SPARED = 0.03
"""Share of a stage's multiplications that may stay float for that."""
SMOOTH_ABOVE = 0.007
"""`Seen.error` from which smoothing is tried."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A stage that was restructured, smoothed and watched; `write` makes a graph of it, any number
    of times."""

    model: ir.Model
    source: Path
    layers: tuple[Layer, ...]
    seen: Mapping[str, Seen]
    kernels: Mapping[str, Kernel]
    reduced_range: bool = False
    """Weights of int8 products in 7 bits, whose sums are exact on x86 without VNNI too, by the
    kernels that are fast there."""

    def write(self, formats: Mapping[str, Format] | None = None) -> Converted:
        """The stage with each layer in its format, weight → format; by default in plain int8.

        Raises ExportError if the formats name other layers than there are."""
        formats = self.plain_int8() if formats is None else formats
        unknown = sorted(formats.keys() - {layer.name for layer in self.layers})
        if unknown:
            raise ExportError(
                f"{self.source.stem}: the quantization plan names {unknown[0]}, which is not one of"
                f" its {len(self.layers)} layers: give a plan of this model"
            )
        model = self.model.clone()
        ranges = {
            name: Range(low=s.low, high=s.high, output=s.output)
            for name, s in self.seen.items()
            if self.kernels.get(name) == "direct"
        }
        write_out(
            model,
            Choices(
                formats=formats,
                kernel=lambda layer: self.kernels.get(layer.name, "gather"),
                ranges=ranges,
                levels=REDUCED_RANGE if self.reduced_range else FULL_RANGE,
            ),
        )
        stored: dict[str, str] = {y.name: formats.get(y.name, "fp32") for y in self.layers}
        stored |= dict.fromkeys(quantize_embeddings(model.graph), "int8")
        # Weights that are stored in int8 or float16 but used in float32 are widened when loaded.
        widened = sum(
            y.weight.size * {"int8-weights": 3, "fp16": 2}.get(stored[y.name], 0)
            for y in self.layers
        )
        config = dict(SESSION_CONFIG)
        if self.reduced_range:
            del config[PRECISE]
        return Converted(
            model=model,
            precision="int8",
            formats=stored,
            session_config=config,
            widened=widened,
            direct=self.direct,
            reduced_range=self.reduced_range,
        )

    @property
    def direct(self) -> tuple[str, ...]:
        """The weights of the convolutions whose int8 form writes bytes."""
        return tuple(name for name, kernel in self.kernels.items() if kernel == "direct")

    def plain_int8(self) -> dict[str, Format]:
        """Int8 for every layer of some size, except the worst of those that lose too much by int8
        activations: as many as SPARED allows, those first whose error is large for their work."""
        formats: dict[str, Format] = {
            layer.name: "int8" if quantizable(layer) else "fp32" for layer in self.layers
        }
        able = [layer for layer in self.layers if quantizable(layer) and layer.name in self.seen]
        spared = SPARED * sum(map(self.work, able))
        for layer in sorted(able, key=lambda y: self.seen[y.name].error ** 2 / self.work(y))[::-1]:
            error = self.seen[layer.name].error
            if error <= ACTIVATION_LIMIT:
                continue
            if self.work(layer) <= spared:
                spared -= self.work(layer)
            elif error <= ACTIVATION_END:
                continue
            formats[layer.name] = "int8-weights"
        return formats

    def work(self, layer: Layer) -> float:
        """Multiplications of a layer on the examples, at most."""
        seen = self.seen.get(layer.name)
        return float(layer.weight.size) * (1 if seen is None else max(seen.rows, 1))


def prepare(stage: FloatStage) -> Prepared:
    """A float32 stage through the passes that change no result, calibrated on its cases.

    Weights that they change are stored beside `stage.source`, which the result needs."""
    source, cases = stage.source, stage.cases
    model = ir.load(source)
    restructure(model)
    if stage.average_attention:
        average_keys_and_values(model)
    if _decodes(model):
        merge_upsampling(model)
    store(model, source.with_name(f"{source.stem}.restructured.data"))
    seen = calibrate(model, source, cases, observed=stage.observed)
    if smooth(model, seen, {k for k, s in seen.items() if s.error > SMOOTH_ABOVE}):
        store(model, source.with_name(f"{source.stem}.smoothed.data"))
        seen = calibrate(model, source, cases, observed=stage.observed)
    found = tuple(layers(model))
    kernels: Mapping[str, Kernel] = {}
    if takes_direct(model):
        rows = {name: round(s.rows * stage.area_ratio) for name, s in seen.items()}
        kernels = choose_kernels(found, rows, stage.profile)
    return Prepared(
        model=model,
        source=source,
        layers=found,
        seen=seen,
        kernels=kernels,
        reduced_range=stage.profile == "x86-avx2",
    )


def takes_direct(model: ir.Model) -> bool:
    """Whether a stage's convolutions may write bytes: decoders with group norms.

    That adds an error of its own, to a decoder once but to a UNet at every step: there it would
    save a tenth of the time and cost 6 dB. It also needs ranges that hold for any image, which
    only normalized activations have. A decoder gains most: at its resolutions gathering takes
    longer than multiplying."""
    return _decodes(model) and any(node.op_type == "GroupNorm" for node in model.graph)


def _decodes(model: ir.Model) -> bool:
    return any(v.name == LATENT_SAMPLE for v in model.graph.inputs)


def quantizable(layer: Layer) -> bool:
    """Whether a layer's weights are worth fewer bits than float32."""
    return layer.weight.size >= SMALL and min(layer.channels) > FEW
