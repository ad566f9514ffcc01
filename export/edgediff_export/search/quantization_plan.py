"""The quantization plan of another export: the format of each layer, read from its bundle.json."""

import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgediff.bundle.manifest import MANIFEST, parse_manifest
from edgediff.errors import BundleError, InputError
from edgediff_export.targets.cpu.dense import BLOCK, Format, Kernel
from edgediff_export.targets.cpu.prepare import Prepared, quantizable


@dataclass(frozen=True, kw_only=True)
class QuantizationPlan:
    """How each layer of a model was quantized for the CPU.

    model: the name of the model that it was made for. tensors: stage → weight → format. direct:
    stage → the weights whose kernel is "direct". averaged: whether keys and values are averaged.
    reduced_range: whether weights of int8 products have 7 bits."""

    path: Path
    model: str
    tensors: Mapping[str, Mapping[str, str]]
    direct: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    averaged: bool = False
    reduced_range: bool = False

    def check_model(self, name: str) -> None:
        """Raise InputError unless the plan was made for the model called `name`."""
        if name != self.model:
            raise InputError(
                f"{self.path}: is the plan of another model, {self.model!r}, and this is {name!r}:"
                f" give the plan of this one, or --name {self.model} if they are the same"
            )

    def applied(self, prepared: Prepared, stage: str) -> Prepared:
        """The stage with the kernels and the range of the plan's bundle."""
        names = {layer.name for layer in prepared.layers}
        kernels: dict[str, Kernel] = {
            name: "direct" for name in self.direct.get(stage, ()) if name in names
        }
        return replace(prepared, kernels=kernels, reduced_range=self.reduced_range)

    def fitted(
        self, prepared: Mapping[str, Prepared], networks: Collection[str] = ()
    ) -> dict[str, dict[str, Format]]:
        """Stage → weight → format. Raises InputError if the plan is another model's.

        networks: the stages of control networks. One that was added since is left out: it becomes
        plain int8."""
        return {
            stage: self._formats(stage, p)
            for stage, p in prepared.items()
            if stage in self.tensors or stage not in networks
        }

    def keeps_float(self, stage: str) -> bool:
        """Whether the stage stayed float as it was traced, its embeddings as well."""
        return set(self.tensors.get(stage, {}).values()) == {"fp32"}

    def _formats(self, stage: str, prepared: Prepared) -> dict[str, Format]:
        planned = self.tensors.get(stage, {})
        layers = {layer.name: layer for layer in prepared.layers}
        unknown = sorted(k for k in planned if k not in layers and not _is_embedding(prepared, k))
        wanted = {name for name, layer in layers.items() if quantizable(layer)}
        missing = sorted(wanted - planned.keys())
        if unknown or missing:
            why = f"it names {unknown[0]}" if unknown else f"it leaves out {missing[0]}"
            raise InputError(
                f"{self.path}: is the plan of another model, {self.model!r} ({stage}: {why}):"
                " give the plan of this one, or --min-psnr to search for one"
            )
        formats = {k: self._format(stage, k, v) for k, v in planned.items() if k in layers}
        for name, form in formats.items():
            if form == "int4" and not layers[name].takes_int4:
                raise InputError(
                    f"{self.path}: {stage}: {name} is 'int4', which is for linear layers"
                    f" whose input has a multiple of {BLOCK} channels: give another format"
                )
        return formats

    def _format(self, stage: str, name: str, form: str) -> Format:
        formats = typing.get_args(Format)
        if form not in formats:
            raise InputError(
                f"{self.path}: {stage}: {name} is {form!r}, expected one of {', '.join(formats)}"
            )
        return typing.cast(Format, form)


def read_plan(path: Path) -> QuantizationPlan:
    """The plan in a bundle, given as its folder or as its bundle.json. Raises InputError."""
    file = path / MANIFEST if path.is_dir() else path
    try:
        manifest = parse_manifest(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BundleError) as e:
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise InputError(
            f"{path}: does not hold a plan ({why}): give the bundle.json of an export"
        ) from e
    if manifest.quantization.precision != "int8" or manifest.target != "cpu":
        raise InputError(
            f"{path}: {manifest.name!r} is in {manifest.quantization.precision} for"
            f" {manifest.target}: give the bundle.json of an export in int8 for cpu"
        )
    return QuantizationPlan(
        path=path,
        model=manifest.name,
        tensors=manifest.quantization.tensors,
        direct=manifest.quantization.direct,
        averaged=manifest.quantization.averaged_attention,
        reduced_range=manifest.quantization.reduced_range,
    )


def _is_embedding(prepared: Prepared, name: str) -> bool:
    value = prepared.model.graph.initializers.get(name)
    return value is not None and any(use.node.op_type == "Gather" for use in value.uses())
