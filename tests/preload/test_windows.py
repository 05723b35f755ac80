"""munmap(2), mprotect(2), madvise(2) and their relatives on an attachment, as in the series."""

from __future__ import annotations

import itertools
import os
import struct
from typing import TYPE_CHECKING

import pytest

import msharefs

from .conftest import (
    ANONYMOUS,
    DONTUNMAP,
    FIXED,
    MAYMOVE,
    MREMAP_FIXED,
    PAGE,
    PLACE,
    PRIVATE,
    QUANTUM,
    READ,
    READ_WRITE,
    SHARED,
    File,
    clients,
)
from support import proc

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.agent import Agent

SIZE = 2 * QUANTUM
PARTS = [
    (0, PAGE), (SIZE - PAGE, PAGE), (PAGE, PAGE), (0, QUANTUM), (QUANTUM, QUANTUM),
    (0, SIZE - PAGE),
    (PAGE, SIZE - PAGE), (-PAGE, 2 * PAGE), (SIZE - PAGE, 2 * PAGE),
]  # fmt: skip
ASYNC, INVALIDATE, SYNC = 1, 2, 4

ADVICE = {
    "NORMAL": 0, "RANDOM": 1, "SEQUENTIAL": 2, "WILLNEED": 3, "DONTNEED": 4, "FREE": 8, "REMOVE": 9,
    "DONTFORK": 10, "DOFORK": 11, "MERGEABLE": 12, "UNMERGEABLE": 13, "HUGEPAGE": 14,
    "NOHUGEPAGE": 15, "DONTDUMP": 16, "DODUMP": 17, "WIPEONFORK": 18, "KEEPONFORK": 19, "COLD": 20,
    "PAGEOUT": 21, "POPULATE_READ": 22, "POPULATE_WRITE": 23, "DONTNEED_LOCKED": 24, "COLLAPSE": 25,
    "GUARD_INSTALL": 102, "GUARD_REMOVE": 103,
}  # fmt: skip
# observed.md, "VMA operations on the attachment": for the whole, then for a part of a fresh one.
WHOLE = {
    **dict.fromkeys(ADVICE, "0"),
    **dict.fromkeys(
        ["FREE", "DODUMP", "WIPEONFORK", "COLLAPSE", "GUARD_INSTALL", "GUARD_REMOVE"], "EINVAL"
    ),
    "REMOVE": "EOPNOTSUPP",
    "POPULATE_READ": "EFAULT",
    "POPULATE_WRITE": "EFAULT",
}
SPLITTING = ["RANDOM", "SEQUENTIAL", "DONTFORK", "HUGEPAGE", "NOHUGEPAGE", "DONTDUMP"]
PART = {**WHOLE, **dict.fromkeys(SPLITTING, "EINVAL")}


@pytest.fixture
def window(region: File) -> Window:
    """A region of two quanta, attached where it has no neighbours, 42 in its first byte."""
    return Window(region, region.attach(address=PLACE))


class Window:
    """An attachment in an agent; offsets in bytes from its start."""

    def __init__(self, region: File, base: int) -> None:
        self.region, self.base, self.agent = region, base, region.agent
        assert self.agent.store(base, 42) == "ok"

    def say(self, function: str, offset: int, *arguments: int) -> str:
        """Calls a function of an address."""
        return self.agent.say(function, self.base + offset, *arguments)

    def surround(self) -> None:
        """A page of other memory on either side, 1 and 2 in it."""
        flags = PRIVATE | ANONYMOUS | FIXED
        for at, byte in ((self.base - PAGE, 1), (self.base + SIZE, 2)):
            assert self.agent.call("mmap", at, PAGE, READ_WRITE, flags, -1, 0) == at
            assert self.agent.store(at, byte) == "ok"

    def intact(self) -> bool:
        """Whether it is still attached, and its neighbours are unchanged."""
        assert self.agent.load(self.base) == "42"
        assert self.agent.store(self.base + SIZE - 1, 7) == "ok"
        return len(clients(self.region.path)) == 1


