"""Where first touches are Linux's, calls on a window still see every page (-o faults=linux)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from msharefs.launch import running

from .conftest import PAGE, QUANTUM, File

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
