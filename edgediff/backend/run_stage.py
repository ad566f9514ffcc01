"""The function by which a run reaches the graphs of a bundle."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
"""Of any dtype, as onnxruntime takes and gives them."""


RunStage = Callable[[str, dict[str, Array]], dict[str, Array]]
"""(stage, inputs by name) → outputs by name."""
