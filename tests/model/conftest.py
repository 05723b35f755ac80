"""Fixtures of the tests that run the core in several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support import steps as stepping

if TYPE_CHECKING:
    import ctypes


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """steps.c, built with the core."""
    return stepping.build(tmp_path_factory.mktemp("steps"))
