"""The command `edgediff export`. Progress on stderr, the report on stdout."""

import json
import math
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from edgediff.bundle.manifest import FidelityLevel, Precision
from edgediff.cli.flags import SectionedCommand, flag, flags, parse_size
from edgediff.cli.report import (
    count_formats,
    decibels,
    describe_fidelity,
    describe_preset,
    megabytes,
    merged,
    table,
)
from edgediff.sampling.schedule import PredictionType, TimestepSpacing
from edgediff_export.presets import PresetName
from edgediff_export.progress import Progress, Reporter
from edgediff_export.progress_line import ProgressLine

if TYPE_CHECKING:
    from edgediff.bundle.manifest import Manifest
    from edgediff_export.export import Exported, Target
    from edgediff_export.targets.cpu.kernels import Profile


def _finite(_context: click.Context, _flag: click.Parameter, value: float | None) -> float | None:
    """click's ranges let nan and infinity through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not finite: give a number")
    return value


_POSITIVE = click.FloatRange(min=0, min_open=True)
_FLAGS = (
    flag(
        "Precision",
        "--preset",
        type=click.Choice(get_args(PresetName)),
        help="For small devices, from fast to quality: steps, sampler, a tiny VAE, precision and"
        " averaged attention. Other flags take precedence.",
    ),
    flag(
        "Precision",
        "--precision",
        type=click.Choice(get_args(Precision)),
        help="int8 for CPUs and OpenVINO, fp16 for GPUs.  [default: the preset's, or fp32]",
    ),
    flag(
        "Precision",
        "--target",
        type=click.Choice(["cpu", "openvino", "gpu"]),
        help="The device to export for.  [default: gpu for fp16, else cpu]",
    ),
    flag(
        "Precision",
        "--profile",
        type=click.Choice(["auto", "x86-amx", "x86-vnni", "x86-avx2", "arm-dot"]),
        default="auto",
        show_default=True,
        help="The CPU to export for; auto measures on this one. x86-avx2, for CPUs without VNNI,"
        " is faster there and keeps weights to 7 bits.",
    ),
    flag(
        "Precision",
        "--min-psnr",
        type=_POSITIVE,
        callback=_finite,
        metavar="DB",
        help="Keep layers out of int8 until the median image is this close to the float model's.",
    ),
    flag(
        "Precision",
        "--max-size",
        type=_POSITIVE,
        callback=_finite,
        metavar="MB",
        help="Store layers in int4 until the bundle, without control networks, is this small.",
    ),
    flag(
        "Precision",
        "--plan",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Quantize each layer as another export did: its bundle.json.",
    ),
    flag(
        "Precision",
        "--average-attention/--no-average-attention",
        default=None,
        help="Average keys and values 2x2 at the highest resolution: faster, but images differ.",
    ),
    flag(
        "Model",
        "--vae",
        type=click.Path(path_type=Path),
        help="Another VAE: a folder, a .safetensors file of its weights, or the name of a tiny one:"
        " taesd for Stable Diffusion 1 and 2, taesdxl for SDXL; `own` keeps the pipeline's in any"
        " preset.",
    ),
    flag(
        "Model",
        "--unet",
        type=click.Path(path_type=Path),
        help="Another UNet: a folder, or a .safetensors file of its weights.",
    ),
    flag(
        "Model",
        "--text-encoder",
        type=click.Path(path_type=Path),
        help="Another text encoder: a folder, or a .safetensors file of its weights.",
    ),
    flag(
        "Model",
        "--text-encoder-2",
        type=click.Path(path_type=Path),
        help="Another second text encoder, for SDXL.",
    ),
    flag(
        "Model",
        "--with-encoder",
        is_flag=True,
        help="Add the VAE's encoder, which image to image needs.",
    ),
    flag(
        "Model",
        *("--lora", "loras"),
        metavar="FILE[:SCALE]",
        multiple=True,
        help="A LoRA to merge, such as style.safetensors:0.8; repeatable. Its name says how to"
        " sample, such as LCM, Lightning or Hyper-SD.",
    ),
    flag(
        "Model",
        "--allow-partial",
        is_flag=True,
        help="Export also if a LoRA has changes that cannot be merged; the report names them.",
    ),
    flag(
        "Model",
        *("--embedding", "embeddings"),
        metavar="FILE[:TOKEN]",
        multiple=True,
        help="A textual inversion to merge, and its word in prompts; repeatable."
        "  [default: the file's own word, or its name]",
    ),
    flag(
        "Model",
        *("--controlnet", "controlnets"),
        metavar="[NAME=]SOURCE",
        multiple=True,
        help="A control network (ControlNet) for this UNet: a folder, a .safetensors file or a hub"
        " id; repeatable. Use it by its name: generate --control NAME=IMAGE."
        "  [NAME: SOURCE's last part]",
    ),
    flag(
        "Defaults",
        "--size",
        metavar="WxH",
        callback=parse_size,
        help="Image size in pixels.  [default: the UNet's own]",
    ),
    flag("Defaults", "--steps", type=int, help="Denoising steps.  [default: as the model needs]"),
    flag(
        "Defaults",
        *("--guidance", "guidance_scale"),
        type=float,
        help="Classifier-free guidance.  [default: as the model needs]",
    ),
    flag("Defaults", "--sampler", help="Sampler.  [default: the closest to the pipeline's]"),
    flag(
        "Defaults",
        "--timestep-spacing",
        type=click.Choice(get_args(TimestepSpacing)),
        help="As the weights were distilled.  [default: the pipeline's, or by the UNet's name]",
    ),
    flag(
        "Defaults",
        "--prediction-type",
        type=click.Choice(get_args(PredictionType)),
        help="The UNet's output.  [default: the pipeline's, or by the UNet's name]",
    ),
    flag(
        "Defaults",
        "--zero-terminal-snr/--no-zero-terminal-snr",
        default=None,
        help="If training ended at pure noise.  [default: the pipeline's, or by the file]",
    ),
    flag(
        "Output",
        "--fidelity",
        type=click.Choice(get_args(FidelityLevel)),
        default="quick",
        show_default=True,
        help="Images to compare with the float model's: four as the bundle makes them, one or two"
        " small ones of few steps, or none.",
    ),
    flag("Output", "--name", help="The model's name.  [default: SOURCE's last part]"),
    flag("Output", *("--license", "license_"), metavar="TEXT", help="Licence of the weights."),
    flag(
        "Output",
        "--attribution",
        metavar="TEXT",
        multiple=True,
        help="A credit to record in the bundle; repeatable.",
    ),
    flag("Output", "--force", is_flag=True, help="Replace OUT if it is a bundle."),
    flag("Output", "--json", "as_json", is_flag=True, help="Print the report as JSON."),
)


@click.command(cls=SectionedCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@flags(_FLAGS)
def export(
    source: str,
    out: Path,
    preset: PresetName | None,
    precision: Precision | None,
    target: "Target | None",
    profile: "Profile",
    min_psnr: float | None,
    max_size: float | None,
    plan: Path | None,
    average_attention: bool | None,
    size: tuple[int, int] | None,
    vae: Path | None,
    unet: Path | None,
    text_encoder: Path | None,
    text_encoder_2: Path | None,
    with_encoder: bool,
    name: str | None,
    steps: int | None,
    guidance_scale: float | None,
    sampler: str | None,
    timestep_spacing: TimestepSpacing | None,
    prediction_type: PredictionType | None,
    zero_terminal_snr: bool | None,
    license_: str | None,
    attribution: tuple[str, ...],
    loras: tuple[str, ...],
    allow_partial: bool,
    embeddings: tuple[str, ...],
    controlnets: tuple[str, ...],
    fidelity: FidelityLevel,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a Stable Diffusion pipeline into a bundle: the folder OUT.

    SOURCE is a diffusers folder, a .safetensors file or a hub id, hf:owner/name. Each stage is
    compared with torch and, as --fidelity asks, whole images with the float model's; the report
    shows the differences.
    """
    from edgediff_export.export import Options
    from edgediff_export.export import export as run
    from edgediff_export.search.budget import Budget
    from edgediff_export.source.lora import parse_lora
    from edgediff_export.source.textual_inversion import parse_embedding

    options = Options(
        source=source,
        out=out,
        preset=preset,
        precision=precision,
        target=target,
        profile=profile,
        budget=Budget(
            min_psnr=min_psnr, max_size=None if max_size is None else int(max_size * 1e6)
        ),
        plan=plan,
        average_attention=average_attention,
        size=size,
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        with_encoder=with_encoder,
        name=name,
        steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        timestep_spacing=timestep_spacing,
        prediction_type=prediction_type,
        zero_terminal_snr=zero_terminal_snr,
        license=license_,
        attribution=attribution,
        loras=tuple(map(parse_lora, loras)),
        allow_partial=allow_partial,
        embeddings=tuple(map(parse_embedding, embeddings)),
        controlnets=controlnets,
        fidelity=fidelity,
        force=force,
    )
    with ProgressLine() as show:
        exported = run(options, show, lambda there, total: show(_downloading(there, total)))
        Reporter(show)("done")
    click.echo(_as_json(exported) if as_json else _describe(exported))
    sys.stdout.flush()


