"""System V shared memory that is adopted: limits, figures of all segments, whose they are.

As test_sysv.py. What is a machine's or a namespace's is asked in an IPC namespace of its own.
Sources: shmget(2), shmop(2), shmctl(2), ipc_namespaces(7), proc_sys_kernel(5).
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import FAILED, PAGE, PLACE, QUANTUM, READ_WRITE
from .sysv import (
    CREAT,
    DEST,
    EXEC,
    HUGETLB,
    LOCK,
    NOBODY,
    RDONLY,
    REMAP,
    RMID,
    RND,
    SET,
    SIZE,
    STAT,
    UNLOCK,
    Case,
)  # fmt: skip
from support import hugepages

if TYPE_CHECKING:
    from collections.abc import Callable

IPC_INFO, SHM_STAT, SHM_INFO, SHM_STAT_ANY = 3, 13, 14, 15
NEW_IPC = 0x08000000  # CLONE_NEWIPC
RLIMIT_AS = 9
HUGE_SHIFT = 26  # SHM_HUGE_SHIFT: the binary logarithm of a page's size


def _limit(case: Case, name: str, value: int) -> None:
    """A sysctl of the process's IPC namespace."""
    agent = case.agent
    fd = agent.call("open", f"/proc/sys/kernel/{name}", os.O_WRONLY)
    text = str(value).encode()
    agent.put(agent.pool, text)
    assert agent.call("write", fd, agent.pool, len(text)) == len(text)
    agent.call("close", fd)


def _alone(case: Case) -> None:
    """It has an IPC namespace of its own: no segments, the limits that Linux starts with."""
    assert case.agent.call("unshare", NEW_IPC) == 0


def _words(case: Case, count: int) -> list[int]:
    return list(struct.unpack(f"={count}Q", case.agent.get(case.agent.pool, 8 * count)))


