"""Descriptors of objects that are unavailable, or cannot be checked, for a while: none is lost."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
import select
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.actor import PAGE, adrerr
from support.calls import refused
from support.memory import QUANTUM, RegionMemory
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import msharefs

    from support.actor import Actor

# With a shadow they are no descriptors of the program, whose limits do not matter.
pytestmark = [pytest.mark.mount("quantum=2M"), pytest.mark.usefixtures("by_thread")]

# Refuses statx(2) and epoll_ctl(2) EPOLL_CTL_ADD with the errno that a file holds, if there is one.
SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

static int refusal(const char *name)
{
    char path[4096];
    FILE *file;
    int number = 0;

    snprintf(path, sizeof path, "%s/%s", getenv("SHIM"), name);
    file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%d", &number) != 1)
            abort();
        fclose(file);
    }
    return number;
}

static long kernel(long number, const long *arg)
{
    register long r10 __asm__("r10") = arg[3], r8 __asm__("r8") = arg[4], r9 __asm__("r9") = arg[5];
    long result;

    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(arg[0]), "S"(arg[1]), "d"(arg[2]), "r"(r10), "r"(r8),
                       "r"(r9)
                     : "rcx", "r11", "memory");
    if (result >= 0 || result < -4095)
        return result;
    errno = (int)-result;
    return -1;
}

long syscall(long number, ...)
{
    const int refused = number == SYS_statx ? refusal("statx") : 0;
    long arg[6];
    va_list rest;

    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        arg[i] = va_arg(rest, long);
    va_end(rest);
    if (refused) {
        errno = refused;
        return -1;
    }
    return kernel(number, arg);
}

int epoll_ctl(int epoll, int op, int fd, struct epoll_event *event)
{
    const int number = op == EPOLL_CTL_ADD ? refusal("epoll") : 0;

    if (number) {
        errno = number;
        return -1;
    }
    return (int)kernel(SYS_epoll_ctl, (long[6]){epoll, op, fd, (long)event});
}
"""


@pytest.fixture
def region(make_region: Callable[..., msharefs.Region]) -> msharefs.Region:
    return make_region()


class Refused:
    """The errno for the processes that are started now."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def refuse(self, name: str, number: int) -> None:
        new = self._directory / "new"
        new.write_text(str(number))
        new.rename(self._directory / name)

    def allow(self, name: str) -> None:
        (self._directory / name).unlink()


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    directory = tmp_path / "shim"
    directory.mkdir()
    (directory / "shim.c").write_text(SHIM)
    library = directory / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, directory / "shim.c"], check=True)
    monkeypatch.setenv("SHIM", str(directory))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return Refused(directory)


@pytest.fixture
def object_fd(tmp_path: Path) -> Iterator[int]:
    """A file whose page n begins with byte n + 1."""
    fd = os.open(tmp_path / "object", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 64 * PAGE)
    for page in range(64):
        os.pwrite(fd, bytes([page + 1]), page * PAGE)
    yield fd
    os.close(fd)


def waits(actor: Actor) -> bool:
    """Whether a thread is inside a page fault that userfaultfd(2) has not answered."""
    tasks = Path(f"/proc/{actor.pid}/task").iterdir()
    return any("userfault" in (task / "wchan").read_text() for task in tasks)


def answers(actor: Actor, seconds: float) -> bool:
    ready, _, _ = select.select([actor._channel], [], [], seconds)
    return bool(ready)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def held(actor: Actor, fd: int) -> int:
    """The number of descriptors that the process has of the file of our `fd`."""
    name, found = os.readlink(f"/proc/self/fd/{fd}"), 0
    for link in Path(f"/proc/{actor.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(link) == name
    return found


@contextlib.contextmanager
def full(actor: Actor) -> Iterator[None]:
    """The process may open no more descriptors than it has now."""
    before = resource.prlimit(actor.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(actor.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(actor.pid, resource.RLIMIT_NOFILE, before)


def test_one_that_there_was_no_room_for_is_asked_for_again(
    actors: Callable[[], Actor], region: msharefs.Region, object_fd: int
) -> None:
    actor = actors()
    memory = RegionMemory(actor, region)
    memory.map_file(0, 64 * PAGE, object_fd)
    region.map(QUANTUM, PAGE)
    with full(actor):
        actor.start("load", memory.base + 40 * PAGE)
        until(lambda: waits(actor) or answers(actor, 0), "it faults")
        before = cpu_seconds(actor.pid)
        assert not answers(actor, 1), "the thread waits, as for a file system that is slow"
        assert cpu_seconds(actor.pid) - before < 0.3, "without asking all the time"
    assert actor.finish() == [41]
    assert actor.call("load", memory.base) == [1]
    assert held(actor, object_fd) == 1


@pytest.mark.parametrize(
    ("number", "lost"), [(errno.EACCES, True), (errno.ENOMEM, False), (errno.EBADF, False)]
)
def test_one_that_cannot_be_looked_at_is_closed(
    shim: Refused, actors: Callable[[], Actor], region: msharefs.Region, object_fd: int,
    number: int, *, lost: bool,
) -> None:  # fmt: skip
    """EACCES stays; ENOMEM may not, nor does EBADF: the program has closed it."""
    actor = actors()
    memory = RegionMemory(actor, region)
    memory.map_file(0, 64 * PAGE, object_fd)
    shim.refuse("statx", number)
    actor.start("load", memory.base)
    if lost:
        assert actor.finish() == adrerr(memory.base)
    else:
        until(lambda: waits(actor) or answers(actor, 0), "it faults")
        assert not answers(actor, 1)
    assert held(actor, object_fd) == 0
    shim.allow("statx")
    if not lost:
        assert actor.finish() == [1]


def test_letting_go_of_an_object_where_that_cannot_be_watched(
    shim: Refused, actors: Callable[[], Actor], region: msharefs.Region, object_fd: int
) -> None:
    actor = actors()
    memory = RegionMemory(actor, region)
    memory.map_file(0, 64 * PAGE, object_fd)
    assert actor.call("load", memory.base) == [1]
    shim.refuse("epoll", errno.ENOMEM)
    with refused(errno.EBUSY):
        region.map(0, 64 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    shim.allow("epoll")
    assert actor.call("load", memory.base) == [1]
    region.map(0, 64 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE)
    assert actor.call("load", memory.base) == [0]
    assert actor.call("load", memory.base + 40 * PAGE) == [0]
