"""The export, from source to bundle: the only place that knows the order of the stages."""

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import edgediff
from edgediff.bundle import Fidelity, Manifest, PlanSearch, Provenance, Quantization
from edgediff.control import CONTROLLED_UNET, for_control
from edgediff.errors import ExportError
from edgediff.prompt import Tokenizer
from edgediff_export.bundle_folder import folder_in_one_piece, write_bundle
from edgediff_export.calibration_set import examples, scale
from edgediff_export.convert import Lowering, Written
from edgediff_export.defaults import choose_defaults, latent_space, named
from edgediff_export.fidelity import images
from edgediff_export.fidelity.cases import Case
from edgediff_export.fidelity.shots import Shot, choose_shots, trial_shots
from edgediff_export.options import PROVIDERS, Options, Target, check_target
from edgediff_export.search.saved_plan import SavedPlan, read_plan
from edgediff_export.search.trial import Trial
from edgediff_export.source import tokenizer
from edgediff_export.source.controlnet import open_controlnets
from edgediff_export.source.families import TEXT_ENCODERS
from edgediff_export.source.open import open_source
from edgediff_export.source.scheduler import adapt, read_schedule
from edgediff_export.targets import float16, qdq
from edgediff_export.targets.cpu.dense import Format
from edgediff_export.targets.cpu.prepare import prepare
from edgediff_export.trace.stage import network_stage, stages_of
from edgediff_export.trace.tracer import Traced, Tracer

__all__ = ["Exported", "Options", "Target", "export"]

_PACKAGES = ("torch", "diffusers", "transformers", "optimum-onnx", "onnx-ir", "onnxruntime")
FIXTURES = "fixtures.npz"

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export. `float_sizes`: bytes of each stage in float32. `notes`: what was not done
    as asked, and why."""

    root: Path
    manifest: Manifest
    float_sizes: dict[str, int]
    notes: tuple[str, ...] = ()

    def size(self, stage: str) -> int:
        """Bytes of a stage's graph, and of its weights where no stage before has the same."""
        return sum(self.manifest.files[f].size for f in self.manifest.own_files(stage))


def export(options: Options, report: Report = lambda _: None) -> Exported:
    """Make a bundle at `options.out`. `report` is called with what is being done, as it begins.

    Raises ExportError where the pipeline cannot be exported, InputError for options that do not
    fit it; in both cases nothing is written."""
    target = check_target(options)
    plan = None if options.plan is None else read_plan(options.plan)
    with folder_in_one_piece(options.out, force=options.force) as work:
        floats, bundle = work / "float", work / "bundle"
        floats.mkdir()
        bundle.mkdir()
        manifest, traced, unmatched = _trace(options, target, plan, work, report)
        report("pictures of the float model")
        manifest = write_bundle(floats, manifest)
        shots = choose_shots(manifest, traced["unet"].parameters)
        references = images.take_pictures(floats, shots)
        seen = examples(traced, references, floats)
        lowering = _plan_lowering(
            options, target, plan, manifest, traced, seen, shots[0], work, report
        )
        written: dict[str, Written] = {}
        for name, stage in traced.items():
            report(f"{name}: {options.precision}")
            if name == CONTROLLED_UNET:
                written[name] = lowering.write_controlled(stage, written["unet"], floats, bundle)
            else:
                written[name] = lowering.write(name, stage, seen[name], floats, bundle)
        notes = tuple(w.note for w in written.values() if w.note)
        if lowering.search is not None and notes:
            raise ExportError(
                f"{notes[0]}, so the budget cannot be kept: ask for more decibels or allow more"
                " megabytes; nothing was written"
            )
        manifest = replace(
            manifest,
            graphs={name: w.spec for name, w in written.items()},
            quantization=lowering.quantization(written),
            fidelity=Fidelity(stages={name: w.fidelity for name, w in written.items()}),
        )
        pictures = references
        if options.precision != "fp32":
            report(f"pictures in {options.precision}")
            write_bundle(bundle, manifest)
            pictures = images.take_pictures(bundle, shots)
        cases = {name: stage.cases for name, stage in traced.items()}
        images.write_fixtures(bundle / FIXTURES, cases, shots, references)
        compared = images.compare(shots, pictures, references)
        manifest = write_bundle(
            bundle,
            replace(
                manifest,
                fixtures=FIXTURES,
                fidelity=replace(manifest.fidelity, pictures=compared),
            ),
        )
        floats_manifest = replace(manifest, graphs={n: t.spec for n, t in traced.items()})
        float_sizes = {
            name: sum((floats / file).stat().st_size for file in floats_manifest.own_files(name))
            for name in traced
        }
        report(f"writing {options.out}")
    return Exported(
        root=options.out, manifest=manifest, float_sizes=float_sizes, notes=(*unmatched, *notes)
    )


