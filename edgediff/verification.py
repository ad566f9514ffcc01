"""Replay a bundle's fixtures on this device and compare the outputs with the float model's."""

from dataclasses import dataclass
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from edgediff.backend.memory import AUTO, memory_limit
from edgediff.bundle.folder import Bundle, read_fixtures
from edgediff.bundle.manifest import Manifest
from edgediff.errors import BundleError, EdgediffError, ProviderError
from edgediff.images.metrics import psnr
from edgediff.pipeline import Pipeline, find_bundle, load

IMAGE_MARGIN_DB = 6.0
"""How far a device's image may fall below the PSNR at export: rounding differs by provider, and
6 dB is twice the error."""
IMAGE_ENOUGH_DB = 40.0
"""PSNR that is always enough, even if the image at export was equal or much closer."""
IMAGE_FLOOR_DB = 15.0
"""PSNR that every image needs: unrelated images reach about 10."""


_OF_IMAGES = ("image", "init", "mask")

Fixtures = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check. `measured` and `limit` are in `unit`: for "error" (‖device − float‖ / ‖float‖)
    smaller is better, for "dB" larger is. problem: the reason for a failure, or ""."""

    name: str
    ok: bool
    measured: float | None = None
    limit: float | None = None
    unit: str = ""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The outcome of `verify`: the provider, and all checks in order."""

    model: str
    provider: str | None
    """None if nothing ran because a file is damaged."""
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    """`Pipeline.load_notes` of the stages in memory at the end."""

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)


def verify(
    path_or_name: str | PathLike[str] = "emoji",
    *,
    provider: str = "auto",
    threads: int | None = None,
    provider_options: dict[str, str] | None = None,
    max_memory: int | str | None = AUTO,
) -> Verification:
    """Check every file's hash, then replay the fixtures of each stage and generate whole images.

    Every graph of the bundle, every output of it, and every image that bundle.json lists needs a
    reference: a missing, misshapen or non-finite one fails, as does one that belongs to nothing in
    the bundle.

    Arguments as in `load`. Raises BundleError if there is no bundle to check, ProviderError if the
    provider does not start, and InputError if max_memory is invalid or too small. Failed checks are
    in the result."""
    bundle = Bundle.open(find_bundle(path_or_name))
    memory_limit(bundle.manifest, max_memory)  # before minutes of hashing
    if bundle.manifest.fixtures is None:
        raise BundleError(f"{bundle.root}: has no fixtures to verify against: export it again")
    checks = [_check_hash(bundle, name) for name in bundle.manifest.files]
    if not all(check.ok for check in checks):
        return Verification(model=bundle.manifest.name, provider=None, checks=tuple(checks))
    with load(
        path_or_name,
        provider=provider,
        threads=threads,
        provider_options=provider_options,
        max_memory=max_memory,
    ) as pipe:
        try:
            fixtures = read_fixtures(bundle) or {}
        except BundleError as e:
            checks.append(Check(name="fixtures", ok=False, problem=str(e)))
        else:
            checks += _check_fixtures(pipe, fixtures)
        return Verification(
            model=pipe.name,
            provider=pipe.provider,
            checks=tuple(checks),
            notes=pipe.load_notes,
        )


def _check_fixtures(pipe: Pipeline, fixtures: Fixtures) -> list[Check]:
    manifest = pipe.bundle.manifest
    checks = [_check_stage(pipe, stage, fixtures) for stage in manifest.graphs]
    checks += _check_images(pipe, fixtures)
    names = {f"{of}/{made.name}" for made in manifest.fidelity.images for of in _OF_IMAGES}
    extra = [key for key in fixtures if key not in names and not _is_of_stage(key, manifest)]
    extra += [name for name in manifest.fidelity.stages if name not in manifest.graphs]
    if extra:
        problem = f"{extra[0][:80]!r} is of nothing that this bundle has"
        checks.append(Check(name="fixtures", ok=False, problem=problem))
    return checks


def _is_of_stage(key: str, manifest: Manifest) -> bool:
    """Whether a fixture is an input or output of a stage, as in unet/t981/in/sample. `_check_stage`
    checks its tensor's name."""
    stage, *rest = key.split("/")
    return stage in manifest.graphs and len(rest) == 3 and rest[1] in ("in", "out")


def _check_hash(bundle: Bundle, name: str) -> Check:
    try:
        bundle.check_hash(name)
    except BundleError as e:
        return Check(name=name, ok=False, problem=str(e))
    return Check(name=name, ok=True)


