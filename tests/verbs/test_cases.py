"""Verbs on a range, case by case: the system calls of Linux first, then ours, and compared."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import cc, hugepages

if TYPE_CHECKING:
    from support.server import Mount


pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cc.build(Path(__file__).with_name("cases.c"), tmp_path_factory.mktemp("c") / "cases")


def run(*command: str | Path) -> list[str]:
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, (result.returncode, result.stderr, result.stdout[-500:])
    return result.stdout.splitlines()


@pytest.mark.parametrize("what", ["anonymous", "memfd", "file"])
def test_same_as_linux(shared_mount: Mount, tmp_path: Path, cases: Path, what: str) -> None:
    """By the library and by bare ioctls, of all kinds of memory with pages of 4 KiB."""

    def memory(name: str) -> list[str | Path]:
        return {"anonymous": [], "memfd": ["memfd"], "file": [tmp_path / name]}[what]

    plain = run(cases, "plain", *memory("plain"))
    assert len(plain) == 2 * 19 + 12
    assert run(cases, "region", shared_mount.path / f"r-{what}", *memory("ours")) == plain
    assert run(cases, "ioctl", shared_mount.path / f"i-{what}", *memory("bare")) == plain


def test_huge_pages(shared_mount: Mount, cases: Path) -> None:
    """Whether HUGEPAGE and NOHUGEPAGE mean anything to them depends on the kernel."""

    def answers(*arguments: str | Path) -> list[str]:
        return [line for line in run(cases, *arguments) if "HUGEPAGE" not in line]

    with hugepages.at_least(48):
        plain = answers("plain", "huge")
        assert len(plain) == 19 - 2
        assert answers("region", shared_mount.path / "r-huge", "huge") == plain
        assert answers("ioctl", shared_mount.path / "i-huge", "huge") == plain
