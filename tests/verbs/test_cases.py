"""Verbs on a range, case by case: the system calls of Linux first, then ours, and compared."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import cc

if TYPE_CHECKING:
    from support.server import Mount


pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1")


def run(*command: str | Path) -> list[str]:
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, (result.returncode, result.stderr, result.stdout[-500:])
    return result.stdout.splitlines()


def test_same_as_linux(shared_mount: Mount, tmp_path: Path) -> None:
    cases = cc.build(Path(__file__).with_name("cases.c"), tmp_path / "cases")
    plain = run(cases, "plain")
    ours = run(cases, "region", shared_mount.path / "r")
    assert len(plain) == 2 * 17 + 6
    assert ours == plain
