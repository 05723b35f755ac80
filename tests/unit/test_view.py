"""A view of a region: its figures, and that it cannot change anything."""

from __future__ import annotations

import errno
import faulthandler
import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from msharefs.native import lib
from msharefs.server import describe
from msharefs.server import view as view_module
from msharefs.server.hostmm import HostMM
from msharefs.server.objects import Record
from msharefs.server.owners import Owner
from msharefs.server.view import View

from support.calls import refused

if TYPE_CHECKING:
    from collections.abc import Iterator

IDENT = 5
QUANTUM = 2 << 20
SIZE = 4 * QUANTUM
OWNER = Owner(os.getpid(), 1, "/some/group")


@pytest.fixture
def host(public_tmp: Path) -> Iterator[HostMM]:
    """A region with memory at [QUANTUM, 2 * QUANTUM)."""
    made = HostMM.make("r", public_tmp, IDENT, SIZE, QUANTUM, OWNER)
    trio.run(lambda: made.map(QUANTUM, 2 * QUANTUM, lib.VMA_READ))
    yield made
    made.close()


def rights(path: Path) -> list[str]:
    """The rights with which this process has mapped a file."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if line.endswith(f" {path}")]


def test_it_tells_what_is_there(host: HostMM, public_tmp: Path) -> None:
    with View("r", public_tmp, IDENT) as view:
        assert (view.size, view.quantum, view.owner()) == (SIZE, QUANTUM, OWNER)
        assert view.ranges() == [(QUANTUM, 2 * QUANTUM)]
        for look in (describe.maps, describe.pagetable, describe.clients, describe.audit):
            assert look(view) == look(host)
        assert describe.stat(view.stat(), OWNER) == describe.stat(host.stat(), OWNER)


class Unguarded:
    """The core, where nothing can be guarded."""

    def __getattr__(self, name: str) -> Any:
        return (lambda _: -errno.ENOMEM) if name == "guard_add" else getattr(lib, name)


@pytest.mark.usefixtures("host")
def test_it_leaves_nothing_if_it_cannot_be_guarded(
    public_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = public_tmp / f"{IDENT}.mm"
    before = rights(path), os.listdir("/proc/self/fd")
    monkeypatch.setattr(view_module, "lib", Unguarded())
    with refused(errno.ENOMEM):
        View("r", public_tmp, IDENT)
    assert (rights(path), os.listdir("/proc/self/fd")) == before


def test_it_cannot_write(host: HostMM, public_tmp: Path) -> None:
    path = public_tmp / f"{IDENT}.mm"
    assert rights(path) == ["rw-s"]
    with View("r", public_tmp, IDENT) as view:
        assert sorted(rights(path)) == ["r--s", "rw-s"]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(view.fd, b"x", 0)
        child = os.fork()
        if child == 0:
            faulthandler.disable()  # the signal is what we want to see
            lib.mm_end(view.mm)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGSEGV
    assert host.owner() == OWNER


def test_the_file_of_an_object(host: HostMM, public_tmp: Path) -> None:
    del host
    records = public_tmp / f"{IDENT}.objects"
    records.mkdir()
    record = Record("/a", 1, 2, writable=True, page=4096, anonymous=False)
    (records / "1").write_text(json.dumps(asdict(record)))
    (records / "2").write_text("broken")
    with View("r", public_tmp, IDENT) as view:
        assert [view.object_path(number) for number in (1, 2, 3)] == ["/a", "lost", "lost"]


@pytest.mark.parametrize("content", [b"", bytes(4096)])
def test_what_is_no_host_mm_leaves_no_descriptor(public_tmp: Path, content: bytes) -> None:
    (public_tmp / f"{IDENT}.mm").write_bytes(content)
    (public_tmp / f"{IDENT}.mem").touch()
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(OSError, match="its host mm") as caught:
            View("r", public_tmp, IDENT)
        assert caught.value.errno == errno.EUCLEAN
    assert os.listdir("/proc/self/fd") == before
