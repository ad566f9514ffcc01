"""The steps of a plan: levels and timesteps, paired and chained."""

from typing import NamedTuple


class PlannedStep(NamedTuple):
    """One step of a sampler: evaluate the network at noise level `sigma`, whose timestep is
    `timestep`, and go on to `sigma_next`.

    sigma_mid: a level on the way, or None. dpmpp_sde and pndm's steps of Runge and Kutta evaluate
        the network there too, at `timestep_mid`; tcd goes down to it without noise, and from it up
        to sigma_next with noise.
    order: of the step, in solvers that come in several orders, if enough evaluations came before.
    """

    sigma: float
    sigma_next: float
    timestep: float
    sigma_mid: float | None = None
    timestep_mid: float | None = None
    order: int = 1

    @property
    def timesteps(self) -> dict[float, float]:
        """sigma → timestep, for each level at which this step evaluates the network. (heun and pndm
        evaluate it at `sigma_next` as well, which is the next step's `sigma`.)"""
        levels = {self.sigma: self.timestep}
        if self.sigma_mid is not None and self.timestep_mid is not None:
            levels[self.sigma_mid] = self.timestep_mid
        return levels


def chain(levels: list[float], timesteps: list[float], end: float = 0.0) -> tuple[PlannedStep, ...]:
    """Falling levels and their timesteps → steps. Each ends at the next one's level, the last at
    `end`."""
    return tuple(map(PlannedStep, levels, [*levels[1:], end], timesteps))
