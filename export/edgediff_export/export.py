"""The export, from source to bundle: the only place that knows the order of the stages."""

import gc
import importlib.metadata
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

import edgediff
from edgediff.bundle import (
    Defaults,
    Fidelity,
    GraphSpec,
    LatentSpec,
    Manifest,
    PlanSearch,
    Precision,
    Provenance,
    Quantization,
    StageFidelity,
)
from edgediff.errors import ExportError, InputError
from edgediff.prompt import Tokenizer
from edgediff.schedule import NoiseSchedule, make_plan
from edgediff.settings import check_size
from edgediff_export import budget, fidelity, precision, qdq, tokenizer
from edgediff_export.budget import Budget
from edgediff_export.embedding import Embedding
from edgediff_export.fidelity import Case, Picture, Shot
from edgediff_export.lora import Lora
from edgediff_export.lower.cpu import Prepared, prepare
from edgediff_export.lower.dense import Format
from edgediff_export.lower.kernels import Profile
from edgediff_export.lowered import Lowered
from edgediff_export.plan import read_plan
from edgediff_export.scheduling import Sampling, choose_sampling, read_schedule
from edgediff_export.search import Trial
from edgediff_export.sources import Source, open_source
from edgediff_export.trace import trace
from edgediff_export.write import folder_in_one_piece, tensor_specs, write_bundle, write_graph

