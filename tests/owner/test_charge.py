"""Pages that the owner of a region pays for, in memory cgroups of our own (-o charge=owner)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import installed, proc, processes, verbs
from msharefs.server import charger

from support import agent as agents_of
from support.agent import Agent, Agents
from support.memcg import Cgroup, cgroups
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = [pytest.mark.mount("quantum=2M", "charge=owner"), pytest.mark.alone]

MIB, PAGE = 1 << 20, 4096
SIZE = 16 * MIB
RW, READ, SHARED_FIXED_ANON = 3, 1, 0x31
NOISE = MIB
"""What a process is charged besides: page tables of its own, and what Linux charges ahead."""
LIBRARY = installed.libdir() / "libmsharefs.so.1"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return agents_of.build(tmp_path_factory.mktemp("agent") / "agent")


@pytest.fixture
def start(program: Path) -> Iterator[Callable[..., Agent]]:
    """Processes with the library, in a cgroup."""
    with Agents() as found:

        def one(where: Cgroup | None = None, **environ: str) -> Agent:
            made = found.start([program], environ)
            if where is not None:
                where.add(made.pid)
            made.call("dlopen", str(LIBRARY), 0x102)
            return made

        yield one


@pytest.fixture
def two() -> Iterator[tuple[Cgroup, Cgroup]]:
    """The owner's cgroup, and that of who touches."""
    with cgroups("owner", "toucher") as (owner, toucher):
        yield owner, toucher


def make(maker: Agent, path: Path, size: int = SIZE) -> int:
    fd = maker.call("open", str(path), os.O_RDWR | os.O_CREAT, 0o666)
    maker.call("ftruncate", fd, size)
    maker.call("mshare_map", fd, 0, size, RW, SHARED_FIXED_ANON, -1, 0)
    return fd


def attach(toucher: Agent, path: Path, mode: int = os.O_RDWR) -> int:
    fd = toucher.call("open", str(path), mode)
    return toucher.call("mshare_attach", fd, 0, 0, 0, 0)


class Grown:
    """How much more the cgroups are charged since it was made."""

    def __init__(self, *cgroups: Cgroup) -> None:
        self._before = [(each, each.usage()) for each in cgroups]

    def check(self, *sizes: int) -> None:
        """Each has grown by about so much."""
        grown = [each.usage() - before for each, before in self._before]
        off = [abs(got - size) for got, size in zip(grown, sizes, strict=True)]
        assert max(off) <= NOISE, grown


def charge_of(path: Path) -> dict[str, object]:
    with msharefs.open(path) as region:
        return dict(region.stat()["charge"])


def write_in_order(toucher: Agent, base: int) -> None:
    toucher.call("memset", base, 1, SIZE)


def write_backwards(toucher: Agent, base: int) -> None:
    """One page at a time. The last ones in order, so that it is as much as with the others."""
    few = SIZE - MIB // 4
    for at in range(SIZE - PAGE, few - PAGE, -PAGE):
        assert toucher.store(base + at, 1) == "ok"
    toucher.call("memset", base, 1, few)


def read(toucher: Agent, base: int) -> None:
    assert toucher.call("memchr", base, 1, SIZE) == 0


def by_system_call(toucher: Agent, base: int) -> None:
    zero = toucher.call("open", "/dev/zero", os.O_RDONLY)
    assert toucher.call("read", zero, base, SIZE) == SIZE


def in_a_child(toucher: Agent, base: int) -> None:
    write_in_order(toucher.fork(), base)


@pytest.mark.parametrize(
    "touch", [write_in_order, write_backwards, read, by_system_call, in_a_child]
)
def test_the_owner_pays_whoever_touches(
    shared_mount: Mount,
    start: Callable[..., Agent],
    two: tuple[Cgroup, Cgroup],
    touch: Callable[[Agent, int], None],
) -> None:
    path = shared_mount.path / touch.__name__
    maker, toucher = start(two[0]), start(two[1])
    make(maker, path)
    base = attach(toucher, path)
    grown = Grown(*two)
    touch(toucher, base)
    grown.check(SIZE, 0)
    assert charge_of(path) == {"to": "owner", "left_bytes": 0, "why": ""}
    with msharefs.open(path) as region:
        assert region.stat()["rss_bytes"] == SIZE
        region.unmap(0, SIZE)
    grown.check(0, 0)


