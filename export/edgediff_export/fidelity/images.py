"""Whole images that a bundle makes, against those of the float model."""

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgediff.backend.memory import estimate
from edgediff.backend.run_stage import RunStage
from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import ImageFidelity
from edgediff.bundle.tensor_names import LATENT_SAMPLE, SAMPLE
from edgediff.images.metrics import psnr
from edgediff.networks.autoencoder import to_images
from edgediff_export.fidelity.cases import Array, Case
from edgediff_export.fidelity.shots import Shot, trajectory

_MUCH = 8e9
"""Bytes of weights, as they are once loaded."""


@dataclass(frozen=True, kw_only=True)
class DrawnImage:
    """A finished image: pixels (h, w, 3), and the evaluations of stages that it took; the decoder's
    are apart."""

    pixels: npt.NDArray[np.uint8]
    decoding: Case
    seen: Mapping[str, Sequence[Case]]


def draw_images(
    bundle: Path, shots: Sequence[Shot], advance: Callable[[], None] = lambda: None
) -> list[DrawnImage]:
    """The images that a bundle makes on the CPU. advance: called after each of `evaluations`."""
    import edgediff

    drawn: list[DrawnImage] = []
    if not shots:
        return drawn
    limit = _memory_limit(bundle)
    with edgediff.load(bundle, provider="cpu", max_memory=limit, check_hashes=False) as pipe:
        for s in shots:
            seen: dict[str, list[Case]] = {}
            for last in trajectory(pipe, s, functools.partial(_recorder, seen=seen)):
                latents = last.latents
                advance()
            inputs = {LATENT_SAMPLE: pipe.decoder_input(latents)}
            outputs = pipe.run_stage(pipe.bundle.manifest.decoder.name, inputs)
            pixels = np.asarray(to_images(outputs[SAMPLE])[0])
            decoding = Case(name=f"image{s.name}", inputs=inputs, outputs=outputs)
            drawn.append(DrawnImage(pixels=pixels, decoding=decoding, seen=seen))
            advance()
    gc.collect()
    return drawn


def _memory_limit(bundle: Path) -> int | None:
    """Bytes for one stage at a time, if all together are more than a usual machine has."""
    stages = estimate(Bundle.open(bundle).manifest).values()
    together = sum(stage.weights for stage in stages)
    return max(stage.peak for stage in stages) if together > _MUCH else None


def _recorder(run_stage: RunStage, seen: dict[str, list[Case]]) -> RunStage:
    """`run_stage` that also records inputs and outputs."""

    def run(stage: str, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = run_stage(stage, inputs)
        cases = seen.setdefault(stage, [])
        cases.append(Case(name=f"{stage}{len(cases)}", inputs=dict(inputs), outputs=outputs))
        return outputs

    return run


def compare(
    shots: Sequence[Shot],
    drawn: Sequence[DrawnImage],
    references: Sequence[DrawnImage],
) -> tuple[ImageFidelity, ...]:
    """PSNR of each image against the float model's."""
    return tuple(
        ImageFidelity(
            name=s.name,
            prompt=s.prompt,
            seed=s.seed,
            steps=s.steps,
            guidance_scale=s.guidance_scale,
            sampler=s.sampler,
            width=s.width,
            height=s.height,
            psnr_db=psnr(q.pixels, f.pixels),
        )
        for s, q, f in zip(shots, drawn, references, strict=True)
    )


def write_fixtures(
    path: Path,
    stages: Mapping[str, Sequence[Case]],
    shots: Sequence[Shot],
    references: Sequence[DrawnImage],
) -> None:
    """fixtures.npz: `<stage>/<case>/in/<tensor>`, `…/out/<tensor>`, `image/<name>` and, if
    the UNet inpaints, `init/<name>` and `mask/<name>`."""
    arrays: dict[str, Array] = {}
    for stage, cases in stages.items():
        for case in cases:
            arrays |= {f"{stage}/{case.name}/in/{k}": v for k, v in case.inputs.items()}
            arrays |= {f"{stage}/{case.name}/out/{k}": v for k, v in case.outputs.items()}
    for s, f in zip(shots, references, strict=True):
        given = {f"image/{s.name}": f.pixels, f"init/{s.name}": s.init, f"mask/{s.name}": s.mask}
        arrays |= {k: v for k, v in given.items() if v is not None}
    np.savez_compressed(path, allow_pickle=False, **arrays)
