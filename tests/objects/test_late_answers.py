"""Answers about objects that come late, or not for now: accesses wait, and none ends in SIGBUS."""

from __future__ import annotations

import errno
import mmap
import os
import re
import resource
import select
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.native import lib

from support.actor import PAGE, accerr, adrerr
from support.audit import assert_whole
from support.memory import QUANTUM, RegionMemory
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.actor import Actor
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)
FILE = mmap.MAP_SHARED | 0x10  # MAP_FIXED
RW = mmap.PROT_READ | mmap.PROT_WRITE

# While there is a file "hold", messages OBJECT are sent later: when it is gone.
SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct late {
    int sock;
    size_t bytes;
    char data[512];
};

static const char *path(char text[4096], const char *name)
{
    snprintf(text, 4096, "%s/%s", getenv("SHIM"), name);
    return text;
}

static void *send_late(void *arg)
{
    struct late *late = arg;
    char text[4096];

    while (!access(path(text, "hold"), F_OK))
        usleep(1000);
    if (send(late->sock, late->data, late->bytes, MSG_NOSIGNAL) < 0)
        perror("shim: send");
    close(late->sock);
    free(late);
    return NULL;
}

ssize_t sendmsg(int sock, const struct msghdr *head, int flags)
{
    const struct iovec *part = head->msg_iov;
    char text[4096];
    uint32_t op;

    memcpy(&op, part->iov_base, sizeof op);
    if (op == OBJECT && !access(path(text, "hold"), F_OK)) {
        struct late *late = malloc(sizeof *late);
        pthread_t thread;

        late->sock = fcntl(sock, F_DUPFD_CLOEXEC, 900);
        late->bytes = part->iov_len;
        memcpy(late->data, part->iov_base, part->iov_len);
        if (pthread_create(&thread, NULL, send_late, late))
            abort();
        pthread_detach(thread);
        close(open(path(text, "held"), O_CREAT | O_WRONLY, 0600));
        return (ssize_t)part->iov_len;
    }
    return syscall(SYS_sendmsg, sock, head, flags);
}
"""


class Late:
    """Holds messages back of the processes that are started now."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def hold(self) -> None:
        (self._directory / "hold").touch()

    def is_held(self) -> bool:
        return (self._directory / "held").exists()

    def send(self) -> None:
        (self._directory / "hold").unlink()


@pytest.fixture
def late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Late:
    directory = tmp_path / "shim"
    directory.mkdir()
    (directory / "shim.c").write_text(SHIM)
    library = directory / "shim.so"
    define = f"-DOBJECT={lib.MSG_OBJECT}"
    subprocess.run(
        ["cc", "-shared", "-fPIC", define, "-o", library, directory / "shim.c"], check=True
    )
    monkeypatch.setenv("SHIM", str(directory))
    monkeypatch.setenv("LD_PRELOAD", str(library))
    return Late(directory)


@pytest.fixture
def object_fd(tmp_path: Path) -> Callable[[int], int]:
    """Makes files whose first byte is the given one; they stay open for the test's time."""

    def make(first: int) -> int:
        path = tmp_path / f"object{first}"
        path.write_bytes(bytes([first]) + bytes(64 * PAGE - 1))
        return os.open(path, os.O_RDWR)

    return make


