"""What all tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_bundle() -> Path:
    """A bundle of random weights, a megabyte, made by tests/golden/make_bundle.py."""
    return Path(__file__).parent / "golden" / "tiny"
