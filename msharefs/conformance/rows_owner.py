"""Owners: the ends of a region, and what is left of it then."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from . import reasons
from .stage import PAGE, File, Memory, Q
from .table import Table
from .world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from .agent import Agent
    from .stage import Stage

SOON = 5.0  # seconds


class Orphan:
    """A region made by one agent, and attached by another, which has stored 7 in it."""

    def __init__(self, stage: Stage, maker: Agent | None = None, size: int = PAGE) -> None:
        self.stage = stage
        self.maker = maker or stage.process()
        made = stage.region(agent=self.maker)
        assert made.create(0, size) == "0"
        self.file = made.by(stage.agent)
        self.memory = Memory(stage, self.file, self.file.attach())
        self.memory.store()

    def settled(self) -> str:
        """A load by the survivor, after a request of any kind, which is in time."""
        self.file.unmap(Q // 2)
        return self.memory.load()


def killed(stage: Stage, ask: Callable[[Orphan], str], *, by: str = "kill") -> str:
    """The answer for a region whose maker has ended, and is still a zombie."""
    orphan = Orphan(stage)
    orphan.maker.exit(by=by)
    return ask(orphan)


def ends(stage: Stage, how: Callable[[Agent, Agent], object], *, second_makes: bool = False) -> str:
    """A load by an attached process after something happened to the maker's process.

    `how` is given its first and its second thread.
    """
    first = stage.process()
    second = first.thread()
    orphan = Orphan(stage, second if second_makes else first)
    how(first, second)
    return orphan.settled()


def ends_soon(
    stage: Stage, how: Callable[[Agent, Agent], object], *, second_makes: bool = False
) -> str:
    """As `ends`, if nobody can wait for the event: the end of one thread of several."""
    first = stage.process()
    second = first.thread()
    orphan = Orphan(stage, second if second_makes else first)
    how(first, second)
    deadline = time.monotonic() + (SOON if stage.world is World.V3 else 0)
    while (said := orphan.settled()) == "7" and time.monotonic() < deadline:
        time.sleep(0.01)
    return said


GONE = "SIGSEGV MAPERR"
T = Table("Owner: what ends a region", "1.10, A, C")
T("owner-exit", "its maker exits: a load by another, after any request", GONE,
  lambda s: killed(s, Orphan.settled, by="exit"), default="7", why=reasons.LIFE)
T("owner-kill", "its maker is killed", GONE, lambda s: killed(s, Orphan.settled), default="7",
  why=reasons.LIFE)
T("owner-thread", "the thread that made it exits, its process goes on", GONE,
  lambda s: ends_soon(s, lambda _, second: second.ask("leave"), second_makes=True),
  default="7", why=reasons.LIFE)
T("owner-leader", "the first thread made it, and exits before the others", GONE,
  lambda s: ends_soon(s, lambda first, _: first.ask("leave")), default="7", why=reasons.LIFE)
T("owner-exec-other", "another thread of the maker's process calls exec", GONE,
  lambda s: ends_soon(s, lambda _, second: second.exec()), default="7", why=reasons.LIFE)
T("owner-exec", "the maker calls exec", "7", lambda s: ends(s, lambda first, _: first.exec()))
T("owner-exec-second", "a thread that is not the first made it, and calls exec", "7",
  lambda s: ends(s, lambda _, second: second.exec(), second_makes=True))

T("owner-other-thread", "another thread of its process exits", "7",
  lambda s: ends(s, lambda _, second: second.ask("leave")))


def at_once(stage: Stage) -> str:
    """A load after the maker's end, with no request in between."""
    orphan = Orphan(stage)
    orphan.maker.exit(by="kill")
    if stage.world is not World.V3:
        return orphan.memory.load()
    deadline = time.monotonic() + 1
    while orphan.memory.load() == "7" and time.monotonic() < deadline:
        pass
    return "within a second" if orphan.memory.load() == GONE else "later"


T("owner-at-once", "how soon, without any request on the region", "before wait(2) returns", at_once,
  default="7", quirks="within a second",
  why=reasons.LATER)


def inherited(stage: Stage, *, child_ends: bool) -> str:
    orphan = Orphan(stage)
    child = orphan.maker.fork()
    (child if child_ends else orphan.maker).exit()
    return orphan.settled()


