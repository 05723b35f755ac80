"""Files whose file system does not answer: their users wait, and nobody else."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs
from msharefs.native import lib

from support import byhand, fakefuse, proc
from support.calls import NOBODY, in_child, refused
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.fakefuse import FakeFuse
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)
PAGE = mmap.PAGESIZE
SIZE = 2 << 20
RW = mmap.PROT_READ | mmap.PROT_WRITE
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED
MANY = 300
PROMPT = 3.0  # seconds: less than the server waits for a file system


@pytest.fixture
def fuse(public_tmp: Path) -> Iterator[FakeFuse]:
    """A file system that can be made to hang."""
    with fakefuse.mounted(public_tmp / "fuse") as made:
        yield made


@pytest.fixture
def region(mount: Mount) -> Iterator[msharefs.Region]:
    """An empty region."""
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as opened:
        opened.truncate(SIZE)
        yield opened


def map_a_file(mount: Mount) -> float:
    """Maps a file into a region of its own; how many seconds that took."""
    before = time.monotonic()
    name = mount.path / f"other{os.getpid()}"
    fd = os.memfd_create("other")
    os.truncate(fd, PAGE)
    with msharefs.open(name, os.O_RDWR | os.O_CREAT) as other:
        other.truncate(SIZE)
        other.map(0, PAGE, RW, FILE, fd)
    name.unlink()
    os.close(fd)
    return time.monotonic() - before


def close(fd: int) -> None:
    """close(2) of a file whose file system is gone."""
    with contextlib.suppress(OSError):
        os.close(fd)


@contextlib.contextmanager
def many_maps(region: msharefs.Region, fd: int) -> Iterator[None]:
    """As many connections ask to have a file mapped as no server has threads for."""
    with contextlib.ExitStack() as stack:
        for _ in range(MANY):
            ours, theirs = stack.enter_context(byhand.both_ends(region.fd))
            theirs.close()
            byhand.send(ours, lib.MSG_MAP, 0, PAGE, RW, FILE, 0, fds=[fd])
        yield


@pytest.mark.parametrize("silent", [fakefuse.GETATTR, fakefuse.STATFS])
def test_many_who_ask_for_it(
    mount: Mount, region: msharefs.Region, fuse: FakeFuse, silent: int
) -> None:
    fd = os.open(fuse.file, os.O_RDWR)
    fuse.silent = {silent}
    with many_maps(region, fd):
        until(lambda: fuse.asked.count(silent) > 1, "it is asked")
        assert map_a_file(mount) < PROMPT
        assert in_child(lambda: map_a_file(mount), uid=NOBODY, gid=NOBODY) < PROMPT
        with refused(errno.ETIMEDOUT):  # the same file system
            region.map(0, PAGE, RW, FILE, fd)
        assert map_a_file(mount) < PROMPT
        fuse.abort()
    close(fd)


@pytest.mark.mount("quantum=2M", seconds={"descriptors.ANSWER_SECONDS": 60})
def test_who_asked_has_been_killed_meanwhile(
    mount: Mount, region: msharefs.Region, fuse: FakeFuse
) -> None:
    """What others do after that comes after it: nothing takes effect late."""
    fd = os.open(fuse.file, os.O_RDWR)
    fuse.silent = {fakefuse.STATFS}
    caller = os.fork()
    if not caller:
        region.map(0, PAGE, RW, FILE, fd)
        os._exit(1)
    until(lambda: fakefuse.STATFS in fuse.asked, "its file is looked at")
    os.kill(caller, signal.SIGKILL)
    _, status = os.waitpid(caller, 0)
    assert os.WIFSIGNALED(status)
    os.close(fd)
    region.map(0, PAGE)
    fuse.go_on()
    until(lambda: str(fuse.file) not in proc.open_files(mount.pid), "the server is done with it")
    assert [vma["object"] for vma in region.maps()] == ["anon"]


TOUCHER = """
import sys, msharefs
with msharefs.open(sys.argv[1]) as region:
    view = region.attach()
    print("attached", flush=True)
    sys.stdin.readline()
    print(view[0], flush=True)
    view.release()
"""


@pytest.mark.mount("quantum=2M", seconds={"descriptors.ANSWER_SECONDS": 0.2})
def test_an_access_after_a_restart(mount: Mount, region: msharefs.Region, fuse: FakeFuse) -> None:
    """It waits for the file system, as a plain mapping's does, and is no SIGBUS."""
    fd = os.open(fuse.file, os.O_RDWR)
    region.map(0, PAGE, RW, FILE, fd)
    os.close(fd)
    with subprocess.Popen(
        [sys.executable, "-c", TOUCHER, region.path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as toucher:  # fmt: skip
        assert toucher.stdin
        assert toucher.stdout
        assert toucher.stdout.readline() == "attached\n"
        mount.kill()
        fuse.silent = {fakefuse.LOOKUP, fakefuse.GETATTR, fakefuse.OPEN}
        mount.start()
        refusals = mount.text().count("its file system does not answer")
        toucher.stdin.write("now\n")
        toucher.stdin.flush()
        until(
            lambda: mount.text().count("its file system does not answer") > refusals + 1,
            "the server has been asked, and asked again",
        )
        assert toucher.poll() is None
        fuse.go_on()
        assert toucher.stdout.readline() == "0\n"


def test_closing_many(mount: Mount, region: msharefs.Region, fuse: FakeFuse) -> None:
    """close(2) asks it, too, and has no other way."""
    mount.expect(r"(?m)^.* WARNING .*closing a file of user 0.*\n")
    fd = os.open(fuse.file, os.O_RDWR)
    fuse.silent = {fakefuse.FLUSH}
    with many_maps(region, fd):
        until(lambda: fakefuse.FLUSH in fuse.asked, "one is closed")
        assert map_a_file(mount) < PROMPT
        region.map(PAGE, PAGE)
        until(lambda: "closing a file" in mount.text(), "the server gives up")
        assert map_a_file(mount) < PROMPT
        fuse.abort()
    close(fd)


def test_the_server_has_no_mapping_of_it(
    mount: Mount, region: msharefs.Region, fuse: FakeFuse
) -> None:
    """Linux would write it back in munmap(2), with the lock of the server's memory held."""
    fd = os.open(fuse.file, os.O_RDONLY)
    with refused(errno.EACCES):
        region.map(0, PAGE, RW, FILE, fd)
    region.map(0, PAGE, mmap.PROT_READ, FILE, fd)
    with refused(errno.EACCES):
        region.protect(0, PAGE, RW)
    assert [vma["object"] for vma in region.maps()] == [str(fuse.file)]
    assert str(fuse.file) not in Path(f"/proc/{mount.pid}/maps").read_text()
    region.unmap(0, PAGE)
    os.close(fd)
