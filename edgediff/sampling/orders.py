"""The order of each step of the solvers that come in several orders."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgediff.sampling.schedule import FlowSchedule, Schedule

FEW_STEPS = 15
"""Below so many, diffusers' multistep solvers lower the order of their last steps."""


@dataclass(frozen=True, kw_only=True)
class Solver:
    """How a run's last steps lower their order, which keeps them stable.

    order: of the steps in between, 1 … 3.
    lower_order_final: whether the last steps have lower orders: in multistep solvers the last has 1
        and the one before it 2 in runs of fewer than 15; unipc's in any run; in single steps, the
        last of them end with the run.
    euler_at_final: whether the last step of a multistep solver is of order 1 in any case.
    to_zero: whether the run ends at sigma 0. lambda is infinite there, so that step has order 1."""

    order: int = 2
    lower_order_final: bool = True
    euler_at_final: bool = False
    to_zero: bool = True


def solver_of(schedule: Schedule) -> Solver:
    """The solver as the model's author meant it; of flow matching, always the usual one."""
    if isinstance(schedule, FlowSchedule):
        return Solver()
    return Solver(
        order=schedule.solver_order,
        lower_order_final=schedule.lower_order_final,
        euler_at_final=schedule.euler_at_final,
        to_zero=schedule.final_sigmas_type == "zero",
    )


def multistep(solver: Solver, steps: int) -> list[int]:
    """DPM-Solver++ of the multistep kind, Lu et al. 2022 (arXiv:2211.01095)."""
    orders = [solver.order] * steps
    lowered = solver.lower_order_final and steps < FEW_STEPS
    if lowered and steps > 1:
        orders[-2] = min(solver.order, 2)
    if lowered or solver.euler_at_final or solver.to_zero:
        orders[-1] = 1
    return orders


def unipc(solver: Solver, steps: int) -> list[int]:
    """UniPC, Zhao et al. 2023 (arXiv:2302.04867): at the end, no higher than the steps left."""
    if not (solver.lower_order_final or solver.to_zero):
        return [solver.order] * steps
    return [min(solver.order, steps - i) for i in range(steps)]


def deis(solver: Solver, steps: int) -> list[int]:
    """DEIS, Zhang and Chen 2022 (arXiv:2204.13902), of order 1 or 2."""
    orders = [min(solver.order, 2)] * steps
    if solver.lower_order_final and steps < FEW_STEPS:
        orders[-1] = 1
    return orders


def singlestep(solver: Solver, steps: int) -> list[int]:
    """DPM-Solver++ in single steps, Lu et al. 2022 (arXiv:2206.00927, appendix D.3): each one takes
    `order` evaluations, of which the k-th is a step of order k from its start. The last of them
    are shorter, so that the evaluations add up to `steps`."""
    order = solver.order
    lowered = solver.lower_order_final or solver.to_zero or steps % order > 0
    whole, rest = divmod(steps, order)
    if lowered and order == 3 and rest == 0:
        orders = [1, 2, 3] * (whole - 1) + [1, 2, 1]
    elif lowered and order == 2 and rest == 0:
        orders = [1, 2] * (whole - 1) + [1, 1]
    else:
        orders = [*range(1, order + 1)] * whole + [*range(1, rest + 1)]
    if solver.to_zero:
        orders[-1] = 1
    return orders


def _multistep_sde(solver: Solver, steps: int) -> list[int]:
    return multistep(_no_third_order(solver), steps)


def _singlestep_sde(solver: Solver, steps: int) -> list[int]:
    return singlestep(_no_third_order(solver), steps)


def _no_third_order(solver: Solver) -> Solver:
    return replace(solver, order=min(solver.order, 2))


ORDERS: dict[str, Callable[[Solver, int], list[int]]] = {
    "dpmpp_2m": multistep,
    "dpmpp_2m_karras": multistep,
    "dpmpp_2m_sde": _multistep_sde,
    "dpmpp_2s": singlestep,
    "dpmpp_2s_sde": _singlestep_sde,
    "unipc": unipc,
    "deis": deis,
}
"""Sampler → the order of each step of a run."""