class TestMunmap:
    @pytest.mark.parametrize(("offset", "size"), PARTS)
    def test_a_part(self, window: Window, offset: int, size: int) -> None:
        window.surround()
        assert window.say("munmap", offset, size) == "EINVAL"
        assert window.intact()
        assert window.agent.load(window.base - PAGE) == "1"
        assert window.agent.load(window.base + SIZE) == "2"

    @pytest.mark.parametrize("less", [0, 1, PAGE - 1])
    def test_the_whole(self, window: Window, less: int) -> None:
        assert window.say("munmap", 0, SIZE - less) == "0"
        assert window.agent.load(window.base) == "SIGSEGV MAPERR"
        assert clients(window.region.path) == []
        again = window.region.attach(address=PLACE)
        assert (again, window.agent.load(again)) == (PLACE, "42")

    def test_the_whole_and_its_neighbours(self, window: Window) -> None:
        window.surround()
        assert window.say("munmap", -PAGE, SIZE + 2 * PAGE) == "0"
        for at in (-PAGE, 0, SIZE):
            assert window.agent.load(window.base + at) == "SIGSEGV MAPERR"
        assert clients(window.region.path) == []

    def test_two_attachments_at_once(self, region: File) -> None:
        region.attach(address=PLACE)
        region.attach(address=PLACE + SIZE)
        assert region.agent.say("munmap", PLACE, SIZE + QUANTUM) == "EINVAL"
        assert len(clients(region.path)) == 2
        assert region.agent.say("munmap", PLACE, 2 * SIZE) == "0"
        assert clients(region.path) == []

    def test_neighbours_alone(self, window: Window) -> None:
        window.surround()
        assert window.say("munmap", -PAGE, PAGE) == "0"
        assert window.say("munmap", SIZE, PAGE) == "0"
        assert window.intact()

    @pytest.mark.parametrize(("offset", "size"), [(1, PAGE), (0, 0), (0, (1 << 64) - PAGE)])
    def test_nonsense(self, window: Window, offset: int, size: int) -> None:
        assert window.say("munmap", offset, size) == "EINVAL"
        assert window.intact()

    def test_a_sealed_one(self, window: Window) -> None:
        for offset, size in PARTS:
            assert window.say("mseal", offset, size, 0) in ("EINVAL", "ENOMEM")
        assert window.say("mseal", 0, SIZE, 0) == "0"
        assert window.say("munmap", 0, SIZE) == "EPERM"
        assert window.intact()
        child = window.agent.fork()
        assert child.load(window.base) == "42"

    def test_a_sealed_one_still_refuses(self, make_region: Callable[..., File]) -> None:
        region = make_region(mapped=False)
        region.map(0, PAGE, READ)
        base = region.attach()
        assert region.agent.say("mseal", base, SIZE, 0) == "0"
        assert region.agent.load(base) == "0"
        assert region.agent.store(base, 1) == "SIGSEGV ACCERR"
        assert region.agent.load(base + PAGE) == "SIGSEGV MAPERR"
        assert region.refused(address=base, flags=SHARED | FIXED) == "EPERM"
        flags = MAYMOVE | MREMAP_FIXED
        assert region.agent.say("mremap", base, SIZE, SIZE, flags, PLACE) == "EPERM"


class TestMprotect:
    @pytest.mark.parametrize(("offset", "size"), [*PARTS[:7], (0, SIZE)])
    @pytest.mark.parametrize("prot", [0, READ, READ_WRITE])
    def test_any(self, window: Window, offset: int, size: int, prot: int) -> None:
        assert window.say("mprotect", offset, size, prot) == "EINVAL"
        assert window.say("pkey_mprotect", offset, size, prot, -1) == "EINVAL"
        assert window.intact()

    def test_of_nothing(self, window: Window) -> None:
        assert window.say("mprotect", 0, 0, READ) == "0"

    def test_neighbours_alone(self, window: Window) -> None:
        window.surround()
        assert window.say("mprotect", SIZE, PAGE, READ) == "0"
        assert window.agent.store(window.base + SIZE, 1) == "SIGSEGV ACCERR"

    def test_what_comes_before_is_changed(self, window: Window) -> None:
        # The kernel goes from mapping to mapping, and stops.
        window.surround()
        assert window.say("mprotect", -PAGE, SIZE + 2 * PAGE, READ) == "EINVAL"
        assert window.agent.store(window.base - PAGE, 1) == "SIGSEGV ACCERR"
        assert window.agent.store(window.base + SIZE, 1) == "ok"
        assert window.intact()

    def test_remap_file_pages(self, window: Window) -> None:
        assert window.say("remap_file_pages", 0, PAGE, 0, 1, 0) == "EINVAL"


