"""Where Linux has the same semantics a test runs on a plain tmpfs first, and then on a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from support.server import Mount


@pytest.fixture(params=["tmpfs", "msharefs"])
def place(request: pytest.FixtureRequest, shared_mount: Mount, public_tmp: Path) -> Path:
    """An empty directory for everybody: on tmpfs, then on a mount."""
    parents = {"tmpfs": public_tmp, "msharefs": shared_mount.path}
    path = parents[request.param] / public_tmp.name
    path.mkdir()
    path.chmod(0o777)
    return path
