"""Float32 stages into the precision asked for, each judged by its error."""

import functools
import gc
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from edgediff.bundle.manifest import (
    GraphSpec,
    Manifest,
    PlanSearch,
    Precision,
    Quantization,
    StageFidelity,
)
from edgediff.errors import ExportError
from edgediff_export.calibration_set import area_ratio
from edgediff_export.fidelity.cases import Case
from edgediff_export.fidelity.measure import judge, measure, seconds
from edgediff_export.fidelity.shots import trial_shots
from edgediff_export.graph.write import write_graph
from edgediff_export.options import Options
from edgediff_export.progress import Reporter
from edgediff_export.search.quantization_plan import QuantizationPlan
from edgediff_export.search.trial import Trial
from edgediff_export.source.families import CONTROLLED_UNET, UNET
from edgediff_export.targets.conversion import Converted, FloatStage
from edgediff_export.targets.cpu.dense import Format
from edgediff_export.targets.cpu.prepare import Prepared, prepare
from edgediff_export.targets.table import CONVERTERS, Converter
from edgediff_export.trace.controlled_unet import find_joins, write_controlled
from edgediff_export.trace.tracer import Traced

# ‖q − f‖ / ‖f‖ beyond which a stage stays in float32; overflow counts as infinite.
_TOKENS = 77
_PASSES = 3
"""How often a stage is evaluated on its examples while it is converted, at most: to calibrate it,
again after smoothing, and to measure it."""
_LIMITS: Mapping[Precision, float] = {"fp16": 0.02, "int8": 0.2}


@dataclass(frozen=True, kw_only=True)
class FloatModel:
    """The traced model: a float32 bundle in `folder`, and the examples that each stage is
    calibrated on."""

    folder: Path
    manifest: Manifest
    traced: Mapping[str, Traced]
    examples: Mapping[str, Sequence[Case]]

    def sizes(self) -> dict[str, int]:
        """Bytes of each stage, without files that an earlier stage has as well."""
        own_files = self.manifest.own_files
        return {
            name: sum((self.folder / file).stat().st_size for file in own_files(name))
            for name in self.traced
        }

    def work(self, name: str) -> float:
        """Multiplications that a stage takes on its examples, roughly: its weights times the area
        of latents or images, or half-way between both; a text encoder has tokens instead."""
        total = 0.0
        for case in self.examples[name]:
            arrays = (*case.inputs.values(), *case.outputs.values())
            areas = [v.shape[2] * v.shape[3] for v in arrays if v.ndim == 4] or [_TOKENS]
            total += math.sqrt(min(areas) * max(areas))
        return self.traced[name].parameters * total

    def stage(
        self, name: str, options: Options, *, average_attention: bool, observed: Callable[[], None]
    ) -> FloatStage:
        """A stage with its examples, to be converted. observed: as in FloatStage."""
        examples, spec = self.examples[name], self.traced[name].spec
        return FloatStage(
            source=self.folder / spec.file,
            cases=examples,
            profile=options.profile,
            area_ratio=area_ratio(
                spec.role, self.manifest.defaults, self.manifest.latent, examples
            ),
            average_attention=average_attention and spec.role == "denoiser",
            observed=observed,
        )


