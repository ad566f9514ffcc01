"""The prediction of a UNet whose file does not state it: as its kind or its names suggest."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from edgediff_export.source.few_steps import find_few_steps
from edgediff_export.source.statements import Statements

_V_IN_NAME = re.compile(r"(?i:v[ _-]?pred(?:iction)?)(?![a-z])")


def assume_prediction(
    said: Statements, names: Sequence[str], scheduler: Mapping[str, Any], *, sd2: bool
) -> Statements:
    """The statements of weights without a config, with the prediction that is assumed where they
    are silent on it and the scheduler's config says v.

    sd2: whether it is a checkpoint of Stable Diffusion 2.x, whose smaller base predicts epsilon."""
    silent = said.prediction_type is None and not said.unknown
    if not silent or scheduler.get("prediction_type") != "v_prediction":
        return said
    few = find_few_steps(names)
    if few is not None and few[1].label == "Turbo":
        words = f"is taken to predict epsilon, as Turbo models do, since {few[0]!r} says Turbo"
        return _assumed(replace(said, prediction_type="epsilon"), words)
    if not sd2:
        return said
    return _assumed(
        said,
        "does not say what it predicts, and is taken to predict v, as most of Stable Diffusion 2"
        " do: if its images are noise, give `--prediction-type epsilon`",
    )


def _assumed(said: Statements, words: str) -> Statements:
    return replace(said, why={**said.why, "prediction_type": words})


def prediction_in_name(names: Sequence[str], scheduler: Mapping[str, Any]) -> tuple[str, ...]:
    """A note if only a name says that the UNet predicts v. scheduler: the config, `adapt`ed."""
    name = next((n for n in names if _V_IN_NAME.search(n)), None)
    if name is None or scheduler.get("prediction_type", "epsilon") == "v_prediction":
        return ()
    return (
        f"the name {name!r} says v-prediction, but neither the weights nor the scheduler's config"
        " do: if the model predicts v, give `--prediction-type v_prediction --zero-terminal-snr`",
    )
