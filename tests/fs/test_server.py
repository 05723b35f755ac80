"""The server as a process: failing handlers, signals, crashes, and giving everything back."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs

from support.calls import in_child, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

CREATE = os.O_RDWR | os.O_CREAT
SLOW = 0x40047862  # _IOW('x', 98, int): answered late by the server of these tests
WAIT_LIMIT = 10.0

SABOTAGE = """
from msharefs.server import ioctls, tree
import trio

mkdir, ioctl = tree.Tree.mkdir, ioctls.Ioctls.answer

def failing_mkdir(self, parent, name, *rest):
    if name == b"boom":
        raise RuntimeError("boom")
    return mkdir(self, parent, name, *rest)

async def slow_ioctl(self, ident, command, data, flags, tid, user):
    if command == 0x40047862:
        await trio.sleep(data[0] / 10)
        return data[1], b""
    if command == 0x40047861:
        raise ExceptionGroup("two", [ValueError("one"), OSError(5, "two")])
    return await ioctl(self, ident, command, data, flags, tid, user)

tree.Tree.mkdir = failing_mkdir
ioctls.Ioctls.answer = slow_ioctl
"""


def slow(fd: int, tenths: int, result: int) -> int:
    """An ioctl that the sabotaged server answers with `result` after `tenths` of a second."""
    return fcntl.ioctl(fd, SLOW, bytearray([tenths, result, 0, 0]))


@contextlib.contextmanager
def one_waiting(fd: int, tenths: int) -> Iterator[list[int]]:
    """Meanwhile another thread waits in such an ioctl, whose result comes into this list."""
    results: list[int] = []
    waiting = threading.Thread(target=lambda: results.append(slow(fd, tenths, 7)))
    waiting.start()
    yield results
    waiting.join()
    assert results == [7]  # a result is the ioctl's own


def close_dead(fd: int) -> None:
    """Close a descriptor whose server is gone: close(2) may then say ENOTCONN."""
    os.closerange(fd, fd + 1)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_LIMIT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def descriptors(mount: Mount) -> int:
    return len(os.listdir(f"/proc/{mount.pid}/fd"))


@pytest.fixture
def sabotaged(
    mounts: Callable[..., Mount], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mount:
    """A mount whose server has a handler that raises and an ioctl that takes its time."""
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return mounts()


def test_a_handler_that_fails_is_eio_and_the_mount_lives_on(sabotaged: Mount) -> None:
    sabotaged.expect(r"(?s)Traceback.*?RuntimeError: boom")
    sabotaged.expect(r"(?s)Traceback|ExceptionGroup: two")
    with refused(errno.EIO):
        (sabotaged.path / "boom").mkdir()
    fd = os.open(sabotaged.path / "r", CREATE)
    try:
        with refused(errno.EIO):
            fcntl.ioctl(fd, 0x40047861, bytes(4))
    finally:
        os.close(fd)
    (sabotaged.path / "fine").mkdir()
    assert (sabotaged.path / "fine").is_dir()


@pytest.mark.alone
def test_others_are_served_while_one_waits(sabotaged: Mount) -> None:
    fd = os.open(sabotaged.path / "r", CREATE)
    with one_waiting(fd, 5) as results:
        begin = time.monotonic()
        for number in range(20):
            (sabotaged.path / f"d{number}").mkdir()
        assert not results
        assert time.monotonic() - begin < 0.5
    os.close(fd)


def test_bursts_of_ioctls_keep_nobody_waiting(sabotaged: Mount) -> None:
    """They are answered where they are read (native/fuse/fuse_hook.c), in turns with all others."""
    path = sabotaged.path / "r"
    fd = os.open(path, CREATE)
    children: list[int] = []
    try:
        with msharefs.open(path) as region:
            region.truncate(region.stat()["quantum_bytes"])
            region.map(0, 4096)
            for _ in range(3):
                children.append(os.fork())
                if children[-1] == 0:
                    _unmap_a_hole_for_ever(region)
            with one_waiting(fd, 3):
                begin = time.monotonic()
                for number in range(20):
                    (sabotaged.path / f"d{number}").mkdir()
                    region.detach(region.attach())
                assert time.monotonic() - begin < WAIT_LIMIT
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            assert os.WIFSIGNALED(status), "its ioctls went on until then"
        os.close(fd)


def _unmap_a_hole_for_ever(region: msharefs.Region) -> None:
    try:
        while True:
            region.unmap(1 << 20, 4096)
    finally:
        os._exit(1)


def test_who_waits_in_an_ioctl_can_be_killed(sabotaged: Mount) -> None:
    fd = os.open(sabotaged.path / "r", CREATE)
    child = os.fork()
    if child == 0:
        slow(fd, 200, 0)  # 20 s
        os._exit(1)
    wait_until(lambda: "fuse" in _wchan(child) or "request" in _wchan(child))
    begin = time.monotonic()
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert time.monotonic() - begin < 2
    assert slow(fd, 0, 3) == 3
    os.close(fd)


def test_a_signal_that_does_not_kill_does_not_interrupt(sabotaged: Mount) -> None:
    def work() -> tuple[int, list[int]]:
        got: list[int] = []
        signal.signal(signal.SIGALRM, lambda number, _: got.append(number))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        return slow(fd, 4, 9), got

    fd = os.open(sabotaged.path / "r", CREATE)
    assert in_child(work) == (9, [signal.SIGALRM])
    os.close(fd)


def _wchan(pid: int) -> str:
    with open(f"/proc/{pid}/wchan") as file:
        return file.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount_even_with_open_files(mount: Mount, number: signal.Signals) -> None:
    fd = os.open(mount.path / "r", CREATE)
    here = os.open(mount.path, os.O_RDONLY)
    try:
        mount._end(number)  # checks exit status 0
        assert os.listdir(mount.path) == []
        for each in (fd, here):
            with refused(errno.ENOTCONN):
                os.fstat(each)
    finally:
        close_dead(fd)
        close_dead(here)


def test_signal_while_an_ioctl_waits(sabotaged: Mount) -> None:
    fd = os.open(sabotaged.path / "r", CREATE)
    child = os.fork()
    if child == 0:
        try:
            slow(fd, 200, 0)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    wait_until(lambda: "fuse" in _wchan(child) or "request" in _wchan(child))
    sabotaged.stop()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (errno.ENOTCONN, errno.ECONNABORTED)
    close_dead(fd)


def test_crash_and_restart_keep_names_modes_and_sizes(mount: Mount) -> None:
    (mount.path / "d" / "e").mkdir(parents=True)
    (mount.path / "d").chmod(0o2750)
    fd = os.open(mount.path / "d" / "e" / "sized", CREATE, 0o640)
    os.ftruncate(fd, 512 << 30)
    os.close(fd)
    (mount.path / "unsized").touch()
    os.link(mount.path / "unsized", mount.path / "d" / "link")
    os.utime(mount.path / "unsized", ns=(5, 6))

    def look() -> list[tuple[object, ...]]:
        names = ["d", "d/e", "d/e/sized", "unsized", "d/link", "mshare_info"]
        found = (os.stat(mount.path / name) for name in names)
        return [
            (s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_ino, s.st_nlink, s.st_mtime_ns)
            for s in found
        ]

    before = look()
    mount.kill()
    with refused(errno.ENOTCONN):
        os.stat(mount.path)
    mount.start()  # takes the stale mount away
    assert look() == before
    with refused(errno.EINVAL):
        os.truncate(mount.path / "d" / "e" / "sized", 1024 << 30)
    os.truncate(mount.path / "unsized", 512 << 30)


def test_crash_ten_times(mount: Mount) -> None:
    for number in range(10):
        (mount.path / f"r{number}").touch()
        mount.kill()
        mount.start()
    assert len(os.listdir(mount.path)) == 11


@pytest.mark.mount("quantum=2M")
def test_memory_goes_back_when_the_last_use_ends(mount: Mount) -> None:
    objects = mount.state / "regions"
    fd = os.open(mount.path / "r", CREATE)
    os.ftruncate(fd, 2 << 20)
    os.link(mount.path / "r", mount.path / "s")
    assert len(os.listdir(objects)) == 3
    (mount.path / "r").unlink()
    os.close(fd)
    fd = os.open(mount.path / "s", os.O_RDWR)
    (mount.path / "s").unlink()
    assert len(os.listdir(objects)) == 3  # open
    second = os.dup(fd)
    os.close(fd)
    assert len(os.listdir(objects)) == 3
    os.close(second)
    wait_until(lambda: os.listdir(objects) == [])


@pytest.mark.mount("quantum=2M")
def test_a_region_that_a_rename_replaces_goes_too(mount: Mount) -> None:
    for name in ("old", "new"):
        (mount.path / name).touch()
        os.truncate(mount.path / name, 2 << 20)
    (mount.path / "new").rename(mount.path / "old")
    wait_until(lambda: len(os.listdir(mount.state / "regions")) == 3)


@pytest.mark.mount("quantum=2M")
def test_stop_ends_regions_that_only_a_descriptor_kept(mount: Mount) -> None:
    fd = os.open(mount.path / "r", CREATE)
    os.ftruncate(fd, 2 << 20)
    (mount.path / "r").unlink()
    mount.stop()  # `problems` finds anything left in the state directory
    close_dead(fd)


def test_descriptors_of_the_server_come_back(mount: Mount) -> None:
    (mount.path / "warm").touch()
    (mount.path / "warm").unlink()
    before = descriptors(mount)
    for number in range(300):
        fd = os.open(mount.path / f"r{number}", CREATE)
        os.link(mount.path / f"r{number}", mount.path / f"s{number}")
        os.rename(mount.path / f"s{number}", mount.path / f"r{number}x")
        os.unlink(mount.path / f"r{number}")
        os.unlink(mount.path / f"r{number}x")
        os.close(fd)
        os.mkdir(mount.path / "d")
        os.rmdir(mount.path / "d")
    wait_until(lambda: descriptors(mount) <= before)


def test_more_files_than_the_soft_limit_of_descriptors(mounts: Callable[..., Mount]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        mount = mounts()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for number in range(600):
        (mount.path / f"r{number}").touch()
    assert sum(entry.stat().st_nlink for entry in os.scandir(mount.path)) == 601
    before = descriptors(mount)
    assert before > 600
    # The kernel forgets inodes that it need not remember, and finds them again.
    Path("/proc/sys/vm/drop_caches").write_text("2")
    wait_until(lambda: descriptors(mount) < before - 500)
    assert len(os.listdir(mount.path)) == 601
    assert (mount.path / "r7").stat().st_nlink == 1


def test_stacks_on_request(mount: Mount) -> None:
    os.kill(mount.pid, signal.SIGUSR1)
    wait_until(lambda: "most recent call first" in mount.text())
    assert (mount.path / "mshare_info").exists()


def test_the_servers_umask_and_directory_do_not_matter(
    mounts: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    old = os.umask(0o077)
    try:
        mount = mounts()
    finally:
        os.umask(old)
    assert os.readlink(f"/proc/{mount.pid}/cwd") == "/"
    assert in_child(lambda: _made_mode(mount.path / "r"), umask=0) == 0o666
    assert in_child(lambda: _made_mode(mount.path / "s"), umask=0o027) == 0o640


def _made_mode(path: Path) -> int:
    fd = os.open(path, CREATE, 0o666)
    return os.fstat(fd).st_mode & 0o7777


ACTS: list[Callable[[Path, Path], object]] = [
    lambda a, _: os.close(os.open(a, CREATE)),
    lambda a, _: os.mkdir(a),
    lambda a, _: os.unlink(a),
    lambda a, _: os.rmdir(a),
    os.rename,
    os.link,
    lambda a, _: os.stat(a),
    lambda a, _: os.listdir(a.parent),
    lambda a, _: os.close(os.open(a / "x", CREATE)),
    lambda a, _: os.truncate(a, 512 << 30),
]
# The possible answers while others do the same; ESTALE: the name went between two looks.
FINE = {
    errno.EEXIST,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.ESTALE,
}


def storm(directory: Path, seed: int) -> None:
    pick = random.Random(seed)
    for _ in range(400):
        a, b = (directory / f"n{pick.randrange(5)}" for _ in range(2))
        try:
            pick.choice(ACTS)(a, b)
        except OSError as error:
            if error.errno not in FINE:
                raise


@pytest.mark.slow
def test_many_processes_at_once(mount: Mount) -> None:
    """Eight processes make, move, look at and remove the same few names for a while."""
    children = []
    for seed in range(8):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                storm(mount.path, seed)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 8
    # The files that are left must be consistent, and removable.
    for directory, _, files in os.walk(mount.path, topdown=False):
        for name in set(files) - {"mshare_info"}:
            os.unlink(os.path.join(directory, name))
        if directory != str(mount.path):
            os.rmdir(directory)
    wait_until(lambda: os.listdir(mount.state / "regions") == [])