@dataclass(frozen=True, kw_only=True)
class Written:
    """A stage in the bundle. formats: weight → the format that it is stored in. direct,
    reduced_range: as in `Converted`. note: why the stage stayed float, or ""."""

    spec: GraphSpec
    fidelity: StageFidelity
    formats: dict[str, str]
    direct: tuple[str, ...] = ()
    reduced_range: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """How the stages of a model are converted.

    converter: None leaves them float. prepared: the stages whose formats were chosen beforehand,
    and `formats`, stage → weight → format; a stage without formats becomes plain int8.
    plan, search: where the formats come from."""

    options: Options
    model: FloatModel
    converter: Converter | None
    average_attention: bool = False
    prepared: Mapping[str, Prepared] = field(default_factory=dict)
    formats: Mapping[str, Mapping[str, Format]] = field(default_factory=dict)
    plan: QuantizationPlan | None = None
    search: PlanSearch | None = None

    def write(self, bundle: Path, report: Reporter) -> dict[str, Written]:
        """Every stage, converted, into a folder.

        A stage stays float, with a note, if its result is wrong or gains nothing. Raises
        ExportError if the UNet under control is wrong though the UNet is right: there are no other
        weights for it."""
        written: dict[str, Written] = {}
        works = {name: self.model.work(name) for name in self.model.traced}
        writing = report.phase("writing stages", sum(works.values()))
        for name in self.model.traced:
            writing.begin(f"{name}: {self.options.resolved_precision}", works[name])
            each = works[name] / (_PASSES * len(self.model.examples[name]))
            observed = functools.partial(writing.advance, each)
            if name == CONTROLLED_UNET:
                written[name] = self._write_controlled(written[UNET], bundle)
            else:
                written[name] = self._write(name, bundle, observed)
            writing.end()
        return written

    def quantization(self, written: Mapping[str, Written]) -> Quantization:
        """The record of it in bundle.json."""
        int8 = {stage: w for stage, w in written.items() if w.spec.precision == "int8"}
        return Quantization(
            precision=self.options.resolved_precision,
            tensors={stage: w.formats for stage, w in written.items() if stage != CONTROLLED_UNET},
            averaged_attention=self.average_attention and UNET in int8,
            direct={stage: w.direct for stage, w in int8.items() if w.direct},
            reduced_range=any(w.reduced_range for w in int8.values()),
            search=self.search,
        )

    def _write(self, name: str, bundle: Path, observed: Callable[[], None]) -> Written:
        traced = self.model.traced[name]
        if self.plan is not None and self.plan.keeps_float(name):
            return self._keep_float(name, bundle, dict(self.plan.tensors[name]))
        if self.converter is None:
            return self._keep_float(name, bundle)
        if traced.overflows and self.options.resolved_precision == "fp16":
            why = "its config says that float16 overflows (force_upcast)"
            return self._keep_float(name, bundle, why=why)
        converted = self._convert(name, self.converter, observed)
        spec = _write_converted(converted, traced.spec, bundle)
        formats, direct = converted.formats, converted.direct
        reduced_range = converted.reduced_range
        del converted  # with the weights that it was made of
        gc.collect()
        examples = self.model.examples[name]
        error, max_abs_error = measure(bundle / spec.file, spec, examples, observed)
        why = self._objection(name, spec, error, bundle)
        if why:
            for file in (spec.file, *spec.data):
                (bundle / file).unlink()
            return self._keep_float(name, bundle, dict.fromkeys(formats, "fp32"), why=why)
        return Written(
            spec=spec,
            fidelity=self._judge(error, max_abs_error, spec),
            formats=formats,
            direct=direct,
            reduced_range=reduced_range,
        )

    def _convert(self, name: str, converter: Converter, observed: Callable[[], None]) -> Converted:
        result: Converted | Prepared | None = self.prepared.get(name)
        if result is None:
            average = self.average_attention
            result = converter(
                self.model.stage(name, self.options, average_attention=average, observed=observed)
            )
        return result.write(self.formats.get(name)) if isinstance(result, Prepared) else result

    def _objection(self, name: str, spec: GraphSpec, error: float, bundle: Path) -> str:
        """Why a converted stage should stay float, or ""."""
        precision, floats = self.options.resolved_precision, self.model.folder
        if not error <= _LIMITS[precision]:
            return f"in {precision} its output is off by {error:.2g} of its norm"
        traced = self.model.traced[name].spec
        if precision == "int8" and _size(bundle, spec) >= _size(floats, traced):
            case = self.model.examples[name][0]
            before = seconds(floats / traced.file, traced, case)
            if seconds(bundle / spec.file, spec, case) >= before:
                return f"in {precision} it is neither smaller nor faster"
        return ""

    def _write_controlled(self, unet: Written, bundle: Path) -> Written:
        """The UNet that takes residuals, over the weights that the UNet was written with."""
        traced = self.model.traced[CONTROLLED_UNET]
        residuals = [i for i in traced.spec.inputs if unet.spec.input(i.name) is None]
        spec = write_controlled(bundle, unet.spec, find_joins(self.model.folder), residuals)
        error, max_abs_error = measure(bundle / spec.file, spec, traced.cases)
        precision = self.options.resolved_precision
        if spec.precision != "fp32" and not error <= _LIMITS[precision]:
            raise ExportError(
                f"{CONTROLLED_UNET}: in {precision} its output is off by {error:.2g} of its norm:"
                " export it in another precision; nothing was written"
            )
        fidelity = self._judge(error, max_abs_error, spec)
        return Written(spec=spec, fidelity=fidelity, formats={})

    def _keep_float(
        self, name: str, bundle: Path, formats: dict[str, str] | None = None, why: str = ""
    ) -> Written:
        """A stage as it was traced."""
        traced, floats = self.model.traced[name], self.model.folder
        for file in (traced.spec.file, *traced.spec.data):
            try:
                (bundle / file).hardlink_to(floats / file)
            except OSError:  # a file system without hard links
                shutil.copy(floats / file, bundle / file)
        found = traced.fidelity
        return Written(
            spec=traced.spec,
            fidelity=self._judge(found.error, found.max_abs_error, traced.spec),
            formats=formats or {},
            note=f"{name} stays in float32: {why}" if why else "",
        )

    def _judge(self, error: float, max_abs_error: float, spec: GraphSpec) -> StageFidelity:
        # OpenVINO computes in bfloat16 on processors that can.
        bfloat16 = self.options.resolved_target == "openvino"
        return judge(error, max_abs_error, spec.precision, bfloat16=bfloat16)


