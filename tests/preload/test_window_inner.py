"""Ordinary calls on a window that hold for the region (-o window=inner), row by row."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs
from msharefs.launch import running
from msharefs.native import lib

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
from support import cc, libc, wire
from support.isolated import isolated

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.agent import Agents
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1", "window=inner")

SIZE = 2 * QUANTUM
MAPPED = QUANTUM
"""The first half of the region; the rest is a hole."""
PREFERRED = 1
SYS_MBIND, SYS_GET_MEMPOLICY, SYS_MSEAL = 237, 239, 462
CASES = Path(__file__).parent.parent / "verbs" / "cases.c"


class Both:
    """A region that two processes have attached at PLACE; offsets in bytes from there."""

    def __init__(self, region: File) -> None:
        self.region, self.agent = region, region.agent
        assert region.attach(address=PLACE) == PLACE
        assert self.agent.store(PLACE, 42) == "ok"
        self.other = self.agent.fork()

    def say(self, function: str, offset: int, *arguments: int) -> str:
        """A call of the first process on an address."""
        return self.agent.say(function, PLACE + offset, *arguments)

    def seen(self, offset: int = 0) -> tuple[str, str]:
        """A byte as both see it."""
        return self.agent.load(PLACE + offset), self.other.load(PLACE + offset)

    def stored(self, offset: int, byte: int = 7) -> tuple[str, str]:
        """What a store by each of them gives."""
        return self.agent.store(PLACE + offset, byte), self.other.store(PLACE + offset, byte)

    def maps(self) -> list[tuple[int, int, str]]:
        """The VMAs of the region: start, end, permissions."""
        with msharefs.open(self.region.path) as opened:
            found = opened.describe("maps")
            return [(vma["start"], vma["end"], vma["prot"]) for vma in found]

    def flags(self, offset: int) -> list[str]:
        """What has been asked for with the VMA at an offset."""
        with msharefs.open(self.region.path) as opened:
            found = opened.describe("maps")
            return next(vma["flags"] for vma in found if vma["start"] <= offset < vma["end"])

    def in_memory(self, pages: int = 8) -> bytes:
        """The first pages: 1 for each that is in memory."""
        with msharefs.open(self.region.path) as opened:
            return bytes(opened.query(0, pages * PAGE))


@pytest.fixture
def both(make_region: Callable[..., File]) -> Both:
    region = make_region(SIZE, mapped=False)
    region.map(0, MAPPED)
    return Both(region)


def test_all_cases_same_as_linux(shared_mount: Mount, tmp_path: Path) -> None:
    """The program asks Linux about plain memory, then us about a window, by the same calls."""
    cases = cc.build(CASES, tmp_path / "cases")

    def answers(*arguments: str | Path) -> list[str]:
        environment = running.environment(shared_mount.path, None)
        found = subprocess.run(
            [cases, *arguments], env=environment, capture_output=True, text=True, check=True
        )
        return found.stdout.splitlines()

    plain = answers("plain")
    assert len(plain) == 2 * 19 + 12
    assert answers("window", shared_mount.path / "cases") == plain


class TestProtection:
    def test_mprotect_holds_for_both(self, both: Both) -> None:
        assert both.say("mprotect", 0, PAGE, READ) == "0"
        assert both.stored(0) == ("SIGSEGV ACCERR", "SIGSEGV ACCERR")
        assert both.seen() == ("42", "42")
        assert both.stored(PAGE) == ("ok", "ok")
        assert both.say("mprotect", 0, PAGE, READ_WRITE) == "0"
        assert both.stored(0) == ("ok", "ok")

    def test_a_key(self, both: Both) -> None:
        assert both.say("pkey_mprotect", 0, PAGE, READ, -1) == "0"
        assert both.stored(0) == ("SIGSEGV ACCERR", "SIGSEGV ACCERR")
        assert both.say("pkey_mprotect", 0, PAGE, READ_WRITE, 0) == "0"
        assert both.say("pkey_mprotect", 0, PAGE, READ_WRITE, 1) == "EINVAL"
        assert both.stored(0) == ("ok", "ok")

    @pytest.mark.parametrize(
        ("offset", "size"),
        [(MAPPED - PAGE, 2 * PAGE), (0, SIZE), (-PAGE, 2 * PAGE), (SIZE - PAGE, 2 * PAGE)],
    )
    def test_over_a_hole_or_an_end_nothing_changes(
        self, both: Both, offset: int, size: int
    ) -> None:
        for at in (PLACE - PAGE, PLACE + SIZE):
            both.agent.call("mmap", at, PAGE, READ_WRITE, PRIVATE | ANONYMOUS | FIXED, -1, 0)
        before = both.maps()
        for call in (("mprotect", READ), ("madvise", verbs.MADV_DONTNEED), ("mlock2", 0)):
            assert both.say(call[0], offset, size, call[1]) == "ENOMEM"
        assert both.maps() == before
        assert both.stored(MAPPED - PAGE) == ("ok", "ok")
        assert both.agent.store(PLACE - PAGE, 1) == "ok"
        assert both.agent.store(PLACE + SIZE, 1) == "ok"

    def test_no_rights(self, both: Both) -> None:
        assert both.say("mprotect", 0, PAGE, 0x10) == "EINVAL"
        assert both.say("mprotect", 1, PAGE, READ) == "EINVAL"
        both.agent.call("munmap", PLACE, SIZE)
        reader = both.region.reopen(os.O_RDONLY)
        both.region.attach(address=PLACE, prot=READ, fd=reader)
        assert both.say("mprotect", 0, PAGE, READ) == "EACCES"
        assert both.say("munmap", 0, PAGE) == "EACCES"
        assert both.say("msync", 0, PAGE, 4) == "0"
        assert both.seen() == ("42", "42")


class TestUnmap:
    def test_a_part_is_unmapped_for_both(self, both: Both) -> None:
        assert both.say("munmap", 0, PAGE) == "0"
        assert both.seen() == ("SIGSEGV MAPERR", "SIGSEGV MAPERR")
        assert both.maps() == [(PAGE, MAPPED, "rw-s")]
        assert both.say("munmap", MAPPED, PAGE) == "0"  # a hole, as of munmap(2)
        assert len(clients(both.region.path)) == 2

    def test_the_whole_is_detached(self, both: Both) -> None:
        before = both.maps()
        assert both.say("munmap", 0, SIZE) == "0"
        assert both.seen() == ("SIGSEGV MAPERR", "42")
        assert len(clients(both.region.path)) == 1
        assert both.maps() == before

    def test_beyond_the_window_nothing_goes(self, both: Both) -> None:
        flags = PRIVATE | ANONYMOUS | FIXED
        both.agent.call("mmap", PLACE + SIZE, PAGE, READ_WRITE, flags, -1, 0)
        assert both.say("munmap", PAGE, SIZE) == "ENOMEM"
        assert both.seen(PAGE) == ("0", "0")
        assert both.agent.store(PLACE + SIZE, 1) == "ok"
        assert both.say("munmap", 0, SIZE + PAGE) == "0"  # the whole, and more
        assert both.agent.load(PLACE + SIZE) == "SIGSEGV MAPERR"
        assert len(clients(both.region.path)) == 1


class TestMapOver:
    def test_shared_memory_is_replaced_for_both(self, both: Both, tmp_path: Path) -> None:
        assert both.seen() == ("42", "42")
        flags = SHARED | FIXED | ANONYMOUS
        assert both.agent.call("mmap", PLACE, PAGE, READ_WRITE, flags, -1, 0) == PLACE
        assert both.seen() == ("0", "0")
        file = tmp_path / "file"
        file.write_bytes(b"x" * PAGE)
        fd = both.agent.call("open", str(file), os.O_RDWR)
        got = both.agent.call("mmap", PLACE + PAGE, PAGE, READ_WRITE, SHARED | FIXED, fd, 0)
        assert got == PLACE + PAGE
        assert both.seen(PAGE) == ("120", "120")
        assert both.other.store(PLACE + PAGE, 1) == "ok"
        assert file.read_bytes()[0] == 1

    def test_private_memory_and_nonsense(self, both: Both) -> None:
        refused = both.agent.result(
            "mmap", PLACE, PAGE, READ_WRITE, PRIVATE | FIXED | ANONYMOUS, -1, 0
        )
        assert refused == (-1, "EINVAL")
        assert both.agent.result("mmap", PLACE, PAGE, READ, SHARED | FIXED, -1, 0) == (-1, "EBADF")
        over = both.agent.result(
            "mmap", PLACE - PAGE, 2 * PAGE, READ, SHARED | FIXED | ANONYMOUS, -1, 0
        )
        assert over == (-1, "ENOMEM")
        itself = both.agent.result("mmap", PLACE, PAGE, READ, SHARED | FIXED, both.region.fd, 0)
        assert itself == (-1, "EINVAL")
        assert both.seen() == ("42", "42")

    def test_the_whole(self, both: Both) -> None:
        flags = PRIVATE | FIXED | ANONYMOUS
        assert both.agent.call("mmap", PLACE, SIZE, READ_WRITE, flags, -1, 0) == PLACE
        assert both.seen() == ("0", "42")
        assert len(clients(both.region.path)) == 1


@pytest.mark.parametrize(
    ("offset", "old", "new", "flags", "answer"),
    [
        (0, SIZE, SIZE, 0, "0"),
        (0, SIZE, SIZE + QUANTUM, MAYMOVE, "EINVAL"),
        (0, SIZE, QUANTUM, 0, "EINVAL"),
        (0, PAGE, 2 * PAGE, 0, "EINVAL"),
        (0, SIZE, SIZE, MAYMOVE | MREMAP_FIXED, "EINVAL"),
        (0, SIZE, SIZE, MAYMOVE | DONTUNMAP, "EINVAL"),
        (QUANTUM, SIZE, SIZE, 0, "EINVAL"),
    ],
)
def test_mremap(both: Both, offset: int, old: int, new: int, flags: int, answer: str) -> None:
    assert both.say("mremap", offset, old, new, flags, PLACE + 8 * QUANTUM) == answer
    assert both.seen() == ("42", "42")
    assert len(clients(both.region.path)) == 2


class TestAdvice:
    def test_dontneed_and_remove(self, both: Both) -> None:
        assert both.say("madvise", 0, MAPPED, verbs.MADV_DONTNEED) == "0"
        assert both.seen() == ("42", "42")
        assert both.say("madvise", 0, PAGE, verbs.MADV_REMOVE) == "0"
        assert both.seen() == ("0", "0")

    def test_populate(self, both: Both) -> None:
        assert both.in_memory() == bytes([1, 0, 0, 0, 0, 0, 0, 0])
        assert both.say("madvise", 0, 8 * PAGE, verbs.MADV_POPULATE_WRITE) == "0"
        assert both.in_memory() == bytes([1] * 8)

    def test_what_is_kept(self, both: Both) -> None:
        assert both.say("madvise", 0, PAGE, verbs.MADV_RANDOM) == "0"
        assert both.flags(0) == ["random"]
        assert both.flags(PAGE) == []
        assert both.say("madvise", 0, PAGE, verbs.MADV_NORMAL) == "0"
        assert both.flags(0) == []

    def test_a_guard_is_for_both(self, both: Both) -> None:
        assert both.say("madvise", 0, PAGE, verbs.MADV_GUARD_INSTALL) == "0"
        assert both.seen() == ("SIGSEGV MAPERR", "SIGSEGV MAPERR")
        assert both.say("madvise", 0, PAGE, verbs.MADV_GUARD_REMOVE) == "0"
        assert both.seen() == ("42", "42")

    @pytest.mark.parametrize("advice", [verbs.MADV_FREE, verbs.MADV_WIPEONFORK, 17])
    def test_none_for_shared_memory(self, both: Both, advice: int) -> None:
        assert both.say("madvise", 0, PAGE, advice) == "EINVAL"

    def test_of_the_process_alone(self, both: Both) -> None:
        assert both.say("madvise", 0, PAGE, mmap.MADV_DONTFORK) == "EINVAL"
        assert both.say("madvise", 0, SIZE, mmap.MADV_DONTDUMP) == "0"
        assert both.say("madvise", 0, SIZE, mmap.MADV_DONTFORK) == "0"
        assert both.agent.fork().load(PLACE) == "SIGSEGV MAPERR"
        assert both.seen() == ("42", "42")

    def test_by_process_madvise(self, both: Both) -> None:
        place = both.agent.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        both.agent.put(place, PLACE.to_bytes(8, sys.byteorder) + (PAGE).to_bytes(8, sys.byteorder))
        pidfd = both.agent.call("pidfd_open", both.agent.pid, 0)
        done = both.agent.call("process_madvise", pidfd, place, 1, verbs.MADV_DONTNEED, 0)
        assert done == PAGE
        assert both.seen() == ("42", "42")


class TestLock:
    def test_for_the_region(self, both: Both) -> None:
        assert both.say("mlock", 0, 4 * PAGE) == "0"
        assert both.in_memory() == bytes([1, 1, 1, 1, 0, 0, 0, 0])
        assert both.flags(0) == ["locked"]
        assert both.say("madvise", 0, PAGE, verbs.MADV_PAGEOUT) == "EINVAL"
        assert both.other.say("munlock", PLACE, 4 * PAGE) == "0"
        assert both.flags(0) == []
        assert both.say("mlock2", 0, PAGE, 1) == "EOPNOTSUPP"

    def test_mlockall_does_not_reach_in(self, both: Both) -> None:
        assert both.agent.say("mlockall", 1) == "0"
        assert both.flags(0) == []
        assert both.in_memory() == bytes([1, 0, 0, 0, 0, 0, 0, 0])
        assert both.agent.say("munlockall") == "0"


def test_policy(both: Both) -> None:
    agent = both.agent
    place = agent.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
    agent.put(place, (1).to_bytes(8, sys.byteorder))
    bound = agent.say("syscall", SYS_MBIND, PLACE, 4 * PAGE, PREFERRED, place, 64, 0)
    assert bound == "0"
    for process in (agent, both.other):  # MPOL_F_ADDR: of an address
        told = process.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
        assert process.say("syscall", SYS_GET_MEMPOLICY, told, 0, 0, PLACE + PAGE, 2) == "0"
        assert process.get(told, 4) == PREFERRED.to_bytes(4, sys.byteorder)
    over = agent.say("syscall", SYS_MBIND, PLACE, SIZE, PREFERRED, place, 64, 0)
    assert over == "ENOMEM"


def test_looks(both: Both) -> None:
    place = both.other.call("mmap", 0, PAGE, READ_WRITE, PRIVATE | ANONYMOUS, -1, 0)
    assert both.other.say("mincore", PLACE, 4 * PAGE, place) == "0"
    assert both.other.get(place, 4) == bytes([1, 0, 0, 0])
    assert both.other.say("mincore", PLACE, SIZE, place) == "ENOMEM"
    assert both.other.say("mincore", PLACE, 4 * PAGE, 0) == "EFAULT"
    assert both.other.say("msync", PLACE, PAGE, 4) == "0"


def test_seal(both: Both) -> None:
    assert both.agent.say("syscall", SYS_MSEAL, PLACE, PAGE, 0) == "0"
    assert both.flags(0) == ["sealed"]
    for process in (both.agent, both.other):
        assert process.say("munmap", PLACE, PAGE) == "EPERM"
        assert process.say("mprotect", PLACE, PAGE, READ) == "EPERM"
    assert both.agent.say("syscall", SYS_MSEAL, PLACE, SIZE, 0) == "ENOMEM"
    assert both.say("munmap", 0, SIZE) == "0"


def test_after_all_descriptors_are_closed(both: Both) -> None:
    """The right to change the region is the attachment's."""
    both.agent.call("close", both.region.fd)
    both.other.call("close", both.region.fd)
    assert both.say("mprotect", 0, PAGE, READ) == "0"
    assert both.other.say("mprotect", PLACE, PAGE, READ_WRITE) == "0"
    assert both.stored(0) == ("ok", "ok")


