"""Clients that unmap parts of their window, or map over them, and the cost for the server.

The parts that are left are protected, exactly; and the number of calls on the client's userfaultfd
depends on the number of those parts and not on the size of the missing ones.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import msharefs

from support import namespace
from support.actor import MAP_FIXED, PAGE, READ_WRITE, Actor, accerr
from support.server import mounting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

SIZE = 32 << 20
PAGES = SIZE // PAGE
HALF, QUARTER = PAGES // 2, PAGES // 4
POISONS = 32  # guard pages that a client remembers
ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED

# Counts the calls on userfaultfds, in the file that COUNT names.
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static unsigned long *count;

__attribute__((constructor)) static void map_count(void)
{
    int fd = open(getenv("COUNT"), O_RDWR | O_CLOEXEC);

    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    void *arg;

    va_start(list, request);
    arg = va_arg(list, void *);
    va_end(list);
    if ((request >> 8 & 0xff) == 0xaa)
        __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
    return (int)syscall(SYS_ioctl, fd, request, arg);
}
"""


class Served(NamedTuple):
    """A mount, and the number of its server's calls on userfaultfds."""

    mount: Mount
    count: int

    def calls(self) -> int:
        number: int = struct.unpack("L", os.pread(self.count, 8, 0))[0]
        return number


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("shim")
    (directory / "shim.c").write_text(SHIM)
    library = directory / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, directory / "shim.c"], check=True)
    (directory / "count").write_bytes(bytes(8))
    count = os.open(directory / "count", os.O_RDONLY)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(dir=namespace.SHM, prefix="test-") as base,
        mounting(Path(base)) as make,
    ):
        patch.setenv("COUNT", str(directory / "count"))
        patch.setenv("LD_PRELOAD", str(library))
        mount = make("quantum=2M", limit=300)
        patch.undo()
        yield Served(mount, count)
    os.close(count)


_names = (f"torn{number}" for number in itertools.count())


@pytest.fixture
def region(served: Served) -> Iterator[msharefs.Region]:
    with msharefs.open(served.mount.path / next(_names), os.O_RDWR | os.O_CREAT) as made:
        made.truncate(SIZE)
        made.map(0, SIZE)
        yield made
    os.unlink(made.path)


class Window:
    """A process that has touched its whole window; and the pages that are left of it."""

    def __init__(self, actor: Actor, region: msharefs.Region, *, filled: bool = False) -> None:
        self.actor = actor
        self.base = actor.attach(actor.give(region.fd))
        if filled:
            assert actor.call("visit", self.base, 0, PAGES, 1, 1, 0) == [0]
        else:
            assert actor.call("stamp", self.base, 0, PAGES, 1) == []
        self.left = {0: PAGES}
        """Start and end of each piece."""
        self.tears = 0

    def _cut(self, start: int, end: int) -> None:
        self.tears += 1
        pieces = {}
        for low, high in self.left.items():
            pieces |= {low: min(high, start)} if low < start else {}
            pieces |= {max(low, end): high} if high > end else {}
        self.left = pieces

    def unmap(self, start: int, end: int) -> None:
        self._cut(start, end)
        self.actor.call("plain-unmap", self.base + start * PAGE, (end - start) * PAGE)

    def cover(self, start: int, end: int, flags: int = ANONYMOUS, fd: int = -1) -> None:
        """Makes another mapping there."""
        self._cut(start, end)
        prot = READ_WRITE if fd < 0 else mmap.PROT_READ
        place = self.base + start * PAGE, (end - start) * PAGE
        self.actor.call("plain-map", *place, prot, flags, fd, 0)

    def samples(self) -> set[int]:
        """Pages that are left: the edges, and some in between."""
        return {
            page
            for low, high in self.left.items()
            for page in (low, high - 1, *range(low, high, 251))
        }

    def stores(self, page: int) -> bool:
        """Whether a store goes through; if not, it is refused as by a read-only mapping."""
        address = self.base + page * PAGE + 8
        answer = self.actor.call("store", address, 1)
        assert answer in ([], accerr(address))
        return not answer


def whole(_: Window) -> None:
    """Nothing is missing."""


def nothing(window: Window) -> None:
    window.unmap(0, PAGES)


def first_half(window: Window) -> None:
    window.unmap(HALF, PAGES)


def second_half(window: Window) -> None:
    window.unmap(0, HALF)


def half_covered(window: Window) -> None:
    window.cover(HALF, PAGES)


def all_covered(window: Window) -> None:
    window.cover(0, PAGES)


def middle_covered(window: Window) -> None:
    window.cover(QUARTER + 1, HALF + QUARTER - 1)


def a_page_at_each_end(window: Window) -> None:
    window.cover(1, HALF)
    window.unmap(HALF, PAGES - 1)


def holes_and_covers(window: Window) -> None:
    for page in range(0, 400, 4):
        window.cover(QUARTER + page, QUARTER + page + 1)
        window.unmap(QUARTER + page + 2, QUARTER + page + 3)
    window.unmap(HALF, PAGES - 3)


def read_only_file(window: Window) -> None:
    """A file that is not open for writing: userfaultfd(2) says EPERM."""
    fd = os.memfd_create("own")
    os.ftruncate(fd, SIZE)
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    window.cover(QUARTER, HALF, mmap.MAP_SHARED | MAP_FIXED, window.actor.give(reader))
    os.close(reader)
    os.close(fd)


TEARS = (
    whole, nothing, first_half, second_half, half_covered, all_covered, middle_covered,
    a_page_at_each_end, holes_and_covers, read_only_file,
)  # fmt: skip


@pytest.mark.parametrize("filled", [False, True], ids=["first", "filled"])
@pytest.mark.parametrize("tear", TEARS)
def test_what_is_left_is_protected(
    served: Served,
    region: msharefs.Region,
    actors: Callable[[], Actor],
    tear: Callable[[Window], None],
    *,
    filled: bool,
) -> None:
    """`filled`: by another process before, so that no page is watched any more."""
    if filled:
        Window(actors(), region)
    window = Window(actors(), region, filled=filled)
    tear(window)
    samples = window.samples()
    before = served.calls()
    region.protect(0, SIZE, mmap.PROT_READ)
    calls = served.calls() - before
    most = 32 + 4 * window.tears
    assert calls <= most, "they go with the number of pieces, not with that of pages"
    assert not any(window.stores(page) for page in samples)
    # Refused pages are guard pages now, which splits mappings.
    before = served.calls()
    region.protect(0, SIZE, READ_WRITE)
    calls = served.calls() - before
    assert calls <= most + 4 * POISONS
    assert all(window.stores(page) for page in samples)