def plan_conversion(
    model: FloatModel,
    options: Options,
    plan: QuantizationPlan | None,
    scratch: Path,
    report: Reporter,
) -> Conversion:
    """How to convert a model: in the formats of a plan, in those that a search for the budget
    finds, or as its target does by default.

    scratch: an existing folder. Raises InputError for a plan of another model, ExportError if the
    budget cannot be kept."""
    conversion = Conversion(
        options=options,
        model=model,
        converter=CONVERTERS[options.resolved_target, options.resolved_precision],
        average_attention=options.averages_attention or (plan is not None and plan.averaged),
        plan=plan,
    )
    if plan is None and not options.budget.asked:
        return conversion
    networks = [stage.name for stage in model.manifest.controlnets.values()]
    prepared = {}
    # The controlled UNet is made of the finished one.
    works = {name: model.work(name) for name in model.traced if name != CONTROLLED_UNET}
    preparing = report.phase("preparing int8", sum(works.values()))
    for name, work in works.items():
        preparing.begin(f"{name}: preparing int8", work)
        each = work / (_PASSES * len(model.examples[name]))
        prepared[name] = prepare(
            model.stage(
                name,
                options,
                average_attention=conversion.average_attention,
                observed=functools.partial(preparing.advance, each),
            )
        )
        preparing.end()
    if plan is not None:
        return replace(
            conversion,
            formats=plan.fitted(prepared, networks),
            prepared={name: plan.applied(p, name) for name, p in prepared.items()},
        )
    calibration, unseen = trial_shots(model.manifest, model.traced[UNET].parameters)
    formats, search = Trial(
        floats=model.folder,
        manifest=model.manifest,
        # Its images are made without control networks: these stay in plain int8.
        prepared={name: p for name, p in prepared.items() if name not in networks},
        calibration=calibration,
        unseen=unseen,
        scratch=scratch,
    ).find_formats(options.budget, report)
    return replace(conversion, prepared=prepared, formats=formats, search=search)


def _write_converted(converted: Converted, traced: GraphSpec, bundle: Path) -> GraphSpec:
    """Write a converted stage under the names that the traced one has, and describe it."""
    for value in converted.model.graph.outputs:
        # Passes that give an output another producer may leave a shape that was inferred again.
        (output,) = (o for o in traced.outputs if o.name == value.name)
        value.shape = ir.Shape(output.shape)
    data = write_graph(converted.model, bundle / traced.file)
    loaded_bytes = traced.loaded_bytes
    if converted.widened is not None:
        loaded_bytes = sum((bundle / name).stat().st_size for name in data) + converted.widened
    return replace(
        traced,  # whose inputs and outputs are the same
        data=data,
        precision=converted.precision,
        session_config=converted.session_config,
        loaded_bytes=loaded_bytes,
    )


def _size(folder: Path, spec: GraphSpec) -> int:
    """Bytes of a graph and its weights."""
    return sum((folder / name).stat().st_size for name in (spec.file, *spec.data))
