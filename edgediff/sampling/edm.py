"""The noise levels of EDM's schedule: spread between its ends, whatever the number of steps.

They are those of diffusers' EDMEulerScheduler and EDMDPMSolverMultistepScheduler, in units of
sigma_data."""

import math

import numpy as np

from edgediff.sampling.planned_step import PlannedStep, chain
from edgediff.sampling.schedule import EDMSchedule
from edgediff.sampling.sigmas import SPACINGS, Spacing, karras_sigmas

EDM_SAMPLERS = ("euler", "dpmpp_2m", "dpmpp_2m_sde")


def edm_steps(
    schedule: EDMSchedule, steps: int, spacing: Spacing | None
) -> tuple[PlannedStep, ...]:
    """The steps of a sampler in EDM_SAMPLERS. spacing: None for the schedule's own.

    A single step starts at sigma_max. diffusers' "exponential" starts it at sigma_min, a level at
    which initial latents do not belong."""
    spacing = spacing or schedule.sigma_schedule
    low, high = schedule.sigma_min, schedule.sigma_max
    if spacing == "karras":
        levels = karras_sigmas(low, high, steps, schedule.rho)
    else:
        levels = SPACINGS[spacing](low, high, steps)
    # Karras et al. 2022 (arXiv:2206.00364), table 1: c_noise.
    timesteps = 0.25 * np.log(levels)
    # The lowest level may be below sigma_min by a rounding.
    end = 0.0 if schedule.final_sigmas_type == "zero" else min(low, levels[-1])
    units = [sigma / schedule.sigma_data for sigma in (*levels, end)]
    return chain(units[:-1], timesteps.tolist(), units[-1])


def edm_noise_scale(schedule: EDMSchedule) -> float:
    """Standard deviation of the initial latents, which diffusers takes for sigma_data = 1."""
    high = schedule.sigma_max
    return math.hypot(high, 1.0) / math.hypot(high, schedule.sigma_data)
