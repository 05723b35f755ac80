"""mmap(2) of a part of a region file, under the preload library."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.launch import running

from .conftest import FIXED, PAGE, PLACE, QUANTUM, READ, SHARED, File, clients

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.agent import Agents
    from support.server import Mount

SIZE = 4 * QUANTUM
WHOLE = {"offset": 0, "length": SIZE}
DONTNEED = 4


@pytest.fixture(params=["memfd", "region"])
def file(request: pytest.FixtureRequest, shared_mount: Mount) -> File:
    """Four quanta of memory: of a memfd on Linux, then of a region under the preload library."""
    del shared_mount  # made before the test, which must leave nothing
    if request.param == "region":
        made: File = request.getfixturevalue("make_region")(SIZE)
        return made
    agent = request.getfixturevalue("plain")
    fd = agent.call("memfd_create", "file", 0)
    assert agent.call("ftruncate", fd, SIZE) == 0
    return File(agent, fd, SIZE)


def test_a_part_has_the_bytes_from_its_offset_on(file: File) -> None:
    agent = file.agent
    whole = file.attach(**WHOLE)
    part = file.attach(offset=QUANTUM, length=2 * QUANTUM)
    last = file.attach(offset=3 * QUANTUM, length=QUANTUM - PAGE + 1)  # up to a page
    for at, offset in (
        (part, QUANTUM),
        (part + 2 * QUANTUM - 1, SIZE - QUANTUM - 1),
        (last, 3 * QUANTUM),
    ):
        assert agent.store(whole + offset, offset % 251) == "ok"
        assert agent.load(at) == str(offset % 251)
    assert agent.store(part + PAGE, 7) == "ok"
    assert agent.load(whole + QUANTUM + PAGE) == "7"


def test_calls_on_a_part(file: File) -> None:
    """Whole, as they are refused otherwise."""
    agent = file.agent
    part = file.attach(offset=2 * QUANTUM, length=2 * QUANTUM, address=PLACE, flags=SHARED | FIXED)
    for page in (0, 3, 513):
        assert agent.store(part + page * PAGE, 3) == "ok"
    assert agent.call("mincore", part, 2 * QUANTUM, agent.pool) == 0
    seen = agent.get(agent.pool, 2 * QUANTUM // PAGE)
    assert {0, 3, 513} <= {page for page, byte in enumerate(seen) if byte}
    assert agent.say("madvise", part, 2 * QUANTUM, DONTNEED) == "0"
    assert agent.load(part + 513 * PAGE) == "3"
    assert agent.say("mlock", part + 513 * PAGE, PAGE) == "0"
    assert agent.say("msync", part, 2 * QUANTUM, 1) == "0"
    assert agent.say("munmap", part, 2 * QUANTUM) == "0"
    assert agent.load(part) == "SIGSEGV MAPERR"
    again = file.attach(offset=2 * QUANTUM, length=QUANTUM)
    assert agent.load(again + 3 * PAGE) == "3"


def test_who_has_which(make_region: Callable[..., File]) -> None:
    region = make_region(SIZE)
    base = region.attach(offset=QUANTUM, length=QUANTUM)
    other = region.attach(offset=QUANTUM, length=QUANTUM)
    found = [(each["base"], each["offset"], each["size"]) for each in clients(region.path)]
    assert sorted(found) == sorted((at, QUANTUM, QUANTUM) for at in (base, other))
    with msharefs.open(region.path) as here:
        here.unmap(0, QUANTUM + PAGE)
    assert region.agent.load(base) == "SIGSEGV MAPERR"
    assert region.agent.load(other + PAGE) == "0"
    # In the tables of the part, where a window of all would have a page of its own.
    assert region.agent.say("madvise", other, QUANTUM, DONTNEED) == "0"
    assert region.agent.call("mincore", other, QUANTUM, region.agent.pool) == 0
    assert not any(region.agent.get(region.agent.pool, QUANTUM // PAGE)), "not linked any more"


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (PAGE, QUANTUM),
        (QUANTUM, QUANTUM + PAGE),
        (QUANTUM, PAGE),
        (SIZE, QUANTUM),
        (3 * QUANTUM, 2 * QUANTUM),
        (1 << 62, QUANTUM),
    ],
)
def test_what_is_no_part(make_region: Callable[..., File], offset: int, length: int) -> None:
    region = make_region(SIZE)
    assert region.refused(offset=offset, length=length) == "EINVAL"
    assert clients(region.path) == []


def test_as_much_as_the_whole_is_the_whole_as_in_the_series(
    make_region: Callable[..., File],
) -> None:
    region = make_region(SIZE)
    base = region.attach(offset=QUANTUM, length=SIZE)
    assert [(each["base"], each["offset"]) for each in clients(region.path)] == [(base, 0)]


def mapped(mount: Mount, agents: Agents, agent_program: Path) -> File:
    """A region with memory everywhere, open in a process under the library."""
    agent = agents.start([agent_program], running.environment(mount.path, None))
    path = str(mount.path / "r")
    region = File(agent, agent.call("open", path, os.O_RDWR | os.O_CREAT, 0o600), SIZE, path)
    assert agent.call("ftruncate", region.fd, SIZE) == 0
    region.map(0, SIZE)
    return region


def test_the_series_to_the_letter_knows_no_parts(
    mounts: Callable[..., Mount], agents: Agents, agent_program: Path
) -> None:
    region = mapped(mounts("quantum=2M", "quirks=v3"), agents, agent_program)
    assert region.refused(offset=QUANTUM, length=QUANTUM) == "EINVAL"
    assert region.refused(offset=0, length=QUANTUM) == "EINVAL"
    region.attach(**WHOLE)
    os.unlink(region.path)


def test_ordinary_calls_on_a_part_that_pass_through(
    mounts: Callable[..., Mount], agents: Agents, agent_program: Path
) -> None:
    """With window=inner a call on the part is one on what it has of the region."""
    region = mapped(mounts("quantum=2M", "window=inner"), agents, agent_program)
    part = region.attach(offset=2 * QUANTUM, length=QUANTUM)
    assert region.agent.say("mprotect", part + PAGE, PAGE, READ) == "0"
    assert region.agent.say("munmap", part + 3 * PAGE, PAGE) == "0"
    with msharefs.open(region.path) as here:
        found = [(each["start"] - 2 * QUANTUM, each["prot"]) for each in here.maps()]
    assert found == [
        (-2 * QUANTUM, "rw-s"), (PAGE, "r--s"), (2 * PAGE, "rw-s"), (4 * PAGE, "rw-s"),
    ]  # fmt: skip
    assert region.agent.store(part + PAGE, 1) == "SIGSEGV ACCERR"
    assert region.agent.load(part + 3 * PAGE) == "SIGSEGV MAPERR"
    region.agent.exit()
    os.unlink(region.path)
