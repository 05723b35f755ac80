"""fork, vfork, exec, threads and descriptors of a process with attachments."""

from __future__ import annotations

import itertools
import os
import signal
import struct
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.launch import running

from .conftest import PAGE, PLACE, QUANTUM, READ_WRITE, SHARED, File, clients
from support.proc import maps, service_thread, status
from support.traced import TracedThread

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.agent import Agent, Agents
    from support.server import Mount

pytestmark = pytest.mark.usefixtures("by_thread")  # test_shadow.py is about the other way

SIZE = 2 * QUANTUM
DONTFORK, DOFORK = 10, 11
RLIMIT_NOFILE, F_GETFD = 7, 1
SYS_CLOSE, SYS_CLONE, SYS_FUTEX = 3, 56, 202
UNSHARE, CLOEXEC = 2, 4  # CLOSE_RANGE_*
CLOSE_RANGE_END = (1 << 32) - 1


def hidden(agent: Agent) -> set[int]:
    """Our descriptors in the agent; the program's own have low numbers."""
    return {int(name) for name in os.listdir(f"/proc/{agent.pid}/fd")} - set(range(100))


def mapped(agent: Agent, base: int) -> bool:
    """Whether anything is mapped at an address of the agent."""
    return any(each.start <= base < each.end for each in maps(agent.pid))


