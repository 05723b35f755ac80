"""A process that stays in the middle of execve(2): Linux tells less of it, and we ask less.

It waits there for an address space that it shares with another process, which keeps that locked.
"""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest
import trio

import msharefs
from msharefs import mountpoint, proc
from msharefs.launch import running
from msharefs.native import lib
from msharefs.server import describe, seen
from msharefs.server.mappings import NativeMappings

from support import byhand, holding, wire
from support.isolated import isolated
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

SECONDS = {"hands.HELD_SECONDS": 0.3, "mappings.SEEN_SECONDS": 0.3}
pytestmark = [
    pytest.mark.mount("quantum=2M", limit=30, seconds=SECONDS),
    pytest.mark.alone,  # other tests read the processes of the machine, too, and would wait
]
SIZE = 2 << 20
DEAD = 0xFFFFFFFF


@pytest.fixture
def executing(mount: Mount, public_tmp: Path) -> Iterator[holding.Executing]:
    with holding.executing(public_tmp, mount.path / "r") as found:
        found.socket.settimeout(byhand.LIMIT)
        yield found


def assert_serves(mount: Mount) -> None:
    """This would wait as long as the server does."""
    with msharefs.open(mount.path / "other", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
    (mount.path / "other").unlink()


def test_everywhere(mount: Mount, executing: holding.Executing, public_tmp: Path) -> None:
    """As a client, as the program of a shadow, as the owner of a region, and who asks for one."""
    with msharefs.open(mount.path / "r") as region, byhand.both_ends(region.fd) as (ours, _):
        pidfd = os.pidfd_open(executing.pid)
        byhand.send(ours, lib.MSG_READY, 0, 1, fds=[pidfd, pidfd])
        assert_serves(mount)
        assert byhand.answer(ours)[0] == -errno.EBUSY
        for op in (lib.MSG_READY, lib.MSG_FORKED):
            byhand.send(executing.socket, op, 0, 1, fds=[pidfd])
        assert_serves(mount)
        assert byhand.answer(executing.socket)[0] == -errno.EBUSY
        assert byhand.answer(executing.socket)[0] == -errno.ENOTSOCK
        os.close(pidfd)

        region.map(0, SIZE)
        region.lock(0, SIZE)
        with open(public_tmp / "object", "w+b") as file:
            file.truncate(SIZE)
            byhand.send(executing.socket, lib.MSG_MAP, 0, SIZE, 3, 0x11, 0, fds=[file.fileno()])
            assert_serves(mount)
            assert byhand.answer(executing.socket)[0] == 0


@pytest.mark.mount("quantum=2M", "owner=thread", limit=30, seconds=SECONDS)
@pytest.mark.usefixtures("executing")
def test_an_owner_that_is_a_thread(mount: Mount) -> None:
    """A new server does not watch it as closely, and starts."""
    mount.kill()
    mount.start()
    assert_serves(mount)
    with msharefs.open(mount.path / "r") as region:
        region.map(0, SIZE)


def test_umount(mount: Mount, executing: holding.Executing) -> None:
    """It says of which process it cannot tell whether it keeps the mount busy."""
    (mount.path / "d").mkdir()
    with subprocess.Popen(["sleep", "60"], cwd=mount.path / "d") as user:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "msharefs", "umount", mount.path],
                capture_output=True, text=True, timeout=byhand.LIMIT, check=False,
            )  # fmt: skip
        finally:
            user.kill()
    (mount.path / "d").rmdir()
    assert done.returncode == 1
    used, _, unseen = done.stderr.partition(", with files open, ")
    assert f"{user.pid} (sleep)" in used
    assert f"{executing.pid} (executing)" in unseen


@pytest.mark.usefixtures("executing")
def test_the_keeper_of_a_private_mount() -> None:
    """It takes the mount away when the program's processes have ended, whatever others do."""
    before = mounted()

    def work(say: Callable[[str], None]) -> None:
        say(str(running.run(["true"], None, None)))

    isolated(work)
    until(lambda: mounted() == before, "the private mount is gone")


