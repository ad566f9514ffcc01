"""The array types that modules share."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
"""Latents, predictions, embeddings, noise."""
AnyArray = npt.NDArray[Any]
"""A graph's input or output, of any dtype."""
