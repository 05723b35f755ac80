"""Whose files are asked whether they are regions, and who waits for the answer."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs.launch import running

from .conftest import ANONYMOUS, PAGE, PLACE, PRIVATE, QUANTUM, READ, SHARED, File, clients
from support import libc, namespace
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.agent import Agent, Agents
    from support.server import Mount

SOURCE = Path(__file__).parents[1] / "programs" / "foreign.c"
NEWNS = 0x20000  # CLONE_*
FIXED = 0x10


@pytest.fixture
def foreign(tmp_path: Path, public_tmp: Path) -> Iterator[tuple[Path, Path]]:
    """A file of another file system in user space, and where its server says what it was asked."""
    program, said, directory = tmp_path / "foreign", tmp_path / "said", public_tmp / "foreign"
    flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", "fuse3"], text=True)
    subprocess.run(
        ["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE,
         *shlex.split(flags)],
        check=True,
    )  # fmt: skip
    directory.mkdir()
    with said.open("w") as out, subprocess.Popen([program, directory], stdout=out) as server:
        try:
            until(lambda: namespace.at(directory), "it is mounted")
            yield directory / "file", said
        finally:
            server.kill()
            libc.umount(directory, libc.MNT_DETACH)


def attach_around(region: File) -> int:
    """Two windows of a region, and plain memory between them: its address."""
    region.attach(address=PLACE)
    region.attach(address=PLACE + 16 * QUANTUM)
    between = PLACE + 8 * QUANTUM
    return region.agent.call(
        "mmap", between, PAGE, READ, PRIVATE | ANONYMOUS | FIXED, -1, 0
    )  # fmt: skip


def test_files_of_others_are_not_asked(region: File, foreign: tuple[Path, Path]) -> None:
    """Their server may hang, and nobody would know why."""
    path, said = foreign
    agent, other, plain = region.agent, region.agent.thread(), attach_around(region)
    fd = agent.call("open", str(path), os.O_RDWR)
    agent.tell("call", "mmap", 0, PAGE, READ, SHARED, fd, 0)
    assert other.call("munmap", plain, PAGE) == 0
    base = int(agent.answer().split("\x1f")[0])
    assert agent.load(base) == "7"
    assert said.read_text() == ""


def test_who_asks_holds_nobody_up(
    mounts: Callable[..., Mount], agents: Agents, agent_program: Path
) -> None:
    mount = mounts("quantum=2M")
    agent = agents.start([agent_program], running.environment(mount.path, None))
    fd = agent.call("open", str(mount.path / "r"), os.O_RDWR | os.O_CREAT, 0o600)
    region = File(agent, fd, 2 * QUANTUM, str(mount.path / "r"))
    assert agent.call("ftruncate", fd, region.size) == 0
    region.map(0, region.size)
    other, plain = agent.thread(), attach_around(region)
    taken = _low(agent)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        agent.tell("call", "mmap", 0, region.size, READ, SHARED, fd, 0)
        until(lambda: _low(agent) != taken, "it asks")
        assert other.call("munmap", plain, PAGE) == 0
        child = other.fork()
        assert child.load(PLACE) == "0"
        # Nothing of what the other thread asks with, which the server's end would not be told of.
        assert _low(child) == taken
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    base = int(agent.answer().split("\x1f")[0])
    assert agent.load(base) == "0"
    pids = sorted(client["pid"] for client in clients(region.path))
    assert pids == sorted([agent.pid] * 3 + [child.pid] * 2)


def _low(agent: Agent) -> set[int]:
    """The descriptors that are not ours: the program's, and what is being asked with."""
    with contextlib.suppress(FileNotFoundError):
        return {int(name) for name in os.listdir(f"/proc/{agent.pid}/fd")} & set(range(100))
    return set()


@pytest.mark.parametrize("how", ["mounted later", "bound", "bound no more", "another namespace"])
def test_files_of_our_mounts_are(
    preloaded: Agent, mounts: Callable[..., Mount], public_tmp: Path, how: str
) -> None:
    mount = mounts("quantum=2M")
    path = mount.path / "r"
    if how.startswith("bound"):
        path = public_tmp / "bound" / "r"
        path.parent.mkdir()
        libc.bind(mount.path, path.parent)
    fd = preloaded.call("open", str(path), os.O_RDWR | os.O_CREAT, 0o600)
    region = File(preloaded, fd, 2 * QUANTUM, str(mount.path / "r"))
    assert preloaded.call("ftruncate", fd, region.size) == 0
    region.map(0, region.size)
    if how == "another namespace":
        preloaded.call("unshare", NEWNS)
    if how == "bound no more":
        libc.umount(path.parent, libc.MNT_DETACH)
    base = region.attach()
    assert preloaded.store(base, 1) == "ok"
    assert [client["kind"] for client in clients(region.path)] == ["preload"]
    preloaded.call("munmap", base, region.size)
    if how == "bound":
        libc.umount(path.parent, libc.MNT_DETACH)