def test_nobody_else_has_that_right(both: Both, shared_mount: Mount) -> None:
    """Whoever names another's slot gets nothing: the kernel says who has made a connection."""
    number = max(int(path.stem) for path in shared_mount.state.rglob("*.mm"))
    path = str(shared_mount.state / "control")
    for slot, claim in itertools.product((0, 1, 2, lib.MM_SLOTS, 1 << 40), range(40)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(path)
            wire.send(sock, lib.MSG_WINDOW, number, slot, claim)
            wire.send(sock, lib.MSG_PROTECT, 0, PAGE, READ, 0)
            # The child may have a slot, and no connection yet.
            assert -wire.answer(sock)[0] in {errno.EPERM if claim else errno.EAGAIN, errno.EAGAIN}
            assert wire.answer(sock)[0] == -errno.EPERM
    assert both.stored(0) == ("ok", "ok")


# Connects to the control socket, gives that connection away, and then is another program.
EARLIER = """
import os, socket, sys
with socket.socket(fileno=int(sys.argv[1])) as to, socket.socket(
    socket.AF_UNIX, socket.SOCK_SEQPACKET
) as sock:
    sock.connect(sys.argv[2])
    socket.send_fds(to, [b"1"], [sock.fileno()])
os.execv(sys.executable, [sys.executable, "-P", "-c", sys.argv[3], sys.argv[4]])
"""
LATER = """
import sys, msharefs
view = msharefs.open(sys.argv[1]).attach()
print("attached", flush=True)
sys.stdin.readline()
"""


def test_nor_has_who_was_another_program(both: Both, shared_mount: Mount) -> None:
    """With other rights, perhaps; so it is, too, if that was a process of the same number."""
    number = max(int(path.stem) for path in shared_mount.state.rglob("*.mm"))
    ours, theirs = socket.socketpair()
    argv = [sys.executable, "-P", "-c", EARLIER, str(theirs.fileno()),
            str(shared_mount.state / "control"), LATER, both.region.path]  # fmt: skip
    with (
        ours,
        theirs,
        subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[theirs.fileno()],
        ) as process,
    ):
        _, fds, *_ = socket.recv_fds(ours, 1, 1)
        assert process.stdout is not None
        assert process.stdout.readline() == b"attached\n"
        with socket.socket(fileno=fds[0]) as sock:
            found = set()
            for slot, claim in itertools.product(range(4), range(1, 40)):
                wire.send(sock, lib.MSG_WINDOW, number, slot, claim)
                found.add(wire.answer(sock)[0])
            assert found == {-errno.EPERM, -errno.EAGAIN}
        process.communicate(b"\n")