T("owner-child-exits", "a child of the maker exits", "7", lambda s: inherited(s, child_ends=True))
T("owner-fork", "the maker exits, its child lives", GONE,
  lambda s: inherited(s, child_ends=False), default="7", why=reasons.LIFE)


def opened_again(stage: Stage) -> str:
    orphan = Orphan(stage)
    stage.open(flags=os.O_RDWR | os.O_CREAT)
    orphan.maker.exit()
    return orphan.settled()


T("owner-open-creat", "another opens it with O_CREAT: that makes no owner", GONE, opened_again,
  default="7", why=reasons.LIFE)


def touched(stage: Stage) -> str:
    """Like touch(1): a process that makes a file, and ends."""
    maker = stage.process()
    stage.unsized(agent=maker)
    maker.exit()
    file = stage.open()
    return f"{file.size_to(Q)}, {file.mmap()}"


T("owner-touch", "made by touch(1): ftruncate, mmap", "0, EINVAL", touched, default="0, 0",
  why=reasons.LIFE)

T = Table("Owner: what is left of an ended region", "1.10, A, C")
T("orphan-mmap", "mmap", "EINVAL", lambda s: killed(s, lambda o: o.file.mmap()), default="0",
  source="1.6, 1.10, A, C", why=reasons.LIFE)
T("orphan-unmap", "UNMAP", "0", lambda s: killed(s, lambda o: o.file.unmap()))
T("orphan-unmap-wrong", "UNMAP with size 0", "EINVAL",
  lambda s: killed(s, lambda o: o.file.unmap(0, 0)))
T("orphan-create", "CREATE_MAPPING", "0", lambda s: killed(s, lambda o: o.file.create(PAGE)),
  source="1.10, 1.12, C")
T("orphan-create-load", "CREATE_MAPPING of a page, and a store to it by an attached process", "ok",
  lambda s: killed(s, lambda o: (o.file.create(PAGE), o.memory.store(PAGE))[1]))
T("orphan-create-old", "a load from what was mapped before", GONE,
  lambda s: killed(s, lambda o: (o.file.create(PAGE), o.memory.load())[1]),
  default="7", why=reasons.LIFE)
T("orphan-unknown", "an unknown ioctl", "ENOTTY",
  lambda s: killed(s, lambda o: o.file.say("ioctl", 0x40047863, bytes(4))))
T("orphan-lines", "lines of /proc/PID/maps of an attached process", "1",
  lambda s: killed(s, lambda o: (o.settled(), str(len(o.memory.lines())))[1]), default="2",
  why=reasons.LEFT_TO_LINUX)
T("orphan-munmap", "munmap of an attachment", "0",
  lambda s: killed(s, lambda o: o.file.agent.say("munmap", o.memory.base, Q)))
T("orphan-stat", "st_size", str(Q), lambda s: killed(s, lambda o: str(o.file.size())))
T("orphan-unlink", "unlink", "0",
  lambda s: killed(s, lambda o: o.file.agent.say("unlink", o.file.path)))


def unsized_orphan(stage: Stage, ask: Callable[[File], str]) -> str:
    maker = stage.process()
    stage.unsized(agent=maker)
    maker.exit(by="kill")
    return ask(stage.open())


T("orphan-size", "ftruncate of an unsized region whose maker is gone", "0",
  lambda s: unsized_orphan(s, lambda f: f.size_to(Q)))


def freed(stage: Stage) -> str:
    """Whether 32 MiB go back when the maker ends."""
    orphan = Orphan(stage, size=32 << 20)
    stage.agent.call("memset", orphan.memory.base, 1, 32 << 20)
    before = stage.memory_used()
    orphan.maker.exit(by="kill")
    orphan.settled()
    return "freed" if before - stage.memory_used() > 24 << 20 else "kept"


T("orphan-memory", "its memory, 32 MiB", "freed", freed, default="kept", why=reasons.LIFE)


def large_orphan(stage: Stage) -> str:
    """A region of 128 TiB: the tear-down of v3 fails (its end is beyond TASK_SIZE)."""
    maker = stage.process()
    file = stage.region(256 * Q, agent=maker)
    answer = file.create()
    survivor = file.by(stage.agent)
    maker.exit(by="kill")
    return f"{answer}, {survivor.unmap()}"


T("orphan-large", "of 128 TiB, a page mapped: CREATE_MAPPING, then UNMAP by a survivor", "0, 0",
  large_orphan, source="B")
