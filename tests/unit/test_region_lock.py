"""Requests that wait for a region's lock: when they get it, the region may have changed."""

from __future__ import annotations

import errno
import resource
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from msharefs import proc, verbs
from msharefs.server import owners
from msharefs.server.hostmm import HostMM
from msharefs.server.options import MountOptions
from msharefs.server.region import Region

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    Request = Callable[[], Awaitable[None]]

QUANTUM = 2 << 20
SIZE = 4 * QUANTUM
FLAGS = verbs.MAP_SHARED | verbs.MAP_ANONYMOUS | verbs.MAP_FIXED
READ_WRITE = 2  # O_RDWR


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[bytes]]:
    """A process that makes regions, and maps."""
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def region(owner: subprocess.Popen[bytes], public_tmp: Path) -> Iterator[Region]:
    """A region that ends with its owner, and has nothing mapped."""
    options = MountOptions(directory=public_tmp, state=public_tmp, quantum=QUANTUM)
    made = Region(1, owners.Owner.of(owner.pid, "process"), options)
    made.watch = owners.Watch(made.owner)
    watch = made.watch
    host = made.host = HostMM.make("region 1", public_tmp, 1, SIZE, QUANTUM, made.owner)
    yield made
    host.close()
    watch.close()


def create(region: Region, caller: int, at: int, flags: int = FLAGS) -> Request:
    """A CREATE_MAPPING of a quantum at the quantum number `at`."""
    wanted = verbs.Create(at * QUANTUM, QUANTUM, 0, 3, flags)
    return lambda: region.create_mapping(wanted, READ_WRITE, caller, 0)


async def in_turn(region: Region, *requests: Request) -> list[int]:
    """Makes all of them wait for the region's lock, in this order; returns each errno, or 0."""
    found = [-1] * len(requests)

    async def run(number: int) -> None:
        try:
            await requests[number]()
        except OSError as error:
            found[number] = error.errno or -1
        else:
            found[number] = 0

    async with trio.open_nursery() as nursery, region.sized()._lock:
        for number in range(len(requests)):
            nursery.start_soon(run, number)
            await wait_all_tasks_blocked()
        assert found == [-1] * len(requests), "all of them wait"
    return found


def test_a_create_that_waits_for_the_end_of_the_region(
    region: Region, owner: subprocess.Popen[bytes]
) -> None:
    async def end() -> None:
        owner.kill()
        owner.wait()
        await region.settle()

    found = trio.run(in_turn, region, create(region, 0, 0), end, create(region, 0, 1))
    assert found == [0, 0, errno.EINVAL]
    assert region.ended
    assert region.sized().count() == 0


def test_the_series_lets_it_map_all_the_same(
    region: Region, owner: subprocess.Popen[bytes]
) -> None:
    region.quirks = True

    async def end() -> None:
        owner.kill()
        owner.wait()
        await region.settle()

    assert trio.run(in_turn, region, end, create(region, 0, 1)) == [0, 0]
    assert region.sized().ranges() == [(QUANTUM, 2 * QUANTUM)]


@pytest.mark.unsanitized("its process has no room for AddressSanitizer, and says so")
def test_two_that_have_room_for_one(region: Region, owner: subprocess.Popen[bytes]) -> None:
    resource.prlimit(owner.pid, resource.RLIMIT_AS, (QUANTUM, QUANTUM))
    found = trio.run(in_turn, region, *(create(region, owner.pid, at) for at in (0, 2)))
    assert found == [0, errno.ENOMEM]
    assert region.sized().ranges() == [(0, QUANTUM)]


def test_two_that_may_be_one_mapping_more(
    region: Region, owner: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "sysctl", lambda name: {"vm/max_map_count": "0"}.get(name, "1"))
    found = trio.run(in_turn, region, *(create(region, owner.pid, at) for at in (0, 2)))
    assert found == [0, errno.ENOMEM]


def test_two_at_one_place_that_is_to_be_free(
    region: Region, owner: subprocess.Popen[bytes]
) -> None:
    flags = FLAGS | verbs.MAP_FIXED_NOREPLACE
    found = trio.run(in_turn, region, *[create(region, owner.pid, 1, flags)] * 2)
    assert found == [0, errno.EEXIST]
