"""The training of a model as its file states it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edgediff_export.export import _open
from edgediff_export.options import Options
from edgediff_export.source.prediction import assume_prediction, prediction_in_name
from edgediff_export.source.safetensors_file import read_header
from edgediff_export.source.scheduler import adapt
from edgediff_export.source.statements import Statements, read_statements
from safetensors.torch import save_file

from edgediff.errors import ExportError

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


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec__prediction_type": "flow"}, "modelspec.prediction_type 'flow'"),
        ({"modelspec__prediction_type": "velocity"}, "modelspec.prediction_type 'velocity'"),
        ({"ss_flow_matching": "True", "modelspec__prediction_type": "eps"}, "ss_flow_matching"),
    ],
)
def test_an_unknown_prediction_is_refused_unless_the_flag_is_given(
    metadata: dict[str, str], words: str, read: Write
) -> None:
    said = read({}, **metadata)
    given: dict[str, Any] = {"name": "m", "timestep_spacing": None}
    with pytest.raises(ExportError, match=rf"{words}.*give `--prediction-type`"):
        adapt(BASE, **given, prediction_type=None, said=said)
    adapted = adapt(BASE, **given, prediction_type="v_prediction", said=said)
    assert adapted["prediction_type"] == "v_prediction"
    assert read({"v_pred": EMPTY}, **metadata).unknown == ""


@pytest.mark.parametrize(
    "name",
    [
        *("noobaiXLNAIXL_vPred10Version", "model-v-pred-ztsnr", "illustriousXLvpred"),
        *("sdxl_v_prediction", "NoobAI-XL-Vpred-1.0", "vPredTest"),
    ],
)
def test_v_that_only_the_name_says_is_noted(name: str) -> None:
    (note,) = prediction_in_name(["m", name], BASE)
    assert f"the name {name!r} says v-prediction" in note
    assert "`--prediction-type v_prediction --zero-terminal-snr`" in note
    assert prediction_in_name([name], {**BASE, "prediction_type": "v_prediction"}) == ()


def test_a_flag_ends_the_doubt(small_pipeline: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model-v-pred"
    folder.symlink_to(small_pipeline("sd1"))
    options = Options(source=str(folder), out=tmp_path / "out")
    (note,) = _open(options, None, tmp_path).reasons
    assert "the name 'model-v-pred' says v-prediction" in note
    flagged = replace(options, prediction_type="v_prediction")
    assert _open(flagged, None, tmp_path).reasons == ()
    said = Statements(prediction_type="v_prediction", why={"prediction_type": "predicts v"})
    assert said.notes("m") == ("m: predicts v",)
    assert said.notes("m", overridden=["prediction_type"]) == ()


@pytest.mark.parametrize("name", ["noobaiXL_epsilonPred11", "predator_v2", "v_predictable"])
def test_other_names_do_not_say_v(name: str) -> None:
    assert prediction_in_name([name], BASE) == ()


def test_the_assumed_prediction_of_stable_diffusion_2_is_noted() -> None:
    base = {**BASE, "prediction_type": "v_prediction"}
    said = assume_prediction(Statements(), ["v2-1_512-ema-pruned"], base, sd2=True)
    assert said.prediction_type is None
    (note,) = said.notes("m")
    assert "is taken to predict v" in note
    assert "`--prediction-type epsilon`" in note
    said = assume_prediction(Statements(), ["sd_turbo"], base, sd2=True)
    assert said.prediction_type == "epsilon"
    assert "'sd_turbo' says Turbo" in said.notes("m")[0]
    # A UNet in a pipeline whose config says v; one that has its say; one of another kind.
    assert assume_prediction(Statements(), ["unet"], base, sd2=False) == Statements()
    stated = Statements(prediction_type="v_prediction")
    assert assume_prediction(stated, ["sd_turbo"], base, sd2=True) == stated
    assert assume_prediction(Statements(), ["sd_turbo"], BASE, sd2=False) == Statements()