def _check_stage(pipe: Pipeline, stage: str, fixtures: Fixtures) -> Check:
    """The worst relative error of a stage over its cases, against the float model's outputs."""
    fidelity = pipe.bundle.manifest.fidelity.stages.get(stage)
    if fidelity is None:
        problem = "bundle.json does not say how far this stage may be from the float model"
        return Check(name=stage, ok=False, problem=problem)
    limit = fidelity.tolerance
    cases = sorted({key.split("/")[1] for key in fixtures if key.startswith(f"{stage}/")})
    if not cases:
        return Check(name=stage, ok=False, problem="fixtures.npz has no case of this stage")
    worst = 0.0
    for case in cases:
        try:
            outputs = pipe.run_stage(stage, _named(fixtures, f"{stage}/{case}/in/"))
            references = _named(fixtures, f"{stage}/{case}/out/")
            worst = max(worst, _worst_error(outputs, references, case))
        except EdgediffError as e:
            return Check(name=stage, ok=False, limit=limit, unit="error", problem=str(e))
    ok = worst <= limit
    problem = "" if ok else "too far from the float model"
    return Check(name=stage, ok=ok, measured=worst, limit=limit, unit="error", problem=problem)


def _worst_error(outputs: Fixtures, references: Fixtures, case: str) -> float:
    """The largest relative error of a case's outputs. Raises BundleError for references that are
    not those of all outputs, ProviderError for outputs that are not finite."""
    if outputs.keys() != references.keys():
        raise BundleError(
            f"case {case[:80]!r} has references of {sorted(references)[:8]}, and the graph gives"
            f" {sorted(outputs)[:8]}: export the bundle again"
        )
    worst = 0.0
    for name, reference in references.items():
        found = outputs[name]
        if found.shape != reference.shape:
            raise BundleError(
                f"case {case[:80]!r}: the reference of {name} is {reference.shape}, and the graph"
                f" gives {found.shape}: export the bundle again"
            )
        if not np.isfinite(reference).all():
            raise BundleError(f"the reference of {name} has values that are not finite")
        error = relative_error(found, reference)
        if not np.isfinite(error):
            raise ProviderError("values not finite")
        worst = max(worst, error)
    return worst


def _check_images(pipe: Pipeline, fixtures: Fixtures) -> list[Check]:
    checks = []
    for made in pipe.bundle.manifest.fidelity.images:
        name = f"image {made.name}"
        reference = fixtures.get(f"image/{made.name}")
        if reference is None:
            checks.append(Check(name=name, ok=False, problem="not in fixtures.npz"))
            continue
        at_export = np.inf if made.psnr_db is None else made.psnr_db
        limit = max(min(at_export - IMAGE_MARGIN_DB, IMAGE_ENOUGH_DB), IMAGE_FLOOR_DB)
        try:
            result = pipe.generate(
                made.prompt,
                seed=made.seed,
                steps=made.steps,
                guidance_scale=made.guidance_scale,
                sampler=made.sampler,
                size=(made.width, made.height),
                init_image=_pixels(fixtures, f"init/{made.name}"),
                mask=_pixels(fixtures, f"mask/{made.name}"),
            )
        except EdgediffError as e:
            checks.append(Check(name=name, ok=False, limit=limit, unit="dB", problem=str(e)))
            continue
        drawn = np.asarray(result.images[0])
        if reference.dtype != np.uint8 or reference.shape != drawn.shape:
            problem = f"the reference is {reference.dtype} {reference.shape}, expected uint8"
            problem += f" {drawn.shape}: export the bundle again"
            checks.append(Check(name=name, ok=False, limit=limit, unit="dB", problem=problem))
            continue
        measured = psnr(drawn, reference.astype(np.uint8, copy=False))
        ok = measured is None or measured >= limit
        problem = "" if ok else "too far from the float model's image"
        checks.append(
            Check(name=name, ok=ok, measured=measured, limit=limit, unit="dB", problem=problem)
        )
    return checks


def _pixels(fixtures: Fixtures, name: str) -> NDArray[np.uint8] | None:
    """The input image of a fixture, or None if it has none."""
    found = fixtures.get(name)
    return None if found is None else found.astype(np.uint8)


def relative_error(actual: NDArray[np.generic], reference: NDArray[np.generic]) -> float:
    """‖actual − reference‖ / ‖reference‖ in float64; 0 if both are zero."""
    a, f = actual.astype(np.float64), reference.astype(np.float64)
    norm = float(np.linalg.norm(f))
    distance = float(np.linalg.norm(a - f))
    return distance / norm if norm else distance


def _named(fixtures: Fixtures, prefix: str) -> Fixtures:
    return {k.removeprefix(prefix): v for k, v in fixtures.items() if k.startswith(prefix)}
