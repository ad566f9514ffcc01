"""The examples that each stage is calibrated on: fixtures, and its inputs while images are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgediff.bundle.latent import LatentSpec
from edgediff.bundle.manifest import Defaults, GraphSpec, Role
from edgediff.bundle.tensor_names import CONTROL_IMAGE, CONTROL_SCALE, LATENT_SAMPLE, SAMPLE
from edgediff.request.control import Control
from edgediff_export.fidelity.cases import Array, Case, Named
from edgediff_export.fidelity.images import DrawnImage
from edgediff_export.fidelity.measure import run_graph
from edgediff_export.source.families import UNET, VAE_DECODER, VAE_ENCODER
from edgediff_export.trace.tracer import Traced

_CALIBRATION_STEPS = 16
"""Denoising steps of the float images that calibration looks at."""
_CONTROL_STEPS = 4
"""The same of each image, for a control network, which has many outputs."""


def examples(
    traced: Mapping[str, Traced], references: Sequence[DrawnImage], floats: Path
) -> dict[str, list[Case]]:
    """The examples of each stage: the fixtures, and its inputs while the images were made.

    Made-up inputs say little about real ones."""
    seen = {stage: [case for p in references for case in p.seen.get(stage, ())] for stage in traced}
    every = max(1, len(seen[UNET]) // _CALIBRATION_STEPS)
    seen[UNET] = seen[UNET][::every]
    seen[VAE_DECODER] = [p.decoding for p in references]
    if VAE_ENCODER in traced:
        spec = traced[VAE_ENCODER].spec
        pixels = {p.decoding.name: {SAMPLE: _pixels(p)} for p in references}
        seen[VAE_ENCODER] = run_graph(floats / spec.file, spec, pixels)
    for stage, t in traced.items():
        if t.spec.role == "controlnet":
            inputs = {k: v for p in references for k, v in _under_its_edges(p, t.spec).items()}
            seen[stage] = run_graph(floats / t.spec.file, t.spec, inputs)
    return {stage: [*t.cases, *seen[stage]] for stage, t in traced.items()}


def _under_its_edges(image: DrawnImage, network: GraphSpec) -> dict[str, Named]:
    """The inputs of a control network that is shown an image's own edges while it is made."""
    every = max(1, len(image.seen[UNET]) // _CONTROL_STEPS)
    edges = Control(image.pixels, process="edges").pixels(*image.pixels.shape[1::-1])
    found: dict[str, Named] = {}
    for case in image.seen[UNET][::every]:
        sample = network.require_input(SAMPLE)
        inputs = {
            **case.inputs,
            SAMPLE: case.inputs[SAMPLE][:, : sample.shape[1]],  # of an inpainting UNet's, the first
            CONTROL_IMAGE: np.repeat(edges, len(case.inputs[SAMPLE]), axis=0),
            CONTROL_SCALE: np.array(1.0, np.float32),
        }
        taken = {i.name: inputs[i.name] for i in network.inputs}
        found[f"{image.decoding.name}-{case.name}"] = taken
    return found


def _pixels(image: DrawnImage) -> Array:
    """A finished image as an encoder takes it: (1, 3, h, w) float32 in [-1, 1]."""
    pixels = image.pixels.astype(np.float32).transpose(2, 0, 1)[None]
    scaled: Array = pixels / np.float32(127.5) - np.float32(1)
    return scaled


def area_ratio(role: Role, defaults: Defaults, latent: LatentSpec, cases: Sequence[Case]) -> float:
    """Pixels of an image of the default size, relative to the largest example."""
    if role == "text_encoder":
        return 1.0
    size = (defaults.width, defaults.height)
    area = float(np.prod(size if role == "encoder" else latent.shape(size)[1:]))
    name = LATENT_SAMPLE if role == "decoder" else SAMPLE
    return area / max(float(np.prod(case.inputs[name].shape[2:])) for case in cases)
