"""Statements of a file of weights on how its model was trained: by marker tensors, which ComfyUI
and other trainers agreed on, and in its metadata (ModelSpec's `modelspec.*`, kohya-ss' `ss_*`)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgediff.sampling.schedule import PredictionType
from edgediff_export.source.safetensors_file import Header, open_tensors

MARKERS = (
    *("v_pred", "ztsnr", "edm_mean", "edm_std"),
    *("edm_vpred.sigma_max", "edm_vpred.sigma_min", "global_step"),
)
"""Tensors that are no weights; the first two and some others are empty."""
_PREDICTIONS: Mapping[str, PredictionType] = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v": "v_prediction",
    "vpred": "v_prediction",
    "v-pred": "v_prediction",
    "v_pred": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "sample": "sample",
    "x0": "sample",
}
_ARCHITECTURES: Mapping[str, PredictionType] = {
    "stable-diffusion-v2-512": "epsilon",
    "stable-diffusion-v2-768-v": "v_prediction",
}
_BASE_STEPS = 875000
"""Training steps of Stable Diffusion 2.0's base model, the one of the 2.x that predicts epsilon."""


@dataclass(frozen=True, kw_only=True)
class Statements:
    """The statements of a file; None for those that it does not make. `why`: field → the words of
    the file.

    edm: EDM's sigma_min and sigma_max, if it was trained on that schedule (Karras et al. 2022,
        arXiv:2206.00364).
    vae: its statements on latents, as options of an AutoencoderKL's config: the mean and the
        standard deviation of each channel, by which they are normalized.
    unknown: its words for a prediction that edgediff does not know, as "flow"; "" for none.
    names: its own names for itself."""

    prediction_type: PredictionType | None = None
    zero_terminal_snr: bool | None = None
    edm: tuple[float, float] | None = None
    vae: Mapping[str, Any] = field(default_factory=dict)
    unknown: str = ""
    license: str | None = None
    names: tuple[str, ...] = ()
    why: Mapping[str, str] = field(default_factory=dict)

    def notes(self, name: str, *, overridden: Collection[str] = ()) -> tuple[str, ...]:
        """The statements that were used, for the report. overridden: fields that were not."""
        return tuple(f"{name}: {w}" for field, w in self.why.items() if field not in overridden)


def read_statements(header: Header) -> Statements:
    """Read the statements of a file. A marker tensor goes before metadata, which tools copy
    blindly."""
    said: dict[str, Any] = {}
    why: dict[str, str] = {}

    def say(field: str, value: Any, words: str) -> None:
        if field not in said:
            said[field], why[field] = value, words

    meta = {k: str(v).strip() for k, v in header.metadata.items()}
    if "v_pred" in header.shapes:
        say("prediction_type", "v_prediction", "predicts v, as its tensor `v_pred` says")
    if "ztsnr" in header.shapes:
        say("zero_terminal_snr", True, "has zero terminal SNR, as its tensor `ztsnr` says")
    if "edm_vpred.sigma_max" in header.shapes:
        low, high = _numbers(header, ("edm_vpred.sigma_min", "edm_vpred.sigma_max"), (0.002, 120.0))
        say("edm", (low, high), "was trained on EDM's schedule, as its tensor says")
        say("prediction_type", "v_prediction", "predicts v, as `edm_vpred.sigma_max` says")
    elif "edm_mean" in header.shapes:
        say("edm", (0.002, 80.0), "was trained on EDM's schedule, as its tensor `edm_mean` says")
        say("prediction_type", "epsilon", "predicts EDM's F, as its tensor `edm_mean` says")
        say("vae", _latents(header), "its latents are normalized by its `edm_mean` and `edm_std`")
    marked = "prediction_type" in said
    stated = meta.get("modelspec.prediction_type", "")
    prediction = _PREDICTIONS.get(stated.lower())
    if prediction is not None:
        say("prediction_type", prediction, _word(prediction, "modelspec.prediction_type"))
    if _true(meta.get("ss_v_parameterization")):
        say("prediction_type", "v_prediction", _word("v_prediction", "ss_v_parameterization"))
    if _true(meta.get("ss_zero_terminal_snr")):
        say("zero_terminal_snr", True, "has zero terminal SNR, as ss_zero_terminal_snr says")
    architecture = _ARCHITECTURES.get(meta.get("modelspec.architecture", "").lower())
    if architecture is not None:
        say("prediction_type", architecture, _word(architecture, "modelspec.architecture"))
    if "global_step" in header.shapes:
        (step,) = _numbers(header, ("global_step",), (0.0,))
        if step == _BASE_STEPS:
            say("prediction_type", "epsilon", _word("epsilon", "global_step"))
    unknown = f"modelspec.prediction_type {stated!r}" if stated and prediction is None else ""
    if _true(meta.get("ss_flow_matching")):
        unknown = "ss_flow_matching 'True'"
    return Statements(
        **said,
        unknown="" if marked else unknown,
        license=meta.get("modelspec.license") or None,
        names=tuple(
            meta[key]
            for key in ("modelspec.title", "ss_output_name", "modelspec.merged_from")
            if meta.get(key)
        ),
        why=why,
    )


_PLAYGROUND_SCALE = 0.5
"""Scaling factor of the only model with such tensors, Playground v2.5."""


def _latents(header: Header) -> dict[str, Any]:
    with open_tensors(header.path) as tensors:
        mean, std = (
            [float(x) for x in tensors.get_tensor(key).flatten()] if key in header.shapes else []
            for key in ("edm_mean", "edm_std")
        )
    return {"latents_mean": mean, "latents_std": std, "scaling_factor": _PLAYGROUND_SCALE}


def _word(prediction: str, where: str) -> str:
    called = {"epsilon": "epsilon", "v_prediction": "v", "sample": "the image itself"}[prediction]
    return f"predicts {called}, as {where} says"


def _true(value: str | None) -> bool:
    return value is not None and value.lower() in ("true", "1", "yes")


def _numbers(
    header: Header, keys: tuple[str, ...], otherwise: tuple[float, ...]
) -> tuple[float, ...]:
    """Scalar tensors; `otherwise` for those that are absent or empty."""
    with open_tensors(header.path) as tensors:
        return tuple(
            float(tensors.get_tensor(key).flatten()[0])
            if key in header.shapes and 0 not in header.shapes[key]
            else default
            for key, default in zip(keys, otherwise, strict=True)
        )
