"""How far a graph is from torch on fixed inputs, and how long it takes."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgediff.backend.options import SessionOptions
from edgediff.backend.session import Session
from edgediff.bundle.manifest import GraphSpec, Precision, StageFidelity
from edgediff.verification import relative_error
from edgediff_export.fidelity.cases import Case, Named

FLOAT_LIMIT = 1e-3
"""The largest ‖onnx − torch‖ / ‖torch‖ of a float32 graph; beyond it the trace is wrong."""
# ‖q − f‖ / ‖f‖ that a device may have even if the export had less: kernels round differently.
_TOLERANCE_FLOOR: dict[Precision, float] = {"fp32": 1e-3, "fp16": 1e-2, "int8": 3e-2}
# The error that bfloat16 adds: 8 bits of mantissa, through some fifty layers.
_BFLOAT16 = 5e-2


def run_graph(path: Path, spec: GraphSpec, inputs: Mapping[str, Named]) -> list[Case]:
    """A graph on disk evaluated on inputs, each a case of its own."""
    session = Session(path, spec, SessionOptions(provider="cpu"))
    return [Case(name=k, inputs=v, outputs=session.run(**v)) for k, v in inputs.items()]


def measure(
    path: Path, spec: GraphSpec, cases: Sequence[Case], observed: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """A graph against torch: the worst ‖q − f‖ / ‖f‖ and |q − f| over the cases, inf if
    anything is not finite. observed: called after each case."""
    session = Session(path, spec, SessionOptions(provider="cpu"))
    error, max_abs_error = 0.0, 0.0
    for case in cases:
        outputs = session.run(**case.inputs)
        for name, reference in case.outputs.items():
            if not np.isfinite(outputs[name]).all():
                return float("inf"), float("inf")
            error = max(error, relative_error(outputs[name], reference))
            max_abs_error = max(max_abs_error, float(np.abs(outputs[name] - reference).max()))
        observed()
    return error, max_abs_error


def seconds(path: Path, spec: GraphSpec, case: Case, *, repeats: int = 5) -> float:
    """The median time of one evaluation."""
    session = Session(path, spec, SessionOptions(provider="cpu"))
    session.run(**case.inputs)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        session.run(**case.inputs)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def judge(
    error: float, max_abs_error: float, precision: Precision, *, bfloat16: bool = False
) -> StageFidelity:
    """The tolerance of `edgediff verify`: twice the error that the export measured, or the
    one that any device's rounding may cause at this precision.

    bfloat16: whether the device may compute in it."""
    floor = _TOLERANCE_FLOOR[precision] + (_BFLOAT16 if bfloat16 else 0.0)
    tolerance = max(floor, 2 * error)
    return StageFidelity(error=error, max_abs_error=max_abs_error, tolerance=tolerance)
