"""The command `edgediff export`. Progress on stderr, the report on stdout."""

import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from edgediff.bundle.manifest import Precision
from edgediff.cli.flags import parse_size
from edgediff.cli.report import count_formats, decibels, megabytes, merged, table
from edgediff.sampling.schedule import PredictionType, TimestepSpacing

if TYPE_CHECKING:
    from edgediff.bundle.manifest import Manifest
    from edgediff_export.export import Exported, Target
    from edgediff_export.targets.cpu.kernels import Profile


def _finite(_context: click.Context, _flag: click.Parameter, value: float | None) -> float | None:
    """click's ranges let nan and infinity through."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not finite: give a number")
    return value


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True
)
@click.option(
    "--target",
    type=click.Choice(["cpu", "openvino", "gpu"]),
    help="What it will run on.  [default: gpu for fp16, else cpu]",
)
@click.option(
    "--profile",
    type=click.Choice(["auto", "x86-amx", "x86-vnni", "x86-avx2", "arm-dot"]),
    default="auto",
    show_default=True,
    help="The CPU that it is for; auto measures on this one. x86-avx2, faster where there is no"
    " VNNI, keeps weights to 7 bits.",
)
@click.option(
    "--min-psnr",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    metavar="DB",
    help="Keep layers out of int8 until the median image is this near to float.",
)
@click.option(
    "--max-size",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    metavar="MB",
    help="Store layers in int4 until graphs and weights, without control networks, are no larger.",
)
@click.option(
    "--plan",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Reuse the plan of another export: its bundle.json.",
)
@click.option(
    "--average-attention",
    is_flag=True,
    help="Average keys and values 2x2 at the highest resolution: faster, other images.",
)
@click.option(
    "--size", metavar="WxH", callback=parse_size, help="Default size.  [default: the UNet's own]"
)
@click.option(
    "--vae", type=click.Path(path_type=Path), help="A folder with another VAE, such as a tiny one."
)
@click.option(
    "--unet",
    type=click.Path(path_type=Path),
    help="Another UNet: a folder, or a .safetensors file of its weights alone.",
)
@click.option("--with-encoder", is_flag=True, help="Also the VAE's encoder, for images as input.")
@click.option("--name", help="The model's name.  [default: SOURCE's last part]")
@click.option("--steps", type=int, help="Default number of steps.")
@click.option("--guidance", type=float, help="Default guidance scale.")
@click.option("--sampler", help="Default sampler.  [default: the nearest to the pipeline's]")
@click.option(
    "--timestep-spacing",
    type=click.Choice(get_args(TimestepSpacing)),
    help="As the weights were distilled.  [default: the pipeline's, or as the UNet's name says]",
)
@click.option(
    "--prediction-type",
    type=click.Choice(get_args(PredictionType)),
    help="What the UNet predicts.  [default: the pipeline's, or as the UNet's name says]",
)
@click.option("--license", "license_", metavar="TEXT", help="Licence of the weights.")
@click.option("--attribution", metavar="TEXT", multiple=True, help="Whom to credit; repeatable.")
@click.option(
    "--lora",
    "loras",
    metavar="FILE[:SCALE]",
    multiple=True,
    help="A LoRA to merge, such as style.safetensors:0.8; repeatable. How to sample is not in the"
    " file: with an LCM-LoRA give --sampler lcm --steps 4 --guidance 1.",
)
@click.option(
    "--embedding",
    "embeddings",
    metavar="FILE[:TOKEN]",
    multiple=True,
    help="A textual inversion to merge, and the word for it in prompts; repeatable."
    "  [default: the file's own word, or its name]",
)
@click.option(
    "--controlnet",
    "controlnets",
    metavar="[NAME=]SOURCE",
    multiple=True,
    help="A control network (ControlNet) for this UNet: a folder or a hub id; repeatable. Images"
    " name it: generate --control NAME=IMAGE.  [NAME: SOURCE's last part]",
)
@click.option("--force", is_flag=True, help="Replace OUT where it is a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export(
    source: str,
    out: Path,
    precision: Precision,
    target: "Target | None",
    profile: "Profile",
    min_psnr: float | None,
    max_size: float | None,
    plan: Path | None,
    average_attention: bool,
    size: tuple[int, int] | None,
    vae: Path | None,
    unet: Path | None,
    with_encoder: bool,
    name: str | None,
    steps: int | None,
    guidance: float | None,
    sampler: str | None,
    timestep_spacing: TimestepSpacing | None,
    prediction_type: PredictionType | None,
    license_: str | None,
    attribution: tuple[str, ...],
    loras: tuple[str, ...],
    embeddings: tuple[str, ...],
    controlnets: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Turn a Stable Diffusion pipeline into a bundle: the folder OUT.

    SOURCE is a diffusers folder, a .safetensors file or a hub id. Each stage is checked against
    torch, and whole images against the float model's; what that showed is the report.
    """
    from edgediff_export.export import Options
    from edgediff_export.export import export as run
    from edgediff_export.search.budget import Budget
    from edgediff_export.source.lora import parse_lora
    from edgediff_export.source.textual_inversion import parse_embedding

    started = time.monotonic()

    def report(text: str) -> None:
        click.echo(f"{time.monotonic() - started:6.1f} s  {text}", err=True)

    exported = run(
        Options(
            source=source,
            out=out,
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
            with_encoder=with_encoder,
            name=name,
            steps=steps,
            guidance_scale=guidance,
            sampler=sampler,
            timestep_spacing=timestep_spacing,
            prediction_type=prediction_type,
            license=license_,
            attribution=attribution,
            loras=tuple(map(parse_lora, loras)),
            embeddings=tuple(map(parse_embedding, embeddings)),
            controlnets=controlnets,
            force=force,
        ),
        report,
    )
    report("done")
    click.echo(_as_json(exported) if as_json else _describe(exported))
    sys.stdout.flush()


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
    if manifest.quantization.precision != "fp32":
        for image in manifest.fidelity.images:
            lines.append(
                f"{decibels(image.psnr_db)} to the float model: {image.prompt!r},"
                f" seed {image.seed}, {image.steps} steps of {image.sampler},"
                f" {image.width}x{image.height}"
            )
        lines += _search(manifest)
    lines += exported.notes
    lines.append(str(exported.root))
    return "\n".join(lines)


def _search(manifest: "Manifest") -> list[str]:
    """What a search for a plan found."""
    formats = Counter(f for plan in manifest.quantization.tensors.values() for f in plan.values())
    lines = [f"weights: {count_formats(formats)}"]
    if manifest.quantization.reduced_range:
        lines.append("weights of int8 products have 7 bits, for x86 without VNNI")
    if manifest.quantization.averaged_attention:
        lines.append("keys and values are averaged 2x2 at the highest resolution")
    search = manifest.quantization.search
    if search is not None:
        lines.append(
            f"budget: {decibels(search.calibration_psnr_db)} on calibration images,"
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
        "notes": list(exported.notes),
        "images": [
            {"prompt": p.prompt, "seed": p.seed, "psnr_db": p.psnr_db} for p in fidelity.images
        ],
    }
    return json.dumps(answer, indent=2)
