"""A plan from another export: which layer became what, read from its bundle.json."""

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgediff.bundle import MANIFEST, parse_manifest
from edgediff.control import for_control
from edgediff.errors import BundleError, InputError
from edgediff_export.targets.cpu.dense import BLOCK, Format, Kernel
from edgediff_export.targets.cpu.prepare import Prepared, quantizable


@dataclass(frozen=True, kw_only=True)
class SavedPlan:
    """A plan, `tensors[stage][weight]`, and the model that it was made for. direct: stage → the
    weights whose kernel is "direct". averaged: whether keys and values are averaged. reduced_range:
    whether weights of int8 products have 7 bits."""

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
                f"{self.path}: the plan of another model, {self.model!r}, and this is {name!r}:"
                f" give the plan of this one, or --name {self.model} if they are the same"
            )

    def applied(self, prepared: Prepared, stage: str) -> Prepared:
        """The stage with kernels and range as they were in the plan's bundle."""
        names = {layer.name for layer in prepared.layers}
        kernels: dict[str, Kernel] = {
            name: "direct" for name in self.direct.get(stage, ()) if name in names
        }
        return replace(prepared, kernels=kernels, reduced_range=self.reduced_range)

    def fitted(self, prepared: Mapping[str, Prepared]) -> dict[str, dict[str, Format]]:
        """The plan of each stage. Raises InputError where it is another model's."""
        fitted: dict[str, dict[str, Format]] = {}
        for stage, p in prepared.items():
            if stage not in self.tensors and for_control(stage):
                continue  # added since: it gets the plan of any other
            named = self.tensors.get(stage, {})
            names = {layer.name for layer in p.layers}
            wanted = {layer.name for layer in p.layers if quantizable(layer)}
            unknown = sorted(k for k in named if k not in names and not _is_embedding(p, k))
            missing = sorted(wanted - named.keys())
            if unknown or missing:
                what = f"it names {unknown[0]}" if unknown else f"it leaves out {missing[0]}"
                raise InputError(
                    f"{self.path}: the plan of another model, {self.model!r} ({stage}: {what}):"
                    " give the plan of this one, or --min-psnr to search for one"
                )
            fitted[stage] = {k: self._format(stage, k, v) for k, v in named.items() if k in names}
            for layer in p.layers:
                whole = layer.pointwise and layer.channels[0] % BLOCK == 0
                if fitted[stage].get(layer.name) == "int4" and not whole:
                    raise InputError(
                        f"{self.path}: {stage}: {layer.name} is 'int4', which is for linear layers"
                        f" whose input has a multiple of {BLOCK} channels: give another format"
                    )
        return fitted

    def keeps_float(self, stage: str) -> bool:
        """Whether the stage stayed float as it was traced, its embeddings as well."""
        return set(self.tensors.get(stage, {}).values()) == {"fp32"}

    def _format(self, stage: str, name: str, form: str) -> Format:
        formats = typing.get_args(Format)
        if form not in formats:
            raise InputError(
                f"{self.path}: {stage}: {name} is {form!r}, expected one of {', '.join(formats)}"
            )
        return typing.cast(Format, form)


def read_plan(path: Path) -> SavedPlan:
    """The plan in a bundle, given as its folder or as its bundle.json. Raises InputError."""
    file = path / MANIFEST if path.is_dir() else path
    try:
        manifest = parse_manifest(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BundleError) as e:
        why = (e.strerror if isinstance(e, OSError) else None) or str(e)
        raise InputError(f"{path}: holds no plan ({why}): give the bundle.json of an export") from e
    if manifest.quantization.precision != "int8" or manifest.target != "cpu":
        raise InputError(
            f"{path}: {manifest.name!r} is in {manifest.quantization.precision} for"
            f" {manifest.target}: give the bundle.json of an export in int8 for cpu"
        )
    return SavedPlan(
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
