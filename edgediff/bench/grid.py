"""Expand the requested axes into the configurations to run."""

import contextlib
import importlib.metadata
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

import edgediff
from edgediff.backend.available import version
from edgediff.backend.providers import PROVIDERS, check_provider_name
from edgediff.bench.results import Config, Model
from edgediff.bench.runner import Job
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import ImageFidelity
from edgediff.errors import InputError
from edgediff.pipeline import find_bundle
from edgediff.request.request import resolve

PROMPT = "a red apple"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Axes whose combinations are all run; an empty axis takes the bundle's default."""

    bundles: tuple[str, ...]
    providers: tuple[str, ...] = ("auto",)
    threads: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
    steps: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)


def jobs(grid: Grid) -> list[Job]:
    """The checked configurations. Raises BundleError, InputError."""
    found = []
    for name in grid.bundles:
        path = find_bundle(name)
        bundle = Bundle.open(path)
        for provider, threads, size, steps, batch in itertools.product(
            grid.providers or ("auto",),
            grid.threads or (None,),
            grid.sizes or (None,),
            grid.steps or (None,),
            grid.batches or (1,),
        ):
            found.append(_job(path, bundle, provider, threads, size, steps, batch))
    return _label(found)


def _job(
    path: Path,
    bundle: Bundle,
    provider: str,
    threads: int | None,
    size: tuple[int, int] | None,
    steps: int | None,
    batch: int,
) -> Job:
    if provider != "auto":
        check_provider_name(provider)
    if threads is not None and threads < 1:
        raise InputError(f"`threads` is {threads}: expected a whole number from 1 up")
    if batch < 1:
        raise InputError(f"`batch` is {batch}: expected a whole number from 1 up")
    settings = resolve(bundle, PROMPT, {"size": size, "steps": steps}).settings
    wanted = (settings.steps, settings.width, settings.height)
    fixture = _fixture(bundle, wanted)
    config = Config(
        label="",
        model=_model(bundle),
        provider=provider,
        threads=threads,
        width=settings.width,
        height=settings.height,
        steps=settings.steps,
        sampler=settings.sampler if fixture is None else fixture.sampler,
        guidance_scale=settings.guidance_scale if fixture is None else fixture.guidance_scale,
        batch=batch,
        prompt=PROMPT if fixture is None else fixture.prompt,
        seed=0 if fixture is None else fixture.seed,
    )
    inputs = {f.name: getattr(config, f.name) for f in fields(config)}
    del inputs["label"], inputs["model"]
    return Job(config=config, inputs={"bundle": str(path), **inputs}, bundle=path)


def _fixture(bundle: Bundle, wanted: tuple[int, int, int]) -> ImageFidelity | None:
    """The bundle's first fidelity image with these steps, width and height. Its prompt and seed are
    used for timing, so that the quality of the timed image can be measured."""
    images = bundle.manifest.fidelity.images
    return next((i for i in images if (i.steps, i.width, i.height) == wanted), None)


def _model(bundle: Bundle) -> Model:
    manifest = bundle.manifest
    formats = Counter(f for plan in manifest.quantization.tensors.values() for f in plan.values())
    return Model(
        name=manifest.name,
        id=bundle.id,
        source=manifest.provenance.source,
        target=manifest.target,
        precision=manifest.quantization.precision,
        plan=dict(formats),
        bytes=sum(f.size for f in manifest.files.values()),
    )


def _label(found: Sequence[Job]) -> list[Job]:
    """Label each configuration with the properties in which it differs from the others."""
    parts: dict[str, Callable[[Config], str]] = {
        "model": lambda c: c.model.name,
        "precision": lambda c: c.model.precision,
        "id": lambda c: c.model.id[:8],
        "provider": lambda c: c.provider,
        "threads": lambda c: "all threads" if c.threads is None else _counted(c.threads, "thread"),
        "size": lambda c: f"{c.width}x{c.height}",
        "steps": lambda c: _counted(c.steps, "step"),
        "batch": lambda c: f"batch {c.batch}",
    }
    differing = {
        name for name, part in parts.items() if len({part(job.config) for job in found}) > 1
    }
    if {"model", "precision"} & differing:
        differing.discard("id")
    chosen = [name for name in parts if name in differing or name == "model"]
    labels = [" ".join(parts[name](job.config) for name in chosen) for job in found]
    if len(set(labels)) < len(labels):  # the same configuration twice
        labels = [f"{label} #{k + 1}" for k, label in enumerate(labels)]
    return [
        replace(job, config=replace(job.config, label=label))
        for job, label in zip(found, labels, strict=True)
    ]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def versions() -> dict[str, str]:
    """Versions of edgediff, onnxruntime, numpy and the installed packages of providers."""
    found = {
        "edgediff": edgediff.__version__,
        "onnxruntime": version(),
        "numpy": np.__version__,
    }
    for provider in PROVIDERS.values():
        for package in provider.packages:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[package] = importlib.metadata.version(package)
    return found