def _downloading(there: int, total: int) -> Progress:
    """Bytes that are there, of all of a download."""
    text = f"downloading {megabytes(total)}"
    return Progress(phase=text, text=text, done=float(there), total=float(total))


def _describe(exported: "Exported") -> str:
    manifest = exported.manifest
    rows: list[tuple[str, ...]] = [("stage", "precision", "size", "of float", "error")]
    for stage, graph in manifest.graphs.items():
        size, before = exported.size(stage), exported.float_sizes[stage]
        error = manifest.fidelity.stages[stage].error
        rows.append(
            (stage, graph.precision, megabytes(size), f"{size / before:.0%}", f"{error:.1e}")
        )
    total = sum(f.size for f in manifest.files.values())
    before = sum(exported.float_sizes.values())
    rows.append(
        ("bundle", manifest.quantization.precision, megabytes(total), f"{total / before:.0%}", "")
    )
    lines = [table(rows), *(f"merged {line}" for line in merged(manifest.provenance))]
    lines.append(f"fidelity {describe_fidelity(manifest)}")
    if manifest.quantization.precision != "fp32":
        lines += _images(manifest)
        lines += _quantization(manifest)
    lines += [f"preset {describe_preset(manifest.preset)}"] if manifest.preset else []
    lines += manifest.provenance.attribution
    lines += exported.reasons
    lines += [f"note: {note}" for note in exported.notes]
    lines.append(str(exported.root))
    return "\n".join(lines)


