"""Where first touches are Linux's, calls on a window still see every page (-o faults=linux)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs.launch import running

from .conftest import ANONYMOUS, PAGE, QUANTUM, READ_WRITE, SHARED, File
from support import libc
from support.proc import state
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.agent import Agent, Agents
    from support.server import Mount


@pytest.fixture
def window(
    mounts: Callable[..., Mount], agents: Agents, agent_program: os.PathLike[str]
) -> tuple[Agent, int]:
    """An agent that has mapped a region of one quantum, and where."""
    mount = mounts("quantum=2M", "faults=linux")
    agent = agents.start([agent_program], running.environment(mount.path, None))
    fd = agent.call("open", str(mount.path / "r"), os.O_RDWR | os.O_CREAT, 0o600)
    assert agent.call("ftruncate", fd, QUANTUM) == 0
    region = File(agent, fd, QUANTUM)
    region.map(0, QUANTUM)
    return agent, region.attach()


def test_mincore_and_mlock_see_pages_that_linux_has_filled(window: tuple[Agent, int]) -> None:
    agent, base = window
    for page in (0, 1, 3):
        agent.store(base + page * PAGE, 1)
    assert agent.call("mincore", base, 5 * PAGE, agent.pool) == 0
    assert agent.get(agent.pool, 5) == b"\1\1\0\1\0"
    assert agent.say("mlock", base, 2 * PAGE) == "0"
    assert agent.say("mlock", base, 3 * PAGE) == "ENOMEM"
    agent.store(base + 2 * PAGE, 1)
    assert agent.say("mlock", base, 4 * PAGE) == "0"


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "region"])
def test_a_debugger_reads_what_others_filled(
    window: tuple[Agent, int], agents: Agents, agent_program: os.PathLike[str], *, plain: bool
) -> None:
    """Of a process that is stopped, and has touched another page only."""
    agent, base = window
    if plain:
        agent = agents.start([agent_program])
        base = agent.call("mmap", 0, QUANTUM, READ_WRITE, SHARED | ANONYMOUS, -1, 0)
    agent.store(base, 1)
    child = agent.fork()
    assert child.load(base) == "1"
    os.kill(child.pid, signal.SIGSTOP)
    until(lambda: state(Path(f"/proc/{child.pid}")) == "T", "it is stopped")
    for page, byte in ((20, 7), (100, 8)):
        agent.store(base + page * PAGE, byte)
        assert libc.vm_read(child.pid, base + page * PAGE, 1) == bytes([byte])
        agent.store(base + (page + 1) * PAGE, byte)
        with open(f"/proc/{child.pid}/mem", "rb", buffering=0) as memory:
            assert os.pread(memory.fileno(), 1, base + (page + 1) * PAGE) == bytes([byte])
    os.kill(child.pid, signal.SIGCONT)
    assert child.load(base + 20 * PAGE) == "7"
