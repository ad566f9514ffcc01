"""The search for a plan, on a whole pipeline: what `budget.search` decides on is measured here."""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import edgediff
from edgediff.bundle import MANIFEST, Manifest, PlanSearch
from edgediff.image import psnr
from edgediff_export.bundle_folder import write_bundle
from edgediff_export.fidelity import images
from edgediff_export.fidelity.cases import Array
from edgediff_export.fidelity.images import Picture
from edgediff_export.fidelity.shots import Shot, trajectory
from edgediff_export.graph.write import write_graph
from edgediff_export.search import budget
from edgediff_export.search.budget import Budget, Measured, Plan
from edgediff_export.search.sensitivity import Probe, make_probe, mean_square
from edgediff_export.targets.cpu.prepare import Prepared


@dataclass(kw_only=True)
class Trial:
    """Plans of a pipeline, tried on pictures.

    floats: the float bundle. prepared: its stages. calibration, unseen: what to compare on.
    scratch: a folder to write in."""

    floats: Path
    manifest: Manifest
    prepared: Mapping[str, Prepared]
    calibration: list[Shot]
    unseen: list[Shot]
    scratch: Path
    _references: dict[bool, list[Picture]] = field(default_factory=dict)
    _besides_layers: int | None = None

    def find_plan(
        self, wanted: Budget, report: Callable[[str], None]
    ) -> tuple[dict[str, Plan], PlanSearch]:
        """The plan that keeps a budget, and what was measured. Raises ExportError."""
        start = {stage: p.plain_plan() for stage, p in self.prepared.items()}
        found = {stage: p.layers for stage, p in self.prepared.items()}
        # Whether the size can be reached at all takes no sensitivities.
        budget.fit_size(found, {k: dict(v) for k, v in start.items()}, {}, wanted, self._size)
        report("sensitivity of each layer")
        plans, calibration, unseen = budget.search(
            found,
            start,
            self._costs(),
            wanted,
            self._measure,
            self._size,
            report,
        )
        return plans, PlanSearch(
            min_psnr_db=wanted.min_psnr,
            max_bytes=wanted.max_size,
            calibration_psnr_db=_finite(calibration.median),
            unseen_psnr_db=_finite(unseen.median),
            unseen_lowest_db=_finite(unseen.lowest),
            unseen_pictures=len(self.unseen),
        )

    def _measure(self, plans: Mapping[str, Plan], unseen: bool) -> Measured:
        shots = self.unseen if unseen else self.calibration
        if unseen not in self._references:
            self._references[unseen] = images.take_pictures(self.floats, shots)
        with self._folder() as folder:
            self._write(folder, plans)
            pictures = images.take_pictures(folder, shots)
        pairs = zip(pictures, self._references[unseen], strict=True)
        return Measured.of([psnr(p.pixels, r.pixels) for p, r in pairs])

    def _write(self, folder: Path, plans: Mapping[str, Plan]) -> None:
        graphs = {}
        for stage, prepared in self.prepared.items():
            lowered = prepared.write(plans[stage])
            spec = self.manifest.graphs[stage]
            data = write_graph(lowered.model, folder / spec.file)
            graphs[stage] = replace(
                spec, data=data, precision="int8", session_config=lowered.session_config
            )
        for tokenizer in self.manifest.tokenizers.values():
            shutil.copy(self.floats / tokenizer.file, folder / tokenizer.file)
        write_bundle(folder, replace(self.manifest, graphs=graphs))

    def _size(self, plans: Mapping[str, Plan]) -> int:
        """Bytes of the bundle in these plans: what is written in plain int8, and by how much the
        layers' weights differ from that."""
        if self._besides_layers is None:
            plain = {stage: p.plain_plan() for stage, p in self.prepared.items()}
            with self._folder() as folder:
                self._write(folder, plain)
                written = sum(f.stat().st_size for f in folder.iterdir() if f.name != MANIFEST)
            self._besides_layers = written - self._stored(plain)
        return self._besides_layers + self._stored(plans)

    def _stored(self, plans: Mapping[str, Plan]) -> int:
        return sum(
            budget.stored_bytes(layer, plans[stage].get(layer.name, "fp32"))
            for stage, prepared in self.prepared.items()
            for layer in prepared.layers
        )

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """An empty folder, gone afterwards."""
        folder = self.scratch / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
        shutil.rmtree(folder)

    def _costs(self) -> dict[str, float]:
        """stage/weight → mean square error of the pictures, as far as latents tell, for each
        multiplication in bytes."""
        # No picture passes through an encoder: its layers cost nothing, and go to int4 first.
        shown_in = [s for s in self.prepared if s != "vae_encoder"]
        probes = {s: make_probe(self.prepared[s].model, self.prepared[s].source) for s in shown_in}
        shots = [replace(s, steps=min(s.steps, 4)) for s in self.calibration[:2]]
        costs: dict[str, float] = {}
        work = {(s, y.name): p.work(y) for s, p in self.prepared.items() for y in p.layers}

        def probed(stage: str, inputs: dict[str, Array]) -> dict[str, Array]:
            return probes[stage].run(inputs)

        with edgediff.load(self.floats, provider="cpu", check_hashes=False) as pipe:

            def latents() -> list[Array]:
                runs = [trajectory(pipe, s, lambda _: probed) for s in shots]
                return [list(run)[-1].latents for run in runs]

            def pixels(of: list[Array]) -> list[Array]:
                return [
                    probed("vae_decoder", {"latent_sample": pipe.decoder_input(x)})["sample"]
                    for x in of
                ]

            exact = latents()
            shown = pixels(exact)
            # What an error of the latents is in pixels: from all of the UNet's at once.
            _switch(probes["unet"], *probes["unet"].names)
            far = latents()
            ratio = _error(pixels(far), shown) / max(_error(far, exact), 1e-30)
            _switch(probes["unet"])
            for stage, probe in probes.items():
                for name in probe.names:
                    _switch(probe, name)
                    if stage == "vae_decoder":
                        error = _error(pixels(exact), shown)
                    else:
                        error = _error(latents(), exact) * ratio
                    costs[f"{stage}/{name}"] = error / work[stage, name]
                _switch(probe)
        return costs


def _switch(probe: Probe, *names: str) -> None:
    probe.on = set(names)


def _error(a: list[Array], b: list[Array]) -> float:
    return float(np.mean([mean_square(x, y) for x, y in zip(a, b, strict=True)]))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
