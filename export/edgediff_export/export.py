"""The export, from source to bundle: the only place that knows the order of the stages."""

import gc
import importlib.metadata
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import edgediff
from edgediff.bundle import (
    Defaults,
    Fidelity,
    GraphSpec,
    LatentSpec,
    Manifest,
    Precision,
    Provenance,
    Quantization,
    StageFidelity,
    describe_files,
    write_manifest,
)
from edgediff.errors import ExportError, InputError
from edgediff.prompt import Tokenizer
from edgediff.schedule import NoiseSchedule, make_plan
from edgediff.settings import check_size
from edgediff_export import fidelity, precision, quantize, tokenizer
from edgediff_export.fidelity import Case, Shot
from edgediff_export.scheduling import Sampling, choose_sampling, read_schedule
from edgediff_export.sources import Source, open_source
from edgediff_export.trace import trace
from edgediff_export.write import folder_in_one_piece, tensor_specs, write_graph

COMPONENTS = {"text_encoder": "text_encoder", "unet": "unet", "vae_decoder": "vae"}
"""Stage → the component of the pipeline that it is made of."""
_PROVIDERS: dict[Precision, tuple[str, ...]] = {
    "fp32": ("cpu", "openvino", "coreml"),
    "fp16": ("cuda", "tensorrt", "coreml", "cpu"),
    "int8": ("cpu", "openvino", "coreml"),
}
_PACKAGES = ("torch", "diffusers", "transformers", "optimum-onnx", "onnx-ir", "onnxruntime")
# ‖q − f‖ / ‖f‖ beyond which a stage stays in float32; overflow counts as infinite.
_LIMITS: dict[Precision, float] = {"fp16": 0.02, "int8": 0.2}
FIXTURES = "fixtures.npz"
_SMALL_UNET = 100e6
"""Parameters; pictures of smaller models are compared at full size."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to export. None leaves it to the pipeline. size: (width, height) in pixels."""

    source: str
    out: Path
    precision: Precision = "fp32"
    size: tuple[int, int] | None = None
    vae: Path | None = None
    name: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    sampler: str | None = None
    license: str | None = None
    attribution: tuple[str, ...] = ()
    force: bool = False


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A finished export. `float_sizes`: bytes of each stage in float32."""

    root: Path
    manifest: Manifest
    float_sizes: dict[str, int]

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
    with folder_in_one_piece(options.out, force=options.force) as work:
        report(f"opening {options.source}")
        source = open_source(options.source, work=work, vae=options.vae)
        schedule = read_schedule(source.scheduler)
        latent = _latent_space(source)
        defaults = _defaults(options, source, schedule, latent)
        floats, bundle = work / "float", work / "bundle"
        floats.mkdir()
        bundle.mkdir()
        report("tokenizer")
        spec = tokenizer.write_tokenizer(source.folder / "tokenizer", bundle)
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
            target="gpu" if options.precision == "fp16" else "cpu",
            providers=_PROVIDERS[options.precision],
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
            ),
        )
        report("pictures of the float model")
        _write(floats, manifest)
        shots = _shots(defaults, latent, stages["unet"].parameters)
        references = fidelity.take_pictures(floats, shots)
        graphs, fidelities, plan = {}, {}, {}
        for stage, traced in stages.items():
            report(f"{stage}: {options.precision}")
            # What a decoder does to made-up latents says little of what it does to a picture's.
            real = [p.decoding for p in references] if stage == "vae_decoder" else []
            graphs[stage], fidelities[stage], plan[stage] = _lower(
                traced, [*traced.cases, *real], options.precision, floats, bundle
            )
        manifest = replace(
            manifest,
            graphs=graphs,
            quantization=Quantization(precision=options.precision, tensors=plan),
            fidelity=Fidelity(stages=fidelities),
        )
        pictures = references
        if options.precision != "fp32":
            report(f"pictures in {options.precision}")
            _write(bundle, manifest)
            pictures = fidelity.take_pictures(bundle, shots)
        cases = {k: s.cases for k, s in stages.items()}
        fidelity.write_fixtures(bundle / FIXTURES, cases, shots, references)
        compared = fidelity.compare(shots, pictures, references)
        manifest = _write(
            bundle,
            replace(
                manifest,
                fixtures=FIXTURES,
                fidelity=replace(manifest.fidelity, pictures=compared),
            ),
        )
        float_sizes = {
            k: sum((floats / f).stat().st_size for f in (t.spec.file, *t.spec.data))
            for k, t in stages.items()
        }
        report(f"writing {options.out}")
    return Exported(root=options.out, manifest=manifest, float_sizes=float_sizes)


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
    traced: _Stage, cases: list[Case], asked: Precision, floats: Path, bundle: Path
) -> tuple[GraphSpec, StageFidelity, dict[str, str]]:
    """A float32 stage in the precision asked for, in the bundle; and weight → what it became."""
    source = floats / traced.spec.file
    if asked == "fp32":
        return _as_float(traced, floats, bundle, {})
    lower = precision.to_float16 if asked == "fp16" else quantize.to_int8
    lowered = lower(source, cases)
    path = bundle / traced.spec.file
    data = write_graph(lowered.model, path)
    spec = replace(
        _graph_spec(lowered.model, path, data, lowered.precision),
        session_config=lowered.session_config,
    )
    error, max_abs_error = fidelity.measure(path, spec, cases)
    if not error <= _LIMITS[asked]:
        for name in (path.name, *data):
            (bundle / name).unlink()
        return _as_float(traced, floats, bundle, dict.fromkeys(lowered.plan, "fp32"))
    return spec, fidelity.judge(error, max_abs_error, lowered.precision), lowered.plan


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


def _write(folder: Path, manifest: Manifest) -> Manifest:
    names = [n for g in manifest.graphs.values() for n in (g.file, *g.data)]
    names += [t.file for t in manifest.tokenizers.values()]
    names += [manifest.fixtures] if manifest.fixtures else []
    manifest = replace(manifest, files=describe_files(folder, names))
    write_manifest(folder, manifest)
    return manifest


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
