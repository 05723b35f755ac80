"""lseek(2) under the preload library: a region has no position, all other files have theirs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import File
    from support.agent import Agent
    from support.server import Mount

SYS_LSEEK = 8  # x86-64
WHENCE = [os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE]


@pytest.fixture
def file(public_tmp: Path) -> str:
    path = public_tmp / "file"
    path.write_bytes(bytes(100))
    path.chmod(0o666)
    return str(path)


@pytest.mark.parametrize("whence", WHENCE)
def test_a_region_has_no_position(
    preloaded: Agent, make_region: Callable[..., File], whence: int
) -> None:
    for region in (make_region(), make_region(0)):
        for _ in range(2):
            assert preloaded.say("lseek", region.fd, 0, whence) == "ESPIPE"
        assert preloaded.say("lseek64", region.fd, 0, whence) == "ESPIPE"
        assert preloaded.say("syscall", SYS_LSEEK, region.fd, 0, whence) == "ESPIPE"


def test_other_files_have_one(preloaded: Agent, file: str) -> None:
    fd = preloaded.call("open", file, os.O_RDWR)
    for lseek in ("lseek", "lseek64", "lseek"):
        assert preloaded.result(lseek, fd, 5, os.SEEK_SET) == (5, "0")
        assert preloaded.result(lseek, fd, 5, os.SEEK_CUR) == (10, "0")
        assert preloaded.result(lseek, fd, 0, os.SEEK_END) == (100, "0")
    assert preloaded.say("lseek", fd, -1, os.SEEK_SET) == "EINVAL"
    assert preloaded.say("lseek", 9999, 0, os.SEEK_SET) == "EBADF"


def test_mshare_info_has_one(preloaded: Agent, shared_mount: Mount) -> None:
    fd = preloaded.call("open", str(shared_mount.path / "mshare_info"), os.O_RDONLY)
    assert preloaded.say("lseek", fd, 0, os.SEEK_SET) == "0"


@pytest.mark.parametrize(
    "free", [("close",), ("close_range", 0), ("dup2",), ("dup3", 0)], ids=lambda free: free[0]
)
def test_a_number_that_was_another_files(region: File, file: str, free: tuple[str, int]) -> None:
    """Knowledge about a descriptor is not applied to the next one of that number."""
    agent = region.agent
    fd = agent.call("open", file, os.O_RDWR)
    for _ in range(2):
        assert agent.say("lseek", fd, 0, os.SEEK_SET) == "0"
    name, *rest = free
    if name.startswith("dup"):
        assert agent.call(name, region.fd, fd, *rest) == fd
    else:
        agent.call(name, fd, *([fd] if rest else []), *rest)
        assert agent.call("open", region.path, os.O_RDWR) == fd
    assert agent.say("lseek", fd, 0, os.SEEK_SET) == "ESPIPE"
