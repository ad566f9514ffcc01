"""The export, from source to bundle: the only module that knows the order of the steps."""

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import edgediff
from edgediff.bundle.hub import OnDownload
from edgediff.bundle.latent import LatentSpec
from edgediff.bundle.manifest import (
    Defaults,
    Fidelity,
    Manifest,
    Provenance,
    Quantization,
    Role,
    TokenizerSpec,
)
from edgediff.errors import ExportError
from edgediff.sampling.schedule import Schedule
from edgediff.text.tokenizer import Tokenizer
from edgediff_export.bundle_folder import folder_in_one_piece, write_bundle
from edgediff_export.calibration_set import examples
from edgediff_export.convert import FloatModel, plan_conversion
from edgediff_export.defaults import (
    choose_defaults,
    conditioning,
    doubts,
    latent_space,
    named,
    record_preset,
    timesteps_of,
)
from edgediff_export.fidelity import images
from edgediff_export.fidelity.shots import Shot, choose_shots, evaluations
from edgediff_export.options import Options, check_options
from edgediff_export.progress import Progress, Reporter
from edgediff_export.search.quantization_plan import QuantizationPlan, read_plan
from edgediff_export.source import tokenizer
from edgediff_export.source.controlnet import ControlNet, open_controlnets
from edgediff_export.source.families import CONTROLLED_UNET, TEXT_ENCODERS, UNET
from edgediff_export.source.open import open_source
from edgediff_export.source.pipeline import Source
from edgediff_export.source.prediction import prediction_in_name
from edgediff_export.source.scheduler import adapt, read_schedule, reasons
from edgediff_export.source.scheduler_options import check_options as check_scheduler
from edgediff_export.targets.table import PROVIDERS, Target
from edgediff_export.trace.stage import network_stage, stages_of
from edgediff_export.trace.tracer import Traced, Tracer

__all__ = ["Exported", "Options", "Target", "export"]

_PACKAGES = ("torch", "diffusers", "transformers", "optimum-onnx", "onnx-ir", "onnxruntime")
FIXTURES = "fixtures.npz"

_TRACING: Mapping[Role, float] = {
    "text_encoder": 2,
    "denoiser": 6,
    "controlled_denoiser": 2,
    "controlnet": 3,
    "decoder": 2,
    "encoder": 2,
}
"""How long the stages of these roles are traced, roughly, in relation to each other."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export. `float_sizes`: bytes of each stage in float32. `notes`: what could
    not be done as asked, and why. `reasons`: why defaults are as they are, if a file or a name
    says so."""

    root: Path
    manifest: Manifest
    float_sizes: dict[str, int]
    notes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def size(self, stage: str) -> int:
        """Bytes of a stage's graph, and of its weights unless an earlier stage has the same."""
        return sum(self.manifest.files[f].size for f in self.manifest.own_files(stage))


def export(
    options: Options,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_download: OnDownload | None = None,
) -> Exported:
    """Make a bundle at `options.out`. `on_progress` is called as each step begins, and whenever a
    part of a longer one is done; `on_download` as that of `open_source`.

    Raises ExportError if the pipeline cannot be exported, InputError for options that do not
    fit it; in both cases nothing is written."""
    check_options(options)
    report = Reporter(on_progress)
    plan = None if options.plan is None else read_plan(options.plan)
    with folder_in_one_piece(options.out, force=options.force) as work:
        floats, bundle = work / "float", work / "bundle"
        floats.mkdir()
        bundle.mkdir()
        report(f"opening {options.source}")
        opened = _open(options, plan, work, on_download)
        report("tokenizer")
        tokenizers = _write_tokenizers(opened.source, bundle)
        for file in {spec.file for spec in tokenizers.values()}:
            shutil.copy(bundle / file, floats / file)
        traced = _trace(options, opened, tokenizers, work, report)
        manifest = write_bundle(floats, _describe(options, opened, tokenizers, traced))
        shots = choose_shots(manifest, traced[UNET].parameters, options.fidelity)
        references = _draw(floats, shots, "images of the float model", report)
        model = FloatModel(
            folder=floats,
            manifest=manifest,
            traced=traced,
            examples=examples(traced, references, floats),
        )
        conversion = plan_conversion(model, options, plan, work, report)
        written = conversion.write(bundle, report)
        notes = tuple(w.note for w in written.values() if w.note)
        if conversion.search is not None and notes:
            raise ExportError(
                f"{notes[0]}, so the budget cannot be kept: ask for more decibels or allow more"
                " megabytes; nothing was written"
            )
        manifest = replace(
            manifest,
            graphs={name: w.spec for name, w in written.items()},
            quantization=conversion.quantization(written),
            fidelity=Fidelity(
                stages={name: w.fidelity for name, w in written.items()}, level=options.fidelity
            ),
        )
        if options.resolved_precision == "fp32":
            drawn = references
        else:
            write_bundle(bundle, manifest)
            drawn = _draw(bundle, shots, f"images in {options.resolved_precision}", report)
        compared = images.compare(shots, drawn, references)
        fidelity = replace(manifest.fidelity, images=compared)
        cases = {name: stage.cases for name, stage in traced.items()}
        images.write_fixtures(bundle / FIXTURES, cases, shots, references)
        manifest = write_bundle(bundle, replace(manifest, fixtures=FIXTURES, fidelity=fidelity))
        float_sizes = model.sizes()
        report(f"writing {options.out}")
    return Exported(
        root=options.out,
        manifest=manifest,
        float_sizes=float_sizes,
        notes=(*opened.notes, *notes),
        reasons=opened.reasons,
    )


