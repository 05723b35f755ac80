"""A client may write what a host mm says of its owner. The server that comes next has a record."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import processes
from msharefs.native import lib

from support.hostview import host_mm, number_of

if TYPE_CHECKING:
    from support.server import Mount

SIZE = 2 << 20


@pytest.mark.mount("quantum=2M", "owner=process")
def test_it_is_not_asked_after_a_restart(mount: Mount) -> None:
    other = os.getppid()
    with msharefs.open(str(mount.path / "r"), os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        before, ident = region.stat()["owner"], number_of(region.path)
        assert (before["pid"], before["kind"]) == (os.getpid(), "process")
    with host_mm(mount, ident) as mm:
        start = processes.start_time(other)
        lib.mm_set_owner(mm, other, start, b"/elsewhere", lib.OWNER_CREATOR)
    mount.kill()
    mount.start()
    with msharefs.open(str(mount.path / "r")) as region:
        assert region.stat()["owner"] == before


@pytest.mark.mount("quantum=2M", "owner=process")
def test_one_whose_record_is_lost_is_nobodys(mount: Mount) -> None:
    with msharefs.open(str(mount.path / "r"), os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        ident = number_of(region.path)
    mount.kill()
    (mount.state / "regions" / f"{ident}.owner").unlink()
    mount.expect(r"(?m)^.* WARNING .*the record of who owns region \d+ is lost.*\n")
    mount.start()
    with msharefs.open(str(mount.path / "r")) as region:
        assert (region.stat()["owner"]["pid"], region.stat()["owner"]["kind"]) == (0, "file")
