"""System V shared memory that is adopted: what shmget, shmat, shmdt and shmctl answer.

Each row is done on Linux alone first, which must answer as the row says, and then by a program
whose segments are adopted, which must see the same. Sources: shmget(2), shmop(2), shmctl(2).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import PAGE, PLACE, READ, READ_WRITE
from .sysv import (
    CREAT,
    DEST,
    EXCL,
    EXEC,
    LOCK,
    LOCKED,
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
    Figures,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Callable

NONE = 1 << 30  # a shmid that there is not


def get_makes_and_finds(case: Case) -> Any:
    first = case.get()
    return first == case.get(0), first == case.get(CREAT | 0o600), first == case.get(0, size=PAGE)


def get_refuses(case: Case) -> Any:
    say = case.agent.say
    missing = say("shmget", case.key, SIZE, 0o600)
    empty = say("shmget", case.key, 0, CREAT | 0o600)
    huge = say("shmget", case.key, 1 << 63, CREAT | 0o600)
    case.get()
    exclusive = say("shmget", case.key, SIZE, CREAT | EXCL | 0o600)
    larger = say("shmget", case.key, SIZE + 1, 0o600)
    both = say("shmget", case.key, SIZE + 1, CREAT | EXCL | 0o600)
    return missing, empty, huge, exclusive, larger, both


def private_ones_differ(case: Case) -> Any:
    return case.get(0o600, key=0) != case.get(0o600, key=0)


def figures_of_a_new_one(case: Case) -> Any:
    return case.stat(case.get(CREAT | 0o640, size=SIZE - 1))


def attach_refuses(case: Case) -> Any:
    say, segment = case.agent.say, case.get()
    taken = case.attach(segment, at=PLACE)
    return (
        say("shmat", NONE, 0, 0),
        say("shmat", segment, PLACE + 1, 0),
        say("shmat", segment, taken, 0),
        say("shmat", segment, 0, REMAP),
        say("shmat", NONE, PLACE + 1, 0),
    )


def attach_where_asked(case: Case) -> Any:
    segment = case.get()
    exact = case.attach(segment, at=PLACE) == PLACE
    rounded = case.attach(segment, at=PLACE + SIZE + 7, flags=RND) == PLACE + SIZE
    return exact, rounded, case.stat(segment).attached


def detach_refuses(case: Case) -> Any:
    say, base = case.agent.say, case.attach(case.get())
    inside, odd = say("shmdt", base + PAGE), say("shmdt", base + 1)
    return inside, odd, say("shmdt", base), say("shmdt", base), say("shmdt", 0)


def control_refuses(case: Case) -> Any:
    say, segment = case.agent.say, case.get()
    pool = case.agent.pool
    return (
        say("shmctl", NONE, STAT, pool), say("shmctl", NONE, RMID, 0),
        say("shmctl", segment, 99, pool), say("shmctl", segment, STAT, 1),
        say("shmctl", segment, SET, 1), say("shmctl", -1, STAT, pool),
    )  # fmt: skip


def two_see_one_memory(case: Case) -> Any:
    segment = case.get()
    base, again = case.attach(segment), case.attach(segment)
    case.agent.store(base + PAGE, 7)
    return base != again, case.agent.load(again + PAGE), case.agent.load(again)


def read_only(case: Case) -> Any:
    segment = case.get()
    base, to_write = case.attach(segment, flags=RDONLY), case.attach(segment)
    before = case.agent.load(base)
    case.agent.store(to_write, 3)
    refused = case.agent.store(base, 1)
    never = case.agent.say("mprotect", base, PAGE, READ_WRITE)
    return before, case.agent.load(base), refused, never


def executable(case: Case) -> Any:
    base = case.attach(case.get(), flags=EXEC)
    case.agent.put(base, b"\x31\xc0\xc3")
    return case.agent.run(base)


def replaces(case: Case) -> Any:
    segment = case.get()
    assert case.agent.call("mmap", PLACE, SIZE, READ_WRITE, 0x32, -1, 0) == PLACE
    case.agent.store(PLACE, 9)
    taken = case.agent.say("shmat", segment, PLACE, 0)
    return taken, case.attach(segment, at=PLACE, flags=REMAP) == PLACE, case.agent.load(PLACE)


def figures_of_attachments(case: Case) -> Any:
    segment = case.get()
    base = case.attach(segment)
    other = case.attach(segment, flags=RDONLY)
    both = case.stat(segment)
    case.agent.call("shmdt", base)
    one = case.stat(segment)
    case.agent.call("shmdt", other)
    return both, one, case.stat(segment).attached


def fork_exec_exit(case: Case) -> Any:
    segment = case.get()
    base = case.attach(segment)
    case.agent.store(base, 5)
    found = [case.stat(segment).attached]
    child, second = case.agent.fork(), case.agent.fork()
    found += [case.stat(segment).attached, case.stat(segment).last]
    seen = child.load(base)
    child.store(base, 6)
    child.exit()
    found += [case.stat(segment).attached, case.stat(segment).last]
    replaced = second.exec()
    found += [case.stat(segment).attached]
    gone = replaced.load(base)
    case.attach(segment, agent=replaced)
    found += [case.stat(segment).attached, case.stat(segment).last]
    replaced.exit(by="kill")
    return found, seen, case.agent.load(base), gone, case.stat(segment).attached


def removed_while_attached(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    base = case.attach(segment)
    agent.store(base, 4)
    assert agent.call("shmctl", segment, RMID, 0) == 0
    marked = case.stat(segment)
    by_key = agent.say("shmget", case.key, SIZE, 0o600)
    again = case.attach(segment)  # Linux lets one attach it still
    new = case.get()
    found = marked.mode, marked.attached, by_key, agent.load(again), new != segment
    agent.call("shmdt", base)
    agent.call("shmdt", again)
    return found, agent.say("shmctl", segment, STAT, agent.pool), agent.say("shmat", segment, 0, 0)


def removed_with_its_child(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    base = case.attach(segment)
    child = agent.fork()
    agent.call("shmctl", segment, RMID, 0)
    agent.call("shmdt", base)
    found = case.stat(segment).attached, child.store(base, 2), child.load(base)
    child.exit()
    return found, agent.say("shmctl", segment, STAT, agent.pool)


def removed_unattached(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    agent.call("shmctl", segment, RMID, 0)
    return agent.say("shmctl", segment, STAT, agent.pool), agent.say("shmctl", segment, RMID, 0)


def without_anybody_it_stays(case: Case) -> Any:
    segment = case.get()
    base = case.attach(segment)
    case.agent.store(base + PAGE, 8)
    case.agent.call("shmdt", base)
    gone = case.agent.load(base)
    return gone, case.agent.load(case.attach(segment) + PAGE)


def set_changes(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    assert agent.call("shmctl", segment, STAT, agent.pool) == 0
    head = bytearray(agent.get(agent.pool, 112))
    struct.pack_into("=II", head, 4, NOBODY, NOBODY)
    struct.pack_into("=I", head, 20, 0o7444)  # no other bits than the nine are taken
    agent.put(agent.pool, bytes(head))
    return agent.call("shmctl", segment, SET, agent.pool), case.stat(segment)


def others_may_not(case: Case) -> Any:
    segment = case.get(CREAT | 0o644)
    child = case.agent.fork()
    assert child.call("setresuid", NOBODY, NOBODY, NOBODY) == 0
    pool = child.pool
    found = [
        child.say("shmat", segment, 0, 0), child.say("shmat", segment, 0, RDONLY),
        child.say("shmget", case.key, SIZE, 0o6), child.say("shmget", case.key, SIZE, 0o4),
        child.say("shmctl", segment, STAT, pool), child.say("shmctl", segment, RMID, 0),
        child.say("shmctl", segment, SET, pool), child.say("shmctl", segment, LOCK, 0),
    ]  # fmt: skip
    closed = case.get(0o600, key=0)
    found += [child.say("shmctl", closed, STAT, pool), child.say("shmat", closed, 0, RDONLY)]
    child.exit()
    return found


def locked(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    base = case.attach(segment)
    agent.store(base, 1)
    found = [agent.call("shmctl", segment, LOCK, 0), case.stat(segment).mode]
    found += [agent.call("shmctl", segment, UNLOCK, 0), case.stat(segment).mode]
    return found, agent.load(base)


def part_unmapped(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    base = case.attach(segment)
    agent.call("munmap", base + PAGE, PAGE)
    found = case.stat(segment).attached, agent.load(base), agent.load(base + PAGE)
    first = agent.say("shmdt", base)  # and all the rest of that attachment
    return found, first, agent.load(base + 2 * PAGE), case.stat(segment).attached


def protected_advised_moved(case: Case) -> Any:
    agent, segment = case.agent, case.get()
    base = case.attach(segment, at=PLACE)
    agent.store(base, 1)
    found = [agent.say("mprotect", base, PAGE, READ), agent.store(base, 2), agent.load(base)]
    found += [agent.say("madvise", base, PAGE, 4), agent.load(base)]  # MADV_DONTNEED: it stays
    agent.say("mprotect", base, PAGE, READ_WRITE)
    found += [agent.say("madvise", base, PAGE, 9), agent.load(base)]  # MADV_REMOVE: it goes
    whole = case.attach(segment, at=PLACE + 4 * SIZE)
    grown = agent.call("mremap", whole, SIZE, 2 * SIZE, 1)
    found += [agent.load(grown), agent.load(grown + SIZE)]
    return found, case.stat(segment).attached > 1, agent.say("shmdt", grown)


def end_of_its_last_page(case: Case) -> Any:
    segment = case.get(size=SIZE - PAGE + 1)
    base = case.attach(segment, at=PLACE)
    agent = case.agent
    return agent.store(base + SIZE - 1, 1), agent.load(base + SIZE), case.stat(segment).size


def by_number(case: Case) -> Any:
    """Through syscall(2): shmget is 29, shmat 30, shmctl 31, shmdt 67."""
    agent = case.agent
    segment = agent.call("syscall", 29, case.key, SIZE, CREAT | 0o600)
    case.made.add(segment)
    base = agent.call("syscall", 30, segment, 0, 0)
    found = agent.store(base, 1), case.stat(segment).attached
    refused = agent.say("syscall", 30, NONE, 0, 0)
    return found, refused, agent.call("syscall", 67, base), case.stat(segment).attached


NEW = (False, False, True)
ROOT = (0, 0)
ROWS: dict[str, tuple[Callable[[Case], Any], Any]] = {
    "get makes and finds": (get_makes_and_finds, (True, True, True)),
    "get refuses": (
        get_refuses, ("ENOENT", "EINVAL", "EINVAL", "EEXIST", "EINVAL", "EEXIST"),
    ),
    "private ones differ": (private_ones_differ, True),
    "figures of a new one": (
        figures_of_a_new_one, Figures(0o640, ROOT, ROOT, SIZE - 1, 0, 1, 0, NEW),
    ),
    "attach refuses": (attach_refuses, ("EINVAL",) * 5),
    "attach where asked": (attach_where_asked, (True, True, 2)),
    "detach refuses": (detach_refuses, ("EINVAL", "EINVAL", "0", "EINVAL", "EINVAL")),
    "control refuses": (
        control_refuses, ("EINVAL", "EINVAL", "EINVAL", "EFAULT", "EFAULT", "EINVAL"),
    ),
    "two see one memory": (two_see_one_memory, (True, "7", "0")),
    "read-only": (read_only, ("0", "3", "SIGSEGV ACCERR", "EACCES")),
    "executable": (executable, "ok"),
    "replaces": (replaces, ("EINVAL", True, "0")),
    "figures of attachments": (
        figures_of_attachments,
        (
            Figures(0o600, ROOT, ROOT, SIZE, 2, 1, 1, (True, False, True)),
            Figures(0o600, ROOT, ROOT, SIZE, 1, 1, 1, (True, True, True)),
            0,
        ),
    ),
    "fork, exec, exit": (
        fork_exec_exit, ([1, 3, 1, 2, 2, 1, 2, 2], "5", "6", "SIGSEGV MAPERR", 1),
    ),
    "removed while attached": (
        removed_while_attached, ((DEST | 0o600, 1, "ENOENT", "4", True), "EINVAL", "EINVAL"),
    ),
    "removed with its child": (removed_with_its_child, ((1, "ok", "2"), "EINVAL")),
    "removed unattached": (removed_unattached, ("EINVAL", "EINVAL")),
    "without anybody it stays": (without_anybody_it_stays, ("SIGSEGV MAPERR", "8")),
    "set changes": (
        set_changes, (0, Figures(0o444, (NOBODY, NOBODY), ROOT, SIZE, 0, 1, 0, NEW)),
    ),
    "others may not": (
        others_may_not,
        ["EACCES", "0", "EACCES", "0", "0", "EPERM", "EPERM", "EPERM", "EACCES", "EACCES"],
    ),
    "locked": (locked, ([0, LOCKED | 0o600, 0, 0o600], "1")),
    "part unmapped": (part_unmapped, ((2, "0", "SIGSEGV MAPERR"), "0", "SIGSEGV MAPERR", 0)),
    "protected, advised, moved": (
        protected_advised_moved,
        (["0", "SIGSEGV ACCERR", "1", "0", "1", "0", "0", "0", "SIGBUS ADRERR"], True, "0"),
    ),
    "end of its last page": (
        end_of_its_last_page, ("ok", "SIGSEGV MAPERR", SIZE - PAGE + 1),
    ),
    "by number": (by_number, (("ok", 1), "EINVAL", 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_it_does_what_linux_does(segments: Callable[..., Case], row: str) -> None:
    do, expected = ROWS[row]
    assert do(segments(adopts=False)) == expected
    assert do(segments(adopts=True)) == expected
