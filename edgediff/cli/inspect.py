"""`edgediff info`, `verify` and `providers`: describe a bundle and check it on this device."""

import dataclasses
import json
from collections import Counter
from typing import TYPE_CHECKING

import click

from edgediff.cli.flags import SpellingCommand, json_flag, provider_flags
from edgediff.cli.report import (
    count_formats,
    decibels,
    describe_fidelity,
    describe_preset,
    megabytes,
    merged,
    print_notes,
    steps_of,
    table,
)
from edgediff.cli.running import local_bundle
from edgediff.errors import one_line

if TYPE_CHECKING:
    from edgediff.bundle.folder import Bundle
    from edgediff.bundle.manifest import Quantization
    from edgediff.verification import Check


@click.command()
@click.argument("bundle", default="emoji")
@json_flag
def info(bundle: str, as_json: bool) -> None:
    """Show a bundle's model, licence, sizes, defaults and accuracy.

    BUNDLE is a folder, or hf:owner/name on the hub; the default is the built-in model.
    """
    from edgediff.bundle.folder import Bundle
    from edgediff.bundle.hub import fetch_description
    from edgediff.bundle.hub_name import is_hub_name
    from edgediff.pipeline import find_bundle

    on_hub = is_hub_name(bundle)
    opened = fetch_description(bundle) if on_hub else Bundle.open(find_bundle(bundle))
    if as_json:
        manifest = dataclasses.asdict(opened.manifest)
        click.echo(json.dumps({"id": opened.id, **manifest}, indent=2))
        return
    click.echo(_describe(opened))


def _describe(opened: "Bundle") -> str:
    manifest = opened.manifest
    defaults, latent, schedule = manifest.defaults, manifest.latent, manifest.schedule
    total = sum(f.size for f in manifest.files.values())
    rows = [
        ("model", f"{manifest.name} ({manifest.pipeline})"),
        ("id", opened.id[:16]),
        ("source", manifest.provenance.source),
        ("licence", manifest.provenance.license or "not stated"),
        *(("", line) for line in manifest.provenance.attribution),
        *(("merged", line) for line in merged(manifest.provenance)),
        ("target", f"{manifest.target}; providers {', '.join(manifest.providers)}"),
        ("size", megabytes(total)),
        (
            "defaults",
            f"{defaults.width}x{defaults.height}, {steps_of(defaults.steps, defaults.sampler)},"
            f" guidance {defaults.guidance_scale:g}",
        ),
        *([("preset", describe_preset(manifest.preset))] if manifest.preset else []),
        (
            "latents",
            f"{latent.channels} channels, 1/{latent.downscale} of the image size;"
            f" predicts {schedule.prediction_type.removesuffix('_prediction')}",
        ),
    ]
    for name, origin in manifest.provenance.controlnets.items():
        rows.append(("control", f"--control {name}=IMAGE; from {origin}"))
    for name, graph in manifest.graphs.items():
        size = sum(manifest.files[f].size for f in manifest.own_files(name))
        fidelity = manifest.fidelity.stages.get(name)
        error = f", relative error {fidelity.error:.1e}" if fidelity else ""
        rows.append((name, f"{graph.precision}, {megabytes(size)}{error}"))
    rows += _plan_rows(manifest.quantization)
    if manifest.fidelity.level is not None:
        rows.append(("fidelity", describe_fidelity(manifest)))
    psnrs = [p.psnr_db for p in manifest.fidelity.images]
    if psnrs:
        worst = min((p for p in psnrs if p is not None), default=None)
        text = decibels(worst) + ("" if worst is None else " or better")
        rows.append(("images", f"{len(psnrs)} compared with the float model: {text}"))
    versions = ", ".join(f"{k} {v}" for k, v in manifest.provenance.versions.items())
    rows.append(("exported with", versions))
    return table(rows)


def _plan_rows(quantization: "Quantization") -> list[tuple[str, str]]:
    """The formats of the weights, and the budget of the search that chose them."""
    formats = Counter(f for plan in quantization.tensors.values() for f in plan.values())
    if not formats:
        return []
    rows = [("weights", count_formats(formats))]
    if quantization.reduced_range:
        rows.append(("int8 range", "7 bits, for exact and fast sums on x86 without VNNI"))
    if quantization.averaged_attention:
        rows.append(("attention", "keys and values averaged 2x2 at the highest resolution"))
    found = quantization.search
    if found is not None:
        budget = [
            *([f"{found.min_psnr_db:g} dB"] if found.min_psnr_db is not None else []),
            *([megabytes(found.max_bytes)] if found.max_bytes is not None else []),
        ]
        reached = decibels(found.unseen_psnr_db)
        rows.append(
            (
                "budget",
                f"{', '.join(budget)}; reached {reached} on {found.unseen_images} unseen images",
            )
        )
    return rows


@click.command(cls=SpellingCommand)
@click.argument("bundle", default="emoji")
@provider_flags
@json_flag
def verify(
    bundle: str,
    provider: str,
    threads: int | None,
    provider_options: dict[str, str],
    max_memory: str | None,
    as_json: bool,
) -> None:
    """Check a bundle's files and its accuracy on this device.

    Compares the outputs of each stage, and whole images, with those of the float model in the
    bundle's fixtures. BUNDLE is a folder, or hf:owner/name on the hub; the default is the built-in
    model. Exit status 1 if a check fails.
    """
    from edgediff.backend.available import silence_log
    from edgediff.verification import verify as run_verify

    silence_log()
    outcome = run_verify(
        local_bundle(bundle),
        provider=provider,
        threads=threads,
        provider_options=provider_options,
        max_memory=max_memory,
    )
    print_notes(outcome.notes)
    if as_json:
        answer = {"ok": outcome.ok, **dataclasses.asdict(outcome)}
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(table([_check_row(check) for check in outcome.checks]))
        failed = sum(not check.ok for check in outcome.checks)
        verdict = f"{failed} of {len(outcome.checks)} checks failed" if failed else "all checks ok"
        where = f" on {outcome.provider}" if outcome.provider else ""
        click.echo(f"{one_line(outcome.model)}{where}: {verdict}")
    if not outcome.ok:
        raise click.exceptions.Exit(1)


def _check_row(check: "Check") -> tuple[str, str, str]:
    if check.unit == "dB":
        measured = "equal" if check.measured is None else f"{check.measured:.1f} dB"
        ran = check.ok or check.measured is not None
        detail = f"{measured} (at least {check.limit:.1f})" if ran else ""
    elif check.unit and check.measured is not None:
        detail = f"relative error {check.measured:.1e} (at most {check.limit:.1e})"
    else:
        detail = "" if check.unit else ("sha256 matches" if check.ok else "")
    text = "; ".join(part for part in (detail, check.problem) if part)
    return ("ok  " if check.ok else "FAIL", check.name, text)


@click.command()
@json_flag
def providers(as_json: bool) -> None:
    """List execution providers and how to install the missing ones."""
    from edgediff.backend.available import silence_log, why_missing
    from edgediff.backend.providers import PROVIDERS

    silence_log()
    missing = {name: why_missing(name) for name in PROVIDERS}
    if as_json:
        answer = {
            name: {
                "installed": reason is None,
                "reason": reason,
                "install": PROVIDERS[name].install,
            }
            for name, reason in missing.items()
        }
        click.echo(json.dumps(answer, indent=2))
        return
    rows = [(name, "yes" if r is None else "no", r or "") for name, r in missing.items()]
    click.echo(table(rows))
