"""One evaluation of a stage, and the file of them that a bundle keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Named = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One evaluation of a stage: inputs and torch's float32 outputs, by tensor name."""

    name: str
    inputs: Named
    outputs: Named
