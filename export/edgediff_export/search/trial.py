"""The search for formats, on a whole pipeline: here `budget.Search` gets its measurements."""

import contextlib
import functools
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgediff.bundle.manifest import MANIFEST, Manifest, PlanSearch
from edgediff.images.metrics import psnr
from edgediff_export.bundle_folder import write_bundle
from edgediff_export.fidelity import images
from edgediff_export.fidelity.images import DrawnImage
from edgediff_export.fidelity.shots import Shot, evaluations
from edgediff_export.graph.write import write_graph
from edgediff_export.progress import Reporter
from edgediff_export.search.budget import Budget, Formats, Measured, Search, stored_bytes
from edgediff_export.search.sensitivity import layer_costs
from edgediff_export.targets.cpu.prepare import Prepared


@dataclass(kw_only=True)
class Trial:
    """A pipeline in formats that are tried on images.

    floats: the float bundle. prepared: its stages. calibration, unseen: the images to compare.
    scratch: an existing folder to write in."""

    floats: Path
    manifest: Manifest
    prepared: Mapping[str, Prepared]
    calibration: list[Shot]
    unseen: list[Shot]
    scratch: Path
    _references: dict[bool, list[DrawnImage]] = field(default_factory=dict)
    _besides_layers: int | None = None

    def find_formats(self, wanted: Budget, report: Reporter) -> tuple[Formats, PlanSearch]:
        """The formats that keep a budget, and their measurements. Raises ExportError."""
        search = Search(
            layers={stage: p.layers for stage, p in self.prepared.items()},
            cost={},
            budget=wanted,
            measure=functools.partial(self._measure, report),
            size_of=self._size,
            report=report,
        )
        plain = self._plain_int8()
        search.fit_size(plain)  # whether the size can be reached at all needs no sensitivities
        costs = layer_costs(self.prepared, self.floats, self.calibration, report)
        found = replace(search, cost=costs).run(plain)
        return found.formats, PlanSearch(
            min_psnr_db=wanted.min_psnr,
            max_bytes=wanted.max_size,
            calibration_psnr_db=_finite(found.calibration.median),
            unseen_psnr_db=_finite(found.unseen.median),
            unseen_lowest_db=_finite(found.unseen.lowest),
            unseen_images=len(self.unseen),
        )

    def _plain_int8(self) -> Formats:
        return {stage: p.plain_int8() for stage, p in self.prepared.items()}

    def _measure(self, report: Reporter, formats: Formats, unseen: bool) -> Measured:
        shots = self.unseen if unseen else self.calibration
        known = unseen in self._references
        kind = "unseen" if unseen else "calibration"
        drawing = report.phase(
            f"measuring on {kind} images", evaluations(shots) * (1 if known else 2)
        )
        drawing.begin()
        if not known:
            self._references[unseen] = images.draw_images(self.floats, shots, drawing.advance)
        with self._folder() as folder:
            self._write(folder, formats)
            drawn = images.draw_images(folder, shots, drawing.advance)
        pairs = zip(drawn, self._references[unseen], strict=True)
        return Measured.of([psnr(p.pixels, r.pixels) for p, r in pairs])

    def _write(self, folder: Path, formats: Formats) -> None:
        graphs = {}
        for stage, prepared in self.prepared.items():
            converted = prepared.write(formats[stage])
            spec = self.manifest.graphs[stage]
            data = write_graph(converted.model, folder / spec.file)
            graphs[stage] = replace(
                spec, data=data, precision="int8", session_config=converted.session_config
            )
        for tokenizer in self.manifest.tokenizers.values():
            shutil.copy(self.floats / tokenizer.file, folder / tokenizer.file)
        write_bundle(folder, replace(self.manifest, graphs=graphs))

    def _size(self, formats: Formats) -> int:
        """Bytes of the bundle: those of plain int8, as written, and by how much the layers' weights
        differ from that."""
        if self._besides_layers is None:
            plain = self._plain_int8()
            with self._folder() as folder:
                self._write(folder, plain)
                written = sum(f.stat().st_size for f in folder.iterdir() if f.name != MANIFEST)
            self._besides_layers = written - self._stored(plain)
        return self._besides_layers + self._stored(formats)

    def _stored(self, formats: Formats) -> int:
        return sum(
            stored_bytes(layer, formats[stage].get(layer.name, "fp32"))
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


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
