"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of shared data and models, which no copy of the repository carries."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("PENCHANT_SHARED", default))
    if not folder.is_dir():
        pytest.skip("needs ../shared")
    return folder
