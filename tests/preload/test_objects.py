"""Files in regions of programs that know nothing of msharefs but its ioctl(2)."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest

from msharefs.native import lib

from .conftest import FIXED, PAGE, PLACE, QUANTUM, READ, READ_WRITE, SHARED, File

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.mount("quantum=2M")


def create(region: File, offset: int, size: int, fd: int, prot: int = READ_WRITE) -> None:
    """Maps an open file of the program into the region."""
    data = struct.pack("=QQQIIIxxxx", offset, size, 0, prot, SHARED | FIXED, fd)
    assert region.agent.call("ioctl", region.fd, lib.MSHAREFS_CREATE_MAPPING, data) == 0


def unmap(region: File, offset: int, size: int) -> None:
    data = struct.pack("=QQ", offset, size)
    assert region.agent.call("ioctl", region.fd, lib.MSHAREFS_UNMAP, data) == 0


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files of 40 pages; page n of file m begins with m and n."""
    made = []
    for number in range(3):
        path = tmp_path / str(number)
        path.write_bytes(b"".join(bytes([number, page]).ljust(PAGE, b"\0") for page in range(40)))
        made.append(path)
    return made


def test_a_program_that_closes_all_descriptors(
    make_region: Callable[..., File], files: list[Path]
) -> None:
    region = make_region(mapped=False)
    agent = region.agent
    base = region.attach(address=PLACE)
    for number, path in enumerate(files):
        fd = agent.call("open", str(path), os.O_RDWR)
        create(region, number * 64 * PAGE, 40 * PAGE, fd, READ if number == 2 else READ_WRITE)
        agent.call("close", fd)
    for number in range(3):
        assert agent.load(base + number * 64 * PAGE) == str(number)
    # The program can neither close nor take our numbers, one by one or all together.
    for fd in range(600, 640):
        agent.result("close", fd)
        agent.result("dup2", 0, fd)
    for number in range(3):
        at = base + (number * 64 + 39) * PAGE
        assert agent.load(at + 1) == "39"
    assert agent.store(base + 64 * PAGE, 77) == "ok"
    assert files[1].read_bytes()[0] == 77
    assert "ACCERR" in agent.store(base + 128 * PAGE, 77)
    unmap(region, 64 * PAGE, PAGE)
    assert "MAPERR" in agent.load(base + 64 * PAGE)
    assert agent.load(base + 65 * PAGE) == "1"


def test_calls_on_a_window_with_files_in_it(
    make_region: Callable[..., File], files: list[Path]
) -> None:
    region = make_region(mapped=False)
    agent = region.agent
    base = region.attach(address=PLACE)
    fd = agent.call("open", str(files[1]), os.O_RDWR)
    create(region, 0, 40 * PAGE, fd)
    assert agent.load(base + 20 * PAGE + 1) == "20"
    assert agent.result("munmap", base, 20 * PAGE)[1] == "EINVAL"
    assert agent.result("mprotect", base, 20 * PAGE, READ)[1] == "EINVAL"
    dontneed, dontfork = 4, 10
    assert agent.result("madvise", base, 40 * PAGE, dontneed)[1] == "0"
    assert agent.load(base + 20 * PAGE + 1) == "20"
    assert agent.result("madvise", base, 2 * QUANTUM, dontfork)[1] == "0"
    assert agent.load(base + 39 * PAGE + 1) == "39"
    assert agent.result("munmap", base, 2 * QUANTUM)[1] == "0"
    assert "MAPERR" in agent.load(base + 20 * PAGE + 1)