def test_nor_has_an_earlier_process_of_that_number(both: Both, shared_mount: Mount) -> None:
    """Its connection has outlived it, and is not the later one's."""
    number = max(int(path.stem) for path in shared_mount.state.rglob("*.mm"))

    def work(say: Callable[[str], None]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            ours, theirs = socket.socketpair()
            if (earlier := os.fork()) == 0:
                sock.connect(str(shared_mount.state / "control"))
                socket.send_fds(theirs, [b"1"], [sock.fileno()])
                os._exit(0)
            _, fds, *_ = socket.recv_fds(ours, 1, 1)
            os.waitpid(earlier, 0)
        if libc.fork_as(earlier) == 0:
            os.dup2(theirs.fileno(), 0)
            os.dup2(theirs.fileno(), 1)
            argv = [sys.executable, "-P", "-c", LATER, both.region.path]
            os.execv(sys.executable, argv)  # noqa: S606
        say("waiting for it to attach the region")
        with ours.makefile("rb") as said:
            assert said.readline() == b"attached\n"
        with msharefs.open(both.region.path) as region:
            assert earlier in {client["pid"] for client in region.clients()}
        with socket.socket(fileno=fds[0]) as sock:
            for slot, claim in itertools.product(range(4), range(1, 40)):
                wire.send(sock, lib.MSG_WINDOW, number, slot, claim)
                assert wire.answer(sock)[0] == -errno.EPERM
        ours.send(b"\n")
        assert os.waitpid(earlier, 0) == (earlier, 0)

    isolated(work)


def test_with_a_shadow(
    agents: Agents, agent_program: Path, both: Both, shared_mount: Mount
) -> None:
    """A program that has no descriptor of ours can change the region, too."""
    environment = running.environment(shared_mount.path, None)
    agent = agents.start([agent_program], {**environment, "MSHAREFS_CLIENT": "shadow"})
    fd = agent.call("open", both.region.path, os.O_RDWR)
    at = agent.call("mmap", 0, SIZE, READ_WRITE, SHARED, fd, 0)
    agent.call("close", fd)
    assert agent.say("mprotect", at, PAGE, READ) == "0"
    assert agent.store(at, 1) == "SIGSEGV ACCERR"
    assert both.stored(0) == ("SIGSEGV ACCERR", "SIGSEGV ACCERR")


def test_after_a_restart(mounts: Callable[..., Mount], agents: Agents, agent_program: Path) -> None:
    """The call waits until the attachment has a connection again."""
    mount = mounts("quantum=2M", "window=inner")
    agent = agents.start([agent_program], running.environment(mount.path, None))
    fd = agent.call("open", str(mount.path / "r"), os.O_RDWR | os.O_CREAT, 0o600)
    agent.call("ftruncate", fd, SIZE)
    region = File(agent, fd, SIZE, str(mount.path / "r"))
    region.map(0, MAPPED)
    region.attach(address=PLACE)
    agent.call("close", fd)
    mount.stop()
    assert agent.say("mprotect", PLACE, PAGE, READ) == "ENOTCONN"
    mount.start()
    assert agent.say("mprotect", PLACE, PAGE, READ) == "0"
    assert agent.store(PLACE, 1) == "SIGSEGV ACCERR"
    agent.exit()
    (mount.path / "r").unlink()


@pytest.mark.slow
def test_while_the_server_is_stopped(
    mounts: Callable[..., Mount], agents: Agents, agent_program: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The call ends as the library's own do, after ten seconds."""
    mount = mounts("quantum=2M", "window=inner")
    environment = {**running.environment(mount.path, None), "MSHAREFS_VERBOSE": "1"}
    agent = agents.start([agent_program], environment)
    fd = agent.call("open", str(mount.path / "r"), os.O_RDWR | os.O_CREAT, 0o600)
    agent.call("ftruncate", fd, SIZE)
    region = File(agent, fd, SIZE, str(mount.path / "r"))
    region.map(0, MAPPED)
    region.attach(address=PLACE)
    agent.call("close", fd)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        assert agent.say("mprotect", PLACE, PAGE, READ) == "ETIMEDOUT"
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    assert f"msharefs: process {agent.pid}: its server does not answer" in capfd.readouterr().err
    assert agent.say("mprotect", PLACE, PAGE, READ_WRITE) == "0"
    assert agent.store(PLACE, 1) == "ok"
    agent.exit()
    (mount.path / "r").unlink()


def test_a_part_of_a_region(make_region: Callable[..., File]) -> None:
    """Offsets are those of the region, wherever the window begins in it."""
    region = make_region(SIZE)
    both = Both(region)
    both.agent.call("munmap", PLACE, SIZE)
    region.attach(address=PLACE, length=QUANTUM, offset=QUANTUM)
    assert both.agent.say("mprotect", PLACE, PAGE, READ) == "0"
    assert both.agent.store(PLACE, 1) == "SIGSEGV ACCERR"
    assert both.other.store(PLACE, 1) == "ok"
    assert both.other.store(PLACE + QUANTUM, 1) == "SIGSEGV ACCERR"
