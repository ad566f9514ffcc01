"""The pictures that an export compares, and what its stages see in them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgediff.bundle import Defaults, GraphSpec, LatentSpec, Manifest
from edgediff.control import NETWORK, Control
from edgediff.inputs import inpaints
from edgediff_export.fidelity import measure as fidelity
from edgediff_export.fidelity.measure import Array, Case, Named, Picture, Shot
from edgediff_export.search import budget
from edgediff_export.trace.fixtures import painting
from edgediff_export.trace.tracer import Traced

_CALIBRATION_STEPS = 16
"""Denoising steps of the float pictures that calibration looks at."""
_CONTROL_STEPS = 4
"""The same of each picture, for a control network, whose results are many."""
_SMALL_UNET = 100e6
"""Parameters; pictures of smaller models are compared at full size."""


def choose_shots(manifest: Manifest, parameters: int) -> list[Shot]:
    """Four pictures as the model makes them, or one small, short one where that takes minutes."""
    defaults, unit = manifest.defaults, manifest.latent.downscale
    small = parameters < _SMALL_UNET
    width, height = (
        (defaults.width, defaults.height)
        if small
        else (
            min(side, max(unit, 256 // unit * unit)) for side in (defaults.width, defaults.height)
        )
    )
    steps = defaults.steps if small else min(defaults.steps, 4)
    init, mask = painting(width, height)
    return [
        Shot(
            name=str(k),
            prompt=prompt,
            seed=k,
            steps=steps,
            guidance_scale=defaults.guidance_scale,
            sampler=defaults.sampler,
            width=width,
            height=height,
            **({"init": init, "mask": mask} if inpaints(manifest) else {}),
        )
        for k, prompt in enumerate(fidelity.PROMPTS[: 4 if small else 1])
    ]


def examples(
    traced: Mapping[str, Traced], references: Sequence[Picture], floats: Path
) -> dict[str, list[Case]]:
    """What to calibrate each stage on: the fixtures, and what came by in the pictures.

    What a stage does to made-up inputs says little of what it does to a picture's."""
    seen = {stage: [case for p in references for case in p.seen.get(stage, ())] for stage in traced}
    every = max(1, len(seen["unet"]) // _CALIBRATION_STEPS)
    seen["unet"] = seen["unet"][::every]
    seen["vae_decoder"] = [p.decoding for p in references]
    if "vae_encoder" in traced:
        spec = traced["vae_encoder"].spec
        pixels = {p.decoding.name: {"sample": _pixels(p)} for p in references}
        seen["vae_encoder"] = fidelity.run_graph(floats / spec.file, spec, pixels)
    for stage, t in traced.items():
        if stage.startswith(NETWORK):
            inputs = {k: v for p in references for k, v in _under_its_edges(p, t.spec).items()}
            seen[stage] = fidelity.run_graph(floats / t.spec.file, t.spec, inputs)
    return {stage: [*t.cases, *seen[stage]] for stage, t in traced.items()}


def _under_its_edges(picture: Picture, network: GraphSpec) -> dict[str, Named]:
    """What a control network that is shown a picture's own edges sees while the picture is made."""
    every = max(1, len(picture.seen["unet"]) // _CONTROL_STEPS)
    edges = Control(picture.pixels, process="edges").pixels(*picture.pixels.shape[1::-1])
    found: dict[str, Named] = {}
    for case in picture.seen["unet"][::every]:
        inputs = {i.name: case.inputs[i.name] for i in network.inputs if i.name in case.inputs}
        sample = network.input("sample")
        channels = None if sample is None else sample.shape[1]  # of an inpainting UNet's, the first
        inputs |= {
            "sample": inputs["sample"][:, :channels],
            "controlnet_cond": np.repeat(edges, len(inputs["sample"]), axis=0),
            "conditioning_scale": np.array(1.0, np.float32),
        }
        found[f"{picture.decoding.name}-{case.name}"] = inputs
    return found


def _pixels(picture: Picture) -> Array:
    """A finished picture as an encoder takes it: (1, 3, h, w) float32 in [-1, 1]."""
    pixels = picture.pixels.astype(np.float32).transpose(2, 0, 1)[None]
    scaled: Array = pixels / np.float32(127.5) - np.float32(1)
    return scaled


def scale(stage: str, defaults: Defaults, latent: LatentSpec, cases: Sequence[Case]) -> float:
    """How many times as many pixels a picture of the default size has as the largest example."""
    if stage.startswith("text_encoder"):
        return 1.0
    area = float(defaults.width * defaults.height)
    if stage != "vae_encoder":
        area /= latent.downscale**2
    name = "latent_sample" if stage == "vae_decoder" else "sample"
    return area / max(float(np.prod(case.inputs[name].shape[2:])) for case in cases)


def trial_shots(shot: Shot, parameters: int) -> tuple[list[Shot], list[Shot]]:
    """The pictures that a search compares, and those that it does not see: fewer of a model that
    takes minutes."""
    used, others = (budget.CALIBRATION, 8) if parameters < _SMALL_UNET else (1, 2)
    shots = [
        replace(shot, name=str(k), prompt=prompt, seed=100 + k)
        for k, prompt in enumerate(budget.PROMPTS)
    ]
    return shots[:used], shots[budget.CALIBRATION :][:others]
