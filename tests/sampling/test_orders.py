"""The orders of a run's steps."""

import pytest

from edgediff.sampling.orders import ORDERS, Solver, deis, multistep, singlestep, unipc
from edgediff.sampling.plan import make_plan
from edgediff.sampling.schedule import DiscreteSchedule


@pytest.mark.parametrize(
    ("solver", "steps", "expected"),
    [
        (Solver(), 1, [1]),
        (Solver(), 3, [2, 2, 1]),
        (Solver(order=1), 3, [1, 1, 1]),
        (Solver(order=3), 2, [2, 1]),
        (Solver(order=3), 4, [3, 3, 2, 1]),
        (Solver(order=3), 16, [3] * 15 + [1]),
        (Solver(order=3, to_zero=False), 16, [3] * 16),
        (Solver(order=3, to_zero=False, euler_at_final=True), 16, [3] * 15 + [1]),
        (Solver(order=3, lower_order_final=False), 4, [3, 3, 3, 1]),
    ],
)
def test_multistep(solver: Solver, steps: int, expected: list[int]) -> None:
    assert multistep(solver, steps) == expected


@pytest.mark.parametrize(
    ("solver", "steps", "expected"),
    [
        (Solver(), 1, [1]),
        (Solver(), 2, [1, 1]),
        (Solver(), 5, [1, 2, 1, 2, 1]),
        (Solver(), 6, [1, 2, 1, 2, 1, 1]),
        (Solver(order=3), 6, [1, 2, 3, 1, 2, 1]),
        (Solver(order=3), 7, [1, 2, 3, 1, 2, 3, 1]),
        (Solver(order=3), 8, [1, 2, 3, 1, 2, 3, 1, 1]),
        (Solver(order=3, to_zero=False), 8, [1, 2, 3, 1, 2, 3, 1, 2]),
        (Solver(order=3, to_zero=False, lower_order_final=False), 6, [1, 2, 3, 1, 2, 3]),
    ],
)
def test_singlestep(solver: Solver, steps: int, expected: list[int]) -> None:
    assert singlestep(solver, steps) == expected


def test_others() -> None:
    assert unipc(Solver(order=3), 5) == [3, 3, 3, 2, 1]
    assert unipc(Solver(order=3, to_zero=False, lower_order_final=False), 3) == [3, 3, 3]
    assert deis(Solver(order=3), 4) == [2, 2, 2, 1]
    assert deis(Solver(), 16) == [2] * 16


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 16])
@pytest.mark.parametrize("sampler", ORDERS)
def test_each_step_has_one(sampler: str, steps: int) -> None:
    for order in (1, 2, 3):
        schedule = DiscreteSchedule(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="epsilon",
            solver_order=order,
        )
        plan = make_plan(schedule, sampler, steps)
        most = min(order, 2) if sampler.endswith("sde") or sampler == "deis" else order
        assert all(1 <= step.order <= most for step in plan.steps)
        tail = make_plan(schedule, sampler, steps, strength=1.0 - 0.5 / steps if steps > 1 else 1.0)
        assert tail.steps == plan.steps[-len(tail.steps) :]
