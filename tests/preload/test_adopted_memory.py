"""Adopted memory needs nobody: what a program may do with its own, and who notices its end."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs import mountpoint
from msharefs.launch import running
from msharefs.server import adopted, describe
from msharefs.server.memory import Memory
from msharefs.server.view import View

from .conftest import ANONYMOUS, PAGE, QUANTUM, READ_WRITE, SHARED
from support.proc import maps
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.agent import Agent, Agents
    from support.server import Mount

SOURCE = Path(__file__).parents[1] / "programs" / "anonymous.c"
FLAGS = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
SIZE = 2 * QUANTUM
ROWS = [
    "guard pages", "populated", "locked ahead", "own userfaultfd", "pages remapped",
    "where asked", "where nothing may be", "an offset", "more than there is", "swept descriptors",
    "one thread", "few descriptors", "bare children", "vfork child", "main ends",
    "strict seccomp", "user namespace",
    "mapped under a filter", "read while stopped", "replaced", "past its end", "without a name",
    "paged out",
]  # fmt: skip
SAID = {"mapped under a filter": "stay plain: the program has a seccomp filter\n"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("anonymous") / "anonymous"
    subprocess.run(["cc", *FLAGS, "-o", made, SOURCE], check=True)
    return made


def test_the_rows_are_those_of_the_program(program: Path) -> None:
    assert subprocess.check_output([program], text=True).splitlines() == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_it_does_what_linux_memory_does(program: Path, shared_mount: Mount, row: str) -> None:
    """Each plain first. Where nothing is said all of it is adopted."""
    for environ in (None, running.environment(shared_mount.path, 1 << 20)):
        done = subprocess.run(
            [program, row], env=environ, timeout=60, capture_output=True, text=True, check=False
        )
        said = SAID.get(row, "") if environ else ""
        assert (done.returncode, done.stdout, done.stderr[-len(said) :]) == (0, "", said)
        assert bool(done.stderr) == bool(said)


def shared(agent: Agent) -> int:
    return agent.call("mmap", 0, SIZE, READ_WRITE, SHARED | ANONYMOUS, -1, 0)


def memories(mount: Mount) -> list[str]:
    return os.listdir(mount.state / "regions")


@pytest.fixture
def start(agents: Agents, agent_program: Path) -> Callable[[Mount], Agent]:
    """Start an agent that adopts on a mount."""
    return lambda mount: agents.start([agent_program], running.environment(mount.path, 1 << 20))


class TestServers:
    def test_the_next_one_finds_it(
        self, mounts: Callable[..., Mount], start: Callable[[Mount], Agent]
    ) -> None:
        mount = mounts("quantum=2M")
        agent = start(mount)
        base = shared(agent)
        agent.store(base, 1)
        mount.kill()
        agent.store(base + PAGE, 1)
        child = agent.fork()
        mount.start()
        assert mountpoint.attached_processes(mount.path) == [agent.pid, child.pid]
        (path,) = (mount.state / "regions").glob("*.mm")
        with View("the region", path.parent, int(path.stem)) as view:
            assert len(describe.adopted(view, [agent.pid, child.pid])) == 2
        agent.exit()
        assert child.load(base + PAGE) == "1"
        assert memories(mount)
        child.exit()
        until(lambda: not memories(mount), "the memory given back")
        mount.stop()

    def test_memory_that_ended_meanwhile_is_gone(
        self, mounts: Callable[..., Mount], start: Callable[[Mount], Agent]
    ) -> None:
        mount = mounts("quantum=2M")
        agent = start(mount)
        shared(agent)
        mount.kill()
        agent.exit()
        mount.start()
        assert not memories(mount)
        mount.stop()

    def test_it_outlives_its_mount(
        self, mounts: Callable[..., Mount], start: Callable[[Mount], Agent]
    ) -> None:
        """As in the kernel, where a mapping keeps memory after umount(2)."""
        mount = mounts("quantum=2M")
        agent = start(mount)
        base = shared(agent)
        agent.store(base, 1)
        mount.stop()
        child = agent.fork()
        assert child.load(base) == "1"
        child.exit()
        agent.exit()
        mount.start()
        until(lambda: not memories(mount), "the memory given back")
        mount.stop()

    def test_one_that_may_not_find_it_says_so(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def refuse(_: Memory) -> int:
            raise PermissionError(errno.EPERM, "only root may")

        before = adopted.Adopted(tmp_path)
        os.close(before.make(7, SIZE))
        (tmp_path / "7.mm").touch()
        monkeypatch.setattr(Memory, "open", refuse)
        after = adopted.Adopted(tmp_path)
        with caplog.at_level(logging.WARNING):
            after.find()
        assert "1 regions of adopted memory cannot be found again" in caplog.text
        assert not list(tmp_path.iterdir())
        before.close()
        after.close()


def test_who_maps_it_is_seen_without_events(tmp_path: Path) -> None:
    """The lease says it, where Linux gives no inotify instance."""
    memory = adopted.Adopted(tmp_path)
    fd = memory.make(7, SIZE)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert memory.used() == [7]
    os.close(fd)
    assert not memory.in_use(7)
    os.close(again)
    memory.forget(7)
    assert not memory.in_use(7)
    memory.close()


def test_nothing_else_is_in_the_process(
    start: Callable[[Mount], Agent], shared_mount: Mount
) -> None:
    agent = start(shared_mount)
    before = set(os.listdir(f"/proc/{agent.pid}/fd"))
    shared(agent)
    assert set(os.listdir(f"/proc/{agent.pid}/fd")) == before
    assert sum(".mem" in each.path for each in maps(agent.pid)) == 1
    assert not any(".mm" in each.path for each in maps(agent.pid))
