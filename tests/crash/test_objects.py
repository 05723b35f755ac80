"""A server killed while files are mapped into a region: the next one finds them, or says which not.

The files' descriptors die with it. Processes that have a file mapped go on.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs

from support.actor import Fault
from support.audit import assert_whole
from support.hostview import is_changing, number_of
from support.stopping import go_on, kill, kill_in_a_change, stop
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.actor import Actor
    from support.server import Mount

    Actors = Callable[[], Actor]

pytestmark = pytest.mark.mount("quantum=2M", limit=100)
PAGE = mmap.PAGESIZE
SIZE = 4 << 20
RW = mmap.PROT_READ | mmap.PROT_WRITE
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED
SIGBUS, BUS_ADRERR = 7, 2


@pytest.fixture
def path(mount: Mount) -> Path:
    """An empty region."""
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
    return path


def put(path: Path, fd: int, offset: int = 0) -> None:
    """Maps two pages of a file that begin with 1 and 2, and lets go of the file."""
    os.pwrite(fd, b"\1".ljust(PAGE, b"\0") + b"\2".ljust(PAGE, b"\0"), 0)
    with msharefs.open(path) as region:
        region.map(offset, 2 * PAGE, RW, FILE, fd)
    os.close(fd)


def memfd() -> int:
    return os.memfd_create("mine")


def attach(actor: Actor, path: Path) -> int:
    with msharefs.open(path) as region:
        fd = actor.give(region.fd)
    base = actor.attach(fd)
    actor.call("close", fd)
    return base


def names(path: Path) -> list[str]:
    with msharefs.open(path) as region:
        assert_whole(region)
        return [vma["object"] for vma in region.maps()]


def test_a_file_is_opened_again_by_its_name(
    mount: Mount, path: Path, actors: Actors, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    put(path, os.open(file, os.O_RDWR | os.O_CREAT))
    first = actors()
    base = attach(first, path)
    assert first.call("store", base, 9) == []
    mount.kill()
    assert first.call("load", base) == [9], "it goes on"
    mount.start()
    assert names(path) == [str(file)]
    second = actors()
    view = attach(second, path)
    assert second.call("load", view) == [9]
    assert second.call("load", view + PAGE) == [2]
    assert second.call("store", view + PAGE, 8) == []
    assert first.call("load", base + PAGE) == [8]
    assert file.read_bytes()[PAGE] == 8


def test_memory_without_a_name_comes_back_from_a_process(
    mount: Mount, path: Path, actors: Actors
) -> None:
    put(path, memfd(), 4 * PAGE)
    first = actors()
    base = attach(first, path) + 4 * PAGE
    assert first.call("store", base, 9) == []
    mount.kill()
    mount.start()
    second = actors()
    view = attach(second, path) + 4 * PAGE
    assert second.call("load", view) == [9]
    assert second.call("store", view + PAGE, 8) == []
    assert first.call("load", base + PAGE) == [8]


def test_what_nobody_has_is_lost_and_can_be_replaced(
    mount: Mount, path: Path, actors: Actors
) -> None:
    actor = actors()
    base = attach(actor, path)
    put(path, memfd(), 4 * PAGE)
    mount.kill()
    mount.expect(
        r"(?m)^.* WARNING .*: region \d+: object /memfd:mine \(deleted\) is lost, no attached "
        r"process has it mapped: .*UNMAP it.*\n"
    )
    mount.start()
    assert names(path) == ["/memfd:mine (deleted)"], "it stays mapped"
    lost = base + 4 * PAGE
    assert actor.call("load", lost) == Fault(SIGBUS, BUS_ADRERR, lost)
    with msharefs.open(path) as region:
        region.map(4 * PAGE, PAGE)
    assert actor.call("load", lost) == [0]
    with msharefs.open(path) as region:
        region.unmap(0, SIZE)
    assert not list((mount.state / "regions").glob("*.objects/*"))


def test_another_file_of_that_name_is_not_taken_for_it(
    mount: Mount, path: Path, actors: Actors, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    put(path, os.open(file, os.O_RDWR | os.O_CREAT))
    first = actors()
    base = attach(first, path)
    assert first.call("load", base + PAGE) == [2]
    mount.kill()
    file.rename(tmp_path / "moved")
    file.write_bytes(b"\7" * 2 * PAGE)
    mount.start()
    second = actors()
    view = attach(second, path)
    assert second.call("load", view) == [1], "by way of the first"
    assert second.call("store", view, 5) == []
    assert (tmp_path / "moved").read_bytes()[0] == 5
    assert file.read_bytes()[0] == 7


@pytest.mark.parametrize("change", ["unmap", "map"])
def test_killed_while_objects_are_taken(
    mount: Mount, path: Path, actors: Actors, tmp_path: Path, change: str
) -> None:
    """The next server has to ask the processes again: it cannot finish by itself."""
    put(path, os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT))
    stopped, other = actors(), actors()
    base, view = attach(stopped, path), attach(other, path)
    assert stopped.call("store", base, 9) == []
    assert other.call("load", view) == [9]
    stop(stopped)
    ident = number_of(str(path))
    kill_in_a_change(mount, path, change, 0, PAGE)
    mount.expect(r"(?m)^.* WARNING .*: region \d+: what the server before was changing .*\n")
    mount.start()
    assert is_changing(mount, ident), "it needs the stopped process"
    go_on(stopped)
    until(lambda: not is_changing(mount, ident), "the change is finished")
    for actor, where in ((stopped, base), (other, view)):
        if change == "unmap":
            assert isinstance(actor.call("load", where), Fault)
        else:
            assert actor.call("load", where) == [0], "not the file's 9"
        assert actor.call("load", where + PAGE) == [2]
    with open(tmp_path / "file", "rb") as file:
        assert file.read(1) == b"\x09"


def test_what_a_dead_server_has_replaced_is_forgotten(
    mount: Mount, path: Path, actors: Actors, tmp_path: Path
) -> None:
    """Also if nobody comes back to the next one, and the next change replaces nothing."""
    with msharefs.open(path) as region:
        region.map(4 * PAGE, PAGE)
    put(path, os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT))
    stopped = actors()
    base = attach(stopped, path)
    assert stopped.call("load", base) == [1]
    stop(stopped)
    kill_in_a_change(mount, path, "map", 0, 2 * PAGE)
    kill(stopped)
    mount.expect(r"(?m)^.* WARNING .*: region \d+: what the server before was changing .*\n")
    mount.start()
    with msharefs.open(path) as region:
        region.protect(4 * PAGE, PAGE, mmap.PROT_READ)
    assert names(path) == ["anon", "anon"]
    assert not list((mount.state / "regions").glob("*.objects/*"))
