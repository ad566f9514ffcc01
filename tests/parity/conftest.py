"""Pairs of pipelines that the tests compare: diffusers' and ours."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import edgediff

Load = Callable[[str], tuple[Any, edgediff.Pipeline]]


@pytest.fixture(scope="module")
def loader(exported: Callable[[str], Any]) -> Callable[..., Load]:
    """A class of diffusers' pipelines, and options of its `from_pretrained` → the function that
    loads a shape's pair of pipelines, once. `original_config` is that of the scheduler, which tests
    replace."""

    def of(kind: Any, **options: Any) -> Load:
        @functools.cache
        def load(shape: str) -> tuple[Any, edgediff.Pipeline]:
            folders = exported(shape)
            theirs = kind.from_pretrained(folders.diffusers, local_files_only=True, **options)
            theirs.set_progress_bar_config(disable=True)
            theirs.original_config = theirs.scheduler.config
            return theirs, edgediff.load(folders.bundle, threads=1)

        return load

    return of


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """These tensors are small: a second thread costs more than it saves."""
    torch.set_num_threads(1)
