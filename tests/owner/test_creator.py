"""Regions that end with their creator's last descriptor, those without a name, and new owners."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import msharefs
from msharefs import installed, processes

from support import agent as agents_of
from support.agent import Agent, Agents
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "owner=creator")

QUANTUM = 2 << 20
RW, SHARED_FIXED_ANON = 3, 0x31


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agents_of.build(tmp_path_factory.mktemp("agent") / "agent")


@pytest.fixture
def start(program: Path) -> Iterator[Callable[[], Agent]]:
    """Processes with the library."""
    with Agents() as found:

        def one() -> Agent:
            made = found.start([program])
            made.call("dlopen", str(installed.prefix() / "lib" / "libmsharefs.so.1"), 0x102)
            return made

        yield one


def fill(maker: Agent, fd: int) -> int:
    """A size and memory; attached, with a 7 at its beginning."""
    assert maker.call("ftruncate", fd, QUANTUM) == 0
    assert maker.call("mshare_map", fd, 0, QUANTUM, RW, SHARED_FIXED_ANON, -1, 0) == 0
    base = maker.call("mshare_attach", fd, 0, 0, 0, 0)
    assert maker.store(base, 7) == "ok"
    return base


def make(maker: Agent, path: Path) -> int:
    return maker.call("open", str(path), os.O_RDWR | os.O_CREAT, 0o666)


def create(maker: Agent, mount: Mount) -> int:
    assert maker.call("setenv", "MSHAREFS_MOUNT", str(mount.path), 1) == 0
    return maker.call("mshare_create", 0)


def given(maker: Agent, fd: int) -> msharefs.Region:
    """This process gets the descriptor, as by a socket."""
    return msharefs.Region("given", processes.fetch_descriptor(maker.pid, fd))


def owner(region: msharefs.Region) -> tuple[str, int]:
    found = region.stat()["owner"]
    return found["kind"], found["pid"]


def shown(*arguments: str | Path) -> Any:
    command = [sys.executable, "-m", "msharefs", *map(str, arguments), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


@pytest.fixture(params=["named", "nameless"])
def held(
    request: pytest.FixtureRequest, shared_mount: Mount, start: Callable[[], Agent]
) -> Iterator[tuple[Agent, int, msharefs.Region, memoryview]]:
    """A maker, its descriptor, the region as others have it, and their memory: 7 at first."""
    maker, path = start(), shared_mount.path / "r"
    fd = make(maker, path) if request.param == "named" else create(maker, shared_mount)
    fill(maker, fd)
    region = msharefs.open(path) if request.param == "named" else given(maker, fd)
    view = region.attach()
    yield maker, fd, region, view
    region.close()
    path.unlink(missing_ok=True)


def ends(region: msharefs.Region) -> bool:
    """Every request on the region finds it ended; here nobody has to ask."""
    until(lambda: region.describe("maps") == [], "it is empty")
    return region.stat()["owner"]["kind"] == "gone"


def test_the_last_close_of_the_creator_ends_it(
    held: tuple[Agent, int, msharefs.Region, memoryview],
) -> None:
    maker, fd, region, view = held
    again = maker.call("dup", fd)
    assert maker.call("close", fd) == 0
    assert owner(region) == ("creator", maker.pid)
    assert view[0] == 7
    assert maker.call("close", again) == 0
    assert owner(region) == ("gone", maker.pid)
    assert region.maps() == []
    with pytest.raises(OSError, match="Invalid argument"):
        region.attach()


def test_the_descriptors_of_others_keep_nothing(
    held: tuple[Agent, int, msharefs.Region, memoryview],
) -> None:
    maker, fd, region, _ = held
    child = maker.fork()
    assert child.call("dup", fd) > 0
    assert maker.call("close", fd) == 0
    assert owner(region) == ("gone", maker.pid)


def test_the_close_of_a_child_is_not_the_creators(
    held: tuple[Agent, int, msharefs.Region, memoryview],
) -> None:
    maker, fd, region, view = held
    child = maker.fork()
    assert child.call("close", fd) == 0
    child.exit()
    assert owner(region) == ("creator", maker.pid)
    assert view[0] == 7


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_the_end_of_the_creator_ends_it(
    held: tuple[Agent, int, msharefs.Region, memoryview], how: str
) -> None:
    maker, _, region, _ = held
    maker.exit(by=how)
    assert ends(region)


def test_a_region_without_a_name_is_listed_by_its_number(
    shared_mount: Mount, start: Callable[[], Agent]
) -> None:
    maker = start()
    fd = create(maker, shared_mount)
    fill(maker, fd)
    assert os.listdir(shared_mount.path) == ["mshare_info"]
    with given(maker, fd) as region:
        number = os.fstat(region.fd).st_ino
        assert region.describe("clients")[0]["pid"] == maker.pid
    new = str(shared_mount.path / "name")  # nor can it get one
    assert maker.say("linkat", -100, f"/proc/self/fd/{fd}", -100, new, 0x400) == "ENOENT"
    name = f"(nameless {number})"
    [listed] = shown("ls", "--all", shared_mount.path)["regions"]
    assert (listed["name"], listed["clients"]) == (name, 1)
    [client] = shown("clients", shared_mount.path)["clients"]
    assert (client["region"], client["pid"]) == (name, maker.pid)
    maker.exit()
    until(lambda: not shown("ls", "--all", shared_mount.path)["regions"], "it is gone")


def test_where_it_is_made(
    shared_mount: Mount, mounts: Callable[..., Mount], start: Callable[[], Agent], tmp_path: Path
) -> None:
    maker = start()
    assert maker.result("mshare_create", os.O_NONBLOCK) == (-1, "EINVAL")
    fd = maker.call("mshare_create", os.O_CLOEXEC)  # there is only one mount
    assert maker.call("fcntl", fd, 1) == 1
    other = mounts("quantum=2M")
    assert maker.result("mshare_create", 0) == (-1, "ENODEV")
    with given(maker, create(maker, other)) as region:
        assert owner(region) == ("creator", maker.pid), "whatever the mount says of files"
        assert os.fstat(region.fd).st_dev == other.path.stat().st_dev
    assert shared_mount.path.stat().st_dev != other.path.stat().st_dev
    assert maker.call("setenv", "MSHAREFS_MOUNT", str(tmp_path), 1) == 0
    assert maker.result("mshare_create", 0) == (-1, "ENODEV")
    maker.exit()


def test_in_python(shared_mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSHAREFS_MOUNT", str(shared_mount.path))
    with msharefs.create() as region:
        assert region.path == f"(nameless {os.fstat(region.fd).st_ino})"
        region.truncate(QUANTUM)
        region.map(0, QUANTUM)
        region.attach()[3] = 3
        assert owner(region) == ("creator", os.getpid())
    monkeypatch.setenv("MSHAREFS_MOUNT", "/proc")
    with pytest.raises(OSError, match="no msharefs mount, or more than one"):
        msharefs.create()


# New owners


def hand_over(maker: Agent, fd: int, to: int) -> str:
    pidfd = maker.call("pidfd_open", to, 0)
    try:
        return maker.say("mshare_set_owner", fd, pidfd)
    finally:
        maker.call("close", pidfd)


def test_the_creator_hands_it_over_and_exits(
    held: tuple[Agent, int, msharefs.Region, memoryview], start: Callable[[], Agent]
) -> None:
    """The new one has no descriptor yet: its end counts, and its close only when it has had one."""
    maker, fd, region, view = held
    heir = start()
    assert hand_over(maker, fd, heir.pid) == "0"
    assert owner(region) == ("creator", heir.pid)
    assert maker.call("close", fd) == 0
    maker.exit()
    assert owner(region) == ("creator", heir.pid)
    assert view[0] == 7
    heir.exit()
    assert ends(region)


def test_the_close_of_a_new_owner_counts_when_it_has_it(
    held: tuple[Agent, int, msharefs.Region, memoryview],
) -> None:
    maker, fd, region, _ = held
    child = maker.fork()
    assert hand_over(maker, fd, child.pid) == "0"
    assert maker.call("close", fd) == 0
    assert owner(region) == ("creator", child.pid)
    assert child.call("close", fd) == 0
    assert owner(region) == ("gone", child.pid)


def test_who_may_hand_it_over_and_to_whom(shared_mount: Mount, start: Callable[[], Agent]) -> None:
    maker, stranger, ended = start(), start(), start()
    path = shared_mount.path / "r"
    fd = make(maker, path)
    path.chmod(0o666)
    reads = maker.call("open", str(path), os.O_RDONLY)
    gone = maker.call("pidfd_open", ended.pid, 0)
    ended.exit()
    own = maker.call("pidfd_open", maker.pid, 0)
    assert maker.say("mshare_set_owner", reads, own) == "EACCES"
    assert maker.say("mshare_set_owner", fd, fd) == "EBADF"
    assert maker.say("mshare_set_owner", fd, 4711) == "EBADF"
    assert maker.say("mshare_set_owner", fd, gone) == "ESRCH"
    theirs = stranger.call("open", str(path), os.O_RDWR)
    for each in (stranger, maker):
        assert each.call("setresuid", 1234, 1234, 1234) == 0
        assert each.call("prctl", 4, 1) == 0  # PR_SET_DUMPABLE: as a process that began so
    assert hand_over(stranger, theirs, stranger.pid) == "EPERM"
    with msharefs.open(path) as region:
        assert owner(region) == ("creator", maker.pid), "nothing has changed"
        assert hand_over(maker, fd, stranger.pid) == "0"
        assert owner(region) == ("creator", stranger.pid)
        assert hand_over(maker, fd, maker.pid) == "EPERM"
        pidfd = os.pidfd_open(os.getpid())
        region.set_owner(pidfd)  # root can
        assert owner(region) == ("creator", os.getpid())
        with pytest.raises(OSError, match="that is no pidfd") as caught:
            region.set_owner(0)
        assert caught.value.errno == errno.EBADF
        os.close(pidfd)
    path.unlink()


@pytest.mark.parametrize("rule", ["file", "process", "thread"])
def test_by_every_rule(mounts: Callable[..., Mount], start: Callable[[], Agent], rule: str) -> None:
    mount = mounts("quantum=2M", f"owner={rule}")
    maker, heir, path = start(), start(), mount.path / "r"
    fill(maker, make(maker, path))
    unsized = make(maker, mount.path / "unsized")
    command = [sys.executable, "-m", "msharefs", "owner", str(path), str(heir.pid)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, now = said.splitlines()
    assert f" {maker.pid}, cgroup" in before
    assert f" {heir.pid}, cgroup" in now
    assert hand_over(maker, unsized, heir.pid) == "0"
    maker.exit()
    for name in ("r", "unsized"):
        with msharefs.open(mount.path / name) as region:
            assert owner(region) == (rule, heir.pid)
    heir.exit()
    with msharefs.open(path) as region:
        if rule == "file":
            assert region.maps() != []
        else:
            assert ends(region)
    os.unlink(path)
    os.unlink(mount.path / "unsized")


def test_the_next_server_knows_the_owner(
    mounts: Callable[..., Mount], start: Callable[[], Agent]
) -> None:
    mount = mounts("quantum=2M")
    maker, heir = start(), start()
    fd = create(maker, mount)
    base = fill(maker, fd)
    assert hand_over(maker, fd, heir.pid) == "0"
    mount.kill()
    mount.start()
    [listed] = shown("ls", "--all", mount.path)["regions"]
    assert (listed["owner"]["pid"], listed["clients"]) == (heir.pid, 1)
    assert maker.load(base) == "7"
    heir.exit()
    end = time.monotonic() + 30
    while maker.load(base) != "SIGSEGV MAPERR":
        assert time.monotonic() < end
    maker.exit()
    until(lambda: not shown("ls", "--all", mount.path)["regions"], "it is gone")