def _draw(
    bundle: Path, shots: Sequence[Shot], phase: str, report: Reporter
) -> list[images.DrawnImage]:
    if not shots:
        return []
    drawing = report.phase(phase, evaluations(shots))
    drawing.begin()
    return images.draw_images(bundle, shots, drawing.advance)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A pipeline with everything that is merged into it, and how it is to be sampled."""

    source: Source
    schedule: Schedule
    latent: LatentSpec
    defaults: Defaults
    networks: tuple[ControlNet, ...]
    notes: tuple[str, ...]
    reasons: tuple[str, ...]


def _open(
    options: Options,
    plan: QuantizationPlan | None,
    work: Path,
    on_download: OnDownload | None = None,
) -> _Opened:
    """Read everything that can be read without weights, so that it is refused early."""
    source = open_source(
        options.source,
        work=work,
        vae=options.vae,
        tiny_vae=options.chosen is not None and options.chosen.tiny_vae,
        unet=options.unet,
        text_encoder=options.text_encoder,
        text_encoder_2=options.text_encoder_2,
        on_download=on_download,
    )
    source = source.merged(options.loras, options.embeddings, allow_partial=options.allow_partial)
    if plan is not None:
        plan.check_model(options.name or source.name)
    names = named(options, source)
    guidance_embedding = source.unet.get("time_cond_proj_dim") is not None
    scheduler = adapt(
        source.scheduler,
        name=names,
        timestep_spacing=options.timestep_spacing,
        prediction_type=options.prediction_type,
        zero_terminal_snr=options.zero_terminal_snr,
        said=source.said,
        bare=source.bare or any(matched.few_steps for matched in source.loras),
        guidance_embedding=guidance_embedding,
    )
    source = replace(source, scheduler=scheduler)
    schedule = read_schedule(scheduler)
    latent = latent_space(source)
    networks = open_controlnets(options.controlnets, source, latent)
    flagged = options.prediction_type is not None
    return _Opened(
        source=source,
        schedule=schedule,
        latent=latent,
        defaults=choose_defaults(options, source, schedule, latent),
        networks=networks,
        notes=(
            *source.notes,
            *check_scheduler(scheduler["_class_name"], scheduler),
            *(matched.note for matched in source.loras if matched.note),
            *(note for network in networks for note in network.notes),
        ),
        reasons=(
            *source.said.notes(source.name, overridden=["prediction_type"] if flagged else []),
            *(() if flagged else prediction_in_name(source.names, scheduler)),
            *reasons(scheduler, names, embedding=guidance_embedding),
            *doubts(source),
        ),
    )


def _write_tokenizers(source: Source, folder: Path) -> dict[str, TokenizerSpec]:
    return tokenizer.write_tokenizers(
        {encoder: source.folder / TEXT_ENCODERS[encoder] for encoder in source.text_encoders},
        folder,
        [learned.tokens for learned in source.embeddings],
    )


def _trace(
    options: Options,
    opened: _Opened,
    tokenizers: Mapping[str, TokenizerSpec],
    work: Path,
    report: Reporter,
) -> dict[str, Traced]:
    """Float graphs of all stages in `work`/float, in the order in which they run."""
    floats, source = work / "float", opened.source
    tracer = Tracer(
        source=source,
        tokenizers={k: Tokenizer(floats / spec.file, spec) for k, spec in tokenizers.items()},
        latent=opened.latent,
        defaults=opened.defaults,
        timesteps=timesteps_of(opened.schedule),
        floats=floats,
        scratch=work / "trace",
        networks={network_stage(network).name: network for network in opened.networks},
    )
    traced: dict[str, Traced] = {}
    stages = stages_of(source, with_encoder=options.with_encoder or source.inpaints)
    stages += map(network_stage, opened.networks)
    total = sum(_TRACING[stage.role] for stage in stages)
    tracing = report.phase(
        "tracing", total + (_TRACING["controlled_denoiser"] if opened.networks else 0)
    )
    for stage in stages:
        tracing.begin(f"{stage.name}: tracing", _TRACING[stage.role])
        traced[stage.name] = tracer.trace(stage, traced)
        tracing.end()
    if opened.networks:
        tracing.begin(f"{CONTROLLED_UNET}: adding inputs")
        traced[CONTROLLED_UNET] = tracer.trace_controlled(opened.networks[0], traced)
    return traced


def _describe(
    options: Options,
    opened: _Opened,
    tokenizers: Mapping[str, TokenizerSpec],
    traced: Mapping[str, Traced],
) -> Manifest:
    """The manifest of the float bundle, which has the target and the name of the finished one."""
    source, target = opened.source, options.resolved_target
    return Manifest(
        name=options.name or source.name,
        pipeline=source.pipeline,
        target=target,
        providers=PROVIDERS[target, options.resolved_precision],
        files={},
        graphs={name: stage.spec for name, stage in traced.items()},
        tokenizers=dict(tokenizers),
        conditioning=conditioning(source),
        latent=opened.latent,
        schedule=opened.schedule,
        zeros_for_no_negative=source.zeros_for_no_negative,
        defaults=opened.defaults,
        preset=record_preset(options, source, opened.defaults),
        quantization=Quantization(precision=options.resolved_precision),
        fidelity=Fidelity(stages={}, level=options.fidelity),
        provenance=Provenance(
            source=source.description,
            license=options.license or source.license,
            attribution=(*options.attribution, *source.credits),
            versions=_versions(),
            loras=tuple(matched.record() for matched in source.loras),
            embeddings=tuple(learned.record() for learned in source.embeddings),
            controlnets={network.name: network.description for network in opened.networks},
        ),
    )


def _versions() -> dict[str, str]:
    versions = {"edgediff": edgediff.__version__}
    return versions | {name: importlib.metadata.version(name) for name in _PACKAGES}