class TestFork:
    def test_the_child_is_attached_at_the_same_place(self, region: File) -> None:
        base = region.attach()
        region.agent.store(base, 1)
        child = region.agent.fork()
        assert child.load(base) == "1"
        assert child.store(base + PAGE, 2) == "ok"
        assert region.agent.load(base + PAGE) == "2"
        assert {client["pid"] for client in clients(region.path)} == {region.agent.pid, child.pid}
        assert {client["base"] for client in clients(region.path)} == {base}

    def test_the_child_links_by_itself(self, region: File) -> None:
        base = region.attach()
        region.agent.store(base, 1)
        child = region.agent.fork()
        assert child.say("mlock", base, PAGE) == "ENOMEM"
        assert child.load(base) == "1"
        assert child.say("mlock", base, PAGE) == "0"

    def test_each_ends_its_own(self, region: File) -> None:
        base = region.attach()
        child = region.agent.fork()
        assert child.say("munmap", base, PAGE) == "EINVAL"
        assert child.call("munmap", base, SIZE) == 0
        assert child.load(base) == "SIGSEGV MAPERR"
        assert region.agent.load(base) == "0"
        assert [client["pid"] for client in clients(region.path)] == [region.agent.pid]

    def test_a_hole_is_one_in_the_child(self, make_region: Callable[..., File]) -> None:
        region = make_region(mapped=False)
        base = region.attach()
        assert region.agent.load(base) == "SIGSEGV MAPERR"
        child = region.agent.fork()
        assert child.load(base) == "SIGSEGV MAPERR"
        region.map(0, PAGE)
        assert child.store(base, 1) == "ok"
        assert region.agent.load(base) == "1"

    def test_grandchildren_outlive_their_parents(self, region: File) -> None:
        base = region.attach()
        child = region.agent.fork()
        grandchild = child.fork()
        child.exit()
        region.agent.exit()
        assert grandchild.store(base, 3) == "ok"
        assert [client["pid"] for client in clients(region.path)] == [grandchild.pid]

    def test_dontfork(self, region: File) -> None:
        base, other = region.attach(), region.attach()
        assert region.agent.say("madvise", base, SIZE, DONTFORK) == "0"
        child = region.agent.fork()
        assert child.load(base) == "SIGSEGV MAPERR"
        assert child.load(other) == "0"
        assert region.agent.load(base) == "0"
        assert len(clients(region.path)) == 3
        assert region.agent.say("madvise", base, SIZE, DOFORK) == "0"
        assert region.agent.fork().load(base) == "0"

    def test_a_child_that_cannot_attach_keeps_no_slot(self, region: File) -> None:
        """Its window is as Linux has it, and nobody knows of it."""
        base = region.attach()
        parent = region.agent
        taken = {int(name) for name in os.listdir(f"/proc/{parent.pid}/fd")}
        free = min(set(range(100)) - taken)
        # The one that is left is for epoll; there is none for a userfaultfd.
        limit = struct.pack("QQ", free + 1, 1024)
        assert parent.call("setrlimit", RLIMIT_NOFILE, limit) == 0
        child = parent.fork()
        assert child.store(base, 2) == "ok"
        assert [client["pid"] for client in clients(region.path)] == [parent.pid]
        assert parent.load(base) == "2"

    def test_while_the_server_is_being_lost(
        self, mount: Mount, agents: Agents, agent_program: Path
    ) -> None:
        """The child must not take what the service thread has half done for done."""
        agent = agents.start([agent_program], running.environment(mount.path, None))
        # Few numbers: a descriptor of ours has one that the program may get, once it is closed.
        agent.call("setrlimit", RLIMIT_NOFILE, struct.pack("QQ", 40, 40))
        fd = agent.call("open", str(mount.path / "r"), os.O_RDWR | os.O_CREAT, 0o600)
        assert agent.call("ftruncate", fd, 512 << 30) == 0
        base = File(agent, fd, 512 << 30).attach()
        assert agent.load(base) == "SIGSEGV MAPERR", "the service thread runs"
        other = agent.thread()
        with TracedThread(agent.tid) as forker:
            agent.tell("fork")
            forker.stop_at(before=SYS_CLONE)
            with TracedThread(int(service_thread(agent.pid).name)) as service:
                mount.kill()
                service.stop_at(before=SYS_FUTEX, after=SYS_CLOSE)
                # If that was the connection, this gets its number.
                opened = other.call("open", "/dev/null", os.O_RDONLY)
                forker.stop_at(after=SYS_CLONE)
        child = agents.accept()
        agent.answer()
        assert child.say("fcntl", opened, F_GETFD) == "0"
        agents.clean()
        mount.start()

    def test_while_the_server_is_away(
        self, mount: Mount, agents: Agents, agent_program: Path
    ) -> None:
        agent = agents.start([agent_program], running.environment(mount.path, None))
        fd = agent.call("open", str(mount.path / "r"), os.O_RDWR | os.O_CREAT, 0o600)
        quantum = 512 << 30
        region = File(agent, fd, quantum)
        assert agent.call("ftruncate", fd, quantum) == 0
        region.map(0, SIZE)
        base = region.attach()
        mount.kill()
        child = agent.fork()
        assert child.store(base, 1) == "ok"
        assert agent.load(base) == "1"
        agents.clean()
        mount.start()

    def test_vfork(self, region: File) -> None:
        base = region.attach()
        assert region.agent.ask("vfork", base + PAGE, 7) == "0"
        assert region.agent.load(base + PAGE) == "7"


class TestExec:
    def test_nothing_of_ours_survives(self, region: File) -> None:
        base = region.attach()
        old = region.agent
        assert hidden(old)
        new = old.exec()
        assert new.pid == old.pid
        assert not hidden(new)
        assert not mapped(new, base)
        assert clients(region.path) == []

    def test_the_new_program_is_preloaded_too(self, region: File) -> None:
        region.attach()
        new = region.agent.exec()
        fd = new.call("open", region.path, os.O_RDWR)
        base = File(new, fd, SIZE).attach()
        assert new.store(base, 1) == "ok"
        assert len(clients(region.path)) == 1

    @pytest.mark.parametrize("how", ["posix_spawn", "system"])
    def test_a_program_beside(self, region: File, how: str) -> None:
        base = region.attach()
        agent = region.agent
        if how == "system":
            assert agent.call("system", "test -e /proc/self && exit 3") == 3 << 8
        else:
            argument = agent.pool + PAGE
            agent.put(argument, b"/bin/true\0")
            agent.put(agent.pool, struct.pack("QQ", argument, 0))
            at = agent.pool + 64
            assert agent.call("posix_spawn", at, "/bin/true", 0, 0, agent.pool, agent.pool + 8) == 0
            (pid,) = struct.unpack("i", agent.get(at, 4))
            assert agent.call("waitpid", pid, at, 0) == pid
            assert agent.get(at, 4) == bytes(4)
        assert agent.store(base, 1) == "ok"
        assert len(clients(region.path)) == 1


