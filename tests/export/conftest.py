import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """These models are small: a second thread costs more than it saves."""
    torch.set_num_threads(1)


@pytest.fixture
def change_config() -> Callable[..., Path]:
    """(folder, copy, component, **changes) → the copy of a pipeline, a config changed."""

    def copy(folder: Path, to: Path, component: str, **changes: Any) -> Path:
        shutil.copytree(folder, to)
        path = to / component / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return to

    return copy
