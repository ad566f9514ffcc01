"""What an export costs: each stage against torch on fixed inputs, and whole pictures against the
float model's."""

import functools
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgediff.bundle import Bundle, GraphSpec, PictureFidelity, Precision, StageFidelity
from edgediff.errors import ExportError
from edgediff.image import psnr, to_pictures
from edgediff.session import Session, SessionOptions
from edgediff.stages import RunStage, estimate
from edgediff.verification import relative_error
from edgediff_export.trace.half_weights import in_float32
from edgediff_export.trace.stage import Stage

if TYPE_CHECKING:
    from edgediff.pipeline import Pipeline
    from edgediff.run import Run

Array = npt.NDArray[Any]
Named = Mapping[str, Array]

FLOAT_LIMIT = 1e-3
"""The largest ‖onnx − torch‖ / ‖torch‖ of a float32 graph; beyond it the trace is wrong."""
# ‖q − f‖ / ‖f‖ that a device may have even where the export had less: kernels round differently.
_TOLERANCE_FLOOR: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 3e-2}
# What bfloat16 adds: 8 bits of mantissa, through some fifty layers.
_BFLOAT16 = 5e-2
_MUCH = 8e9
"""Bytes of weights, as they are once loaded."""
PROMPTS = (
    "a red apple on a wooden table",
    "a lighthouse by the sea at sunset",
    "a smiling cat",
    "a green tree in the snow",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One evaluation of a stage: inputs and torch's float32 outputs, by tensor name."""

    name: str
    inputs: Named
    outputs: Named


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture to compare: what `Pipeline.generate` is called with.

    init, mask: a picture (h, w, 3) and what to paint anew of it (h, w), uint8, for UNets that
    inpaint."""

    name: str
    prompt: str
    seed: int
    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int
    init: Array | None = field(default=None, repr=False, compare=False)
    mask: Array | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A finished picture: pixels (h, w, 3), and the evaluations of stages that gave them, those of
    the decoder apart."""

    pixels: npt.NDArray[np.uint8]
    decoding: Case
    seen: Mapping[str, Sequence[Case]]


def run_torch(module: Any, stage: Stage, inputs: Mapping[str, Named]) -> list[Case]:
    """The float32 reference outputs. Raises ExportError where they are not finite."""
    import torch

    cases = []
    for name, arrays in inputs.items():
        tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
        with torch.no_grad(), in_float32(module):
            found = stage.evaluate(module, tensors)
        outputs = {k: v.float().numpy().copy() for k, v in zip(stage.outputs, found, strict=True)}
        if not all(np.isfinite(v).all() for v in outputs.values()):
            raise ExportError(
                f"{stage.name}: the torch model itself gives values that are not finite: are its"
                " weights damaged?"
            )
        cases.append(Case(name=name, inputs=arrays, outputs=outputs))
    return cases


def run_graph(path: Path, spec: GraphSpec, inputs: Mapping[str, Named]) -> list[Case]:
    """What a graph on disk makes of inputs, each a case of its own."""
    session = Session(path, spec, SessionOptions(provider="cpu"))
    return [Case(name=k, inputs=v, outputs=session.run(**v)) for k, v in inputs.items()]


def measure(path: Path, spec: GraphSpec, cases: Sequence[Case]) -> tuple[float, float]:
    """A graph against torch: the worst ‖q − f‖ / ‖f‖ and |q − f| over the cases, inf where
    anything is not finite."""
    session = Session(path, spec, SessionOptions(provider="cpu"))
    error, max_abs_error = 0.0, 0.0
    for case in cases:
        outputs = session.run(**case.inputs)
        for name, reference in case.outputs.items():
            if not np.isfinite(outputs[name]).all():
                return float("inf"), float("inf")
            error = max(error, relative_error(outputs[name], reference))
            max_abs_error = max(max_abs_error, float(np.abs(outputs[name] - reference).max()))
    return error, max_abs_error


def seconds(path: Path, spec: GraphSpec, case: Case, *, repeats: int = 5) -> float:
    """The median time of one evaluation."""
    session = Session(path, spec, SessionOptions(provider="cpu"))
    session.run(**case.inputs)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(**case.inputs)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def judge(
    error: float, max_abs_error: float, precision: Precision, *, bfloat16: bool = False
) -> StageFidelity:
    """The tolerance of `edgediff verify`: twice what the export measured, or what any device's
    rounding may cost at this precision. bfloat16: the device may compute in it."""
    floor = _TOLERANCE_FLOOR[precision] + (_BFLOAT16 if bfloat16 else 0.0)
    tolerance = max(floor, 2 * error)
    return StageFidelity(error=error, max_abs_error=max_abs_error, tolerance=tolerance)


def take_pictures(bundle: Path, shots: Sequence[Shot]) -> list[Picture]:
    """The pictures that a bundle makes on the CPU."""
    import edgediff

    pictures = []
    limit = _memory_limit(bundle)
    with edgediff.load(bundle, provider="cpu", max_memory=limit, check_hashes=False) as pipe:
        for s in shots:
            seen: dict[str, list[Case]] = {}
            *_, last = trajectory(pipe, s, functools.partial(_recorder, seen=seen))
            inputs = {"latent_sample": pipe.decoder_input(last.latents)}
            outputs = pipe.run_stage("vae_decoder", inputs)
            pixels = np.asarray(to_pictures(outputs["sample"])[0])
            decoding = Case(name=f"picture{s.name}", inputs=inputs, outputs=outputs)
            pictures.append(Picture(pixels=pixels, decoding=decoding, seen=seen))
    gc.collect()
    return pictures


def _memory_limit(bundle: Path) -> int | None:
    """Bytes for one stage at a time, where all together are more than a usual machine has."""
    stages = estimate(Bundle.open(bundle).manifest).values()
    together = sum(stage.weights for stage in stages)
    return max(stage.peak for stage in stages) if together > _MUCH else None


def trajectory(
    pipe: "Pipeline", shot: Shot, wrap: Callable[[RunStage], RunStage] | None = None
) -> "Run":
    """A run over the denoising steps of a shot. wrap: as in `Pipeline.run`."""
    request = pipe.resolve(
        shot.prompt,
        seed=shot.seed,
        steps=shot.steps,
        guidance_scale=shot.guidance_scale,
        sampler=shot.sampler,
        size=(shot.width, shot.height),
        init_image=shot.init,
        mask=shot.mask,
    )
    return pipe.run(request, wrap=wrap)


def _recorder(run_stage: RunStage, seen: dict[str, list[Case]]) -> RunStage:
    """`run_stage` that also keeps what goes in and comes out."""

    def run(stage: str, inputs: dict[str, Array]) -> dict[str, Array]:
        outputs = run_stage(stage, inputs)
        cases = seen.setdefault(stage, [])
        cases.append(Case(name=f"{stage}{len(cases)}", inputs=dict(inputs), outputs=outputs))
        return outputs

    return run


def compare(
    shots: Sequence[Shot],
    pictures: Sequence[Picture],
    references: Sequence[Picture],
) -> tuple[PictureFidelity, ...]:
    """PSNR of each picture against the float model's."""
    return tuple(
        PictureFidelity(
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
        for s, q, f in zip(shots, pictures, references, strict=True)
    )


def write_fixtures(
    path: Path,
    stages: Mapping[str, Sequence[Case]],
    shots: Sequence[Shot],
    references: Sequence[Picture],
) -> None:
    """fixtures.npz: `<stage>/<case>/in/<tensor>`, `…/out/<tensor>`, `picture/<name>` and, where it
    was made of others, `init/<name>` and `mask/<name>`."""
    arrays: dict[str, Array] = {}
    for stage, cases in stages.items():
        for case in cases:
            arrays |= {f"{stage}/{case.name}/in/{k}": v for k, v in case.inputs.items()}
            arrays |= {f"{stage}/{case.name}/out/{k}": v for k, v in case.outputs.items()}
    for s, f in zip(shots, references, strict=True):
        given = {f"picture/{s.name}": f.pixels, f"init/{s.name}": s.init, f"mask/{s.name}": s.mask}
        arrays |= {k: v for k, v in given.items() if v is not None}
    np.savez_compressed(path, allow_pickle=False, **arrays)
