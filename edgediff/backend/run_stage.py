"""The type of the function with which a run runs the graphs of a bundle."""

from collections.abc import Callable

from edgediff.arrays import AnyArray

RunStage = Callable[[str, dict[str, AnyArray]], dict[str, AnyArray]]
"""(stage's name, inputs by name) → outputs by name."""
