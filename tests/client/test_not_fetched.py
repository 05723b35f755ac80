"""A server that may not fetch its clients' descriptors (ptrace rules, Yama): they send them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs

from support.calls import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
PAGE = mmap.PAGESIZE
RW = mmap.PROT_READ | mmap.PROT_WRITE
CREATE = 0x40287800  # MSHAREFS_CREATE_MAPPING
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED


@pytest.fixture
def mount(mounts: Callable[..., Mount]) -> Mount:
    """Its server has a capability less than we have, and so no power over us."""
    mount = mounts("quantum=2M", start=False)
    mount.wrapper = ("setpriv", "--bounding-set", "-sys_ptrace", "--inh-caps", "-sys_ptrace", "--")
    mount.start()
    return mount


def test_attach_and_map_a_file(mount: Mount, actors: Callable[[], Actor], tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.write(file, b"\1" * PAGE)
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(2 << 20)
        with refused(errno.EPERM):
            fcntl.ioctl(region.fd, CREATE, struct.pack("=QQQIII4x", 0, PAGE, 0, RW, FILE, file))
        region.map(0, PAGE, RW, FILE, file)
        actor = actors()
        base = actor.attach(actor.give(region.fd))
        assert actor.call("load", base) == [1]
        assert actor.call("store", base, 2) == []
        assert os.pread(file, 1, 0) == b"\2"
        reader = os.open(tmp_path / "file", os.O_RDONLY)
        with refused(errno.EACCES):
            region.map(PAGE, PAGE, RW, FILE, reader)
        with refused(errno.EINVAL):
            region.map(PAGE, PAGE, RW, FILE, region.fd)
        with refused(errno.EBADF):
            region.map(PAGE, PAGE, RW, FILE, 999)
        os.close(reader)
    os.close(file)
