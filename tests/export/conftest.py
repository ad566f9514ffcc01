import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """These models are small: a second thread costs more than it saves."""
    torch.set_num_threads(1)
