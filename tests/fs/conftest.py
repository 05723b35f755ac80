"""Where Linux has the same semantics a test runs on a plain tmpfs first, and then on a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["tmpfs", "msharefs"])
def place(request: pytest.FixtureRequest, public_tmp: Path) -> Path:
    """A directory for everybody: on tmpfs, then the root of a mount."""
    if request.param == "msharefs":
        return request.getfixturevalue("mount").path
    path = public_tmp / "plain"
    path.mkdir()
    path.chmod(0o777)
    return path
