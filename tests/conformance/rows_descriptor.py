"""Calls on a region's descriptor that are not about its size or its memory."""

from __future__ import annotations

import os
import select
import struct
from typing import TYPE_CHECKING

from .stage import CREATE, PAGE, READ, SHARED, UNKNOWN, File, Q, create_bytes
from .table import FUSE, Table

if TYPE_CHECKING:
    from .stage import Stage

F_SETLK, F_SETLEASE, FIONREAD = 6, 1024, 0x541B
LOCK_EX, LOCK_NB = 2, 4


def readv(stage: Stage) -> str:
    pool = stage.agent.pool
    stage.agent.put(pool, struct.pack("=QQ", pool + 64, 8))
    return stage.region().say("readv", pool, 1)


def sendfile(stage: Stage) -> str:
    file = stage.region()
    out = stage.agent.call("open", str(stage.elsewhere / "out"), os.O_RDWR | os.O_CREAT, 0o600)
    return stage.agent.say("sendfile", out, file.fd, 0, 100)


def splice(stage: Stage, *, into: bool) -> str:
    agent, file = stage.agent, stage.region()
    agent.call("pipe", agent.pool)
    reader, writer = struct.unpack("=ii", agent.get(agent.pool, 8))
    agent.call("write", writer, "data", 4)
    if into:
        return agent.say("splice", reader, 0, file.fd, 0, 4, 0)
    return agent.say("splice", file.fd, 0, writer, 0, 4, 0)


def copy_range(stage: Stage) -> str:
    file = stage.region()
    out = stage.agent.call("open", str(stage.elsewhere / "out"), os.O_RDWR | os.O_CREAT, 0o600)
    answer = stage.agent.say("copy_file_range", file.fd, 0, out, 0, 100, 0)
    return "EXDEV or EINVAL" if answer in ("EXDEV", "EINVAL") else answer


def polled(stage: Stage) -> str:
    file = stage.region()
    both = select.POLLIN | select.POLLOUT
    stage.agent.put(stage.agent.pool, struct.pack("=ihh", file.fd, both, 0))
    stage.agent.call("poll", stage.agent.pool, 1, 0)
    return hex(struct.unpack("=ihh", stage.agent.get(stage.agent.pool, 8))[2])


def posix_lock(stage: Stage) -> str:
    lock = struct.pack("=hhxxxxqqixxxx", 1, 0, 0, 0, 0)  # F_WRLCK over all of it
    return stage.region().say("fcntl", F_SETLK, lock)


def flock(stage: Stage, *, second: bool) -> str:
    file = stage.region()
    answer = file.say("flock", LOCK_EX)
    return file.by(stage.process()).say("flock", LOCK_EX | LOCK_NB) if second else answer


def lease(stage: Stage) -> str:
    stage.region().call("close")
    return stage.open(flags=os.O_RDONLY).say("fcntl", F_SETLEASE, 0)  # F_RDLCK


def fionread(stage: Stage) -> str:
    agent, file = stage.agent, stage.region()
    agent.put(agent.pool, bytes([255] * 4))
    answer = file.say("ioctl", FIONREAD, agent.pool)
    return f"{answer}: {int.from_bytes(agent.get(agent.pool, 4), 'little')}"


def path_only(stage: Stage) -> File:
    stage.region()
    return stage.open(flags=os.O_PATH)


T = Table("Region descriptor", "1.3, 1.5, A")
T("read", "read", "EINVAL", lambda s: s.region().say("read", s.agent.pool, 10))
T("write", "write", "EINVAL", lambda s: s.region().say("write", "x", 1))
for name in ("pread", "pwrite"):
    T(
        name, name, "EINVAL",
        lambda s, name=name: s.region().say(name, s.agent.pool, 10, 0),
        ours="ESPIPE",
        why=f"{FUSE} A file that refuses lseek refuses this too, with the same errno.",
    )
T("readv", "readv", "EINVAL", readv, source="A")
T("sendfile", "sendfile from it", "EINVAL", sendfile, source="A")
T("splice-to", "splice into it", "EINVAL", lambda s: splice(s, into=True), source="A")
T("splice-from", "splice from it", "EINVAL", lambda s: splice(s, into=False), source="A")
T("fsync", "fsync", "EINVAL", lambda s: s.region().say("fsync"), source="A, C")
T("fdatasync", "fdatasync", "EINVAL", lambda s: s.region().say("fdatasync"), source="C")
for name, whence in (("set", os.SEEK_SET), ("cur", os.SEEK_CUR), ("end", os.SEEK_END),
                     ("data", os.SEEK_DATA), ("hole", os.SEEK_HOLE)):
    T(f"lseek-{name}", f"lseek(SEEK_{name.upper()})", "ESPIPE",
      lambda s, whence=whence: s.region().say("lseek", 0, whence))
T("copy-range", "copy_file_range", "EXDEV or EINVAL", copy_range, source="A, C")
T("flock", "flock", "0", lambda s: flock(s, second=False), source="A, C", plain=True)
T("flock-second", "flock by another, not waiting", "EAGAIN",
  lambda s: flock(s, second=True), source="A, C", plain=True)
T("posix-lock", "fcntl(F_SETLK)", "0", posix_lock, source="A, C", plain=True)
T("lease", "fcntl(F_SETLEASE)", "0", lease, source="A, C", plain=True)
T("poll", "poll: revents", "0x5", polled, source="C", plain=True)
T("fionread", "ioctl(FIONREAD): 2^39 as an int", "0: 0", fionread, source="C", plain=True)

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