def limits(case: Case) -> Any:
    _alone(case)
    say = case.agent.say
    _limit(case, "shmmax", SIZE)
    larger, fits = say("shmget", case.key, SIZE + 1, CREAT | 0o600), case.get()
    case.attach(fits)
    _limit(case, "shmall", 2 * SIZE // PAGE)
    second = say("shmget", 0, SIZE, 0o600)
    full = say("shmget", 0, 1, 0o600)
    case.agent.call("shmctl", fits, RMID, 0)  # its pages count until it is detached
    still = say("shmget", 0, 1, 0o600)
    _limit(case, "shmall", 1 << 20)
    _limit(case, "shmmni", 2)
    return larger, second, full, still, say("shmget", 0, 1, 0o600)


def limits_are_told(case: Case) -> Any:
    _alone(case)
    agent = case.agent
    _limit(case, "shmmax", 8 * SIZE)
    _limit(case, "shmall", 1 << 20)
    highest = agent.call("shmctl", 0, IPC_INFO, agent.pool)
    return highest, _words(case, 5), agent.say("shmctl", 0, IPC_INFO, 1)


def figures_of_all(case: Case) -> Any:
    """SHM_INFO: segments, pages, pages in memory."""
    _alone(case)
    agent, segment = case.agent, case.get()
    base = case.attach(segment)
    other = case.get(0o600, size=PAGE + 1, key=0)
    agent.store(base, 1)
    agent.store(base + QUANTUM, 1)
    highest = agent.call("shmctl", 0, SHM_INFO, agent.pool)
    used, total, resident, swapped, _, _ = _words(case, 6)
    agent.call("shmctl", other, RMID, 0)
    agent.call("shmctl", 0, SHM_INFO, agent.pool)
    return highest, used & 0xFFFFFFFF, total, resident, swapped, _words(case, 2)[0] & 0xFFFFFFFF


def by_index(case: Case) -> Any:
    """SHM_STAT, as ipcs(1) finds segments; SHM_STAT_ANY needs no rights."""
    _alone(case)
    agent = case.agent
    first, second = case.get(), case.get(0o600, size=PAGE, key=0)
    base = case.attach(first)
    found = [agent.call("shmctl", index, SHM_STAT, agent.pool) for index in (0, 1)]
    size, attached = struct.unpack("=48xQ32xQ", agent.get(agent.pool, 96))
    none = agent.say("shmctl", 2, SHM_STAT, agent.pool)
    child = agent.fork()
    assert child.call("setresuid", NOBODY, NOBODY, NOBODY) == 0
    refused = child.say("shmctl", 0, SHM_STAT, child.pool)
    any_of_them = child.call("shmctl", 0, SHM_STAT_ANY, child.pool) == first
    child.exit()
    agent.call("shmdt", base)
    return found == [first, second], size, attached, none, refused, any_of_them


def another_namespace(case: Case) -> Any:
    segment = case.get()
    base = case.attach(segment)
    case.agent.store(base, 3)
    child = case.agent.fork()
    assert child.call("unshare", NEW_IPC) == 0
    by_key = child.say("shmget", case.key, SIZE, 0o600)
    found = by_key, child.say("shmat", segment, 0, 0), child.load(base), case.stat(segment).attached
    own = child.call("shmget", case.key, SIZE, CREAT | 0o600)
    there = child.call("shmat", own, 0, 0)
    child.store(there, 9)
    seen = child.load(there), case.agent.load(base)
    child.exit()
    return found, seen, case.stat(segment).attached


def set_gives_it_away(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    base = case.attach(segment)
    agent.call("shmctl", segment, STAT, agent.pool)
    head = bytearray(agent.get(agent.pool, 112))
    struct.pack_into("=II", head, 4, FAILED & 0xFFFFFFFF, NOBODY)
    agent.put(agent.pool, bytes(head))
    nobody_is_minus_one = agent.say("shmctl", segment, SET, agent.pool)
    struct.pack_into("=II", head, 4, NOBODY, NOBODY)
    agent.put(agent.pool, bytes(head))
    agent.call("shmctl", segment, SET, agent.pool)
    child = agent.fork()
    assert child.call("setresuid", NOBODY, NOBODY, NOBODY) == 0
    opened = child.say("shmat", segment, 0, 0)
    removed = child.say("shmctl", segment, RMID, 0)
    child.exit()
    marked = case.stat(segment)
    return (
        nobody_is_minus_one,
        opened,
        removed,
        marked.mode,
        marked.attached,
        agent.say("shmdt", base),
        agent.say("shmctl", segment, STAT, agent.pool),
    )


def removed_twice(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    base = case.attach(segment)
    twice = [agent.say("shmctl", segment, RMID, 0) for _ in range(2)]
    return twice, agent.say("shmdt", base), agent.say("shmctl", segment, RMID, 0)


def out_of_address_space(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    base = case.attach(segment)
    agent.put(agent.pool, struct.pack("=2Q", 1 << 20, 1 << 40))
    assert agent.call("prlimit64", 0, RLIMIT_AS, agent.pool, 0) == 0
    refused = agent.say("shmat", segment, 0, 0)
    return refused, case.stat(segment).attached, agent.store(base, 1)


def exec_of_another_program(case: Case) -> Any:
    """All attachments of a segment end at once, and it goes with them if it is marked."""
    segment = case.get()
    child = case.agent.fork()
    case.attach(segment, agent=child)
    case.attach(segment, agent=child, flags=RDONLY)
    both = case.stat(segment).attached
    case.agent.call("shmctl", segment, RMID, 0)
    replaced = child.exec()
    gone = case.agent.say("shmctl", segment, STAT, case.agent.pool)
    replaced.exit()
    return both, gone


def rounded_down_over_memory(case: Case) -> Any:
    """SHM_RND with SHM_REMAP: what is there is replaced, from the start of its page on."""
    agent, segment = case.agent, case.get(size=PAGE)
    assert agent.call("mmap", PLACE, 3 * PAGE, READ_WRITE, 0x32, -1, 0) == PLACE
    for page in range(3):
        agent.store(PLACE + page * PAGE, 9)
    taken = agent.say("shmat", segment, PLACE + PAGE + 5, RND)
    odd = agent.say("shmat", segment, PLACE + PAGE + 5, REMAP)
    got = case.attach(segment, at=PLACE + PAGE + 5, flags=RND | REMAP) == PLACE + PAGE
    return taken, odd, got, [agent.load(PLACE + page * PAGE) for page in range(3)]


def read_only_with_execution(case: Case) -> Any:
    segment = case.get()
    to_write, base = case.attach(segment), case.attach(segment, flags=RDONLY | EXEC)
    case.agent.put(to_write, b"\x31\xc0\xc3")
    plain = case.attach(segment)
    return case.agent.run(base), case.agent.store(base, 1), case.agent.run(plain)


def a_child_detaches(case: Case) -> Any:
    segment = case.get()
    base = case.attach(segment)
    child = case.agent.fork()
    found = [child.call("shmdt", base), child.load(base), case.stat(segment).attached]
    found += [case.agent.store(base, 1), child.say("shmdt", base), case.stat(segment).last]
    child.exit()
    return found, case.stat(segment).attached


def shared_with_locked_memory(case: Case) -> Any:
    """Another user may lock only what is his."""
    segment = case.get(CREAT | 0o666)
    child = case.agent.fork()
    assert child.call("setresuid", NOBODY, NOBODY, NOBODY) == 0
    refused = child.say("shmctl", segment, LOCK, 0), child.say("shmctl", segment, UNLOCK, 0)
    child.exit()
    return refused, case.stat(segment).mode


def huge(case: Case) -> Any:
    """With two pages of 2 MiB in the pool, promised at shmget(2)."""
    agent, say = case.agent, case.agent.say
    odd = say("shmget", 0, SIZE, 0o600 | HUGETLB | 13 << HUGE_SHIFT)
    segment = case.get(CREAT | 0o600 | HUGETLB, size=SIZE - 1)
    second = say("shmget", 0, QUANTUM, 0o600 | HUGETLB)
    base = case.attach(segment)
    agent.store(base + SIZE - 1, 4)
    child = agent.fork()
    found = child.load(base + SIZE - 1), child.load(base), case.stat(segment).attached
    part = child.say("munmap", base, PAGE), child.say("shmat", segment, PLACE + PAGE, 0)
    assert child.call("setgroups", 0, 0) == child.call("setresgid", NOBODY, NOBODY, NOBODY) == 0
    assert child.call("setresuid", NOBODY, NOBODY, NOBODY) == 0
    not_his = child.say("shmget", 0, QUANTUM, 0o600 | HUGETLB)
    child.exit()
    return odd, second, base % QUANTUM, found, part, not_his, case.stat(segment).size


ROWS: dict[str, tuple[Callable[[Case], Any], Any]] = {
    "limits": (limits, ("EINVAL", "0", "ENOSPC", "ENOSPC", "ENOSPC")),
    "limits are told": (
        limits_are_told, (0, [8 * SIZE, 1, 4096, 4096, 1 << 20], "EFAULT"),
    ),
    "figures of all": (figures_of_all, (1, 2, SIZE // PAGE + 2, 2, 0, 1)),
    "by index": (by_index, (True, PAGE, 0, "EINVAL", "EACCES", True)),
    "another namespace": (
        another_namespace, (("ENOENT", "EINVAL", "3", 2), ("9", "3"), 1),
    ),
    "set gives it away": (
        set_gives_it_away, ("EINVAL", "0", "0", DEST | 0o600, 1, "0", "EINVAL"),
    ),
    "removed twice": (removed_twice, (["0", "0"], "0", "EINVAL")),
    "out of address space": (out_of_address_space, ("ENOMEM", 1, "ok")),
    "exec of another program": (exec_of_another_program, (2, "EINVAL")),
    "rounded down over memory": (
        rounded_down_over_memory, ("EINVAL", "EINVAL", True, ["9", "0", "9"]),
    ),
    "read-only with execution": (
        read_only_with_execution, ("ok", "SIGSEGV ACCERR", "SIGSEGV ACCERR"),
    ),
    "a child detaches": (
        a_child_detaches, ([0, "SIGSEGV MAPERR", 1, "ok", "EINVAL", 2], 1),
    ),
    "shared with locked memory": (shared_with_locked_memory, (("EPERM", "EPERM"), 0o666)),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_it_does_what_linux_does(segments: Callable[..., Case], row: str) -> None:
    do, expected = ROWS[row]
    assert do(segments(adopts=False)) == expected
    assert do(segments(adopts=True)) == expected


def test_huge_ones_are_as_they_were(segments: Callable[..., Case]) -> None:
    expected = (
        "EINVAL", "ENOMEM", 0, ("4", "0", 2), ("EINVAL", "EINVAL"), "EPERM", SIZE - 1,
    )  # fmt: skip
    for adopts in (False, True):
        with hugepages.exactly(2):
            case = segments(adopts=adopts)
            assert huge(case) == expected
            case.remove()
            case.agent.exit()
