"""The command `edgediff export`. Progress on stderr, the report on stdout."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from edgediff.bundle import Precision
from edgediff.cli import megabytes, parse_size, table

if TYPE_CHECKING:
    from edgediff_export.export import Exported


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True
)
@click.option(
    "--size", metavar="WxH", callback=parse_size, help="Default size.  [default: the UNet's own]"
)
@click.option(
    "--vae", type=click.Path(path_type=Path), help="A folder with another VAE, such as a tiny one."
)
@click.option("--name", help="The model's name.  [default: SOURCE's last part]")
@click.option("--steps", type=int, help="Default number of steps.")
@click.option("--guidance", type=float, help="Default guidance scale.")
@click.option("--sampler", help="Default sampler.  [default: the nearest to the pipeline's]")
@click.option("--license", "license_", metavar="TEXT", help="Licence of the weights.")
@click.option("--attribution", metavar="TEXT", multiple=True, help="Whom to credit; repeatable.")
@click.option("--force", is_flag=True, help="Replace OUT where it is a bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def export(
    source: str,
    out: Path,
    precision: Precision,
    size: tuple[int, int] | None,
    vae: Path | None,
    name: str | None,
    steps: int | None,
    guidance: float | None,
    sampler: str | None,
    license_: str | None,
    attribution: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Turn a Stable Diffusion pipeline into a bundle: the folder OUT.

    SOURCE is a diffusers folder, a .safetensors file or a hub id. Each stage is checked against
    torch, and whole pictures against the float model's; what that showed is the report.
    """
    from edgediff_export.export import Options
    from edgediff_export.export import export as run

    started = time.monotonic()

    def report(text: str) -> None:
        click.echo(f"{time.monotonic() - started:6.1f} s  {text}", err=True)

    exported = run(
        Options(
            source=source,
            out=out,
            precision=precision,
            size=size,
            vae=vae,
            name=name,
            steps=steps,
            guidance_scale=guidance,
            sampler=sampler,
            license=license_,
            attribution=attribution,
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
    lines = [table(rows)]
    if manifest.quantization.precision != "fp32":
        for picture in manifest.fidelity.pictures:
            psnr = "equal" if picture.psnr_db is None else f"{picture.psnr_db:.1f} dB"
            lines.append(
                f"{psnr} to the float model: {picture.prompt!r}, seed {picture.seed},"
                f" {picture.steps} steps of {picture.sampler}, {picture.width}x{picture.height}"
            )
    lines.append(str(exported.root))
    return "\n".join(lines)


def _as_json(exported: "Exported") -> str:
    manifest = exported.manifest
    fidelity = manifest.fidelity
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
        "pictures": [
            {"prompt": p.prompt, "seed": p.seed, "psnr_db": p.psnr_db} for p in fidelity.pictures
        ],
    }
    return json.dumps(answer, indent=2)
