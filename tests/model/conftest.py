"""Fixtures of the tests that run the core in several processes."""

from __future__ import annotations

import pytest

from support import steps as stepping


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory) -> stepping.Steps:
    """steps.c, built with the core."""
    return stepping.build(tmp_path_factory.mktemp("steps"))
