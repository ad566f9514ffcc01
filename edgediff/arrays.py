"""The array type of latents, predictions, embeddings and noise."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