class TestThreads:
    def test_all_have_the_attachment(self, region: File) -> None:
        base = region.attach()
        thread = region.agent.thread()
        assert thread.store(base, 1) == "ok"
        assert thread.say("munmap", base, PAGE) == "EINVAL"
        other = thread.call("mmap", 0, SIZE, READ_WRITE, SHARED, region.fd, 0)
        thread.tell("leave")
        assert region.agent.load(other) == "1"
        assert region.agent.say("munmap", other, SIZE) == "0"

    def test_a_child_forked_by_one(self, region: File) -> None:
        base = region.attach()
        region.agent.store(base, 1)
        child = region.agent.thread().fork()
        assert child.load(base) == "1"

    def test_our_own_is_not_the_programs(self, region: File) -> None:
        base = region.attach()
        assert region.agent.load(base) == "0"  # so that it runs, and has its name
        blocked = int(status(service_thread(region.agent.pid), "SigBlk"), 16)
        # All but those that nobody can block, and maybe the two that the C library keeps.
        free = (1 << 64) - 1 & ~blocked
        allowed = {signal.SIGKILL, signal.SIGSTOP, 32, 33}
        assert {number for number in range(1, 65) if free >> (number - 1) & 1} <= allowed


class TestDescriptors:
    def works(self, region: File, base: int) -> bool:
        """Faults are served, children too, and the server knows of us."""
        child = region.agent.fork()
        fine = region.agent.store(base + PAGE, 5) == "ok" and child.load(base + PAGE) == "5"
        known = {region.agent.pid, child.pid} <= {client["pid"] for client in clients(region.path)}
        child.exit()
        return fine and known

    def test_low_numbers_stay_the_programs(self, region: File) -> None:
        region.attach()
        numbers = os.listdir(f"/proc/{region.agent.pid}/fd")
        low = set(map(int, numbers)) - hidden(region.agent)
        assert region.agent.call("dup", region.fd) == max(low) + 1

    def test_close_of_ours(self, region: File) -> None:
        base = region.attach()
        ours = hidden(region.agent)
        for fd in ours:
            assert region.agent.say("close", fd) == "EBADF"
        assert hidden(region.agent) == ours
        assert self.works(region, base)

    def test_of_its_own_they_are_not(self, region: File) -> None:
        region.attach()
        for fd in range(600, 640):
            if fd not in hidden(region.agent):
                assert region.agent.call("dup2", region.fd, fd) == fd
                assert region.agent.call("close", fd) == 0
                assert region.agent.say("close", fd) == "EBADF"

    @pytest.mark.parametrize("call", ["close_range", "closefrom"])
    def test_closing_all(self, region: File, call: str) -> None:
        base = region.attach()
        agent = region.agent
        ours = hidden(agent)
        for fd in (500, 601, 700, 1000):
            assert agent.call("dup2", region.fd, fd) == fd
        ours = hidden(agent) - {500, 601, 700, 1000}
        # From beyond the agent's own socket.
        if call == "close_range":
            assert agent.call("close_range", 500, CLOSE_RANGE_END, 0) == 0
        else:
            agent.result("closefrom", 500)
        assert hidden(agent) == ours
        assert self.works(region, base)

    @pytest.mark.parametrize("flags", [0, UNSHARE, CLOEXEC, UNSHARE | CLOEXEC])
    def test_close_range_around_ours(self, region: File, flags: int) -> None:
        base = region.attach()
        agent = region.agent
        ours = sorted(hidden(agent))
        for first, last in [(ours[0], ours[0]), (ours[0], ours[-1]), (ours[0] - 1, ours[1])]:
            assert agent.call("close_range", first, last, flags) == 0
        assert agent.say("close_range", 9, 8, flags) == "EINVAL"
        assert agent.say("close_range", ours[0], ours[-1], 64) == "EINVAL"
        assert hidden(agent) == set(ours)
        assert self.works(region, base)

    @pytest.mark.parametrize("call", ["dup2", "dup3"])
    def test_the_program_may_have_any_number(self, region: File, call: str) -> None:
        base = region.attach()
        agent = region.agent
        ours = hidden(agent)
        more = (0,) if call == "dup3" else ()
        for fd in ours:
            assert agent.call(call, region.fd, fd, *more) == fd
            assert os.readlink(f"/proc/{agent.pid}/fd/{fd}") == region.path
        assert len(hidden(agent) - ours) == len(ours)
        assert self.works(region, base)
        for fd in ours:  # they belong to the program now
            assert agent.call("close", fd) == 0
        assert len(hidden(agent)) == len(ours)
        assert self.works(region, base)
        with msharefs.open(region.path) as here:  # the server still reaches the process
            here.unmap(0, SIZE)
        assert agent.load(base) == "SIGSEGV MAPERR"
        region.map(0, SIZE)
        assert agent.load(base) == "0"

    def test_from_ours(self, region: File) -> None:
        region.attach()
        for fd in hidden(region.agent):
            assert region.agent.say("dup2", fd, 50) == "EBADF"

    def test_a_program_that_wants_ours_in_a_child_of_vfork(self, region: File) -> None:
        # posix_spawn(3) with a file action: the child shares our memory but not descriptors.
        base = region.attach()
        agent = region.agent
        actions, argument, at = agent.pool + 1024, agent.pool + PAGE, agent.pool + 64
        assert agent.call("posix_spawn_file_actions_init", actions) == 0
        for fd in hidden(agent):
            assert agent.call("posix_spawn_file_actions_adddup2", actions, region.fd, fd) == 0
        agent.put(argument, b"/bin/true\0")
        agent.put(agent.pool, struct.pack("QQ", argument, 0))
        said = agent.call("posix_spawn", at, "/bin/true", actions, 0, agent.pool, agent.pool + 8)
        assert said == 0
        (pid,) = struct.unpack("i", agent.get(at, 4))
        assert agent.call("waitpid", pid, 0, 0) == pid
        assert self.works(region, base)


