"""One step of a plan, which the schedule's levels and timesteps are made into."""

from typing import NamedTuple


class PlannedStep(NamedTuple):
    """One step of a sampler: evaluate the model at `sigma`, where the network wants to be told
    `timestep`, and go on to noise level `sigma_next`.

    sigma_mid: a level on the way, None where there is none. dpmpp_sde evaluates the model there
        too, at `timestep_mid`; tcd goes down to it without noise and up from it with."""

    sigma: float
    sigma_next: float
    timestep: float
    sigma_mid: float | None = None
    timestep_mid: float | None = None

    @property
    def timesteps(self) -> dict[float, float]:
        """sigma → timestep, for each level at which this step evaluates the model. (heun and pndm
        evaluate at `sigma_next` as well, which is the next step's `sigma`.)"""
        levels = {self.sigma: self.timestep}
        if self.sigma_mid is not None and self.timestep_mid is not None:
            levels[self.sigma_mid] = self.timestep_mid
        return levels


def chain(levels: list[float], timesteps: list[float], end: float = 0.0) -> tuple[PlannedStep, ...]:
    """Each step goes on to where the next one starts, the last to `end`."""
    return tuple(map(PlannedStep, levels, [*levels[1:], end], timesteps))
