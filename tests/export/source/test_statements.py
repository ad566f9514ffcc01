"""The training of a model as its file states it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.source.safetensors_file import read_header
from edgediff_export.source.scheduler import adapt
from edgediff_export.source.statements import Statements, read_statements
from safetensors.torch import save_file

Write = Callable[..., Statements]
EMPTY = torch.tensor([])


@pytest.fixture
def read(tmp_path: Path) -> Write:
    def write(tensors: dict[str, Any], **metadata: str) -> Statements:
        path = tmp_path / "it.safetensors"
        named = {key.replace("__", "."): value for key, value in metadata.items()}
        save_file({"conv_in.weight": torch.ones(1), **tensors}, path, metadata=named)
        return read_statements(read_header(path))

    return write


def test_a_file_that_says_nothing(read: Write) -> None:
    assert read({}) == Statements()
    assert read({}).notes("it") == ()


@pytest.mark.parametrize(
    ("tensors", "metadata", "field", "value"),
    [
        ({"v_pred": EMPTY}, {}, "prediction_type", "v_prediction"),
        ({"ztsnr": EMPTY}, {}, "zero_terminal_snr", True),
        ({}, {"modelspec__prediction_type": "v"}, "prediction_type", "v_prediction"),
        ({}, {"modelspec__prediction_type": "epsilon"}, "prediction_type", "epsilon"),
        ({}, {"ss_v_parameterization": "True"}, "prediction_type", "v_prediction"),
        ({}, {"ss_v_parameterization": "False"}, "prediction_type", None),
        ({}, {"ss_zero_terminal_snr": "True"}, "zero_terminal_snr", True),
        (
            {},
            {"modelspec__architecture": "stable-diffusion-v2-512"},
            "prediction_type",
            "epsilon",
        ),
        (
            {},
            {"modelspec__architecture": "stable-diffusion-v2-768-v"},
            "prediction_type",
            "v_prediction",
        ),
        ({"global_step": torch.tensor(875000)}, {}, "prediction_type", "epsilon"),
        ({"global_step": torch.tensor(110000)}, {}, "prediction_type", None),
        ({"edm_mean": torch.ones(4)}, {}, "edm", (0.002, 80.0)),
        (
            {"edm_mean": torch.zeros(1, 2, 1, 1), "edm_std": torch.tensor([8.5, 4.0])},
            {},
            "vae",
            {"latents_mean": [0.0, 0.0], "latents_std": [8.5, 4.0], "scaling_factor": 0.5},
        ),
        (
            {
                "edm_vpred.sigma_max": torch.tensor(120.0),
                "edm_vpred.sigma_min": torch.tensor(0.25),
            },
            {},
            "edm",
            (0.25, 120.0),
        ),
        ({}, {"modelspec__license": "openrail++"}, "license", "openrail++"),
        ({}, {"modelspec__title": "Turbo", "ss_output_name": "t"}, "names", ("Turbo", "t")),
    ],
)
def test_statements(
    tensors: dict[str, Any], metadata: dict[str, str], field: str, value: Any, read: Write
) -> None:
    assert getattr(read(tensors, **metadata), field) == value


def test_a_marker_goes_before_metadata_and_the_report_says_which(read: Write) -> None:
    said = read({"v_pred": EMPTY, "ztsnr": EMPTY}, modelspec__prediction_type="epsilon")
    assert said.prediction_type == "v_prediction"
    assert said.notes("noob") == (
        "noob: predicts v, as its tensor `v_pred` says",
        "noob: has zero terminal SNR, as its tensor `ztsnr` says",
    )


BASE = {"_class_name": "EulerDiscreteScheduler", "prediction_type": "epsilon"}


def test_the_schedule_follows_the_file_and_the_flags_go_first() -> None:
    said = Statements(prediction_type="v_prediction", zero_terminal_snr=True)
    given: dict[str, Any] = {"name": "m", "timestep_spacing": None, "prediction_type": None}
    adapted = adapt(BASE, **given, said=said)
    assert adapted["prediction_type"] == "v_prediction"
    assert adapted["rescale_betas_zero_snr"] is True
    adapted = adapt(BASE, **given, said=said, zero_terminal_snr=False)
    assert adapted["rescale_betas_zero_snr"] is False
    given["prediction_type"] = "sample"
    assert adapt(BASE, **given, said=said)["prediction_type"] == "sample"


def test_a_class_without_zero_terminal_snr_gives_way_to_ddim() -> None:
    base = {"_class_name": "PNDMScheduler", "steps_offset": 1}
    adapted = adapt(
        base, name="m", timestep_spacing=None, prediction_type=None, zero_terminal_snr=True
    )
    assert adapted["_class_name"] == "DDIMScheduler"