def _trace(
    options: Options, target: Target, plan: SavedPlan | None, work: Path, report: Report
) -> tuple[Manifest, dict[str, Traced], tuple[str, ...]]:
    """Tokenizers and float graphs in `work`/float and `work`/bundle, what they are, and notes."""
    report(f"opening {options.source}")
    source = open_source(options.source, work=work, vae=options.vae, unet=options.unet)
    source = source.merged(options.loras, options.embeddings)
    if plan is not None:
        plan.check_model(options.name or source.name)
    scheduler = adapt(
        source.scheduler,
        name=named(options, source),
        timestep_spacing=options.timestep_spacing,
        prediction_type=options.prediction_type,
    )
    source = replace(source, scheduler=scheduler)
    schedule = read_schedule(scheduler)
    latent = latent_space(source)
    defaults = choose_defaults(options, source, schedule, latent)
    networks = open_controlnets(options.controlnets, source, latent)
    floats, bundle = work / "float", work / "bundle"
    report("tokenizer")
    specs = tokenizer.write_tokenizers(
        {encoder: source.folder / TEXT_ENCODERS[encoder] for encoder in source.text_encoders},
        bundle,
        [learned.tokens for learned in source.embeddings],
    )
    for name in {spec.file for spec in specs.values()}:
        shutil.copy(bundle / name, floats / name)
    tracer = Tracer(
        source=source,
        tokenizers={k: Tokenizer(bundle / spec.file, spec) for k, spec in specs.items()},
        latent=latent,
        defaults=defaults,
        floats=floats,
        scratch=work / "trace",
        networks={network_stage(network).name: network for network in networks},
    )
    traced: dict[str, Traced] = {}
    stages = stages_of(source, with_encoder=options.with_encoder or source.inpaints)
    for stage in (*stages, *map(network_stage, networks)):
        report(f"{stage.name}: tracing")
        traced[stage.name] = tracer.trace(stage, traced)
    if networks:
        report(f"{CONTROLLED_UNET}: adding inputs")
        traced[CONTROLLED_UNET] = tracer.trace_controlled(networks[0], traced)
    manifest = Manifest(
        name=options.name or source.name,
        pipeline=source.pipeline,
        target=target,
        providers=PROVIDERS[target, options.precision],
        files={},
        graphs={name: stage.spec for name, stage in traced.items()},
        tokenizers=specs,
        latent=latent,
        schedule=schedule,
        zeros_for_no_negative=source.zeros_for_no_negative,
        defaults=defaults,
        quantization=Quantization(precision=options.precision),
        fidelity=Fidelity(stages={}),
        provenance=Provenance(
            source=source.description,
            license=options.license or source.license,
            attribution=options.attribution,
            versions=_versions(),
            loras=tuple(matched.record() for matched in source.loras),
            embeddings=tuple(learned.record() for learned in source.embeddings),
            controlnets={network.name: network.description for network in networks},
        ),
    )
    return manifest, traced, tuple(matched.note for matched in source.loras if matched.note)


def _plan_lowering(
    options: Options,
    target: Target,
    plan: SavedPlan | None,
    manifest: Manifest,
    traced: Mapping[str, Traced],
    seen: Mapping[str, Sequence[Case]],
    shot: Shot,
    work: Path,
    report: Report,
) -> Lowering:
    """How to lower each stage: at once, or after looking for a plan that keeps the budget."""
    bfloat16 = target == "openvino"
    if (target, options.precision) != ("cpu", "int8"):
        convert = {"fp16": float16.to_float16, "int8": qdq.to_qdq}.get(options.precision)
        lower = {}
        if convert is not None:
            half = options.precision == "fp16"
            lower = {k: convert for k, t in traced.items() if not (half and t.overflows)}
        return Lowering(precision=options.precision, lower=lower, bfloat16=bfloat16)
    average = options.average_attention or (plan is not None and plan.averaged)
    floats = work / "float"
    prepared = {}
    for name, stage in traced.items():
        if name == CONTROLLED_UNET:  # made of the finished UNet
            continue
        report(f"{name}: lowering")
        prepared[name] = prepare(
            floats / stage.spec.file,
            seen[name],
            profile=options.profile,
            scale=scale(name, manifest.defaults, manifest.latent, seen[name]),
            average=average and name == "unet",
        )
    formats: Mapping[str, Mapping[str, Format]] | None = None
    search: PlanSearch | None = None
    if plan is not None:
        formats = plan.fitted(prepared)
        prepared = {name: plan.applied(p, name) for name, p in prepared.items()}
    elif options.budget.asked:
        calibration, unseen = trial_shots(shot, traced["unet"].parameters)
        formats, search = Trial(
            floats=floats,
            manifest=manifest,
            # Its pictures are made without control networks: these stay in plain int8.
            prepared={name: p for name, p in prepared.items() if not for_control(name)},
            calibration=calibration,
            unseen=unseen,
            scratch=work,
        ).find_plan(options.budget, report)
    return Lowering.of_prepared(prepared, formats, plan=plan, search=search, average=average)


def _versions() -> dict[str, str]:
    versions = {"edgediff": edgediff.__version__}
    return versions | {name: importlib.metadata.version(name) for name in _PACKAGES}