def test_a_hundred_children_at_once(region: File) -> None:
    base = region.attach()
    children = [region.agent.fork() for _ in range(100)]
    for number, child in enumerate(children):
        child.tell("store", base + number * PAGE, number)
    assert [child.answer() for child in children] == [str(number) for number in range(100)]
    assert len(clients(region.path)) == 101
    for number in range(100):
        assert region.agent.load(base + number * PAGE) == str(number)
    for child in children:
        child.tell("exit", 0)


def test_other_users_may_attach_what_they_may_open(region: File) -> None:
    agent = region.agent
    os.chmod(region.path, 0o666)
    agent.call("setresgid", 65534, 65534, 65534)
    agent.call("setresuid", 65534, 65534, 65534)
    fd = agent.call("open", region.path, os.O_RDWR)
    base = File(agent, fd, SIZE).attach(address=PLACE)
    assert agent.store(base, 1) == "ok"
    assert agent.fork().load(base) == "1"


def test_credentials_may_change_while_attached(region: File) -> None:
    base = region.attach()
    agent = region.agent
    agent.call("setresuid", 65534, 65534, 65534)
    for offset, fork in itertools.product(range(0, 8 * PAGE, PAGE), (False, True)):
        who = agent.fork() if fork else agent
        assert who.store(base + offset, 1) == "ok"
