"""Files that were mapped when the server died: the next one opens those very files, or nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import select
import time
from typing import TYPE_CHECKING, Any

import pytest

import msharefs
from msharefs import verbs
from msharefs.cli import check
from msharefs.native import lib

from support import byhand, fakefuse
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)
PAGE = mmap.PAGESIZE
SIZE = 2 << 20
READ = mmap.PROT_READ
RW = mmap.PROT_READ | mmap.PROT_WRITE
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED
LOST = r"(?m)^.* WARNING .*: region \d+: object .* is lost, .*\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a file is mapped that its owner may replace."""
    (tmp_path / "own").mkdir()
    return tmp_path / "own" / "file"


def put(mount: Mount, path: Path, flags: int = os.O_RDWR | os.O_CREAT, prot: int = RW) -> None:
    """Maps the file of that name into a new region."""
    fd = os.open(path, flags)
    if flags & os.O_CREAT:
        os.truncate(fd, PAGE)
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, PAGE, prot, FILE, fd)
    os.close(fd)


def record(mount: Mount) -> Path:
    """The file that tells the next server of the object."""
    (found,) = records(mount)
    return found


def records(mount: Mount) -> list[Path]:
    return list((mount.state / "regions").glob("*.objects/*"))


def change(mount: Mount, **fields: Any) -> None:
    """Changes the record."""
    known = json.loads(record(mount).read_text())
    record(mount).write_text(json.dumps(known | fields))


def ask(mount: Mount) -> tuple[int, list[int]]:
    """What a client gets that asks for the object."""
    number = int(record(mount).name)
    with (
        msharefs.open(mount.path / "r") as region,
        byhand.both_ends(region.fd) as (ours, _),
    ):
        return byhand.call(ours, lib.MSG_OBJECT, number)


def assert_lost(mount: Mount) -> None:
    """A client does not get it, and `check` says so as long as it is mapped."""
    assert ask(mount) == (-errno.ESTALE, [])
    found, _ = check.check_region(str(mount.path / "r"), repair=False)
    assert "to touch it is SIGBUS" in found[0]["sentence"]
    mount.damaged = True


def test_it_is_found_again(mount: Mount, path: Path) -> None:
    put(mount, path)
    mount.kill()
    mount.start()
    result, (fd,) = ask(mount)
    assert result == 0
    assert os.path.sameopenfile(fd, os.open(path, os.O_PATH))
    os.close(fd)


def test_another_file_with_the_same_number(mount: Mount, path: Path) -> None:
    """Numbers come again when their file is gone, here at once."""
    mount.expect(LOST)
    put(mount, path)
    mount.kill()
    path.unlink()
    path.write_text("a secret")
    change(mount, inode=path.stat().st_ino, device=path.stat().st_dev)
    mount.start()
    assert_lost(mount)


def fifo(path: Path) -> Callable[[], bool]:
    """A fifo of that name; the function tells whether somebody has opened it for writing."""
    os.mkfifo(path)
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(end, select.POLLIN | select.POLLHUP)
    return lambda: bool(poll.poll(0))


@pytest.mark.parametrize("kind", ["fifo", "link", "link on the way", "device", "socket"])
def test_nothing_else_is_opened(mount: Mount, path: Path, tmp_path: Path, kind: str) -> None:
    mount.expect(LOST)
    put(mount, path)
    mount.kill()
    was_opened = None
    if kind == "link on the way":
        path.parent.rename(tmp_path / "moved")
        path.parent.symlink_to(tmp_path / "moved")
    else:
        path.rename(tmp_path / "moved")
    if kind == "fifo":
        was_opened = fifo(path)
    elif kind == "link":
        path.symlink_to(tmp_path / "moved")
    elif kind == "device":
        os.mknod(path, 0o20666, os.makedev(1, 3))
    elif kind == "socket":
        os.mknod(path, 0o140666)
    if kind in ("fifo", "device", "socket"):  # whatever its number is
        change(mount, inode=path.stat().st_ino)
    mount.start()
    until(lambda: " is lost, " in mount.text(), "the server has looked for it")
    assert_lost(mount)
    assert was_opened is None or not was_opened()


def test_it_is_opened_with_the_rights_it_had(mount: Mount, path: Path) -> None:
    """Root may open it for writing; who mapped it could not."""
    path.write_bytes(bytes(PAGE))
    put(mount, path, os.O_RDONLY, READ)
    mount.kill()
    mount.start()
    result, (fd,) = ask(mount)
    assert result == 0
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    os.close(fd)


def test_a_record_of_an_older_version(mount: Mount, path: Path) -> None:
    mount.expect(r"(?m)^.* INFO .*was recorded by an older version.*\n")
    mount.expect(LOST)
    put(mount, path)
    mount.kill()
    old = {"path", "device", "inode", "writable", "page", "anonymous"}
    known = json.loads(record(mount).read_text())
    record(mount).write_text(json.dumps({name: known[name] for name in old}))
    mount.start()
    assert_lost(mount)
    with msharefs.open(mount.path / "r") as region:
        assert [vma["object"] for vma in region.maps()] == [str(path)]
        region.unmap(0, PAGE)
    assert not list((mount.state / "regions").glob("*.objects/*"))


def test_a_record_that_is_none(mount: Mount, path: Path) -> None:
    mount.expect(r"(?m)^.* WARNING .* is no record of an object\n")
    put(mount, path)
    mount.kill()
    record(mount).write_text("[")
    number = record(mount).name
    mount.start()
    assert_lost(mount)
    with msharefs.open(mount.path / "r") as region:
        region.unmap(0, PAGE)
    found, left = check.check_region(str(mount.path / "r"), repair=True)
    assert [each["sentence"] for each in found] == [f"{number} is no record of an object"]
    assert left == []


def test_files_that_do_not_answer_do_not_keep_the_server_from_starting(
    mount: Mount, path: Path, tmp_path: Path
) -> None:
    mount.expect(LOST)
    with fakefuse.mounted(tmp_path / "fuse") as fuse:
        put(mount, path)
        with msharefs.open(mount.path / "r") as region:
            for page in range(1, 40):
                fd = os.open(fuse.file, os.O_RDWR)
                region.map(page * PAGE, PAGE, RW, FILE, fd)
                os.close(fd)
        mount.kill()
        fuse.silent = {fakefuse.LOOKUP}
        before = time.monotonic()
        mount.start()
        (known,) = (each for each in records(mount) if f'"{path}"' in each.read_text())
        with (
            msharefs.open(mount.path / "r") as region,
            byhand.both_ends(region.fd) as (ours, _),
        ):
            result, fds = byhand.call(ours, lib.MSG_OBJECT, int(known.name))
        assert result == 0
        assert time.monotonic() - before < 5, "as long as one of them takes"
        for fd in fds:
            os.close(fd)
        until(lambda: " is lost, " in mount.text(), "they are given up", limit=60)
