"""The limits of a mount: what is above them is refused, with the errno that Linux has for it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import msharefs
from msharefs import mountpoint
from msharefs.cli import cli
from msharefs.native import lib

from support import schema
from support.calls import NOBODY, refused
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

SIZE = 4 << 20
PAGE = 4096


@contextlib.contextmanager
def made(mount: Mount, name: str = "r") -> Iterator[msharefs.Region]:
    """A region without memory."""
    with msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        yield region


def limit(mount: Mount, name: str) -> tuple[int, int]:
    """Limit and use."""
    found = mountpoint.limits(mount.path)[name]
    return found["limit"], found["used"]


@pytest.mark.mount("quantum=2M", "regions=2")
def test_regions(mount: Mount) -> None:
    for name in ("a", "b"):
        (mount.path / name).touch()
    with refused(errno.ENOSPC):
        (mount.path / "c").touch()
    assert not (mount.path / "c").exists()
    assert limit(mount, "regions") == (2, 2)
    (mount.path / "a").unlink()
    until(lambda: limit(mount, "regions") == (2, 1), "the kernel has forgotten it")
    (mount.path / "c").touch()


def as_nobody(program: str) -> str:
    """What a program that creates files as another user answers."""
    done = subprocess.run(
        ["python3", "-c", program], user=NOBODY, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


MAKE = """
import os, sys
made = 0
try:
    while made < 99:
        {call}
        made += 1
except OSError as error:
    print(made, error.errno)
"""


@pytest.mark.mount("quantum=2M", "regions=40", "user_regions=7")
def test_regions_of_one_user(mount: Mount) -> None:
    """He cannot use up all; root can, who may make the others', too."""
    touch = MAKE.format(call=f"os.close(os.open(f'{mount.path}/his{{made}}', os.O_CREAT))")
    assert as_nobody(touch) == f"7 {errno.ENOSPC}"
    assert limit(mount, "user_regions") == (7, 7)
    for number in range(33):
        (mount.path / f"root{number}").touch()
    until(lambda: limit(mount, "regions") == (40, 40), "they are counted")
    mount.kill()
    mount.start()
    assert limit(mount, "user_regions") == (7, 7)
    (mount.path / "root0").unlink()
    until(lambda: limit(mount, "regions") == (40, 39), "the kernel has forgotten it")
    assert as_nobody(touch.replace("his", "more")) == f"0 {errno.ENOSPC}"
    (mount.path / "his0").unlink()
    until(lambda: limit(mount, "user_regions") == (7, 6), "the kernel has forgotten it")
    assert as_nobody(touch.replace("his", "more")) == f"1 {errno.ENOSPC}"


def test_a_share_is_a_quarter_of_all(mount: Mount) -> None:
    assert limit(mount, "user_regions") == (limit(mount, "regions")[0] // 4, 0)


@pytest.mark.mount("quantum=2M", limit=120)
def test_names_of_one_user(mounts: Callable[..., Mount]) -> None:
    """Each file and directory in use takes a descriptor of the server's."""
    mount = mounts("quantum=2M", start=False)
    mount.wrapper = ("prlimit", "--nofile=300:300")
    mount.start()
    assert as_nobody(MAKE.format(call=f"os.mkdir(f'{mount.path}/his{{made}}')")) == (
        f"28 {errno.ENOSPC}"
    )
    (mount.path / "roots").mkdir()


@pytest.mark.mount("quantum=2M", "vmas=3")
def test_mappings_of_a_region(mount: Mount) -> None:
    with made(mount) as region, made(mount, "other") as other:
        for page in range(0, 6, 2):
            region.map(page * PAGE, PAGE)
        with refused(errno.ENOMEM):
            region.map(8 * PAGE, PAGE)
        assert len(region.describe("maps")) == 3
        assert limit(mount, "vmas") == (3, 3)
        other.map(0, PAGE)
        region.unmap(0, PAGE)
        region.map(8 * PAGE, PAGE)


@pytest.mark.mount("quantum=2M", "memory=6M")
def test_memory_of_all_regions(mount: Mount) -> None:
    with made(mount) as region, made(mount, "other") as other:
        region.map(0, SIZE)
        with refused(errno.ENOMEM):
            other.map(0, SIZE)
        assert limit(mount, "memory") == (6 << 20, SIZE)
        other.map(0, 2 << 20)
        region.map(0, SIZE)  # in place of what was there: nothing more
        with refused(errno.ENOMEM):
            other.map(2 << 20, PAGE)
        region.unmap(0, 1 << 20)
        other.map(2 << 20, 1 << 20)


@pytest.mark.mount("quantum=2M", "clients=2")
def test_attachments(mount: Mount) -> None:
    with made(mount) as region, made(mount, "other") as other:
        region.attach()
        view = other.attach()
        assert limit(mount, "clients") == (2, 2)
        with refused(errno.EUSERS):
            region.attach()
        other.detach(view)
        region.attach()


@pytest.mark.mount("quantum=2M", "connections=4")
def test_connections_of_a_user(mount: Mount) -> None:
    """Root may have more: a child asks that is another user."""
    with made(mount) as region:
        (mount.path / "r").chmod(0o666)
        child = os.fork()
        if child == 0:
            _connect_as_nobody(region.fd)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == errno.EMFILE
        kept = [_connection(region.fd) for _ in range(6)]
        assert limit(mount, "connections")[0] == 4
        for sock in kept:
            sock.close()


def _connection(fd: int) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        argument = struct.pack("=iI16s108s", theirs.fileno(), 0, b"", b"")
        fcntl.ioctl(fd, lib.MSHAREFS_CONNECT, argument)
    return ours


def _connect_as_nobody(fd: int) -> None:
    """Exits with the errno of the fifth connection."""
    status = 1
    try:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        kept = [_connection(fd) for _ in range(4)]
        status = 2
        kept.append(_connection(fd))
    except OSError as error:
        status = error.errno or 3 if status == 2 else 4
    finally:
        os._exit(status)


@pytest.mark.mount("quantum=2M", "regions=7")
def test_what_stat_of_a_mount_shows(mount: Mount) -> None:
    (mount.path / "a").touch()
    runner = CliRunner()
    shown = runner.invoke(cli, ["stat", "--json", str(mount.path)])
    assert schema.check(json.loads(shown.output))["limits"]["regions"] == {"limit": 7, "used": 1}
    lines = runner.invoke(cli, ["stat", str(mount.path)]).output.splitlines()
    assert [line.split()[:3] for line in lines if line.startswith(("regions", "memory"))] == [
        ["regions", "1", "7"], ["memory", "0", "B"],
    ]  # fmt: skip
    (mount.path / "d").mkdir()
    refused_there = runner.invoke(cli, ["stat", str(mount.path / "d")])
    assert isinstance(refused_there.exception, OSError)
    assert "not the root of a mount" in str(refused_there.exception)
