"""A program whose faults are taken by a process beside it finds nothing of ours in itself."""

from __future__ import annotations

import mmap
import os
import signal
from typing import TYPE_CHECKING

import pytest

from msharefs.launch import running

from .conftest import PAGE, QUANTUM, File, clients
from support.proc import service_thread, shadows, tasks
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.agent import Agent, Agents
    from support.server import Mount

SIZE = 2 * QUANTUM
CLOSE_RANGE_END = (1 << 32) - 1


pytestmark = pytest.mark.unsanitized("a shadow has nothing that a sanitizer's functions could use")


@pytest.fixture(autouse=True)
def shadowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the agents are started with."""
    monkeypatch.setenv("MSHAREFS_CLIENT", "shadow")


def descriptors(agent: Agent) -> set[int]:
    """The numbers that are open in a process."""
    return {int(name) for name in os.listdir(f"/proc/{agent.pid}/fd")}


def works(region: File, base: int) -> bool:
    """Whether pages are served there, and the process and a child are known."""
    fine = region.agent.store(base + PAGE, 1) == "ok"
    child = region.agent.fork()
    fine = fine and child.load(base + PAGE) == "1"
    known = {client["pid"] for client in clients(region.path)} == {region.agent.pid, child.pid}
    child.exit()
    return fine and known


def test_no_thread_and_no_descriptor_is_ours(region: File) -> None:
    before = descriptors(region.agent)
    base = region.attach()
    assert region.agent.store(base, 1) == "ok"
    assert (len(tasks(region.agent.pid)), descriptors(region.agent)) == (1, before)
    child = region.agent.fork()
    assert child.load(base) == "1"
    assert len(tasks(child.pid)) == 1
    assert len(descriptors(child)) <= len(before) + 1  # it has a socket of its own


@pytest.mark.parametrize("call", ["close_range", "closefrom"])
def test_a_program_closes_all(region: File, call: str) -> None:
    base = region.attach()
    agent = region.agent
    for fd in (500, 601, 700, 1000):
        assert agent.call("dup2", region.fd, fd) == fd
    # From beyond the agent's own socket.
    if call == "close_range":
        assert agent.call("close_range", 500, CLOSE_RANGE_END, 0) == 0
    else:
        agent.result("closefrom", 500)
    assert max(descriptors(agent)) < 500
    assert works(region, base)


def test_a_program_may_have_any_number(region: File) -> None:
    base = region.attach()
    agent = region.agent
    for fd in range(100, 700, 50):
        assert agent.call("dup2", region.fd, fd) == fd
        assert os.readlink(f"/proc/{agent.pid}/fd/{fd}") == region.path
        assert agent.call("close", fd) == 0
    assert works(region, base)


def test_a_hole_and_what_is_mapped_there_later(make_region: Callable[..., File]) -> None:
    region = make_region(mapped=False)
    base = region.attach()
    child = region.agent.fork()
    for agent in (region.agent, child):
        assert agent.load(base) == "SIGSEGV MAPERR"
    region.map(0, PAGE)
    for agent in (region.agent, child):
        assert agent.store(base, 1) == "ok"


def test_each_ends_its_own(region: File) -> None:
    base = region.attach()
    child = region.agent.fork()
    assert child.call("munmap", base, SIZE) == 0
    assert child.load(base) == "SIGSEGV MAPERR"
    assert region.agent.load(base) == "0"
    assert [client["pid"] for client in clients(region.path)] == [region.agent.pid]
    until(lambda: not shadows(child.pid), "its own has ended")
    assert len(shadows(region.agent.pid)) == 1


NOBODY = 65534


@pytest.mark.parametrize("rights", ["kept", "dropped"])
def test_children_that_do_nothing_at_first(region: File, rights: str) -> None:
    """Their shadows have not said hello to anybody yet, whatever comes next.

    One that has fewer rights than its parent once had cannot look into that one's shadow.
    """
    base = region.attach()
    agent = region.agent
    assert agent.store(base, 1) == "ok"
    if rights == "dropped":
        assert agent.call("setuid", NOBODY) == 0
    ended, leaving, forking = (agent.fork() for _ in range(3))
    grandchild = forking.fork()
    ended.exit()
    assert leaving.call("munmap", base, SIZE) == 0
    assert leaving.load(base) == "SIGSEGV MAPERR"
    forking.exit()
    assert grandchild.load(base) == "1"
    assert grandchild.store(base + QUANTUM, 2) == "ok"
    assert agent.load(base + QUANTUM) == "2"
    until(
        lambda: {client["pid"] for client in clients(region.path)} == {agent.pid, grandchild.pid},
        "the others have given their slots back",
    )
    until(lambda: not shadows(ended.pid) and not shadows(leaving.pid), "and their shadows ended")


def test_nobody_waits_for_one_that_was_killed(region: File) -> None:
    """The program goes on, and so do its children."""
    base = region.attach()
    agent = region.agent
    os.kill(int(service_thread(agent.pid).name), signal.SIGKILL)
    until(lambda: not shadows(agent.pid), "it is gone")
    assert agent.store(base, 1) == "ok"
    child = agent.fork()
    assert child.load(base) == "1"
    assert child.store(base + QUANTUM, 2) == "ok"
    assert agent.load(base + QUANTUM) == "2"
    for each in (child, agent):
        assert each.call("madvise", base, SIZE, mmap.MADV_DONTNEED) == 0
        assert each.load(base + QUANTUM) == "2"
    assert child.call("mincore", base, PAGE, each.pool) == 0
    assert child.fork().load(base) == "1"
    assert child.call("munmap", base, SIZE) == 0
    assert child.load(base) == "SIGSEGV MAPERR"
    assert agent.call("munmap", base, SIZE) == 0
    assert agent.load(base) == "SIGSEGV MAPERR"


def test_pages_that_linux_has_filled(
    mounts: Callable[..., Mount], agents: Agents, agent_program: Path
) -> None:
    """The shadow finds them, which has the region's file."""
    mount = mounts("quantum=2M", "faults=linux")
    agent = agents.start([agent_program], running.environment(mount.path, None))
    fd = agent.call("open", str(mount.path / "r"), os.O_RDWR | os.O_CREAT, 0o600)
    assert agent.call("ftruncate", fd, QUANTUM) == 0
    region = File(agent, fd, QUANTUM)
    region.map(0, QUANTUM)
    base = region.attach()
    for page in (0, 1, 3):
        assert agent.store(base + page * PAGE, 1) == "ok"
    assert agent.call("mincore", base, 5 * PAGE, agent.pool) == 0
    assert agent.get(agent.pool, 5) == b"\1\1\0\1\0"
    assert agent.call("setuid", NOBODY) == 0  # a child's shadow waits for what it needs
    child = agent.fork()
    assert child.call("mincore", base, 5 * PAGE, child.pool) == 0
    assert child.load(base) == "1"


def test_a_word_that_is_none(region: File) -> None:
    agent = region.agent
    assert agent.call("setenv", "MSHAREFS_CLIENT", "both", 1) == 0
    assert region.refused() == "EINVAL"
    assert agent.call("setenv", "MSHAREFS_CLIENT", "thread", 1) == 0
    region.attach()
    assert len(tasks(agent.pid)) == 2
