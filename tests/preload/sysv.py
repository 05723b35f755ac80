"""System V segments of an agent, for the tests of what shmget, shmat, shmdt and shmctl answer."""

from __future__ import annotations

import itertools
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .conftest import QUANTUM

if TYPE_CHECKING:
    from support.agent import Agent

SIZE = 2 * QUANTUM
CREAT, EXCL = 0o1000, 0o2000
HUGETLB, LOCKED, DEST = 0o4000, 0o2000, 0o1000
RDONLY, RND, REMAP, EXEC = 0o10000, 0o20000, 0o40000, 0o100000
RMID, SET, STAT, LOCK, UNLOCK = 0, 1, 2, 11, 12
NOBODY = 65534

_keys = itertools.count(os.getpid() << 12)


@dataclass
class Figures:
    """struct shmid_ds of x86-64, as far as it does not change from run to run."""

    mode: int
    owner: tuple[int, int]
    maker: tuple[int, int]
    size: int
    attached: int
    creator: int
    last: int
    times: tuple[bool, bool, bool]
    """Whether there has been an attach, a detach, a change."""


class Case:
    """One row's processes, keys and segments."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.key = next(_keys) & 0x7FFFFFFF
        self.made: set[int] = set()

    def get(self, flags: int = CREAT | 0o600, size: int = SIZE, key: int | None = None) -> int:
        """shmget(2) that must succeed."""
        found = self.agent.call("shmget", self.key if key is None else key, size, flags)
        self.made.add(found)
        return found

    def stat(self, segment: int) -> Figures:
        """IPC_STAT by the first process; processes as "1" and "2": itself, or another."""
        agent = self.agent
        assert agent.call("shmctl", segment, STAT, agent.pool) == 0
        fields = struct.unpack("=i5I24xQqqqiiQ16x", agent.get(agent.pool, 112))
        _, uid, gid, cuid, cgid, mode, size, atime, dtime, ctime, cpid, lpid, attached = fields
        return Figures(
            mode, (uid, gid), (cuid, cgid), size, attached,
            0 if not cpid else 1 if cpid == agent.pid else 2,
            0 if not lpid else 1 if lpid == agent.pid else 2,
            (atime > 0, dtime > 0, ctime > 0),
        )  # fmt: skip

    def attach(self, segment: int, at: int = 0, flags: int = 0, agent: Agent | None = None) -> int:
        """shmat(2) that must succeed."""
        return (agent or self.agent).call("shmat", segment, at, flags)

    def remove(self) -> None:
        """Takes all segments away."""
        while self.made:
            self.agent.result("shmctl", self.made.pop(), RMID, 0)