def _images(manifest: "Manifest") -> list[str]:
    """How close the images are to the float model's."""
    images = manifest.fidelity.images
    if not images:
        return []
    first = images[0]
    plural = "" if first.steps == 1 else "s"
    heading = (
        f"images compared with the float model's, {first.width}x{first.height},"
        f" {first.steps} step{plural} of {first.sampler}:"
    )
    rows = [
        (f"  {decibels(image.psnr_db)}", f"seed {image.seed}", repr(image.prompt))
        for image in images
    ]
    return [heading, table(rows)]


def _quantization(manifest: "Manifest") -> list[str]:
    """The formats of weights, and how a search for them went."""
    quantization = manifest.quantization
    formats = Counter(f for its in quantization.tensors.values() for f in its.values())
    lines = [f"weights: {count_formats(formats)}"]
    if quantization.reduced_range:
        lines.append("weights of int8 products have 7 bits, for x86 without VNNI")
    if quantization.averaged_attention:
        lines.append("keys and values are averaged 2x2 at the highest resolution")
    search = quantization.search
    if search is not None:
        lines.append(
            f"search: {decibels(search.calibration_psnr_db)} on calibration images,"
            f" {decibels(search.unseen_psnr_db)} on {search.unseen_images} others"
            f" (lowest {decibels(search.unseen_lowest_db)})"
        )
    return lines


def _as_json(exported: "Exported") -> str:
    manifest = exported.manifest
    fidelity = manifest.fidelity
    search = manifest.quantization.search
    answer = {
        "bundle": str(exported.root),
        "name": manifest.name,
        "precision": manifest.quantization.precision,
        "bytes": sum(f.size for f in manifest.files.values()),
        "stages": {
            stage: {
                "precision": graph.precision,
                "bytes": exported.size(stage),
                "float_bytes": exported.float_sizes[stage],
                "error": fidelity.stages[stage].error,
                "max_abs_error": fidelity.stages[stage].max_abs_error,
            }
            for stage, graph in manifest.graphs.items()
        },
        "target": manifest.target,
        "loras": [asdict(m) for m in manifest.provenance.loras],
        "embeddings": [asdict(m) for m in manifest.provenance.embeddings],
        "providers": list(manifest.providers),
        "averaged_attention": manifest.quantization.averaged_attention,
        "reduced_range": manifest.quantization.reduced_range,
        "search": None if search is None else asdict(search),
        "fidelity": {"level": fidelity.level, "meaning": describe_fidelity(manifest)},
        "preset": None if manifest.preset is None else asdict(manifest.preset),
        "attribution": list(manifest.provenance.attribution),
        "notes": list(exported.notes),
        "reasons": list(exported.reasons),
        "images": [
            {"prompt": p.prompt, "seed": p.seed, "psnr_db": p.psnr_db} for p in fidelity.images
        ],
    }
    return json.dumps(answer, indent=2)
