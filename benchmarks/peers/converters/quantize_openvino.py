"""SOURCE OUT: OpenVINO's folder → the same with the UNet's weights and activations in int8, by
NNCF.

Calibration inputs have the statistics of a denoising run: unit-variance latents, as the Euler
method scales them, and the text encoder's states, at eight timesteps."""

import shutil
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino as ov

_TIMESTEPS = (999, 874, 749, 624, 499, 374, 249, 124)
_SIDE = 32
"""Latent size; enough for the statistics of a convolutional network."""


def main(source: str, out: str) -> None:
    shutil.copytree(source, out)
    core = ov.Core()
    model = core.read_model(Path(source) / "unet" / "openvino_model.xml")
    states = text_states(core.compile_model(Path(source) / "text_encoder" / "openvino_model.xml"))
    rng = np.random.default_rng(0)
    channels = model.input("sample").get_partial_shape()[1].get_length()
    samples = [
        {
            "sample": rng.standard_normal((1, channels, _SIDE, _SIDE), dtype=np.float32),
            "timestep": np.array(timestep),
            "encoder_hidden_states": states,
        }
        for timestep in _TIMESTEPS
    ]
    quantized = nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    ov.save_model(quantized, Path(out) / "unet" / "openvino_model.xml")


def text_states(encoder: ov.CompiledModel) -> np.ndarray:
    """The states of a prompt of random tokens."""
    ids = np.random.default_rng(0).integers(500, size=(1, 77))
    return encoder({"input_ids": ids})[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