class TestMremap:
    @pytest.mark.parametrize(
        ("old", "new", "flags", "errno"),
        [
            (SIZE, SIZE, 0, "0"),
            (SIZE, SIZE, MAYMOVE, "0"),
            (PAGE, PAGE, 0, "0"),
            (SIZE, SIZE + PAGE, 0, "EFAULT"),
            (SIZE, 2 * SIZE, MAYMOVE, "EFAULT"),
            (0, SIZE, MAYMOVE, "EFAULT"),
            (SIZE, QUANTUM, 0, "EINVAL"),
            (SIZE, PAGE, MAYMOVE, "EINVAL"),
            (SIZE, 0, 0, "EINVAL"),
            (SIZE, SIZE, MAYMOVE | DONTUNMAP, "EINVAL"),
            (SIZE, SIZE, 64, "EINVAL"),
        ],
    )
    def test_in_place(self, window: Window, old: int, new: int, flags: int, errno: str) -> None:
        assert window.say("mremap", 0, old, new, flags, 0) == errno
        assert window.intact()

    @pytest.mark.parametrize("size", [SIZE, QUANTUM, PAGE])
    @pytest.mark.parametrize("target", [4 * SIZE, 4 * SIZE + PAGE, 1])
    def test_to_a_fixed_place(self, window: Window, size: int, target: int) -> None:
        target += PLACE
        said = window.say("mremap", 0, size, size, MAYMOVE | MREMAP_FIXED, target)
        assert said == "EINVAL"
        assert window.intact()

    def test_other_memory_over_a_part(self, window: Window) -> None:
        window.surround()
        other = window.base + SIZE
        flags = MAYMOVE | MREMAP_FIXED
        assert window.agent.say("mremap", other, PAGE, PAGE, flags, window.base) == "EINVAL"
        assert window.intact()
        assert window.agent.load(other) == "2"

    def test_other_memory_over_the_whole(self, window: Window, preloaded: Agent) -> None:
        other = preloaded.call("mmap", 0, SIZE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        preloaded.store(other, 9)
        flags = MAYMOVE | MREMAP_FIXED
        assert preloaded.call("mremap", other, SIZE, SIZE, flags, window.base) == window.base
        assert preloaded.load(window.base) == "9"
        assert clients(window.region.path) == []

    def test_other_memory_that_shrinks_off_a_part(self, window: Window) -> None:
        # The surplus at the end reaches into the window: it is unmapped, or nothing is.
        window.surround()
        assert window.say("mremap", -PAGE, 2 * PAGE, PAGE, 0, 0) == "EINVAL"
        assert window.say("mremap", -PAGE, PAGE + SIZE, PAGE, 0, 0) == "0"
        assert clients(window.region.path) == []


class TestMsync:
    @pytest.mark.parametrize(
        ("flags", "errno"),
        [(ASYNC, "0"), (INVALIDATE, "0"), (ASYNC | INVALIDATE, "0"), (0, "0"), (SYNC, "EINVAL"),
         (SYNC | INVALIDATE, "EINVAL"), (ASYNC | SYNC, "EINVAL"), (8, "EINVAL")],
    )  # fmt: skip
    @pytest.mark.parametrize(("offset", "size"), [(0, SIZE), (PAGE, PAGE)])
    def test_flags(self, window: Window, offset: int, size: int, flags: int, errno: str) -> None:
        assert window.say("msync", offset, size, flags) == errno
        assert window.intact()

    def test_with_a_hole_behind(self, window: Window) -> None:
        assert window.say("msync", 0, SIZE + PAGE, ASYNC) == "ENOMEM"


class TestMlock:
    """0 if all pages are in the caller's tables, or ENOMEM; nothing is locked in either case."""

    def locked(self, agent: Agent) -> int:
        return proc.status_bytes(agent.pid, "VmLck")

    @pytest.mark.parametrize("call", ["mlock", "mlock2"])
    def test_present_pages(self, window: Window, call: str) -> None:
        assert window.say(call, 0, SIZE, 0) == "ENOMEM"
        assert window.say(call, 0, PAGE, 0) == "0"
        assert window.say(call, 17, 1, 0) == "0"
        assert window.say(call, 0, 2 * PAGE, 0) == "ENOMEM"
        for offset in range(0, SIZE, PAGE):
            window.agent.load(window.base + offset)
        assert window.say(call, 0, SIZE, 0) == "0"
        assert window.say("munlock", 0, SIZE) == "0"
        assert window.say("munlock", PAGE, PAGE) == "0"
        assert self.locked(window.agent) == 0

    def test_pages_that_others_filled(self, region: File) -> None:
        with msharefs.open(region.path) as here:
            view = here.attach()
            for offset in range(0, SIZE, PAGE):
                view[offset] = 1
            base = region.attach()
            assert region.agent.say("mlock", base, SIZE) == "ENOMEM"
            region.agent.load(base)
            assert region.agent.say("mlock", base, QUANTUM) == "0"
            assert region.agent.say("mlock", base, SIZE) == "ENOMEM"  # the second is not linked
            region.agent.load(base + QUANTUM)
            assert region.agent.say("mlock", base, SIZE) == "0"

    def test_on_fault(self, window: Window) -> None:
        """Nothing is marked for later: it is mlock(2)."""
        assert window.say("mlock2", 0, SIZE, 1) == "ENOMEM"
        assert window.say("mlock2", 0, SIZE, 2) == "EINVAL"
        assert self.locked(window.agent) == 0

    def test_limits(self, window: Window) -> None:
        agent = window.agent
        assert agent.call("setrlimit", 8, struct.pack("QQ", PAGE, PAGE)) == 0
        assert window.say("mlock", 0, 2 * PAGE) == "ENOMEM"
        agent.load(window.base + PAGE)
        assert window.say("mlock", 0, 2 * PAGE) == "0"  # CAP_IPC_LOCK
        agent.call("setresuid", 65534, 65534, 65534)
        assert window.say("mlock", 0, 2 * PAGE) == "ENOMEM"
        assert agent.call("setrlimit", 8, bytes(16)) == 0
        assert window.say("mlock", 0, PAGE) == "EPERM"

    @pytest.mark.parametrize("flags", [1, 2, 3, 1 | 4, 3 | 4])
    def test_mlockall(self, window: Window, flags: int) -> None:
        agent = window.agent
        other = agent.call("mmap", 0, 8 * PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        present = agent.pool
        assert agent.say("mlockall", flags) == "0"
        # The program's own memory is present, unless it is to come with faults, or only later.
        assert agent.call("mincore", other, 8 * PAGE, present) == 0
        filled = bool(flags & 1 and not flags & 4)
        assert agent.get(present, 8) == (b"\1" if filled else b"\0") * 8
        assert self.locked(agent) < SIZE + (agent_size(agent) if flags & 1 else 0)
        region = window.region
        again = region.attach()  # MCL_FUTURE must not fill it
        assert region.agent.say("mlock", again, SIZE) == "ENOMEM"
        with msharefs.open(region.path, os.O_RDONLY) as here:
            assert here.stat()["rss_bytes"] == PAGE
        assert window.say("munmap", 0, SIZE) == "0"
        assert agent.say("munlockall") == "0"


def counters(path: str) -> dict[str, int]:
    with msharefs.open(path, os.O_RDONLY) as region:
        return region.stat()["counters"]


def agent_size(agent: Agent) -> int:
    """Bytes of all its mappings except the windows."""
    others = (each for each in proc.maps(agent.pid) if not each.path.endswith(".mem"))
    return sum(each.end - each.start for each in others)


class TestMincore:
    def test_is_of_the_shared_tables(self, region: File) -> None:
        agent = region.agent
        with msharefs.open(region.path) as here:
            view = here.attach()
            view[PAGE] = view[QUANTUM] = 1
            base = region.attach()
            assert agent.call("mincore", base, SIZE, agent.pool) == 0
            assert not any(agent.get(agent.pool, SIZE // PAGE))  # nothing is linked
            agent.load(base + 2 * PAGE)
            assert agent.call("mincore", base, SIZE, agent.pool) == 0
            seen = agent.get(agent.pool, SIZE // PAGE)
            assert [i for i, byte in enumerate(seen) if byte] == [1, 2]
            assert agent.call("mincore", base + PAGE, 3 * PAGE, agent.pool) == 0
            assert agent.get(agent.pool, 3) == b"\1\1\0"

    def test_with_other_memory_beside(self, window: Window) -> None:
        window.surround()
        agent = window.agent
        assert window.say("mincore", -PAGE, 3 * PAGE, agent.pool) == "0"
        assert agent.get(agent.pool, 3) == b"\1\1\0"
        assert window.say("mincore", SIZE - PAGE, 3 * PAGE, agent.pool) == "ENOMEM"
        assert window.say("mincore", 0, PAGE, 1) == "EFAULT"
        assert window.say("mincore", 1, PAGE, agent.pool) == "EINVAL"

    def test_into_the_window_itself(self, window: Window) -> None:
        assert window.say("mincore", 0, 2 * PAGE, window.base + QUANTUM) == "0"
        assert window.agent.get(window.base + QUANTUM, 2) == b"\1\0"


class TestMadvise:
    @pytest.mark.parametrize(("advice", "errno"), WHOLE.items())
    def test_the_whole(self, window: Window, advice: str, errno: str) -> None:
        assert window.say("madvise", 0, SIZE, ADVICE[advice]) == errno
        assert window.intact()

    @pytest.mark.parametrize(("advice", "errno"), PART.items())
    def test_a_part(self, window: Window, advice: str, errno: str) -> None:
        assert window.say("madvise", PAGE, 2 * PAGE, ADVICE[advice]) == errno
        assert window.say("madvise", 0, QUANTUM, ADVICE[advice]) == errno
        assert window.intact()

    @pytest.mark.parametrize("advice", SPLITTING)
    def test_what_is_set_already_splits_nothing(self, window: Window, advice: str) -> None:
        assert window.say("madvise", 0, SIZE, ADVICE[advice]) == "0"
        assert window.say("madvise", 0, PAGE, ADVICE[advice]) == "0"

    @pytest.mark.parametrize(
        ("set", "back"),
        [("RANDOM", "NORMAL"), ("SEQUENTIAL", "NORMAL"), ("SEQUENTIAL", "RANDOM"),
         ("DONTFORK", "DOFORK"), ("HUGEPAGE", "NOHUGEPAGE")],
    )  # fmt: skip
    def test_taking_back(self, window: Window, set: str, back: str) -> None:  # noqa: A002
        assert window.say("madvise", 0, SIZE, ADVICE[set]) == "0"
        assert window.say("madvise", PAGE, PAGE, ADVICE[back]) == "EINVAL"
        assert window.say("madvise", 0, SIZE, ADVICE[back]) == "0"
        assert window.say("madvise", PAGE, PAGE, ADVICE[back]) == "0"

    def test_dontneed_unlinks(self, window: Window) -> None:
        path = window.region.path
        assert window.say("mlock", 0, PAGE) == "0"
        before = counters(path)
        assert window.say("madvise", PAGE, 1, ADVICE["DONTNEED"]) == "0"  # the whole quantum goes
        assert window.say("mlock", 0, PAGE) == "ENOMEM"
        assert window.agent.load(window.base) == "42"
        after = counters(path)
        assert after["links"] == before["links"] + 1
        assert after["faults"] == before["faults"]
        assert window.say("mlock", 0, PAGE) == "0"

    def test_dontneed_keeps_protections(self, make_region: Callable[..., File]) -> None:
        region = make_region(mapped=False)
        region.map(0, PAGE, READ)
        region.map(PAGE, PAGE)
        base = region.attach()
        accesses = [("load", 0, "0"), ("store", 0, "SIGSEGV ACCERR"), ("store", PAGE, "ok"),
                    ("load", 2 * PAGE, "SIGSEGV MAPERR")]  # fmt: skip
        for _, (how, offset, outcome) in itertools.product(range(3), accesses):
            agent = region.agent
            said = agent.load(base + offset) if how == "load" else agent.store(base + offset, 1)
            assert said == outcome
            assert agent.say("madvise", base, SIZE, ADVICE["DONTNEED"]) == "0"

    def test_populate_of_what_is_there(self, window: Window) -> None:
        for advice in ("POPULATE_READ", "POPULATE_WRITE"):
            assert window.say("madvise", 0, PAGE, ADVICE[advice]) == "0"
            assert window.say("madvise", 0, 2 * PAGE, ADVICE[advice]) == "EFAULT"

    def test_populate_and_remove_of_a_read_only_attachment(self, region: File) -> None:
        base = region.attach(prot=READ)
        region.agent.load(base)
        assert region.agent.say("madvise", base, PAGE, ADVICE["POPULATE_READ"]) == "0"
        assert region.agent.say("madvise", base, PAGE, ADVICE["POPULATE_WRITE"]) == "EINVAL"
        assert region.agent.say("madvise", base, PAGE, ADVICE["REMOVE"]) == "EACCES"

    def test_neighbours_get_it_too(self, window: Window) -> None:
        window.surround()
        assert window.say("madvise", -PAGE, SIZE + 2 * PAGE, ADVICE["DONTNEED"]) == "0"
        assert window.agent.load(window.base - PAGE) == "0"
        assert window.agent.load(window.base + SIZE) == "0"
        assert window.intact()

    def test_a_hole_beside_is_told_in_the_end(self, window: Window) -> None:
        window.surround()
        size = PAGE + SIZE + 3 * PAGE
        assert window.say("madvise", -PAGE, size, ADVICE["DONTNEED"]) == "ENOMEM"
        assert window.agent.load(window.base + SIZE) == "0"

    @pytest.mark.parametrize(("offset", "size"), [(1, PAGE), (0, (1 << 64) - PAGE)])
    def test_nonsense(self, window: Window, offset: int, size: int) -> None:
        assert window.say("madvise", offset, size, ADVICE["DONTNEED"]) == "EINVAL"
        assert window.say("madvise", 0, PAGE, 77) == "EINVAL"
        assert window.say("madvise", 0, 0, ADVICE["DONTNEED"]) == "0"


class TestBySyscall:
    """syscall(2) with a number, for calls that have or had no function in the C library."""

    NUMBERS = {  # noqa: RUF012  # a table
        "munmap": 11, "mprotect": 10, "mremap": 25, "msync": 26, "mincore": 27, "madvise": 28,
        "mlock": 149, "munlock": 150, "remap_file_pages": 216, "mlock2": 325, "pkey_mprotect": 329,
        "mseal": 462, "close": 3, "close_range": 436,
    }  # fmt: skip

    @pytest.mark.parametrize(
        ("name", "arguments", "errno"),
        [
            ("munmap", (PAGE,), "EINVAL"),
            ("mprotect", (SIZE, READ), "EINVAL"),
            ("pkey_mprotect", (SIZE, READ, -1), "EINVAL"),
            ("mremap", (SIZE, SIZE + PAGE, MAYMOVE), "EFAULT"),
            ("remap_file_pages", (PAGE, 0, 1, 0), "EINVAL"),
            ("msync", (SIZE, SYNC), "EINVAL"),
            ("mincore", (PAGE, 1), "EFAULT"),
            ("madvise", (PAGE, ADVICE["RANDOM"]), "EINVAL"),
            ("mlock", (SIZE,), "ENOMEM"),
            ("mlock2", (SIZE, 1), "ENOMEM"),
            ("munlock", (PAGE,), "0"),
            ("mseal", (PAGE, 0), "EINVAL"),
        ],
    )
    def test_of_a_window(
        self, window: Window, name: str, arguments: tuple[int, ...], errno: str
    ) -> None:
        assert window.agent.say("syscall", self.NUMBERS[name], window.base, *arguments) == errno
        assert window.intact()
        if name == "munmap":
            assert window.agent.say("syscall", 11, window.base, SIZE) == "0"
            assert clients(window.region.path) == []

    @pytest.mark.usefixtures("by_thread")
    def test_of_descriptors(self, window: Window) -> None:
        numbers = os.listdir(f"/proc/{window.agent.pid}/fd")
        ours = next(int(number) for number in numbers if int(number) > 100)
        assert window.agent.say("syscall", self.NUMBERS["close"], ours) == "EBADF"
        assert window.agent.say("syscall", self.NUMBERS["close_range"], 100, 1 << 20, 0) == "0"
        assert os.listdir(f"/proc/{window.agent.pid}/fd") == numbers
        assert window.intact()

    def test_others(self, plain: Agent, preloaded: Agent) -> None:
        for agent in (plain, preloaded):
            assert agent.call("syscall", 39) == agent.pid  # getpid
            assert agent.say("syscall", 100000) == "ENOSYS"
            assert (
                agent.call("syscall", 17, agent.call("open", "/dev/zero", 0), agent.pool, 9, 0) == 9
            )

    def test_mbind(self, window: Window) -> None:
        agent, mbind, nodes = window.agent, 237, (1).to_bytes(8, "little")
        preferred, default = 1, 0
        assert agent.say("syscall", mbind, window.base, PAGE, default, 0, 0) == "0"
        assert agent.say("syscall", mbind, window.base, PAGE, preferred, nodes, 64) == "EINVAL"
        assert agent.say("syscall", mbind, window.base, SIZE, preferred, nodes, 64) == "0"
        assert agent.say("syscall", mbind, window.base, PAGE, preferred, nodes, 64) == "0"
        assert agent.say("syscall", mbind, window.base, PAGE, default, 0, 0) == "EINVAL"
        assert window.intact()


def test_a_second_attachment_of_the_same_region_is_not_concerned(region: File) -> None:
    first, second = region.attach(), region.attach()
    region.agent.store(first, 1)
    assert region.agent.say("munmap", first, SIZE) == "0"
    assert region.agent.load(second) == "1"
    assert region.agent.say("mprotect", second, SIZE, READ) == "EINVAL"
