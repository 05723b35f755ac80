"""A program written for the kernel series, unmodified, does here what it does with memory."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from support import cc
from support.actor import SOURCES

if TYPE_CHECKING:
    from pathlib import Path

    from support.server import Mount

WAIT = 60.0


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled tests/programs/series.c: from our library it takes nothing but the numbers."""
    made = cc.build(SOURCES / "series.c", tmp_path_factory.mktemp("series") / "series")
    needed = subprocess.check_output(["readelf", "-d", made], text=True)
    assert "msharefs" not in "".join(line for line in needed.splitlines() if "NEEDED" in line)
    return made


def test_the_kernels_own_example(program: Path, mount: Mount) -> None:
    plain = subprocess.run(
        [program, "memory"], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert "answer: an answer\n" in plain.stdout
    here = subprocess.run(
        [sys.executable, "-m", "msharefs", "run", "--", program, "region", mount.path / "region"],
        capture_output=True, text=True, timeout=WAIT, check=True,
    )  # fmt: skip
    assert here.stdout.splitlines() == [*plain.stdout.splitlines(), "unlink: fine"]
    assert not [path for path in mount.path.iterdir() if path.name != "mshare_info"]
