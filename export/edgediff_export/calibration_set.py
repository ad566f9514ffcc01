"""The examples that each stage is calibrated on: fixtures, and its inputs while images are made."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgediff.bundle import Defaults, GraphSpec, LatentSpec
from edgediff.control import NETWORK, Control
from edgediff_export.fidelity.cases import Array, Case, Named
from edgediff_export.fidelity.images import DrawnImage
from edgediff_export.fidelity.measure import run_graph
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
    every = max(1, len(seen["unet"]) // _CALIBRATION_STEPS)
    seen["unet"] = seen["unet"][::every]
    seen["vae_decoder"] = [p.decoding for p in references]
    if "vae_encoder" in traced:
        spec = traced["vae_encoder"].spec
        pixels = {p.decoding.name: {"sample": _pixels(p)} for p in references}
        seen["vae_encoder"] = run_graph(floats / spec.file, spec, pixels)
    for stage, t in traced.items():
        if stage.startswith(NETWORK):
            inputs = {k: v for p in references for k, v in _under_its_edges(p, t.spec).items()}
            seen[stage] = run_graph(floats / t.spec.file, t.spec, inputs)
    return {stage: [*t.cases, *seen[stage]] for stage, t in traced.items()}


def _under_its_edges(image: DrawnImage, network: GraphSpec) -> dict[str, Named]:
    """The inputs of a control network that is shown an image's own edges while it is made."""
    every = max(1, len(image.seen["unet"]) // _CONTROL_STEPS)
    edges = Control(image.pixels, process="edges").pixels(*image.pixels.shape[1::-1])
    found: dict[str, Named] = {}
    for case in image.seen["unet"][::every]:
        inputs = {i.name: case.inputs[i.name] for i in network.inputs if i.name in case.inputs}
        sample = network.input("sample")
        channels = None if sample is None else sample.shape[1]  # of an inpainting UNet's, the first
        inputs |= {
            "sample": inputs["sample"][:, :channels],
            "controlnet_cond": np.repeat(edges, len(inputs["sample"]), axis=0),
            "conditioning_scale": np.array(1.0, np.float32),
        }
        found[f"{image.decoding.name}-{case.name}"] = inputs
    return found


def _pixels(image: DrawnImage) -> Array:
    """A finished image as an encoder takes it: (1, 3, h, w) float32 in [-1, 1]."""
    pixels = image.pixels.astype(np.float32).transpose(2, 0, 1)[None]
    scaled: Array = pixels / np.float32(127.5) - np.float32(1)
    return scaled


def area_ratio(stage: str, defaults: Defaults, latent: LatentSpec, cases: Sequence[Case]) -> float:
    """Pixels of an image of the default size, relative to the largest example."""
    if stage.startswith("text_encoder"):
        return 1.0
    area = float(defaults.width * defaults.height)
    if stage != "vae_encoder":
        area /= latent.downscale**2
    name = "latent_sample" if stage == "vae_decoder" else "sample"
    return area / max(float(np.prod(case.inputs[name].shape[2:])) for case in cases)