Target = Literal["cpu", "openvino", "gpu"]
"""What a bundle is made for: ONNX Runtime's own CPU provider, OpenVINO's plug-in, or a GPU."""
COMPONENTS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae"}
"""Stage → the component of the pipeline that it is made of."""
# Fastest first: `auto` takes the first that is installed.
_PROVIDERS: dict[tuple[Target, Precision], tuple[str, ...]] = {
    ("cpu", "fp32"): ("cpu", "openvino", "coreml"),
    ("cpu", "int8"): ("cpu",),
    ("openvino", "fp32"): ("openvino", "cpu"),
    ("openvino", "int8"): ("openvino", "cpu"),
    ("gpu", "fp32"): ("cuda", "tensorrt", "coreml", "cpu"),
    ("gpu", "fp16"): ("cuda", "tensorrt", "coreml", "cpu"),
}
_PACKAGES = ("torch", "diffusers", "transformers", "optimum-onnx", "onnx-ir", "onnxruntime")
# ‖q − f‖ / ‖f‖ beyond which a stage stays in float32; overflow counts as infinite.
_LIMITS: dict[Precision, float] = {"fp16": 0.02, "int8": 0.2}
FIXTURES = "fixtures.npz"
_CALIBRATION_STEPS = 16
"""Denoising steps of the float pictures that calibration looks at."""
_SMALL_UNET = 100e6
"""Parameters; pictures of smaller models are compared at full size."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to export. None leaves it to the pipeline. size: (width, height) in pixels."""

    source: str
    out: Path
    precision: Precision = "fp32"
    target: Target | None = None
    budget: Budget = field(default_factory=Budget)
    plan: Path | None = None
    average_attention: bool = False
    profile: Profile = "auto"
    size: tuple[int, int] | None = None
    vae: Path | None = None
    name: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    license: str | None = None
    attribution: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export. `float_sizes`: bytes of each stage in float32. `notes`: what was not done
    as asked, and why."""

    root: Path
    manifest: Manifest
    float_sizes: dict[str, int]
    notes: tuple[str, ...] = ()

    def size(self, stage: str) -> int:
        """Bytes of a stage's graph and weights."""
        graph = self.manifest.graphs[stage]
        return sum(self.manifest.files[f].size for f in (graph.file, *graph.data))


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A traced stage: its float32 graph on disk, and the cases that torch ran."""

    spec: GraphSpec
    cases: list[Case]
    fidelity: StageFidelity
    parameters: int


def export(options: Options, report: Callable[[str], None] = lambda _: None) -> Exported:
    """Make a bundle at `options.out`. `report` is called with what is being done, as it begins.

    Raises ExportError where the pipeline cannot be exported, InputError for options that do not
    fit it; in both cases nothing is written."""
    target = _check_target(options)
    plan = None if options.plan is None else read_plan(options.plan)
    with folder_in_one_piece(options.out, force=options.force) as work:
        report(f"opening {options.source}")
        source = open_source(options.source, work=work, vae=options.vae)
        source = source.merged(options.loras, options.embeddings)
        if plan is not None:
            plan.check_model(options.name or source.name)
        average = options.average_attention or (plan is not None and plan.averaged)
        schedule = read_schedule(source.scheduler)
        latent = _latent_space(source)
        defaults = _defaults(options, source, schedule, latent)
        floats, bundle = work / "float", work / "bundle"
        floats.mkdir()
        bundle.mkdir()
        report("tokenizer")
        added = [learned.tokens for learned in source.embeddings]
        spec = tokenizer.write_tokenizer(source.folder / "tokenizer", bundle, added)
        shutil.copy(bundle / spec.file, floats / spec.file)
        stages: dict[str, _Stage] = {}
        for stage in COMPONENTS:
            report(f"{stage}: tracing")
            stages[stage] = _trace_stage(
                stage, source, Tokenizer(bundle / spec.file, spec), latent, defaults, stages, work
            )
        manifest = Manifest(
            name=options.name or source.name,
            pipeline=source.pipeline,
            target=target,
            providers=_PROVIDERS[target, options.precision],
            files={},
            graphs={stage: traced.spec for stage, traced in stages.items()},
            tokenizers={"text_encoder": spec},
            latent=latent,
            schedule=schedule,
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
            ),
        )
        report("pictures of the float model")
        manifest = write_bundle(floats, manifest)
        shots = _shots(defaults, latent, stages["unet"].parameters)
        references = fidelity.take_pictures(floats, shots)
        examples = _examples(stages, references)
        lowering: dict[str, Callable[[Path, Sequence[Case]], Lowered]] = {}
        search: PlanSearch | None = None
        prepared: dict[str, Prepared] = {}
        if (target, options.precision) == ("cpu", "int8"):
            for stage, traced in stages.items():
                report(f"{stage}: lowering")
                prepared[stage] = prepare(
                    floats / traced.spec.file,
                    examples[stage],
                    profile=options.profile,
                    scale=_scale(stage, defaults, latent, examples[stage]),
                    average=average and stage == "unet",
                )
            plans: Mapping[str, Mapping[str, Format]] | None = None
            if plan is not None:
                plans = plan.fitted(prepared)
                prepared = {
                    stage: replace(p, kernels=plan.kernels(p, stage))
                    for stage, p in prepared.items()
                }
            elif options.budget.asked:
                calibration, unseen = _trial_shots(shots[0], stages["unet"].parameters)
                plans, search = Trial(
                    floats=floats,
                    manifest=manifest,
                    prepared=prepared,
                    calibration=calibration,
                    unseen=unseen,
                    scratch=work,
                ).find_plan(options.budget, report)
            for stage, p in prepared.items():
                if plan is None or not plan.keeps_float(stage):
                    lowering[stage] = _writer(p, None if plans is None else plans[stage])
        else:
            convert = {"fp16": precision.to_float16, "int8": qdq.to_qdq}.get(options.precision)
            lowering = {} if convert is None else dict.fromkeys(stages, convert)
        graphs, fidelities, tensors = {}, {}, {}
        notes: list[str] = []
        for stage, traced in stages.items():
            report(f"{stage}: {options.precision}")
            graphs[stage], fidelities[stage], tensors[stage] = _lower(
                traced,
                examples[stage],
                options.precision,
                lowering.get(stage),
                floats,
                bundle,
                notes,
                bfloat16=target == "openvino",
            )
            if plan is not None and plan.keeps_float(stage):
                tensors[stage] = dict(plan.tensors[stage])
        if search is not None and notes:
            raise ExportError(
                f"{notes[0]}, so the budget cannot be kept: ask for more decibels or allow more"
                " megabytes; nothing was written"
            )
        manifest = replace(
            manifest,
            graphs=graphs,
            quantization=Quantization(
                precision=options.precision,
                tensors=tensors,
                averaged_attention=average and graphs["unet"].precision == "int8",
                direct={
                    stage: p.direct
                    for stage, p in prepared.items()
                    if p.direct and graphs[stage].precision == "int8"
                },
                search=search,
            ),
            fidelity=Fidelity(stages=fidelities),
        )
        pictures = references
        if options.precision != "fp32":
            report(f"pictures in {options.precision}")
            write_bundle(bundle, manifest)
            pictures = fidelity.take_pictures(bundle, shots)
        cases = {k: s.cases for k, s in stages.items()}
        fidelity.write_fixtures(bundle / FIXTURES, cases, shots, references)
        compared = fidelity.compare(shots, pictures, references)
        manifest = write_bundle(
            bundle,
            replace(
                manifest,
                fixtures=FIXTURES,
                fidelity=replace(manifest.fidelity, pictures=compared),
            ),
        )
        float_sizes = {stage: _bytes(floats, traced.spec) for stage, traced in stages.items()}
        report(f"writing {options.out}")
    unmatched = [matched.note for matched in source.loras if matched.note]
    return Exported(
        root=options.out,
        manifest=manifest,
        float_sizes=float_sizes,
        notes=(*unmatched, *notes),
    )


def _check_target(options: Options) -> Target:
    """The target, by default the usual one of the precision. Raises InputError."""
    target: Target = options.target or ("gpu" if options.precision == "fp16" else "cpu")
    possible = [p for t, p in _PROVIDERS if t == target]
    if options.precision not in possible:
        why = (
            "CPUs have no float16 arithmetic that would be faster"
            if options.precision == "fp16"
            else "GPUs are fast in float16"
        )
        raise InputError(
            f"--precision {options.precision} for --target {target}: {why}; give"
            f" {' or '.join(f'--precision {p}' for p in possible)}, or another target"
        )
    searched = target == "cpu" and options.precision == "int8"
    asked = [
        flag
        for flag, given in (
            ("--min-psnr", options.budget.min_psnr is not None),
            ("--max-size", options.budget.max_size is not None),
            ("--plan", options.plan is not None),
            ("--average-attention", options.average_attention),
            ("--profile", options.profile != "auto"),
        )
        if given
    ]
    if asked and not searched:
        raise InputError(f"{asked[0]}: only goes with --precision int8 --target cpu")
    if options.plan is not None and options.budget.asked:
        raise InputError("--plan: says itself what each layer becomes; leave the budget out")
    return target


def _writer(
    prepared: Prepared, plan: Mapping[str, Format] | None
) -> Callable[[Path, Sequence[Case]], Lowered]:
    return lambda _source, _cases: prepared.write(plan)


def _examples(stages: Mapping[str, _Stage], references: Sequence[Picture]) -> dict[str, list[Case]]:
    """What to calibrate each stage on: the fixtures, and what came by in the pictures.

    What a stage does to made-up inputs says little of what it does to a picture's."""
    denoising = [case for p in references for case in p.denoising]
    every = max(1, len(denoising) // _CALIBRATION_STEPS)
    return {
        "text_encoder": [
            *stages["text_encoder"].cases,
            *(c for p in references for c in p.encoding),
        ],
        "unet": [*stages["unet"].cases, *denoising[::every]],
        "vae_decoder": [*stages["vae_decoder"].cases, *(p.decoding for p in references)],
    }


def _scale(stage: str, defaults: Defaults, latent: LatentSpec, cases: Sequence[Case]) -> float:
    """How many times as many latents a picture of the default size has as the largest example."""
    if stage == "text_encoder":
        return 1.0
    area = defaults.width * defaults.height / latent.downscale**2
    name = "sample" if stage == "unet" else "latent_sample"
    return float(area / max(np.prod(case.inputs[name].shape[2:]) for case in cases))


def _trial_shots(shot: Shot, parameters: int) -> tuple[list[Shot], list[Shot]]:
    """The pictures that a search compares, and those that it does not see: fewer of a model that
    takes minutes."""
    used, others = (budget.CALIBRATION, 8) if parameters < _SMALL_UNET else (1, 2)
    shots = [
        replace(shot, name=str(k), prompt=prompt, seed=100 + k)
        for k, prompt in enumerate(budget.PROMPTS)
    ]
    return shots[:used], shots[budget.CALIBRATION :][:others]


def _trace_stage(
    stage: str,
    source: Source,
    tokens: Tokenizer,
    latent: LatentSpec,
    defaults: Defaults,
    done: dict[str, _Stage],
    work: Path,
) -> _Stage:
    """Load a component, run the fixtures through it, trace it, let go of it, check the graph."""
    inputs: dict[str, fidelity.Named]
    if stage == "text_encoder":
        inputs = fidelity.text_encoder_inputs(tokens)
    elif stage == "unet":
        inputs = fidelity.unet_inputs(
            source.unet,
            done["text_encoder"].cases,
            guidance_scale=defaults.guidance_scale,
        )
    else:
        side = fidelity.sample_side(source.unet)
        inputs = fidelity.vae_decoder_inputs(source.vae, side, latent.scaling_factor)
    module = source.load(COMPONENTS[stage])
    parameters = sum(p.numel() for p in module.parameters())
    cases = fidelity.run_torch(module, stage, inputs)
    scratch = work / "trace"
    scratch.mkdir()
    example = _example(cases[0].inputs)
    if stage == "unet":
        example["sample"] = _odd_latents(source.unet, example["sample"])
    model = trace(module, stage, example, scratch)
    del module
    gc.collect()
    path = work / "float" / f"{stage}.onnx"
    data = write_graph(model, path)
    spec = _graph_spec(model, path, data, "fp32")
    del model
    gc.collect()
    shutil.rmtree(scratch)
    error, max_abs_error = fidelity.measure(path, spec, cases)
    if not error <= fidelity.FLOAT_LIMIT:
        raise ExportError(
            f"{stage}: the exported graph differs from torch by {error:.1e} of its output's norm,"
            f" more than {fidelity.FLOAT_LIMIT:.0e}: report this with the pipeline's configs"
        )
    judged = fidelity.judge(error, max_abs_error, "fp32")
    return _Stage(spec=spec, cases=cases, fidelity=judged, parameters=parameters)


def _lower(
    traced: _Stage,
    cases: list[Case],
    asked: Precision,
    lower: Callable[[Path, Sequence[Case]], Lowered] | None,
    floats: Path,
    bundle: Path,
    notes: list[str],
    *,
    bfloat16: bool,
) -> tuple[GraphSpec, StageFidelity, dict[str, str]]:
    """A float32 stage in the precision asked for, in the bundle; and weight → what it became.

    Where that is useless, or smaller but wrong, the stage stays float, with a note."""
    source = floats / traced.spec.file
    if lower is None:
        traced = replace(traced, fidelity=_judged(traced, bfloat16))
        return _as_float(traced, floats, bundle, {})
    lowered = lower(source, cases)
    path = bundle / traced.spec.file
    data = write_graph(lowered.model, path)
    spec = replace(
        _graph_spec(lowered.model, path, data, lowered.precision),
        session_config=lowered.session_config,
    )
    if lowered.widened is not None:
        loaded = sum((bundle / name).stat().st_size for name in data) + lowered.widened
        spec = replace(spec, loaded_bytes=loaded)
    error, max_abs_error = fidelity.measure(path, spec, cases)
    refusal = ""
    if not error <= _LIMITS[asked]:
        refusal = f"in {asked} it is {error:.2g} of its output's norm from float"
    elif asked == "int8" and _bytes(bundle, spec) >= _bytes(floats, traced.spec):
        was, now = (
            fidelity.seconds(p, s, cases[0]) for p, s in ((source, traced.spec), (path, spec))
        )
        if now >= was:
            refusal = f"in {asked} it is neither smaller nor faster"
    if refusal:
        notes.append(f"{path.stem} stays in float32: {refusal}")
        for name in (path.name, *data):
            (bundle / name).unlink()
        traced = replace(traced, fidelity=_judged(traced, bfloat16))
        return _as_float(traced, floats, bundle, dict.fromkeys(lowered.plan, "fp32"))
    judged = fidelity.judge(error, max_abs_error, lowered.precision, bfloat16=bfloat16)
    return spec, judged, lowered.plan


def _judged(traced: _Stage, bfloat16: bool) -> StageFidelity:
    """How a stage that stays float is judged."""
    f = traced.fidelity
    return fidelity.judge(f.error, f.max_abs_error, "fp32", bfloat16=bfloat16)


def _bytes(folder: Path, spec: GraphSpec) -> int:
    return sum((folder / name).stat().st_size for name in (spec.file, *spec.data))


def _as_float(
    traced: _Stage, floats: Path, bundle: Path, plan: dict[str, str]
) -> tuple[GraphSpec, StageFidelity, dict[str, str]]:
    """A stage that stays as it was traced."""
    for name in (traced.spec.file, *traced.spec.data):
        try:
            (bundle / name).hardlink_to(floats / name)
        except OSError:  # a file system without hard links
            shutil.copy(floats / name, bundle / name)
    return traced.spec, traced.fidelity, plan


def _shots(defaults: Defaults, latent: LatentSpec, parameters: int) -> list[Shot]:
    """Four pictures as the model makes them, or one small, short one where that takes minutes."""
    small = parameters < _SMALL_UNET
    unit = latent.downscale
    width, height = (
        (defaults.width, defaults.height)
        if small
        else (
            min(side, max(unit, 256 // unit * unit)) for side in (defaults.width, defaults.height)
        )
    )
    steps = defaults.steps if small else min(defaults.steps, 4)
    return [
        Shot(
            name=str(k),
            prompt=prompt,
            seed=k,
            steps=steps,
            guidance_scale=defaults.guidance_scale,
            sampler=defaults.sampler,
            width=width,
            height=height,
        )
        for k, prompt in enumerate(fidelity.PROMPTS[: 4 if small else 1])
    ]


def _graph_spec(
    model: ir.Model, path: Path, data: tuple[str, ...], precision: Precision
) -> GraphSpec:
    return GraphSpec(
        file=path.name,
        data=data,
        precision=precision,
        inputs=tensor_specs(list(model.graph.inputs)),
        outputs=tensor_specs(list(model.graph.outputs)),
    )


def _example(inputs: fidelity.Named) -> dict[str, Any]:
    """Inputs to trace with: a case's, in a batch of two, so that no batch of one is baked in."""
    import torch

    return {
        k: torch.from_numpy(np.concatenate([v, v]) if np.ndim(v) else np.asarray(v))
        for k, v in inputs.items()
    }


def _odd_latents(config: Mapping[str, Any], sample: Any) -> Any:
    """Latents like `sample` whose sides the UNet cannot halve evenly. Traced with these, it resizes
    to the size of each skip connection, and so takes latents of any size."""
    side = 2 ** (len(config["block_out_channels"]) - 1)
    return sample.new_zeros((*sample.shape[:2], 2 * side + 1, 2 * side + 3))


def _latent_space(source: Source) -> LatentSpec:
    vae = source.vae
    tiny = vae["_class_name"] == "AutoencoderTiny"
    blocks = vae.get("decoder_block_out_channels" if tiny else "block_out_channels")
    # AutoencoderTiny's own default; AutoencoderKL's is one block, which no pipeline has.
    depth = len(blocks) if blocks else 4
    return LatentSpec(
        channels=source.unet.get("in_channels", 4),
        downscale=2 ** (depth - 1),
        scaling_factor=float(vae.get("scaling_factor") or (1.0 if tiny else 0.18215)),
        shift_factor=float(vae.get("shift_factor") or 0.0),
    )


def _defaults(
    options: Options, source: Source, schedule: NoiseSchedule, latent: LatentSpec
) -> Defaults:
    """What the user asked for, or else what the pipeline suggests. Raises InputError."""
    suggested: Sampling = choose_sampling(
        source.scheduler,
        name=options.name or source.name,
        guidance_embedding=source.unet.get("time_cond_proj_dim") is not None,
    )
    unit = latent.downscale
    if options.size is None:
        size = source.unet.get("sample_size") or 64
        rows, columns = size if isinstance(size, list | tuple) else (size, size)
        width, height = columns * latent.downscale, rows * latent.downscale
    else:
        width, height = options.size
    width, height = check_size((width, height), unit)
    guidance = options.guidance_scale
    guidance = suggested.guidance_scale if guidance is None else guidance
    if not math.isfinite(guidance):
        raise InputError(f"guidance is {guidance}: give a finite number")
    sampler = options.sampler or suggested.sampler
    if options.steps is not None:
        steps = options.steps
    elif options.sampler in (None, suggested.sampler):
        steps = suggested.steps
    else:
        steps = 4 if sampler == "lcm" else 20
    make_plan(schedule, sampler, steps)  # InputError where they do not go together
    return Defaults(
        sampler=sampler, steps=steps, guidance_scale=float(guidance), width=width, height=height
    )


def _versions() -> dict[str, str]:
    versions = {"edgediff": edgediff.__version__}
    return versions | {name: importlib.metadata.version(name) for name in _PACKAGES}
