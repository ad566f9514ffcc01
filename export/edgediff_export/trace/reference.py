"""The float32 reference: torch's own outputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgediff.errors import ExportError
from edgediff_export.fidelity.cases import Case, Named
from edgediff_export.trace.half_weights import in_float32
from edgediff_export.trace.stage import Stage


def run_torch(module: Any, stage: Stage, inputs: Mapping[str, Named]) -> list[Case]:
    """The float32 reference outputs. Raises ExportError if they are not finite."""
    import torch

    cases = []
    for name, arrays in inputs.items():
        tensors = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
        with torch.no_grad(), in_float32(module):
            found = stage.evaluate(module, tensors)
        outputs = {k: v.float().numpy().copy() for k, v in zip(stage.outputs, found, strict=True)}
        if not all(np.isfinite(v).all() for v in outputs.values()):
            raise ExportError(
                f"{stage.name}: the torch model itself gives values that are not finite: are its"
                " weights damaged?"
            )
        cases.append(Case(name=name, inputs=arrays, outputs=outputs))
    return cases
