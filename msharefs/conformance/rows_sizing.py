"""The size of a region."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import reasons
from .stage import CREATE, HUGE, PAGE, UNKNOWN, UNMAP, File, Q
from .table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stage import Stage

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 3, 8, 16, 32, 64
RLIMIT_FSIZE = 1


def fallocate(file: File, length: int = Q, mode: int = 0, offset: int = 0) -> str:
    return file.say("fallocate", mode, offset, length)


def then_size(stage: Stage, first: Callable[[File], str]) -> str:
    """The answer to a call on an unsized region, and whether it can be sized to Q then."""
    file = stage.unsized()
    return f"{first(file)}, then {file.size_to(Q)}"


def reopened(flags: int) -> Callable[[Stage], str]:
    """An open(2) of an unsized region, and whether it can be sized then."""

    def check(stage: Stage) -> str:
        file = stage.unsized()
        answer = stage.agent.say("open", file.path, flags, 0o600)
        return f"{answer}, then {file.size_to(Q)}"

    return check


def limited(stage: Stage, function: str) -> str:
    """RLIMIT_FSIZE of a MiB: the answer, and how often SIGXFSZ came."""
    agent = stage.agent
    file = stage.unsized()
    agent.call("setrlimit", RLIMIT_FSIZE, (1 << 20).to_bytes(8, "little") * 2)
    answer = file.size_to(Q) if function == "ftruncate" else fallocate(file)
    return f"{answer}, SIGXFSZ {agent.ask('signals')}"


def times(stage: Stage, change: Callable[[File], str]) -> str:
    """Which of the times a sizing changes."""
    file = stage.unsized()
    stage.agent.call("utimes", file.path, b"".join(n.to_bytes(8, "little") for n in (5, 0, 5, 0)))
    before = os.stat(file.path)
    assert change(file) == "0"
    after = os.stat(file.path)
    names = [n for n in ("atime", "mtime", "ctime")
             if getattr(before, f"st_{n}_ns") != getattr(after, f"st_{n}_ns")]
    return ", ".join(names) or "none"


def read_only(stage: Stage, flags: int = os.O_RDONLY) -> File:
    stage.unsized()
    return stage.open(flags=flags)


T = Table("Sizing by ftruncate", "1.4, 1.5, A")
WHOLE = {
    "Q": Q, "2Q": 2 * Q, "3Q": 3 * Q, "10Q": 10 * Q, "127Q": 127 * Q, "255Q": 255 * Q,
    "256Q": 256 * Q, "1000Q": 1000 * Q, "2^61": 1 << 61, "2^62": 1 << 62,
}
ODD = {
    "1": 1, "511": 511, "4K": PAGE, "4K+1": PAGE + 1, "2M": HUGE, "1G": 1 << 30, "Q/2": Q // 2,
    "Q-1": Q - 1, "Q+1": Q + 1, "Q-4K": Q - PAGE, "Q+4K": Q + PAGE, "Q-2M": Q - HUGE,
    "Q+2M": Q + HUGE, "Q+1G": Q + (1 << 30), "3Q/2": 3 * Q // 2, "2Q-1": 2 * Q - 1,
    "2^62+1": (1 << 62) + 1, "2^63-1": (1 << 63) - 1,
}
for name, size in WHOLE.items():
    T(f"size-{name}", f"ftruncate {name}", "0", lambda s, size=size: s.unsized().size_to(size),
      source="1.4, 1.5, A, C", plain=True)
T("size-stat", "st_size then", str(3 * Q),
  lambda s: s.region(3 * Q) and str(os.stat(s.path()).st_size), plain=True)
for name, size in {**ODD, "-1": -1, "-Q": -Q, "-4K": -PAGE}.items():
    T(f"size-{name}", f"ftruncate {name}", "EINVAL",
      lambda s, size=size: s.unsized().size_to(size),
      source="B, A" if name == "2^63-1" else "")
T("size-truncate", "truncate(2) by name", "0",
  lambda s: s.unsized() and s.agent.say("truncate", s.path(), Q), plain=True)
for name, size in (("same", Q), ("more", 2 * Q), ("less", 0), ("odd", 1)):
    T(f"size-again-{name}", f"a second ftruncate, to {name if name != 'same' else 'the same'}",
      "EINVAL", lambda s, size=size: s.region().size_to(size))
T("size-refused-then", "an unaligned ftruncate, then one to Q", "EINVAL, then 0",
  lambda s: then_size(s, lambda f: f.size_to(PAGE)))
T("size-read-only", "ftruncate by a read-only descriptor", "EINVAL",
  lambda s: read_only(s).size_to(Q), plain=True)
T("size-write-only", "ftruncate by a write-only descriptor", "0",
  lambda s: read_only(s, os.O_WRONLY).size_to(Q), plain=True)
T("size-limit", "ftruncate beyond RLIMIT_FSIZE", "EFBIG, SIGXFSZ 1",
  lambda s: limited(s, "ftruncate"), source="1.5, A, B", plain=True)
T("size-times", "which times ftruncate changes", "mtime, ctime",
  lambda s: times(s, lambda f: f.size_to(Q)), source="C", plain=True)

T = Table("Size 0 and O_TRUNC", "1.5, A, C")
TRAP = "0, then EINVAL"
FREE = "0, then 0"
T("zero", "ftruncate to 0 of an unsized region, then to Q", TRAP,
  lambda s: then_size(s, lambda f: f.size_to(0)), default=FREE, why=reasons.SAFE)
T("zero-truncate", "truncate(2) to 0 by name, then ftruncate to Q", TRAP,
  lambda s: then_size(s, lambda f: f.agent.say("truncate", f.path, 0)),
  default=FREE, why=reasons.SAFE)
T("trunc-unsized", "open(O_RDWR|O_TRUNC) of an unsized region, then ftruncate to Q", TRAP,
  reopened(os.O_RDWR | os.O_TRUNC), default=FREE, why=reasons.SAFE)
T("trunc-read-only", "open(O_RDONLY|O_TRUNC) of an unsized region, then ftruncate to Q", TRAP,
  reopened(os.O_RDONLY | os.O_TRUNC), source="C", default=FREE, why=reasons.SAFE)
T("trunc-creat-there", "open(O_CREAT|O_TRUNC) of an unsized region, then ftruncate to Q", TRAP,
  reopened(os.O_RDWR | os.O_CREAT | os.O_TRUNC), default=FREE, why=reasons.SAFE)
T("trunc-sized", "open(O_TRUNC) of a sized region", "EINVAL",
  lambda s: s.region() and s.agent.say("open", s.path(), os.O_RDWR | os.O_TRUNC))
T("trunc-new", "open(O_CREAT|O_TRUNC) of a new name, then ftruncate to Q", "0",
  lambda s: s.open(flags=os.O_RDWR | os.O_CREAT | os.O_TRUNC).size_to(Q), plain=True)


def trapped(ask: Callable[[File], str]) -> Callable[[Stage], str]:
    """The answer of a region that was truncated to 0 before it was sized."""

    def check(stage: Stage) -> str:
        file = stage.unsized()
        assert file.size_to(0) == "0"
        return ask(file)

    return check


T("zero-create", "CREATE_MAPPING then", "EINVAL", trapped(lambda f: f.create()), source="C")
T("zero-unmap", "UNMAP then", "EINVAL", trapped(lambda f: f.unmap()), source="C")
T("zero-unknown", "an unknown ioctl then", "ENOTTY",
  trapped(lambda f: f.say("ioctl", UNKNOWN, bytes(4))), source="C",
  default="EINVAL", why=reasons.UNSIZED)
for name, length in (("4K", PAGE), ("Q", Q), ("2Q", 2 * Q)):
    T(f"zero-mmap-{name}", f"mmap of {name} then", "EINVAL",
      trapped(lambda f, length=length: f.mmap(length)), source="C")

T = Table("Sizing by fallocate", "1.5, A, C")
for name, size in WHOLE.items():
    T(f"falloc-{name}", f"fallocate(0, 0, {name})", "0",
      lambda s, size=size: fallocate(s.unsized(), size))
for name, size in ODD.items():
    T(f"falloc-{name}", f"fallocate(0, 0, {name})", "EINVAL",
      lambda s, size=size: fallocate(s.unsized(), size))
T("falloc-size", "st_size then", str(Q),
  lambda s: fallocate(s.unsized()) and str(s.open().size()))
T("falloc-again", "fallocate(0, 0, Q) of a sized region", "EINVAL",
  lambda s: fallocate(s.region()))
T("falloc-0", "fallocate(0, 0, 0)", "EINVAL", lambda s: fallocate(s.unsized(), 0), plain=True)
T("falloc-negative", "fallocate(0, 0, -Q)", "EINVAL",
  lambda s: fallocate(s.unsized(), -Q), plain=True)
T("falloc-offset", "fallocate(0, Q, Q)", "EINVAL", lambda s: fallocate(s.unsized(), offset=Q))
T("falloc-offset-page", "fallocate(0, 4K, Q)", "EINVAL",
  lambda s: fallocate(s.unsized(), offset=PAGE))
for name, mode in (
    ("KEEP_SIZE", KEEP_SIZE), ("PUNCH_HOLE", PUNCH_HOLE), ("COLLAPSE_RANGE", COLLAPSE),
    ("ZERO_RANGE", ZERO), ("INSERT_RANGE", INSERT), ("UNSHARE_RANGE", UNSHARE),
):
    T(f"falloc-{name.lower()}", f"fallocate({name}, 0, Q)", "EOPNOTSUPP",
      lambda s, mode=mode: fallocate(s.unsized(), mode=mode))
T("falloc-mode-first", "fallocate(KEEP_SIZE, 4K, Q): the mode is tested before the offset",
  "EOPNOTSUPP", lambda s: fallocate(s.unsized(), mode=KEEP_SIZE, offset=PAGE))
T("falloc-read-only", "fallocate by a read-only descriptor", "EBADF",
  lambda s: fallocate(read_only(s)), plain=True)
T("falloc-write-only", "fallocate by a write-only descriptor", "0",
  lambda s: fallocate(read_only(s, os.O_WRONLY)))
T("falloc-limit", "fallocate beyond RLIMIT_FSIZE", "EFBIG, SIGXFSZ 1",
  lambda s: limited(s, "fallocate"), source="A, B")
T("falloc-times", "which times fallocate changes", "none",
  lambda s: times(s, fallocate), source="C", ours="ctime",
  why=reasons.CTIME)

T = Table("Unsized regions", "1.6, 1.7, A")
T("unsized-create", "CREATE_MAPPING", "EINVAL", lambda s: s.unsized().create())
T("unsized-create-all-wrong", "CREATE_MAPPING, all else wrong too", "EINVAL",
  lambda s: s.unsized().say("ioctl", CREATE, 8), ours="EFAULT", why=reasons.COPIED)
T("unsized-unmap", "UNMAP", "EINVAL", lambda s: s.unsized().unmap())
T("unsized-unmap-pointer", "UNMAP with a bad pointer", "EINVAL",
  lambda s: s.unsized().say("ioctl", UNMAP, 8), ours="EFAULT", why=reasons.COPIED)
T("unsized-unknown", "an unknown ioctl", "EINVAL",
  lambda s: s.unsized().say("ioctl", UNKNOWN, bytes(4)))