def test_a_reader_and_a_shadow_make_the_owner_pay_too(
    shared_mount: Mount, start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    path = shared_mount.path / "readers"
    make(start(two[0]), path)
    reader, shadowed = start(two[1]), start(two[1], MSHAREFS_CLIENT="shadow")
    base, other = attach(reader, path, os.O_RDONLY), attach(shadowed, path)
    grown = Grown(*two)
    assert reader.call("memchr", base, 1, SIZE // 2) == 0
    grown.check(SIZE // 2, 0)
    shadowed.call("memset", other + SIZE // 2, 1, SIZE // 2)
    grown.check(SIZE, 0)
    assert reader.load(base + SIZE - 1) == "1"


@pytest.mark.parametrize("verb", ["advise", "lock"])
def test_pages_that_a_verb_brings(
    shared_mount: Mount, start: Callable[..., Agent], two: tuple[Cgroup, Cgroup], verb: str
) -> None:
    path = shared_mount.path / verb
    make(start(two[0]), path)
    with msharefs.open(path) as region:
        grown = Grown(*two)
        if verb == "lock":
            region.lock(0, SIZE)
        else:
            region.advise(0, SIZE, verbs.MADV_POPULATE_WRITE)
        grown.check(SIZE, 0)


def test_a_transfer_charges_what_comes_later_to_the_new_owner(
    shared_mount: Mount, start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    path = shared_mount.path / "transfer"
    maker, heir, toucher = start(two[0]), start(two[1]), start()
    make(maker, path)
    base = attach(toucher, path)
    grown = Grown(*two)
    toucher.call("memset", base, 1, SIZE // 2)
    grown.check(SIZE // 2, 0)
    pidfd = os.pidfd_open(heir.pid)
    with msharefs.open(path) as region:
        region.set_owner(pidfd)
    os.close(pidfd)
    until(lambda: two[0].processes() == [maker.pid], "no process of ours is left there")
    toucher.call("memset", base, 1, SIZE)
    grown.check(SIZE // 2, SIZE // 2)


def test_an_owner_that_is_moved(
    shared_mount: Mount, start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    path = shared_mount.path / "moved"
    maker, toucher = start(two[0]), start()
    make(maker, path)
    base = attach(toucher, path)
    grown = Grown(*two)
    toucher.call("memset", base, 1, SIZE // 2)
    two[1].add(maker.pid)
    toucher.call("memset", base, 1, SIZE)
    grown.check(SIZE // 2, SIZE // 2)


def store_until_refused(toucher: Agent, base: int) -> str:
    for at in range(0, SIZE, PAGE):
        said = toucher.store(base + at, 1)
        if said != "ok":
            return said
    return "ok"


@pytest.mark.parametrize("kind", ["file", "process"])
def test_over_the_owners_limit(
    mounts: Callable[..., Mount], start: Callable[..., Agent], two: tuple[Cgroup, Cgroup], kind: str
) -> None:
    """As in v3: the OOM killer takes the owner, and the toucher gets a signal."""
    path = mounts("quantum=2M", "charge=owner", f"owner={kind}").path / "limit"
    maker, toucher = start(two[0]), start(two[1])
    make(maker, path)
    base = attach(toucher, path)
    pidfd = os.pidfd_open(maker.pid)
    two[0].limit(4 * MIB)
    assert store_until_refused(toucher, base) == "SIGSEGV MAPERR"
    assert select.select([pidfd], [], [], 20)[0], "the owner has ended"
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert ended.si_status == signal.SIGKILL
    os.close(pidfd)
    assert toucher.call("getpid") == toucher.pid
    with msharefs.open(path) as region:
        found = region.stat()
    assert found["owner"]["kind"] == ("gone" if kind == "process" else "file")
    assert found["rss_bytes"] <= 4 * MIB
    until(lambda: not two[0].processes(), "no process of ours is left there")


def test_who_pays_when_the_owner_has_ended(
    shared_mount: Mount, start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    path = shared_mount.path / "dead"
    maker, toucher = start(two[0]), start(two[1])
    make(maker, path)
    base = attach(toucher, path)
    assert toucher.store(base, 1) == "ok"
    assert len(two[0].processes()) == 2
    maker.exit()
    until(lambda: not two[0].processes(), "no process of ours is left there")
    grown = Grown(*two)
    toucher.call("memset", base, 1, SIZE)
    grown.check(0, SIZE)
    found = charge_of(path)
    assert found["why"] == "the owner has ended"
    assert found["left_bytes"] == SIZE - PAGE


def chargers(cgroup: Cgroup, *others: Agent) -> list[int]:
    known = {each.pid for each in others}
    return [pid for pid in cgroup.processes() if pid not in known and not processes.is_shadow(pid)]


def test_one_that_is_killed_is_replaced(
    shared_mount: Mount, start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    path = shared_mount.path / "killed"
    maker, toucher = start(two[0]), start(two[1])
    make(maker, path)
    base = attach(toucher, path)
    grown = Grown(*two)
    assert toucher.store(base, 1) == "ok"
    (first,) = chargers(two[0], maker)
    os.kill(first, signal.SIGKILL)
    toucher.call("memset", base, 1, SIZE)
    grown.check(SIZE, 0)
    (second,) = chargers(two[0], maker)
    assert second != first
    assert charge_of(path)["left_bytes"] == 0


def test_one_that_does_not_answer_is_given_up(
    mounts: Callable[..., Mount], start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    mount = mounts("quantum=2M", "charge=owner", seconds={"charger.ANSWER_SECONDS": 0.2})
    path = mount.path / "stopped"
    maker, toucher = start(two[0]), start(two[1])
    make(maker, path)
    base = attach(toucher, path)
    assert toucher.store(base, 1) == "ok"
    for each in chargers(two[0], maker):  # on a slow machine it may have been given up already
        os.kill(each, signal.SIGSTOP)
    assert toucher.store(base + PAGE, 1) == "ok"
    found = charge_of(path)
    assert "does not run: is it frozen?" in str(found["why"])
    assert found["left_bytes"] in (PAGE, 2 * PAGE)
    until(lambda: not chargers(two[0], maker), "it is gone")


def test_one_with_nothing_to_do_ends(
    mounts: Callable[..., Mount], start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    mount = mounts("quantum=2M", "charge=owner", seconds={"charger.IDLE_SECONDS": 0.1})
    maker = start(two[0])
    make(maker, mount.path / "idle")
    base = attach(maker, mount.path / "idle")
    for page in range(2):
        assert maker.store(base + page * PAGE, 1) == "ok"
        until(lambda: not chargers(two[0], maker), "it ends")


def test_an_owner_outside_of_the_servers_cgroup_namespace(
    mounts: Callable[..., Mount], start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    mount = mounts("quantum=2M", "charge=owner", start=False)
    with cgroups("server") as (inside,):
        # The namespace of a process begins where it is when it is made.
        mount.wrapper = ("sh", "-c", f'echo $$ > {inside.path}/cgroup.procs; exec unshare -C "$@"',
                         "sh")  # fmt: skip
        mount.start()
        path = mount.path / "outside"
        maker, toucher = start(two[0]), start(two[1])
        make(maker, path)
        base = attach(toucher, path)
        grown = Grown(*two)
        toucher.call("memset", base, 1, SIZE)
        grown.check(0, SIZE)
        assert "outside of the server's cgroup namespace" in str(charge_of(path)["why"])


def test_the_next_server_goes_on(
    mounts: Callable[..., Mount], start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    mount = mounts("quantum=2M", "charge=owner")
    path = mount.path / "next"
    maker, toucher = start(two[0]), start(two[1])
    make(maker, path)
    base = attach(toucher, path)
    grown = Grown(*two)
    toucher.call("memset", base, 1, SIZE // 2)
    mount.kill()
    until(lambda: not chargers(two[0], maker), "it ends with its server")
    toucher.tell("call", "memset", f"{base}", "1", f"{SIZE}")  # it waits for the next server
    mount.start()
    toucher.answer()
    grown.check(SIZE, 0)


def test_no_memory_is_left_where_a_mapping_goes_meanwhile(
    mounts: Callable[..., Mount], start: Callable[..., Agent], two: tuple[Cgroup, Cgroup]
) -> None:
    mount = mounts("quantum=2M", "charge=owner")
    path = mount.path / "race"
    maker, toucher = start(two[0]), start(two[1])
    fd = make(maker, path)
    base = attach(toucher, path)
    with msharefs.open(path) as region:
        for _ in range(5):
            toucher.tell("call", "memset", f"{base}", "1", f"{SIZE}")
            for _ in range(5):  # each in the place of the one before, so that no access is refused
                maker.call("mshare_map", fd, 0, SIZE, RW, SHARED_FIXED_ANON, -1, 0)
            toucher.answer()
            region.unmap(0, SIZE)
            until(lambda: memory(mount) == 0, "its memory goes back")
            maker.call("mshare_map", fd, 0, SIZE, RW, SHARED_FIXED_ANON, -1, 0)


def memory(mount: Mount) -> int:
    """Bytes of all regions' own memory."""
    files = Path(mount.state).rglob("*.mem")
    return max(file.stat().st_blocks * 512 for file in files)


@contextlib.contextmanager
def unified() -> Iterator[Path]:
    """A cgroup of version 2, whatever controllers it has."""
    found = next((each.directory for each in proc.mounts() if each.fstype == "cgroup2"), None)
    if found is None:
        pytest.skip("no cgroup file system of version 2 is mounted here")
    path = found / f"msharefs-test-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        for each in (path / "inner", path):
            if each.exists():
                each.rmdir()


@pytest.mark.parametrize("kind", ["domain", "threaded"])
def test_a_charger_enters_a_cgroup_of_version_2(kind: str) -> None:
    with unified() as path:
        inner = path / "inner"
        inner.mkdir()
        if kind == "threaded":
            (inner / "cgroup.type").write_text(kind)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            child = subprocess.Popen([installed.charger()], stdin=theirs)
        try:
            events = charger._place(child.pid, inner)
            if events >= 0:
                os.close(events)
            told = Path(f"/proc/{child.pid}/cgroup").read_text().splitlines()[-1]
            assert told.startswith("0::")
            assert told.endswith(f"/{path.name}/inner")
        finally:
            ours.close()
            child.wait()


@pytest.mark.parametrize(
    ("version", "path", "expected"),
    [
        (1, "/a/b", "/c/memory/a/b"),
        (2, "/a b", "/c/unified/a b"),
        (2, "/", "/c/unified"),
        (1, "/outer/in", "/c/memory/outer/in"),
    ],
)
def test_where_a_cgroup_is(
    monkeypatch: pytest.MonkeyPatch, version: int, path: str, expected: str
) -> None:
    mounted(monkeypatch, ("cgroup", "/c/cpu", "/", "cpu"), ("cgroup", "/c/memory", "/", "memory"),
           ("cgroup2", "/c/unified", "/", "rw"))  # fmt: skip
    assert processes.cgroup_directory(version, path.encode()) == Path(expected)


def test_a_part_of_the_cgroups_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, ("cgroup2", "/c", "/container", "rw"))
    assert processes.cgroup_directory(2, b"/container/x") == Path("/c/x")
    with pytest.raises(OSError, match="no cgroup file system that has it is mounted"):
        processes.cgroup_directory(2, b"/other")
    with pytest.raises(OSError, match="no cgroup file system that has it is mounted"):
        processes.cgroup_directory(1, b"/container/x")
    with pytest.raises(OSError, match="outside of the server's cgroup namespace"):
        processes.cgroup_directory(2, b"/../x")


def mounts_line(fstype: str, directory: str, root: str, options: str) -> proc.Mount:
    return proc.Mount(
        directory=Path(directory), fstype=fstype, device=0, uid=0, shared=False, root=Path(root),
        options=frozenset([options]),
    )  # fmt: skip


def mounted(monkeypatch: pytest.MonkeyPatch, *lines: tuple[str, str, str, str]) -> None:
    monkeypatch.setattr(proc, "mounts", lambda: [mounts_line(*line) for line in lines])
