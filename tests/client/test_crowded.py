"""An access is answered also where the kernel leaves no room for the answer."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import QUANTUM
from support import cc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import msharefs

PAGE = 4096
SOURCE = Path(__file__).parents[1] / "programs/crowded.c"
MAPERR, ACCERR = 1, 2
MAP_FIXED = 0x10


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cc.build(SOURCE, tmp_path_factory.mktemp("crowded") / "crowded")


@pytest.fixture
def region(
    make_region: Callable[..., msharefs.Region], tmp_path: Path
) -> Iterator[msharefs.Region]:
    region = make_region(QUANTUM, mapped=False)
    region.map(PAGE, PAGE, mmap.PROT_READ)
    region.map(2 * PAGE, PAGE, 0)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"\x07" * PAGE)
    region.map(3 * PAGE, PAGE, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, fd)
    yield region
    os.close(fd)


def answers(program: Path, how: str, region: msharefs.Region) -> list[str]:
    said = subprocess.run(
        [program, how, region.path], check=True, stdout=subprocess.PIPE, text=True, timeout=100
    )
    return said.stdout.splitlines()


@pytest.mark.unsanitized("AddressSanitizer needs mappings, too, where there may be no more")
@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("hole", f"SIGSEGV {MAPERR}"),
        ("store", f"SIGSEGV {ACCERR}"),
        ("load", f"SIGSEGV {ACCERR}"),
        ("file", "7"),
    ],
)
def test_as_many_mappings_as_there_may_be(
    crowded: Path, region: msharefs.Region, how: str, answer: str
) -> None:
    assert answers(crowded, how, region) == [answer]


def test_a_sealed_window(crowded: Path, region: msharefs.Region) -> None:
    """mseal(2) forbids the protection that would give the right signal; there is one anyway."""
    (answer,) = answers(crowded, "sealed-store", region)
    assert answer.startswith(("SIGSEGV", "SIGBUS"))


def test_all_locked(crowded: Path, region: msharefs.Region) -> None:
    """mlockall(2) ends, and the window's holes are holes still."""
    assert answers(crowded, "lock", region) == ["locked", f"SIGSEGV {MAPERR}"]
