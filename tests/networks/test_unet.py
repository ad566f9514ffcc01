"""A denoiser's graph is fed what it takes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.bundle.folder import Bundle
from edgediff.bundle.manifest import GraphSpec, Stage, TensorSpec
from edgediff.errors import BundleError
from edgediff.networks.controlnet import choose_unet
from edgediff.networks.unet import GraphUNet
from edgediff.request.control import Control

SAMPLE = TensorSpec(name="sample", dtype="float32", shape=("batch", 4, "height", "width"))
TIMESTEP = TensorSpec(name="timestep", dtype="float32", shape=())
STATES = TensorSpec(name="encoder_hidden_states", dtype="float32", shape=("batch", "sequence", 8))


@pytest.mark.parametrize("inputs", [(SAMPLE, TIMESTEP), (SAMPLE, TIMESTEP, STATES)])
def test_only_inputs_of_the_graph_are_fed(inputs: tuple[TensorSpec, ...]) -> None:
    """Tracing drops an input that no output depends on."""
    graph = GraphSpec(
        role="denoiser", file="unet.onnx", precision="fp32", inputs=inputs, outputs=(SAMPLE,)
    )
    fed: list[dict[str, Any]] = []

    def run_stage(_: str, given: dict[str, Any]) -> dict[str, Any]:
        fed.append(given)
        return {"sample": given["sample"]}

    sample = np.zeros((2, 4, 8, 8), np.float32)
    states = np.zeros((2, 77, 8), np.float32)
    extra = {"text_embeds": np.zeros((1, 8), np.float32)}
    GraphUNet(Stage("unet", graph), run_stage)(sample, 1.0, states, extra)
    assert [*fed[0]] == [spec.name for spec in inputs]


def test_a_residual_that_the_denoiser_does_not_take_is_refused() -> None:
    """Left out, it would give an image without control."""
    manifest = Bundle.open(Path(__file__).parents[1] / "golden" / "tiny_control").manifest
    name = next(iter(manifest.controlnets))
    controls = {name: Control(np.zeros((8, 8, 3), np.uint8))}
    choose_unet(manifest, lambda _, given: given, controls)
    stage = manifest.controlled_denoiser
    assert stage is not None
    without = replace(stage.graph, inputs=stage.graph.inputs[:-1])
    manifest = replace(manifest, graphs={**manifest.graphs, stage.name: without})
    with pytest.raises(BundleError, match="has no input `mid_residual`: export the bundle again"):
        choose_unet(manifest, lambda _, given: given, controls)
