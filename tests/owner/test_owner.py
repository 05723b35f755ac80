"""Owners: regions end with them, and that is in force for attached processes."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

import msharefs
from msharefs import installed
from msharefs.server import owners

from support import agent
from support.agent import Agent, Agents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Mount

QUANTUM = 2 << 20
RW, SHARED_FIXED_ANON = 3, 0x31
CREATE, UNMAP = 0x40287800, 0x40107801
# If nobody makes a request on the region, the server hears of its owner's end a moment later.
SOON = 5.0


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agent.build(tmp_path_factory.mktemp("agent") / "agent")


@pytest.fixture
def agents(mount: Mount) -> Iterator[Agents]:
    del mount  # they end before it is unmounted
    with Agents() as found:
        yield found


def make(maker: Agent, path: Path) -> None:
    """A sized region, a quantum of memory in it."""
    fd = maker.call("open", str(path), os.O_RDWR | os.O_CREAT, 0o600)
    maker.call("ftruncate", fd, QUANTUM)
    maker.call("ioctl", fd, CREATE, struct.pack("=QQQIIi4x", 0, QUANTUM, 0, RW, 0x31, -1))


def attach(client: Agent, path: Path) -> int:
    """Attaches with the library; returns the address."""
    client.call("dlopen", str(installed.prefix() / "lib" / "libmsharefs.so.1"), 0x102)
    fd = client.call("open", str(path), os.O_RDWR)
    return client.call("mshare_attach", fd, 0, 0, 0, 0)


def look(path: Path) -> dict[str, Any]:
    with msharefs.open(path, os.O_RDONLY) as region:
        return region.stat()


def ends_soon(client: Agent, base: int) -> bool:
    deadline = time.monotonic() + SOON
    while client.load(base) != "SIGSEGV MAPERR":
        if time.monotonic() > deadline:
            return False
    return True


@pytest.fixture
def pair(program: Path, agents: Agents, mount: Mount) -> tuple[Agent, Agent, Path, int]:
    """The maker of a region, a process attached to it that has stored 7, path and address."""
    maker, client = agents.start([program]), agents.start([program])
    path = mount.path / "r"
    make(maker, path)
    base = attach(client, path)
    assert client.store(base, 7) == "ok"
    return maker, client, path, base


@pytest.mark.mount("quantum=2M", "owner=process")
@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_region_ends_with_its_process(pair: tuple[Agent, Agent, Path, int], how: str) -> None:
    maker, client, path, base = pair
    before = look(path)["owner"]
    assert (before["kind"], before["pid"]) == ("process", maker.pid)
    assert before["charged_data_bytes"] == 4096
    assert before["charged_table_bytes"] == look(path)["page_table_bytes"] > 0
    maker.exit(by=how)  # a zombie from now on: nobody waits for it
    after = look(path)
    assert (after["owner"]["kind"], after["owner"]["pid"]) == ("gone", maker.pid)
    assert (after["vmas"], after["rss_bytes"], after["clients"]) == (0, 0, 1)
    assert client.load(base) == "SIGSEGV MAPERR"
    assert client.store(base, 1) == "SIGSEGV MAPERR"
    fd = client.call("open", str(path), os.O_RDWR)
    assert client.result("mshare_attach", fd, 0, 0, 0, 0) == (-1, "EINVAL")
    whole = struct.pack("=QQQIIi4x", 0, QUANTUM, 0, RW, 0x31, -1)
    assert client.say("ioctl", fd, CREATE, whole) == "EINVAL"
    assert client.say("ioctl", fd, UNMAP, struct.pack("=QQ", 0, QUANTUM)) == "0"


@pytest.mark.mount("quantum=2M", "owner=process")
def test_nobody_has_to_ask(pair: tuple[Agent, Agent, Path, int]) -> None:
    maker, client, _, base = pair
    maker.exit(by="kill")
    assert ends_soon(client, base)


@pytest.mark.mount("quantum=2M", "owner=process")
def test_threads_and_exec_of_the_process_do_not_end_it(
    pair: tuple[Agent, Agent, Path, int],
) -> None:
    maker, client, path, base = pair
    second = maker.thread()
    maker.ask("leave")
    assert look(path)["owner"]["kind"] == "process"
    third = second.exec()
    assert third.pid == maker.pid
    assert look(path)["owner"]["kind"] == "process"
    assert client.load(base) == "7"


@pytest.mark.mount("quantum=2M", "owner=process")
def test_children_do_not_inherit_it(pair: tuple[Agent, Agent, Path, int]) -> None:
    maker, client, path, base = pair
    child = maker.fork()
    child.exit()
    assert look(path)["owner"]["kind"] == "process"
    survivor = maker.fork()
    maker.exit()
    assert survivor.call("getpid") == survivor.pid
    assert look(path)["owner"]["kind"] == "gone"
    assert ends_soon(client, base)


@pytest.mark.mount("quantum=2M", "owner=thread")
@pytest.mark.parametrize("end", ["the thread leaves", "the first leaves", "another calls exec"])
def test_the_region_ends_with_its_thread(
    program: Path, agents: Agents, mount: Mount, end: str
) -> None:
    first, client = agents.start([program]), agents.start([program])
    second = first.thread()
    path = mount.path / "r"
    maker = second if end == "the thread leaves" else first
    make(maker, path)
    base = attach(client, path)
    assert client.store(base, 7) == "ok"
    assert look(path)["owner"]["pid"] == maker.tid
    if end == "another calls exec":
        assert second.exec().pid == first.pid
    else:
        maker.ask("leave")
    assert ends_soon(client, base)
    assert look(path)["owner"]["kind"] == "gone"


@pytest.mark.mount("quantum=2M", "owner=thread")
@pytest.mark.parametrize("which", [0, 1])
def test_the_threads_own_exec_keeps_it(
    program: Path, agents: Agents, mount: Mount, which: int
) -> None:
    first, client = agents.start([program]), agents.start([program])
    maker = (first, first.thread())[which]
    path = mount.path / "r"
    make(maker, path)
    base = attach(client, path)
    assert client.store(base, 7) == "ok"
    after = maker.exec()
    assert look(path)["owner"]["kind"] == "thread"
    assert client.load(base) == "7"
    after.exit()
    assert look(path)["owner"]["kind"] == "gone"


@pytest.mark.parametrize("perf", [True, False])
@pytest.mark.parametrize("which", [0, 1])
def test_a_watch_sees_a_thread_leave_while_its_process_goes_on(
    program: Path, monkeypatch: pytest.MonkeyPatch, which: int, perf: bool
) -> None:
    """Without permission for perf events a pidfd must do, and for a first thread regular looks."""

    def forbidden(_watch: owners.Watch, _seconds: float) -> None:
        """There is no event."""

    if not perf:
        monkeypatch.setattr(owners.Watch, "_open_perf", forbidden)
    with Agents() as found:
        first = found.start([program])
        threads = (first, first.thread())
        watched, other = threads[which], threads[1 - which]
        watch = owners.Watch(owners.Owner.of(watched.tid, "thread"))
        assert not watch.gone()
        watched.ask("leave")

        async def wait() -> None:
            with trio.fail_after(SOON):
                await watch.wait()

        trio.run(wait)
        assert watch.gone()
        watch.close()
        assert other.call("getpid") == first.pid


@pytest.mark.mount("quantum=2M", "owner=file")
def test_a_file_outlives_its_maker(pair: tuple[Agent, Agent, Path, int]) -> None:
    maker, client, path, base = pair
    maker.exit()
    owner = look(path)["owner"]
    assert (owner["kind"], owner["pid"]) == ("file", maker.pid)
    assert client.load(base) == "7"


@pytest.mark.mount("quantum=2M", "quirks=v3")
def test_what_v3_lets_pass(pair: tuple[Agent, Agent, Path, int]) -> None:
    maker, client, path, base = pair
    reader = client.call("open", str(path), os.O_RDONLY)
    page = struct.pack("=QQQIIi4x", 4096, 4096, 0, RW, 0x31, -1)
    assert client.say("ioctl", reader, CREATE, page) == "0"
    second = client.call("mshare_attach", reader, 0, 0, 0, 0)
    assert client.store(second + 1, 9) == "ok", "the protection of the attachment is not enforced"
    assert client.load(base + 1) == "9"
    maker.exit()
    assert look(path)["owner"]["kind"] == "gone"
    assert client.load(base) == "SIGSEGV MAPERR"
    assert client.say("ioctl", reader, CREATE, page) == "0", "an orphan can be filled again"
    assert client.store(second + 4096, 5) == "ok"
    assert client.load(base + 4096) == "5"
    assert client.result("mshare_attach", reader, 0, 0, 0, 0) == (-1, "EINVAL")


@pytest.mark.mount("quantum=2M", "owner=process")
def test_owners_are_known_to_the_next_server(program: Path, agents: Agents, mount: Mount) -> None:
    lives, dies, client = (agents.start([program]) for _ in range(3))
    for maker, name in ((lives, "kept"), (dies, "ended")):
        make(maker, mount.path / name)
        maker.call("open", f"{mount.path}/{name}-unsized", os.O_RDWR | os.O_CREAT, 0o600)
    bases = [attach(client, mount.path / name) for name in ("kept", "ended")]
    for base in bases:
        assert client.store(base, 7) == "ok"
    mount.kill()
    dies.exit(by="kill")
    mount.start()
    assert client.load(bases[0]) == "7"
    assert ends_soon(client, bases[1])
    for name in ("kept", "kept-unsized"):
        assert look(mount.path / name)["owner"]["pid"] == lives.pid
    for name in ("ended", "ended-unsized"):
        owner = look(mount.path / name)["owner"]
        assert (owner["kind"], owner["pid"]) == ("gone", dies.pid)
    lives.exit()
    assert ends_soon(client, bases[0])


@pytest.mark.mount("quantum=2M", "owner=process")
def test_a_region_made_by_touch_ends_at_once_and_can_still_be_sized(mount: Mount) -> None:
    path = mount.path / "r"
    subprocess.run(["touch", path], check=True)
    assert look(path)["owner"]["kind"] == "gone"
    os.truncate(path, QUANTUM)
    with msharefs.open(path) as region, pytest.raises(OSError, match="Invalid argument"):
        region.attach()
    assert look(path)["owner"]["kind"] == "gone"


@pytest.mark.mount("quantum=2M", "owner=process")
def test_an_unlinked_region_ends_too_and_leaves_nothing(
    pair: tuple[Agent, Agent, Path, int], mount: Mount
) -> None:
    maker, client, path, base = pair
    path.unlink()
    maker.exit()
    assert ends_soon(client, base)
    client.close()
    deadline = time.monotonic() + 3 * SOON
    while any(mount.state.glob("regions/*")):
        assert time.monotonic() < deadline, list(mount.state.glob("regions/*"))
        time.sleep(0.05)
