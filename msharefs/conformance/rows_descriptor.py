"""Calls on a region's descriptor that are not about its size or its memory."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import reasons
from .stage import CREATE, PAGE, READ, SHARED, UNKNOWN, File, Q, create_bytes
from .table import Table

if TYPE_CHECKING:
    from .reasons import Reason
    from .stage import Stage

F_SETLK, F_SETLEASE, FIONREAD, FIBMAP = 6, 1024, 0x541B, 1
LOCK_EX, LOCK_NB = 2, 4


def fibmap(file: File) -> str:
    file.agent.put(file.agent.pool, bytes(4))
    return file.say("ioctl", FIBMAP, file.agent.pool)


def sized_later(stage: Stage) -> File:
    """A descriptor from before the region was sized, by another one."""
    before = stage.unsized()
    stage.open().size_to(Q)
    return before


Make = Callable[["Stage"], File]


def readv(file: File) -> str:
    pool = file.agent.pool
    file.agent.put(pool, struct.pack("=QQ", pool + 64, 8))
    return file.say("readv", pool, 1)


def output(file: File) -> int:
    """A file on another file system."""
    return file.agent.call("memfd_create", "output", 0)


def splice(file: File, *, into: bool) -> str:
    agent = file.agent
    agent.call("pipe", agent.pool)
    reader, writer = struct.unpack("=ii", agent.get(agent.pool, 8))
    agent.call("write", writer, "data", 4)
    if into:
        return agent.say("splice", reader, 0, file.fd, 0, 4, 0)
    return agent.say("splice", file.fd, 0, writer, 0, 4, 0)


def copy_range(file: File) -> str:
    answer = file.agent.say("copy_file_range", file.fd, 0, output(file), 0, 100, 0)
    return "EXDEV or EINVAL" if answer in ("EXDEV", "EINVAL") else answer


def polled(file: File) -> str:
    agent = file.agent
    both = select.POLLIN | select.POLLOUT
    agent.put(agent.pool, struct.pack("=ihh", file.fd, both, 0))
    agent.call("poll", agent.pool, 1, 0)
    return hex(struct.unpack("=ihh", agent.get(agent.pool, 8))[2])


def posix_lock(file: File) -> str:
    lock = struct.pack("=hhxxxxqqixxxx", 1, 0, 0, 0, 0)  # F_WRLCK over all of it
    return file.say("fcntl", F_SETLK, lock)


def second_flock(stage: Stage, file: File) -> str:
    assert file.say("flock", LOCK_EX) == "0"
    return file.by(stage.process()).say("flock", LOCK_EX | LOCK_NB)


def lease(stage: Stage, file: File) -> str:
    file.call("close")
    return stage.open(flags=os.O_RDONLY).say("fcntl", F_SETLEASE, 0)  # F_RDLCK


def fionread(file: File) -> str:
    agent = file.agent
    agent.put(agent.pool, bytes([255] * 4))
    answer = file.say("ioctl", FIONREAD, agent.pool)
    return f"{answer}: {int.from_bytes(agent.get(agent.pool, 4), 'little')}"


def path_only(stage: Stage) -> File:
    stage.region()
    return stage.open(flags=os.O_PATH)


def descriptor(kind: str, make: Make) -> None:
    """The rows of a region that is sized, or not yet."""
    table = Table(f"Descriptor of a region that is {kind}", "1.3, 1.5, A")

    def row(
        ident: str, kernel: str, ask: Callable[[File], str], *, source: str = "", ours: str = "",
        why: Reason | None = None, plain: bool = False,
    ) -> None:
        table(
            f"{kind}-{ident.lower().replace(' ', '-')}", ident, kernel,
            lambda stage: ask(make(stage)), source=source, ours=ours or None, why=why, plain=plain,
        )

    row("read", "EINVAL", lambda f: f.say("read", f.agent.pool, 10))
    row("write", "EINVAL", lambda f: f.say("write", "x", 1))
    for name in ("pread", "pwrite"):
        row(name, "EINVAL", lambda f, name=name: f.say(name, f.agent.pool, 10, 0))
    row("readv", "EINVAL", readv, source="A")
    row("splice into it", "EINVAL", lambda f: splice(f, into=True), source="A")
    for what, ask in (
        ("sendfile", lambda f: f.agent.say("sendfile", output(f), f.fd, 0, 100)),
        ("splice", lambda f: splice(f, into=False)),
    ):
        if kind == "sized":
            row(f"{what} from it", "EINVAL", ask, source="A")
        else:
            row(f"{what} from it", "EINVAL", ask, source="A", ours="0",
                why=reasons.AT_ITS_END)
    row("fsync", "EINVAL", lambda f: f.say("fsync"), source="A, C")
    row("fdatasync", "EINVAL", lambda f: f.say("fdatasync"), source="C")
    for name, whence in (("SET", os.SEEK_SET), ("CUR", os.SEEK_CUR), ("END", os.SEEK_END),
                         ("DATA", os.SEEK_DATA), ("HOLE", os.SEEK_HOLE)):
        row(f"lseek SEEK_{name}", "ESPIPE", lambda f, whence=whence: f.say("lseek", 0, whence))
    row("copy_file_range", "EXDEV or EINVAL", copy_range, source="A, C")
    row("flock", "0", lambda f: f.say("flock", LOCK_EX), source="A, C", plain=True)
    row("fcntl F_SETLK", "0", posix_lock, source="A, C", plain=True)
    row("poll events", "0x5", polled, source="C", plain=True)
    row("ioctl FIONREAD, 2^39 as an int", "0: 0", fionread, source="C", plain=True)
    row("fchmod", "0", lambda f: f.say("fchmod", 0o640), source="1.5, A", plain=True)
    row("fchown", "0", lambda f: f.say("fchown", 5, 5), source="1.5, A", plain=True)
    row("dup", "0", lambda f: f.say("dup"), source="1.5", plain=True)


descriptor("sized", lambda stage: stage.region())
descriptor("unsized", lambda stage: stage.unsized())

T = Table("Calls on a region's descriptor that FUSE answers", "1.5")
for name in ("read", "write"):
    T(f"{name}-0-bytes", f"{name} of 0 bytes", "EINVAL",
      lambda s, name=name: (f := s.region()).say(name, f.agent.pool, 0),
      ours="0", why=reasons.NOT_ASKED)
T("fibmap", "ioctl FIBMAP", "EINVAL", lambda s: fibmap(s.region()), ours="0",
  why=reasons.NOT_ASKED)

T = Table("Descriptor of a region that was opened before the region was sized", "1.5, A")
T("later-sendfile", "sendfile from it", "EINVAL",
  lambda s: (f := sized_later(s)).agent.say("sendfile", output(f), f.fd, 0, 100))
T("later-read", "read", "EINVAL", lambda s: (f := sized_later(s)).say("read", f.agent.pool, 10))

T = Table("Locks of a region", "A, C")
T("flock-second", "flock by another, not waiting", "EAGAIN",
  lambda s: second_flock(s, s.region()), plain=True)
T("lease", "fcntl(F_SETLEASE)", "0", lambda s: lease(s, s.region()), plain=True)

T = Table("O_PATH descriptor of a region", "A, C")
T("path-read", "read", "EBADF", lambda s: path_only(s).say("read", s.agent.pool, 1), plain=True)
T("path-ftruncate", "ftruncate", "EBADF", lambda s: path_only(s).size_to(Q), plain=True)
T("path-fallocate", "fallocate", "EBADF",
  lambda s: path_only(s).say("fallocate", 0, 0, Q), plain=True)
T("path-ioctl", "ioctl, of any number", "EBADF",
  lambda s: path_only(s).say("ioctl", UNKNOWN, bytes(4)), plain=True)
T("path-create", "MSHAREFS_CREATE_MAPPING", "EBADF",
  lambda s: path_only(s).say("ioctl", CREATE, create_bytes(0, PAGE, 3, 0x31)),
  plain=True)
T("path-mmap", "mmap", "EBADF", lambda s: path_only(s).mmap(Q, READ, SHARED), plain=True)
T("path-lseek", "lseek", "EBADF", lambda s: path_only(s).say("lseek", 0, 0), plain=True)
T("path-fchmod", "fchmod", "EBADF", lambda s: path_only(s).say("fchmod", 0o600), plain=True)
