"""The function by which a run reaches the graphs of a bundle."""

from collections.abc import Callable

from edgediff.arrays import AnyArray

RunStage = Callable[[str, dict[str, AnyArray]], dict[str, AnyArray]]
"""(stage, inputs by name) → outputs by name."""