def mounted() -> list[Path]:
    return [each.directory for each in proc.mounts() if each.fstype == mountpoint.FSTYPE]


@pytest.mark.usefixtures("executing")
def test_the_name_of_a_server(mount: Mount) -> None:
    mount.kill()
    mount.start()  # with a higher number: it is looked at later
    (found,) = (each for each in proc.mounts() if each.directory == mount.path)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(mountpoint.server_of, found).result(byhand.LIMIT)
    assert f"process {mount.pid} " in said


def test_the_list_of_clients(mount: Mount, executing: holding.Executing) -> None:
    """Whether it has mapped a region cannot be seen, but all others can."""
    path = mount.path / "r"
    with (
        msharefs.open(path) as region,
        open(path, "r+b") as file,
        mmap.mmap(file.fileno(), SIZE),
    ):
        for _ in range(2):  # the second does not wait for it
            kinds = {client["pid"]: client["kind"] for client in region.clients()}
            assert kinds[os.getpid()] == "native"
            assert kinds[executing.pid] == "unseen"
            assert set(kinds.values()) == {"native", "unseen"}
    done = subprocess.run(
        [sys.executable, "-m", "msharefs", "clients", path],
        capture_output=True, text=True, timeout=byhand.LIMIT, check=True,
    )  # fmt: skip
    (row,) = (line for line in done.stdout.splitlines() if str(executing.pid) in line.split())
    assert row.split()[1:3] == ["executing", "unseen"]
    assert "unseen: " in done.stdout


def test_the_dead_beside_it(mount: Mount, executing: holding.Executing) -> None:
    """They are let go of, also those of other pid namespaces. What it may have itself stays."""
    with msharefs.open(mount.path / "r") as region, wire.slots(region) as slots:
        slots.write(3, 1 << 32 | 4711, 1, 1)  # of namespace 1, which no process has
        slots.write(4, DEAD, 1, 2)
        slots.write(5, executing.pid, 0, 3)
        until(lambda: region.stat()["clients"] <= 1, "the dead are let go of")
        assert [client["pid"] for client in region.clients() if client["kind"] == "attached"] == [
            executing.pid
        ]
        slots.write(5, 0, 0, 0)


def test_who_maps_what(executing: holding.Executing, tmp_path: Path) -> None:
    """Of one process it cannot be seen; all others are found at once, and nothing is forgotten."""
    (tmp_path / "f").write_bytes(bytes(SIZE))
    with open(tmp_path / "f", "r+b") as file, mmap.mmap(file.fileno(), SIZE) as mapped:
        mapped[0] = 1
        status = os.fstat(file.fileno())
        found = status.st_dev, status.st_ino
        native = NativeMappings(tmp_path)
        native.mounted(found[0])
        native.mounted(1)
        for _ in range(2):
            assert {os.getpid(), executing.pid} <= trio.run(native.processes_of, *found)
            trio.run(native.forget_unused, 1)
            assert len((tmp_path / "devices").read_text().split()) == 2

        kinds = {row["pid"]: row["kind"] for row in describe.adopters(found, psutil.pids())}
        assert kinds[os.getpid()] == "adopted"
        assert kinds[executing.pid] == "unseen"

        before = {7: [seen.Part(pid, 0, 0, SIZE) for pid in (1, executing.pid)]}
        parts, unseen = seen.parts_of({found: 7}, before)
        assert {os.getpid(), executing.pid} <= {part.pid for part in parts[7]}
        assert 1 not in {part.pid for part in parts[7]}
        assert executing.pid in unseen
        pages, _ = seen.pages_of(parts[7], 0, SIZE)
        assert pages[0] & 1


def test_a_server_that_has_ended(
    mount: Mount, executing: holding.Executing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number is another process's by now."""

    class Answer:
        size = mountpoint.SERVER_STRUCT.size

        @staticmethod
        def unpack(_: bytes) -> tuple[int, int, int]:
            return executing.pid, 1, 0

    monkeypatch.setattr(mountpoint, "SERVER_STRUCT", Answer)
    assert mountpoint.open_server(mount.path).pidfd == -1
