"""Checkpoints that survive a kill at any moment: written beside, then renamed."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state so that path holds either the old or the new one, never half of it."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """The state that `save` wrote, or None where there is none yet."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def replace_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder beside path, then put it in path's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part-{uuid.uuid4().hex[:8]}")
    write(beside)
    if path.exists():  # a folder cannot be renamed over a full one
        old = path.with_name(f"{path.name}.old-{uuid.uuid4().hex[:8]}")
        path.rename(old)
        beside.rename(path)
        shutil.rmtree(old)
    else:
        beside.rename(path)
