"""Float32 stages into the precision asked for, each judged by what it costs."""

import gc
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from edgediff.bundle import GraphSpec, PlanSearch, Precision, Quantization, StageFidelity
from edgediff.control import CONTROLLED_UNET
from edgediff.errors import ExportError
from edgediff_export.fidelity.cases import Case
from edgediff_export.fidelity.measure import judge, measure, seconds
from edgediff_export.graph.write import write_graph
from edgediff_export.search.saved_plan import SavedPlan
from edgediff_export.targets.cpu.dense import Format
from edgediff_export.targets.cpu.prepare import Prepared
from edgediff_export.targets.lowered import Lowered
from edgediff_export.trace.controlled_unet import find_joins, write_controlled
from edgediff_export.trace.tracer import Traced

Lower = Callable[[Path, Sequence[Case]], Lowered]
"""The float32 graph at a path, and examples of what it sees → the graph in another precision."""

# ‖q − f‖ / ‖f‖ beyond which a stage stays in float32; overflow counts as infinite.
_LIMITS: dict[Precision, float] = {"fp16": 0.02, "int8": 0.2}


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """How stages are lowered. lower: of each stage that does not stay float. prepared: the stages
    that were prepared for the CPU in int8. plan, search: where their formats come from."""

    precision: Precision
    lower: Mapping[str, Lower] = field(default_factory=dict)
    prepared: Mapping[str, Prepared] = field(default_factory=dict)
    plan: SavedPlan | None = None
    search: PlanSearch | None = None
    average: bool = False
    bfloat16: bool = False
    """Whether the device may compute in it."""

    @classmethod
    def of_prepared(
        cls,
        prepared: Mapping[str, Prepared],
        formats: Mapping[str, Mapping[str, Format]] | None,
        *,
        plan: SavedPlan | None,
        search: PlanSearch | None,
        average: bool,
    ) -> "Lowering":
        """Int8 for the CPU in given formats, stage → weight → format; without, in plain int8."""
        return cls(
            precision="int8",
            lower={
                stage: _writer(p, None if formats is None else formats.get(stage))
                for stage, p in prepared.items()
                if plan is None or not plan.keeps_float(stage)
            },
            prepared=prepared,
            plan=plan,
            search=search,
            average=average,
        )

    def write(
        self, name: str, traced: Traced, cases: list[Case], floats: Path, bundle: Path
    ) -> "Written":
        """A float32 stage in the precision asked for, into `bundle`.

        Where that is useless, or smaller but wrong, the stage stays float, and a note says so."""
        lower = self.lower.get(name)
        if lower is None:
            kept = self.plan is not None and self.plan.keeps_float(name)
            plan = dict(self.plan.tensors[name]) if self.plan is not None and kept else {}
            written = self._as_float(traced, floats, bundle, plan)
            overflows = traced.overflows and self.precision == "fp16"
            why = "its config says that float16 overflows (force_upcast)" if overflows else ""
            return replace(written, note=f"{name} stays in float32: {why}" if why else "")
        source = floats / traced.spec.file
        lowered = lower(source, cases)
        path = bundle / traced.spec.file
        for value in lowered.model.graph.outputs:
            # Passes that give an output another producer may leave a shape inferred anew.
            (of,) = (o for o in traced.spec.outputs if o.name == value.name)
            value.shape = ir.Shape(of.shape)
        data = write_graph(lowered.model, path)
        spec = replace(
            traced.spec,  # which says the same of inputs and outputs
            data=data,
            precision=lowered.precision,
            session_config=lowered.session_config,
        )
        if lowered.widened is not None:
            loaded = sum((bundle / name).stat().st_size for name in data) + lowered.widened
            spec = replace(spec, loaded_bytes=loaded)
        precision, plan = lowered.precision, lowered.plan
        del lowered  # with the weights that it was made of
        gc.collect()
        error, max_abs_error = measure(path, spec, cases)
        refusal = ""
        if not error <= _LIMITS[self.precision]:
            refusal = f"in {self.precision} it is {error:.2g} of its output's norm from float"
        elif self.precision == "int8" and size(bundle, spec) >= size(floats, traced.spec):
            was, now = (seconds(p, s, cases[0]) for p, s in ((source, traced.spec), (path, spec)))
            if now >= was:
                refusal = f"in {self.precision} it is neither smaller nor faster"
        if refusal:
            for file in (path.name, *data):
                (bundle / file).unlink()
            written = self._as_float(traced, floats, bundle, dict.fromkeys(plan, "fp32"))
            return replace(written, note=f"{name} stays in float32: {refusal}")
        judged = judge(error, max_abs_error, precision, bfloat16=self.bfloat16)
        return Written(spec=spec, fidelity=judged, tensors=plan)

    def write_controlled(
        self, traced: Traced, unet: "Written", floats: Path, bundle: Path
    ) -> "Written":
        """The UNet that takes residuals, over the weights that the UNet was written with.

        Raises ExportError where it is wrong though the UNet is not: there is no other."""
        residuals = [i for i in traced.spec.inputs if unet.spec.input(i.name) is None]
        spec = write_controlled(bundle, unet.spec, find_joins(floats), residuals)
        error, max_abs_error = measure(bundle / spec.file, spec, traced.cases)
        if spec.precision != "fp32" and not error <= _LIMITS[self.precision]:
            raise ExportError(
                f"{CONTROLLED_UNET}: in {self.precision} it is {error:.2g} of its output's norm"
                " from float: export it in another precision; nothing was written"
            )
        judged = judge(error, max_abs_error, spec.precision, bfloat16=self.bfloat16)
        return Written(spec=spec, fidelity=judged, tensors={})

    def quantization(self, written: Mapping[str, "Written"]) -> Quantization:
        """What bundle.json says of it."""
        int8 = {stage for stage, w in written.items() if w.spec.precision == "int8"}
        return Quantization(
            precision=self.precision,
            tensors={stage: w.tensors for stage, w in written.items() if stage != CONTROLLED_UNET},
            averaged_attention=self.average and "unet" in int8,
            direct={
                stage: p.direct for stage, p in self.prepared.items() if p.direct and stage in int8
            },
            reduced_range=any(p.reduced_range for k, p in self.prepared.items() if k in int8),
            search=self.search,
        )

    def _as_float(
        self, traced: Traced, floats: Path, bundle: Path, plan: dict[str, str]
    ) -> "Written":
        """A stage that stays as it was traced."""
        for name in (traced.spec.file, *traced.spec.data):
            try:
                (bundle / name).hardlink_to(floats / name)
            except OSError:  # a file system without hard links
                shutil.copy(floats / name, bundle / name)
        f = traced.fidelity
        judged = judge(f.error, f.max_abs_error, "fp32", bfloat16=self.bfloat16)
        return Written(spec=traced.spec, fidelity=judged, tensors=plan)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A stage in the bundle. tensors: weight → what it became. note: why it stayed float, or ""."""

    spec: GraphSpec
    fidelity: StageFidelity
    tensors: dict[str, str]
    note: str = ""


def size(folder: Path, spec: GraphSpec) -> int:
    """Bytes of a graph and its weights."""
    return sum((folder / name).stat().st_size for name in (spec.file, *spec.data))


def _writer(prepared: Prepared, plan: Mapping[str, Format] | None) -> Lower:
    return lambda _source, _cases: prepared.write(plan)