def waits(pid: int) -> bool:
    """A thread of the process is inside a page fault that userfaultfd(2) has not answered."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return any("userfault" in (task / "wchan").read_text() for task in tasks)


def answers(actor: Actor, seconds: float = 0) -> bool:
    return bool(select.select([actor._channel], [], [], seconds)[0])


def test_one_for_reading_only_where_writing_is_permitted_by_then(
    late: Late, actors: Callable[[], Actor], make_region: Callable[..., msharefs.Region],
    object_fd: Callable[[int], int],
) -> None:  # fmt: skip
    """The server looks at a question when nobody may write the file; later everybody may again."""
    region = make_region()
    memory = RegionMemory(actors(), region)
    fd = object_fd(7)
    memory.map_file(0, 64 * PAGE, fd)
    late.hold()
    memory.actor.start("store", memory.base, 1)
    until(late.is_held, "the file is asked for")
    region.protect(0, 64 * PAGE, mmap.PROT_READ)
    late.send()
    assert memory.actor.finish() == accerr(memory.base)
    region.protect(0, 64 * PAGE, RW)
    child = memory.actor.fork()
    child.finish()
    for number, actor in ((2, child), (3, memory.actor)):
        assert actor.call("store", memory.base, number) == []
        assert os.pread(fd, 1, 0) == bytes([number])
    os.close(fd)


def mapped(mount: Mount, *fds: int) -> msharefs.Region:
    """A region with a file in each quantum."""
    region = msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT)
    region.truncate(len(fds) * QUANTUM)
    for number, fd in enumerate(fds):
        region.map(number * QUANTUM, 64 * PAGE, RW, FILE, fd)
    return region


def test_a_server_that_takes_some_only(
    mount: Mount, actors: Callable[[], Actor], object_fd: Callable[[int], int]
) -> None:
    """The next server has room for one attachment: who does not get it waits, as for a server."""
    fd = object_fd(7)
    crowd = [actors(), actors()]
    with mapped(mount, fd) as region:
        bases = [actor.attach(actor.give(region.fd)) for actor in crowd]
    mount.kill()
    mount.options = (*mount.options, "clients=1")
    mount.start()
    for actor, base in zip(crowd, bases, strict=True):
        actor.start("load", base)
    until(lambda: any(map(answers, crowd)), "one of them has come back")
    first, second = crowd if answers(crowd[0]) else crowd[::-1]
    assert first.finish() == [7]
    until(lambda: waits(second.pid) or answers(second), "the other one asks for the file")
    assert not answers(second, 0.5)
    assert first.call("detach", bases[crowd.index(first)]) == []
    assert second.finish() == [7]
    os.close(fd)


def test_a_server_without_room_for_descriptors(
    mount: Mount, actors: Callable[[], Actor], object_fd: Callable[[int], int]
) -> None:
    """It could not open a file when it came, and cannot now, for another reason, which passes."""
    mount.expect(r"(?m)^.* WARNING .*object .*object8 is lost.*\n")
    fds = [object_fd(7), object_fd(8)]
    name = Path(os.readlink(f"/proc/self/fd/{fds[1]}"))
    actor = actors()
    with mapped(mount, *fds) as region:
        base = actor.attach(actor.give(region.fd))
    mount.kill()
    away = name.rename(name.with_name("away"))
    mount.start()
    until(lambda: "object8 is lost" in mount.text(), "the server has looked for it")
    away.rename(name)
    assert actor.call("load", base) == [7]  # it has come back to the server
    before = resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        actor.start("load", base + QUANTUM)
        until(lambda: waits(actor.pid) or answers(actor), "the file is asked for")
        assert not answers(actor, 0.5)
    finally:
        resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, before)
    assert actor.finish() == [8]
    for fd in fds:
        os.close(fd)


def test_a_child_whose_server_dies_before_it_has_read_anything(
    mount: Mount, actors: Callable[[], Actor], object_fd: Callable[[int], int]
) -> None:
    """The child has a slot, and has sent its hello and its question."""
    fd = object_fd(7)
    actor = actors()
    with mapped(mount, fd) as region:
        base = actor.attach(actor.give(region.fd))
    os.kill(mount.pid, signal.SIGSTOP)
    child = actor.fork()
    child.finish()
    child.start("load", base)
    until(lambda: waits(child.pid), "the file is asked for")
    mount.kill()
    mount.start()
    assert child.finish() == [7]
    with msharefs.open(mount.path / "r") as region:
        until(lambda: not mount.check(), "msharefs check finds nothing")
        assert_whole(region)
    os.close(fd)


def test_one_that_was_lost_with_the_last_server(
    mount: Mount, actors: Callable[[], Actor], object_fd: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """An access to it is SIGBUS, until there is a server that finds the file."""
    monkeypatch.setenv("MSHAREFS_DEBUG", "1")
    mount.expect(r"(?m)^.* WARNING .*object .*object7 is lost.*\n")
    fd = object_fd(7)
    name = Path(os.readlink(f"/proc/self/fd/{fd}"))
    actor = actors()
    with mapped(mount, fd) as region:
        base = actor.attach(actor.give(region.fd))
    mount.kill()
    away = name.rename(name.with_name("away"))
    mount.start()
    until(lambda: "object7 is lost" in mount.text(), "the server has looked for it")
    assert actor.call("load", base) == adrerr(base)
    said = f"msharefs: process {actor.pid}: SIGBUS at region offset 0x0, object [0-9]+: "
    assert re.search(f"{said}asking for the file, errno {errno.ENOENT}\n", capfd.readouterr().err)
    away.rename(name)
    mount.kill()
    mount.start()
    until(lambda: actor.call("load", base) == [7], "the access goes through")
    os.close(fd)
