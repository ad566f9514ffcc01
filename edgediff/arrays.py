"""The array types that modules share."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
"""Float32: latents, predictions, embeddings, noise."""
AnyArray = npt.NDArray[Any]
"""Any dtype: inputs and outputs of graphs."""
