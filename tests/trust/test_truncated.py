"""A client shortens the `.mm` that it was given: its own region is lost, and nothing else."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.native import check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 4 << 20
PAGE = 4096


@pytest.fixture
def regions(mount: Mount) -> Iterator[tuple[msharefs.Region, msharefs.Region]]:
    """Two regions with memory; something will happen to the first."""
    opened = []
    for name in ("victim", "other"):
        region = msharefs.open(mount.path / name, os.O_RDWR | os.O_CREAT)
        region.truncate(SIZE)
        region.map(0, SIZE)
        opened.append(region)
    yield opened[0], opened[1]
    for region in opened:
        with contextlib.suppress(OSError):  # a descriptor of a server that was killed
            region.close()


def shorten(region: msharefs.Region, to: int) -> None:
    """Does what an attached process can do with the descriptor that it gets."""
    sock = check(lib.control_connect(region.fd), "connecting")
    message = ffi.new("struct msg *", {"op": lib.MSG_ATTACH, "arg": [3]})
    fds = ffi.new("int[]", [-1] * lib.MSG_FDS)
    try:
        check(lib.control_call(sock, message, ffi.NULL, 0, fds), "asking for its objects")
        os.ftruncate(fds[0], to)
    finally:
        for fd in (sock, *(fd for fd in fds if fd >= 0)):
            os.close(fd)


LOOKS: dict[str, Callable[[msharefs.Region], object]] = {
    "stat": lambda region: region.stat(),
    "map": lambda region: region.map(0, PAGE),
    "unmap": lambda region: region.unmap(0, PAGE),
    "protect": lambda region: region.protect(0, PAGE, 1),
    "attach": lambda region: region.attach(),
}


@pytest.mark.parametrize("to", [0, PAGE, 64 * PAGE])
@pytest.mark.parametrize("first", LOOKS)
def test_only_that_region_is_lost(
    mount: Mount, regions: tuple[msharefs.Region, msharefs.Region], to: int, first: str
) -> None:
    victim, other = regions
    shorten(victim, to)
    mount.damaged = True
    # The first question finds it out; from then on every answer is the same.
    for look in (LOOKS[first], *LOOKS.values()):
        with pytest.raises(OSError, match=r"\[Errno 117\]"):
            look(victim)
    memory = other.attach()
    memory[:4] = b"fine"
    other.unmap(SIZE - PAGE, PAGE)
    assert other.stat()["rss_bytes"] == PAGE
    other.detach()
    assert sorted(os.listdir(mount.path)) == ["mshare_info", "other", "victim"]
    Path(mount.path, "victim").unlink()


def test_the_others_live_through_a_restart_too(
    mount: Mount, regions: tuple[msharefs.Region, msharefs.Region]
) -> None:
    victim, other = regions
    shorten(victim, 0)
    mount.damaged = True
    with pytest.raises(OSError, match="needs cleaning"):
        victim.unmap(0, PAGE)
    memory = other.attach()
    memory[:4] = b"fine"
    mount.expect(r"(?s)\S+ \S+ ERROR .* cannot be taken over.*needs cleaning\n")
    mount.kill()
    mount.start()
    assert bytes(memory[:4]) == b"fine"
    with msharefs.open(mount.path / "other") as again:
        again.unmap(SIZE - PAGE, PAGE)
    memory.release()
    other.detach()
