"""The noise levels of flow matching: fractions of noise s, their shift, and the timesteps.

The levels and the timesteps are those of diffusers' schedulers for flow matching, which differ from
one sampler to another. Each level is a float32 value, as there: close to s = 1 the rounding counts.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from edgediff.errors import InputError
from edgediff.sampling.planned_step import PlannedStep, chain
from edgediff.sampling.schedule import FlowSchedule
from edgediff.sampling.sigmas import SPACINGS, Spacing

_Levels = npt.NDArray[np.float64]


def flow_steps(
    schedule: FlowSchedule, sampler: str, steps: int, spacing: Spacing | None, shift: float
) -> tuple[PlannedStep, ...]:
    """The steps of a sampler in FLOW_SAMPLERS, down to 0.

    spacing: only with those in FLOW_SPACED. shift: see `flow_shift`."""
    s = _LEVELS[sampler](schedule, steps, shift)
    if spacing is not None:
        s = np.array(SPACINGS[spacing](float(s[-1]), float(s[0]), steps))
    t = schedule.num_train_timesteps
    rounded = s.astype(np.float32)
    if sampler in FLOW_SPACED:
        timesteps = (rounded * np.float32(t)).tolist()
    else:  # diffusers cuts them to whole numbers
        timesteps = np.floor(s * t).tolist()
    levels = [f / (1.0 - f) if f < 1.0 else math.inf for f in rounded.tolist()]
    return chain(levels, timesteps)


def flow_shift(schedule: FlowSchedule, image_seq_len: int | None) -> float:
    """The shift for an image of so many tokens, which only a dynamic shift depends on.

    Raises InputError if that needs image_seq_len and it is None."""
    if schedule.dynamic_shift is None:
        return schedule.shift
    if image_seq_len is None:
        raise InputError("image_seq_len is None: this schedule's shift depends on the image's size")
    return schedule.dynamic_shift.shift(image_seq_len)


def _shifted(s: _Levels, shift: float) -> _Levels:
    return np.asarray(shift * s / (1.0 + (shift - 1.0) * s))


def _stretched(s: _Levels, terminal: float | None) -> _Levels:
    """s, with 1 - s scaled so that the last is `terminal`; a single level at s = 1 stays there."""
    if terminal is None or s[-1] == 1.0:
        return s
    scale = (1.0 - terminal) / (1.0 - float(s[-1]))
    return np.asarray(1.0 - (1.0 - s) * scale)


def _euler(schedule: FlowSchedule, steps: int, shift: float) -> _Levels:
    """FlowMatchEulerDiscreteScheduler's and FlowMatchHeunDiscreteScheduler's."""
    if schedule.timestep_spacing == "trailing":
        s = np.linspace(1.0, 1.0 / steps, steps)
    else:
        ends = np.array([1.0, 1.0 / schedule.num_train_timesteps])
        if schedule.dynamic_shift is None:  # the ends are those of a shifted table
            ends = _shifted(ends, shift).astype(np.float32).astype(np.float64)
        s = np.linspace(ends[0], ends[1], steps)
    return _stretched(_shifted(s, shift), schedule.shift_terminal)


def _dpmpp(schedule: FlowSchedule, steps: int, shift: float) -> _Levels:
    """DPMSolverMultistepScheduler's: the first level is one training timestep below s = 1."""
    s = 1.0 - np.linspace(1.0, 1.0 / schedule.num_train_timesteps, steps + 1)
    return _stretched(_shifted(s, shift)[:0:-1], schedule.shift_terminal)


def _unipc(schedule: FlowSchedule, steps: int, shift: float) -> _Levels:
    """UniPCMultistepScheduler's: log sigma of the first level must be finite."""
    s = np.linspace(1.0, 1.0 / schedule.num_train_timesteps, steps + 1)[:-1]
    s = _stretched(_shifted(s, shift), schedule.shift_terminal)
    if abs(s[0] - 1.0) < 1e-6:
        s[0] -= 1e-6
    return s


_LEVELS: dict[str, Callable[[FlowSchedule, int, float], _Levels]] = {
    "euler": _euler,
    "heun": _euler,
    "dpmpp_2m": _dpmpp,
    "dpmpp_2m_sde": _dpmpp,
    "unipc": _unipc,
}
FLOW_SAMPLERS = tuple(_LEVELS)
FLOW_SPACED = ("euler", "heun")
