"""Processes that know nothing of msharefs, plain or under the preload library."""

from __future__ import annotations

import itertools
import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.launch import running
from msharefs.native import lib

from support import agent as agents_of
from support.agent import Agent, Agents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .sysv import Case
    from support.server import Mount

PAGE = mmap.PAGESIZE
QUANTUM = 2 << 20
READ, WRITE, EXEC = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
READ_WRITE = READ | WRITE
SHARED, PRIVATE, ANONYMOUS = mmap.MAP_SHARED, mmap.MAP_PRIVATE, mmap.MAP_ANONYMOUS
FIXED, NOREPLACE = 0x10, 0x100000
MAYMOVE, MREMAP_FIXED, DONTUNMAP = 1, 2, 4
PLACE = 1 << 45  # a multiple of every quantum, where nothing is
FAILED = -1

_numbers = itertools.count()


@dataclass
class File:
    """A region or a memfd, open in an agent: what `mmap` maps there. Sizes in bytes."""

    agent: Agent
    fd: int
    size: int
    path: str = ""

    def mmap(
        self,
        *,
        address: int = 0,
        length: int | None = None,
        prot: int = READ_WRITE,
        flags: int = SHARED,
        fd: int | None = None,
        offset: int = 0,
    ) -> tuple[int, str]:
        """mmap(2) of all of it: address and errno ("0")."""
        return self.agent.result(
            "mmap", address, self.size if length is None else length, prot, flags,
            self.fd if fd is None else fd, offset,
        )  # fmt: skip

    def attach(self, **arguments: int) -> int:
        """mmap(2) that must succeed: the address."""
        base, error = self.mmap(**arguments)
        assert (base != FAILED, error) == (True, "0")
        return base

    def refused(self, **arguments: int) -> str:
        """mmap(2) that must fail: its errno."""
        base, error = self.mmap(**arguments)
        assert base == FAILED
        return error

    def reopen(self, flags: int) -> int:
        """One more descriptor, open with other flags."""
        return self.agent.call("open", self.path or f"/proc/self/fd/{self.fd}", flags)

    def map(self, offset: int, size: int, prot: int = READ_WRITE) -> None:
        """Memory inside a region, by ioctl(2) as the series has it."""
        flags = SHARED | FIXED | ANONYMOUS
        create = struct.pack("=QQQIIIxxxx", offset, size, 0, prot, flags, 0)
        assert self.agent.call("ioctl", self.fd, lib.MSHAREFS_CREATE_MAPPING, create) == 0


@pytest.fixture(scope="session")
def agent_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled tests/programs/agent.c."""
    return agents_of.build(tmp_path_factory.mktemp("agent") / "agent")


@pytest.fixture
def agents() -> Iterator[Agents]:
    """Where agents connect; they end with the test."""
    with Agents() as made:
        yield made


@pytest.fixture
def plain(agents: Agents, agent_program: Path) -> Agent:
    """An agent with nothing before its C library."""
    return agents.start([agent_program])


@pytest.fixture
def preloaded(agents: Agents, agent_program: Path, shared_mount: Mount) -> Agent:
    """An agent under the preload library."""
    return agents.start([agent_program], running.environment(shared_mount.path, None))


@pytest.fixture
def adopting(agents: Agents, agent_program: Path, shared_mount: Mount) -> Agent:
    """An agent under the preload library whose shared memory of 1 MiB or more is adopted."""
    return agents.start([agent_program], running.environment(shared_mount.path, 1 << 20))


@pytest.fixture
def make_region(preloaded: Agent, shared_mount: Mount) -> Iterator[Callable[..., File]]:
    """Make regions, sized and mapped from end to end unless told otherwise, open in the agent."""
    made: list[str] = []

    def make(size: int = 2 * QUANTUM, *, mapped: bool = True) -> File:
        path = str(shared_mount.path / f"r{next(_numbers)}")
        made.append(path)
        fd = preloaded.call("open", path, os.O_RDWR | os.O_CREAT, 0o600)
        region = File(preloaded, fd, size, path)
        if size:
            assert preloaded.call("ftruncate", fd, size) == 0
        if size and mapped:
            region.map(0, size)
        return region

    yield make
    for path in made:
        os.unlink(path)


@pytest.fixture
def region(make_region: Callable[..., File]) -> File:
    """A region of two quanta, mapped from end to end."""
    return make_region()


@pytest.fixture(params=["memfd", "region"])
def file(request: pytest.FixtureRequest) -> File:
    """What must behave alike: a memfd on Linux, then a region under the preload library."""
    if request.param == "region":
        return request.getfixturevalue("region")
    agent = request.getfixturevalue("plain")
    fd = agent.call("memfd_create", "file", 0)
    assert agent.call("ftruncate", fd, 2 * QUANTUM) == 0
    return File(agent, fd, 2 * QUANTUM)


@pytest.fixture
def segments(
    agent_program: Path, agents: Agents, shared_mount: Mount
) -> Iterator[Callable[..., Case]]:
    """Start a process, plain or with segments of 4 KiB and more adopted."""
    from .sysv import Case

    cases: list[Case] = []

    def start(*, adopts: bool) -> Case:
        environ = running.environment(shared_mount.path, {"sysv": PAGE}) if adopts else None
        cases.append(Case(agents.start([agent_program], environ)))
        return cases[-1]

    yield start
    for case in cases:
        case.remove()


def clients(path: str) -> list[dict[str, int]]:
    """The attachments of a region, as its server knows them."""
    with msharefs.open(path, os.O_RDONLY) as region:
        return region.describe("clients")
