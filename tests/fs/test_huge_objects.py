"""Huge pages of a region: their names, and that each of them goes back in time."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs

from support import hugepages
from support.calls import refused
from support.hugepages import BYTES
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 8 * BYTES
RW = mmap.PROT_READ | mmap.PROT_WRITE
HUGE = mmap.MAP_SHARED | verbs.MAP_FIXED | mmap.MAP_ANONYMOUS | verbs.MAP_HUGETLB


@pytest.fixture(autouse=True)
def pool() -> Iterator[None]:
    with hugepages.at_least(8):
        yield


def held(mount: Mount) -> list[int]:
    """The number of present pages of each of the server's objects of huge pages, in order.

    The pool itself belongs to the machine: others take from it meanwhile.
    """
    found = []
    directory = f"/proc/{mount.pid}/fd"
    for fd in sorted(os.listdir(directory), key=int):
        with contextlib.suppress(FileNotFoundError):  # closed by the server meanwhile
            if os.readlink(f"{directory}/{fd}").startswith("/memfd:anon_hugepage"):
                found.append(os.stat(f"{directory}/{fd}").st_blocks * 512 // BYTES)
    return sorted(found)


def make(path: Path) -> msharefs.Region:
    region = msharefs.open(path, os.O_RDWR | os.O_CREAT)
    region.truncate(SIZE)
    return region


def attach(actor: Actor, region: msharefs.Region) -> int:
    fd = actor.give(region.fd)
    base = actor.attach(fd)
    actor.call("close", fd)
    return base


def test_what_is_unmapped_goes_back(shared_mount: Mount, actors: Callable[[], Actor]) -> None:
    path = shared_mount.path / "huge"
    with make(path) as region:
        region.map(BYTES, 4096, RW, HUGE)
        region.map(2 * BYTES, 3 * BYTES, RW, HUGE)
        assert [(vma["start"] // BYTES, vma["end"] // BYTES) for vma in region.maps()] == [
            (1, 2), (2, 5),
        ]  # fmt: skip
        assert {vma["object"] for vma in region.maps()} == {"anon_hugepage"}
        actor = actors()
        base = attach(actor, region)
        for page in range(1, 5):
            assert actor.call("store", base + page * BYTES, page) == []
        assert held(shared_mount) == [1, 3]
        region.unmap(3 * BYTES, BYTES)
        assert held(shared_mount) == [1, 2], "of a part"
        region.map(BYTES, BYTES)
        assert held(shared_mount) == [2], "of what is replaced"
        assert actor.call("load", base + 2 * BYTES) == [2]
        assert actor.call("load", base + 4 * BYTES) == [4]
        region.unmap(0, SIZE)
        assert held(shared_mount) == []
        region.map(0, BYTES, RW, HUGE)
        assert actor.call("store", base, 1) == []
        assert held(shared_mount) == [1]
        actor.call("detach", base)
    path.unlink()
    until(lambda: held(shared_mount) == [], "with the region")


def test_a_failed_create_keeps_none(shared_mount: Mount) -> None:
    path = shared_mount.path / "huge"
    with make(path) as region:
        region.map(0, 4096)
        with refused(errno.EEXIST):
            region.map(0, BYTES, RW, HUGE | verbs.MAP_FIXED_NOREPLACE)
        with refused(errno.EINVAL):
            region.map(SIZE - BYTES, 2 * BYTES, RW, HUGE)
        assert held(shared_mount) == []
    path.unlink()


def test_they_outlive_a_server_with_a_process(mount: Mount, actors: Callable[[], Actor]) -> None:
    path = mount.path / "huge"
    with make(path) as region:
        region.map(0, 2 * BYTES, RW, HUGE)
        first, second = actors(), actors()
        base = attach(first, region)
    assert first.call("store", base + BYTES, 9) == []
    mount.kill()
    mount.start()
    with msharefs.open(path) as region:
        view = attach(second, region)
        assert second.call("load", view + BYTES) == [9]
        assert second.call("store", view, 8) == []
        assert first.call("load", base) == [8]
        assert held(mount) == [2]
        region.unmap(BYTES, BYTES)
        assert held(mount) == [1]
        region.unmap(0, BYTES)
        assert held(mount) == []
    path.unlink()
