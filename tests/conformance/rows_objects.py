"""Objects that are files: which may be mapped into a region, and how they behave there."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from msharefs.conformance.stage import (
    EXEC,
    GROWSDOWN,
    HAS_PKU,
    NONE,
    NOREPLACE,
    PAGE,
    READ,
    RW,
    SHARED,
    SHARED_FIXED,
    VALIDATE,
    WRITE,
    File,
    Memory,
    Q,
    said,
)
from msharefs.conformance.table import Table

from support import libc, namespace

if TYPE_CHECKING:
    from .ours import OwnStage as Stage
    from support.agent import Agent

Opener = Callable[["Stage", "Agent"], int] if TYPE_CHECKING else None

MAP_FIXED, MAP_SYNC = 0x10, 0x80000
F_ADD_SEALS, F_SEAL_WRITE = 1033, 8
MFD_ALLOW_SEALING = 2
RET = b"\xc3"  # x86-64
TWO_PAGES = b"\1" * PAGE + b"\2" * PAGE


def disk(stage: Stage) -> str:
    """A file of two pages on a disk file system."""
    path = stage.elsewhere / "file"
    if not path.exists():
        path.write_bytes(TWO_PAGES)
    return str(path)


def on_disk(flags: int = os.O_RDWR) -> Opener:
    return lambda stage, agent: agent.call("open", disk(stage), flags)


def opened(path: str, flags: int = os.O_RDWR) -> Opener:
    return lambda _, agent: agent.call("open", path, flags)


def on_tmpfs(stage: Stage, agent: Agent) -> int:
    path = stage.tmpfs / "file"
    path.write_bytes(TWO_PAGES)
    fd = agent.call("open", str(path), os.O_RDWR)
    path.unlink()
    return fd


def memfd(stage: Stage, agent: Agent) -> int:
    del stage
    fd = agent.call("memfd_create", "object", MFD_ALLOW_SEALING)
    agent.call("ftruncate", fd, 2 * PAGE)
    return fd


def sealed(stage: Stage, agent: Agent) -> int:
    fd = memfd(stage, agent)
    agent.call("fcntl", fd, F_ADD_SEALS, F_SEAL_WRITE)
    return fd


def pipe(end: int) -> Opener:
    def make(_: Stage, agent: Agent) -> int:
        agent.call("pipe", agent.pool)
        return struct.unpack("=ii", agent.get(agent.pool, 8))[end]

    return make


def region(name: str) -> Opener:
    """The region itself, or another."""
    return lambda stage, agent: (
        stage.region(name=name).fd if name != "r" else agent.call("open", stage.path(), os.O_RDWR)
    )


def create(
    opener: Opener, prot: int = RW, flags: int = SHARED_FIXED, **place: int
) -> Callable[[Stage], str]:
    """CREATE_MAPPING of a descriptor."""

    def check(stage: Stage) -> str:
        file = stage.region()
        fd = opener(stage, stage.agent)
        return file.create(prot=prot, flags=flags, fd=fd, **place)

    return check


T = Table("Objects: which descriptors", "1.7, A, C")
T("object-tmpfs", "a file on tmpfs", "0", create(on_tmpfs))
T("object-memfd", "a memfd", "0", create(memfd))
T("object-disk", "a file on a disk file system", "0", create(on_disk()))
T("object-zero", "/dev/zero", "0", create(opened("/dev/zero")))
T("object-program", "a program, PROT_READ|PROT_EXEC", "0",
  create(opened("/bin/true", os.O_RDONLY), READ | EXEC))
T("object-read-only", "a read-only descriptor, PROT_READ", "0", create(on_disk(os.O_RDONLY), READ))
T("object-read-only-none", "a read-only descriptor, PROT_NONE", "0",
  create(on_disk(os.O_RDONLY), NONE))
T("object-read-only-write", "a read-only descriptor, PROT_WRITE", "EACCES",
  create(on_disk(os.O_RDONLY)))
T("object-write-only", "a write-only descriptor", "EACCES", create(on_disk(os.O_WRONLY), WRITE))
T("object-write-only-none", "a write-only descriptor, PROT_NONE", "EACCES",
  create(on_disk(os.O_WRONLY), NONE))
T("object-self", "the region itself", "EINVAL", create(region("r")))
T("object-region", "another region", "EINVAL", create(region("other")))
T("object-directory", "a directory of the mount", "ENODEV",
  lambda s: create(opened(str(s.dir), os.O_RDONLY), READ)(s))
T("object-info", "mshare_info", "ENODEV",
  lambda s: create(opened(str(s.dir.parent / "mshare_info"), os.O_RDONLY), READ)(s))
T("object-pipe-read", "the read end of a pipe", "ENODEV", create(pipe(0), READ))
T("object-pipe-write", "the write end of a pipe", "EACCES", create(pipe(1)))
T("object-eventfd", "an eventfd", "ENODEV", create(lambda _, a: a.call("eventfd", 0, 0)))
T("object-socket", "a socket", "ENODEV", create(lambda _, a: a.call("socket", 1, 1, 0)))
T("object-null", "/dev/null", "ENODEV", create(opened("/dev/null")))
T("object-tty", "a terminal", "ENODEV", create(opened("/dev/ptmx")))
T("object-proc", "a file of /proc", "ENODEV", create(opened("/proc/self/maps", os.O_RDONLY), READ))
T("object-not-open", "a descriptor that is not open", "EBADF", create(lambda *_: 999))
T("object-minus-1", "descriptor -1", "EBADF", create(lambda *_: -1))
T("object-path", "an O_PATH descriptor", "EBADF", create(on_disk(os.O_PATH)))
T("object-sealed", "a write-sealed memfd, PROT_WRITE", "EPERM", create(sealed))
T("object-sealed-read", "a write-sealed memfd, PROT_READ", "0", create(sealed, READ))
T("object-hugetlb", "MAP_HUGETLB with a file of another kind", "EINVAL",
  create(on_disk(), flags=SHARED_FIXED | 0x40000))
T("object-offset-2^63", "file offset 2^63", "EOVERFLOW", create(on_disk(), fd_offset=1 << 63))
T("object-sync", "MAP_SHARED_VALIDATE|MAP_SYNC", "EOPNOTSUPP",
  create(on_disk(), flags=VALIDATE | MAP_FIXED | MAP_SYNC))
T("object-private", "MAP_PRIVATE", "EINVAL", create(on_disk(), flags=0x12))
T("object-growsdown", "MAP_GROWSDOWN", "EINVAL", create(on_disk(), flags=SHARED_FIXED | GROWSDOWN))
T("object-type-9", "mapping type 9", "EINVAL", create(on_disk(), flags=9 | MAP_FIXED))
T("object-validate", "MAP_SHARED_VALIDATE", "0", create(on_disk(), flags=VALIDATE | MAP_FIXED))


def noreplace(stage: Stage, offset: int) -> str:
    """A file at `offset`, of two pages, when there is memory at 4K."""
    memory = stage.memory((PAGE, PAGE, RW))
    memory.store(PAGE)
    fd = on_disk()(stage, stage.agent)
    answer = memory.file.create(offset, 2 * PAGE, RW, SHARED_FIXED | NOREPLACE, fd)
    return f"{answer}, {memory.load(PAGE)}"


T("object-noreplace", "MAP_FIXED_NOREPLACE over memory; a load from that", "EEXIST, 7",
  lambda s: noreplace(s, 0))
T("object-noreplace-hole", "beside it", "0, 7", lambda s: noreplace(s, 2 * PAGE))


def by_child(stage: Stage, uid: int = 0) -> str:
    """CREATE of a file by a child that has both descriptors, maybe as another user."""
    file = stage.region()
    fd = on_disk()(stage, stage.agent)
    child = file.agent.fork()
    if uid:
        child.call("setresgid", uid, uid, uid)
        child.call("setresuid", uid, uid, uid)
    return File(child, file.fd, file.path).create(flags=SHARED_FIXED, fd=fd)


T("object-child", "by a child of fork that has the descriptors", "0", by_child)
T("object-user", "by another user who has them", "0", lambda s: by_child(s, 65534))


def on_noexec(stage: Stage) -> str:
    """A file on a noexec mount, PROT_EXEC."""
    from .rows_mount import MS_NOEXEC, Bound

    stage.agent.call("close", on_tmpfs(stage, stage.agent))
    (stage.tmpfs / "code").write_bytes(RET * PAGE)
    with Bound(stage, MS_NOEXEC, stage.tmpfs) as path:
        fd = stage.agent.call("open", str(path / "code"), os.O_RDWR)
        answer = stage.region().create(prot=READ | EXEC, flags=SHARED_FIXED, fd=fd)
        stage.agent.call("close", fd)
    (stage.tmpfs / "code").unlink()
    return answer


T("object-noexec", "a file on a noexec mount, PROT_EXEC", "EPERM", on_noexec)


def unlinked_object(stage: Stage) -> str:
    """A file that has no name any more."""
    fd = on_disk()(stage, stage.agent)
    os.unlink(disk(stage))
    return stage.region().create(flags=SHARED_FIXED, fd=fd)


T("object-unlinked", "an unlinked file", "0", unlinked_object, source="A")

T = Table("CREATE_MAPPING of files: the order of the checks", "1.7, C")
T("order-range-mode", "end beyond the region, write-only descriptor", "EINVAL",
  create(on_disk(os.O_WRONLY), offset=Q - PAGE, size=2 * PAGE))
T("order-nesting-size", "a region, size 0", "EINVAL", create(region("r"), size=0))
T("order-hugetlb-range", "MAP_HUGETLB with another file, end beyond the region", "EINVAL",
  create(on_disk(), flags=SHARED_FIXED | 0x40000, offset=Q - PAGE, size=2 * PAGE))
T("order-size-mode", "size 0, write-only descriptor", "EINVAL",
  create(on_disk(os.O_WRONLY), size=0))
T("order-noreplace-mode", "MAP_FIXED_NOREPLACE on a hole, write-only descriptor", "EACCES",
  create(on_disk(os.O_WRONLY), flags=SHARED_FIXED | NOREPLACE))


def with_object(
    stage: Stage, opener: Opener, size: int = 2 * PAGE, prot: int = RW, fd_offset: int = 0
) -> tuple[Memory, int]:
    """An attachment with a file at offset 0, and the file's descriptor."""
    if stage.plain:
        memory = stage.memory()
        fd = opener(stage, memory.agent)
        memory.agent.call("mmap", memory.base, size, prot, SHARED | MAP_FIXED, fd, fd_offset)
        return memory, fd
    file = stage.region()
    fd = opener(stage, file.agent)
    answer = file.create(0, size, prot, SHARED_FIXED, fd, fd_offset)
    assert answer == "0", answer
    return Memory(stage, file, file.attach(prot=RW | EXEC)), fd


T = Table("Objects: their content", "1.7, 1.8, C")
OPENERS: dict[str, Opener] = {"tmpfs": on_tmpfs, "disk": on_disk(), "memfd": memfd}


def loads(stage: Stage, opener: Opener) -> str:
    """Bytes of a file that has the values 1 and 2 in its two pages."""
    memory, fd = with_object(stage, opener)
    memory.agent.call("pwrite", fd, TWO_PAGES, 2 * PAGE, 0)
    return f"{memory.load()}, {memory.load(PAGE)}"


def stored(stage: Stage, opener: Opener) -> str:
    """Whether read(2) sees a store."""
    memory, fd = with_object(stage, opener)
    memory.store(PAGE + 3, 9)
    memory.agent.call("pread", fd, memory.agent.pool, 1, PAGE + 3)
    return str(memory.agent.get(memory.agent.pool, 1)[0])


def written(stage: Stage, opener: Opener) -> str:
    """Whether a load sees a write(2) after a first load."""
    memory, fd = with_object(stage, opener)
    memory.load()
    memory.agent.call("pwrite", fd, b"\x0b", 1, 0)
    return memory.load()


for name, opener in OPENERS.items():
    T(f"file-load-{name}", f"{name}: loads from both pages of a file", "1, 2",
      lambda s, opener=opener: loads(s, opener), plain=True)
    T(f"file-store-{name}", f"{name}: what read(2) sees of a store", "9",
      lambda s, opener=opener: stored(s, opener), plain=True)
    T(f"file-write-{name}", f"{name}: what a load sees of a write(2)", "11",
      lambda s, opener=opener: written(s, opener), plain=True)


def second_process(stage: Stage) -> str:
    memory, _ = with_object(stage, on_disk())
    memory.store(byte=9)
    return memory.again(stage.process()).load()


T("file-second", "a store by one process, a load by another", "9", second_process)
T("file-offset", "file offset 4096: the first byte", "2",
  lambda s: with_object(s, on_disk(), PAGE, RW, PAGE)[0].load(), plain=True)
T("file-offset-low", "file offset 4196: its low bits are dropped", "2",
  lambda s: with_object(s, on_disk(), PAGE, RW, PAGE + 100)[0].load(), source="1.7, C")
T("file-beyond-load", "a load from beyond the end of the file", "SIGBUS ADRERR",
  lambda s: with_object(s, on_disk(), 4 * PAGE)[0].load(2 * PAGE), plain=True)
T("file-beyond-store", "a store beyond the end", "SIGBUS ADRERR",
  lambda s: with_object(s, on_disk(), 4 * PAGE)[0].store(3 * PAGE), plain=True)


def truncated(stage: Stage) -> str:
    """The file becomes shorter, then longer."""
    memory, fd = with_object(stage, on_disk())
    memory.load(PAGE)
    memory.agent.call("ftruncate", fd, PAGE)
    short = memory.load(PAGE)
    memory.agent.call("ftruncate", fd, 2 * PAGE)
    return f"{short}, {memory.load(PAGE)}"


T("file-truncated", "the file is cut to a page, then longer: loads from the second",
  "SIGBUS ADRERR, 0", truncated, plain=True)


def full(stage: Stage) -> str:
    """A sparse file on a tmpfs of 16 pages: a store to each of 32."""
    directory = stage.elsewhere / "small"
    directory.mkdir()
    namespace.tmpfs(directory, "size=64k")
    try:
        path = directory / "file"
        path.touch()
        os.truncate(path, 32 * PAGE)
        memory, fd = with_object(stage, opened(str(path)), 32 * PAGE)
        found = {memory.store(number * PAGE) for number in range(32)}
        memory.agent.call("close", fd)
        return ", ".join(sorted(found))
    finally:
        libc.umount(directory, libc.MNT_DETACH)
        directory.rmdir()


T("file-full", "stores to 32 pages of a file on a tmpfs of 16", "SIGBUS ADRERR, ok", full,
  plain=True)
T("file-read-only", "a store to a PROT_READ object", "SIGSEGV ACCERR",
  lambda s: with_object(s, on_disk(os.O_RDONLY), PAGE, READ)[0].store(), plain=True)


def unmapped(stage: Stage) -> str:
    """A store, then UNMAP: the file's contents."""
    memory, fd = with_object(stage, on_disk())
    memory.store(byte=9)
    memory.file.unmap(0, 2 * PAGE)
    memory.agent.call("pread", fd, memory.agent.pool, 1, 0)
    return f"{memory.load()}, {memory.agent.get(memory.agent.pool, 1)[0]}"


T("file-unmap", "UNMAP after a store: a load, read(2) of the file", "SIGSEGV MAPERR, 9", unmapped,
  source="C, 1.7")


def kept(stage: Stage) -> str:
    """Stores reach the disk: fsync, then the page cache of the file is dropped."""
    memory, fd = with_object(stage, on_disk())
    memory.store(byte=9)
    memory.agent.call("fsync", fd)
    memory.store(1, 8)  # dirty once more
    memory.agent.call("fsync", fd)
    memory.file.unmap(0, 2 * PAGE)
    memory.agent.call("posix_fadvise", fd, 0, 0, 4)  # POSIX_FADV_DONTNEED
    memory.agent.call("pread", fd, memory.agent.pool, 2, 0)
    return ", ".join(str(byte) for byte in memory.agent.get(memory.agent.pool, 2))


T("file-fsync", "stores before and after an fsync, another; UNMAP; the cache dropped: read(2)",
  "9, 8", kept, source="C")


def closed(stage: Stage) -> str:
    memory, fd = with_object(stage, on_disk())
    memory.agent.call("close", fd)
    os.unlink(disk(stage))
    return f"{memory.load()}, {memory.store()}"


T("file-closed", "the object's descriptor is closed and its name unlinked: a load, a store",
  "1, ok", closed, plain=True)


def unmount_object(stage: Stage) -> str:
    """umount(2) of the file system of an object."""
    directory = stage.elsewhere / "mounted"
    directory.mkdir()
    namespace.tmpfs(directory, "size=1m")
    try:
        path = directory / "file"
        path.write_bytes(TWO_PAGES)
        memory, fd = with_object(stage, opened(str(path)))
        memory.load()
        memory.agent.call("close", fd)
        return said(lambda: libc.umount(directory))
    finally:
        said(lambda: libc.umount(directory, libc.MNT_DETACH))
        directory.rmdir()


T("file-umount", "umount of the file system of an object", "EBUSY", unmount_object, source="C",
  plain=True)


def seal_mapped(stage: Stage) -> str:
    memory, fd = with_object(stage, memfd)
    memory.store()
    return memory.agent.say("fcntl", fd, F_ADD_SEALS, F_SEAL_WRITE)


T("memfd-seal", "F_SEAL_WRITE of a memfd that is mapped for writing", "EBUSY", seal_mapped,
  source="C", plain=True)


def failed(stage: Stage) -> str:
    memory = stage.page()
    memory.store()
    fd = on_disk(os.O_RDONLY)(stage, stage.agent)
    return f"{memory.file.create(flags=SHARED_FIXED, fd=fd)}, {memory.load()}"


T("create-failed", "a CREATE over memory that fails: what it says, a load", "EACCES, 7", failed,
  source="A, C")


def over_memory(stage: Stage) -> str:
    """A file over the second of three pages of memory; then memory over that."""
    memory = stage.memory((0, 3 * PAGE, RW))
    for number in range(3):
        memory.store(number * PAGE, 7)
    fd = on_disk()(stage, stage.agent)
    assert memory.file.create(PAGE, PAGE, RW, SHARED_FIXED, fd, PAGE) == "0"
    first = ", ".join(memory.load(number * PAGE) for number in range(3))
    assert memory.file.create(PAGE, PAGE) == "0"
    return f"{first}; {memory.load(PAGE)}"


T("file-over", "a file over the second of three pages: loads; then memory over that: a load",
  "7, 2, 7; 0", over_memory, source="1.7")


def side_by_side(stage: Stage) -> str:
    """Memory, a hole, a read-only file, PROT_NONE memory."""
    memory = stage.memory((0, PAGE, RW), (3 * PAGE, PAGE, NONE))
    fd = on_disk(os.O_RDONLY)(stage, stage.agent)
    assert memory.file.create(2 * PAGE, PAGE, READ, SHARED_FIXED, fd) == "0"
    found = [memory.store(), memory.load(PAGE), memory.load(2 * PAGE), memory.store(2 * PAGE)]
    return ", ".join([*found, memory.load(3 * PAGE)])


T("objects-mixed", "memory, a hole, a read-only file, PROT_NONE: accesses",
  "ok, SIGSEGV MAPERR, 1, SIGSEGV ACCERR, SIGSEGV ACCERR", side_by_side, source="1.7")


def run(stage: Stage, prot: int, attachment: int = RW | EXEC) -> str:
    """Runs a return instruction in a file object of that protection."""
    path = stage.elsewhere / "code"
    path.write_bytes(RET * PAGE)
    agent = stage.process()
    if stage.plain:
        fd = agent.call("open", str(path), os.O_RDWR)
        return agent.run(agent.call("mmap", 0, PAGE, prot, SHARED, fd, 0))
    file = stage.region()
    fd = stage.agent.call("open", str(path), os.O_RDWR)
    assert file.create(0, PAGE, prot, SHARED_FIXED, fd) == "0"
    return agent.run(file.by(agent).attach(prot=attachment))


T = Table("Executable objects", "1.8, A, C")
T("run", "code in a PROT_READ|PROT_EXEC object", "ok", lambda s: run(s, READ | EXEC), plain=True)
T("run-not-exec", "code in an object without PROT_EXEC", "SIGSEGV ACCERR",
  lambda s: run(s, READ), plain=True)
T("run-attach", "code in a PROT_EXEC object, attached without PROT_EXEC: the object decides",
  "ok", lambda s: run(s, READ | EXEC, RW))


def run_memory(stage: Stage) -> str:
    """Code that the program writes into memory with all protections."""
    memory = stage.page(RW | EXEC)
    memory.store(0, RET[0])
    if stage.plain:
        return memory.agent.run(memory.base)
    agent = stage.process()
    return agent.run(memory.file.by(agent).attach(prot=RW | EXEC))


T("run-memory", "code stored in a PROT_READ|PROT_WRITE|PROT_EXEC anonymous object", "ok",
  run_memory, plain=True)


def read_code(stage: Stage) -> str:
    """A load from a PROT_EXEC object."""
    return stage.page(EXEC).load()


T("load-exec-only", "a load from a PROT_EXEC object (SIGSEGV PKUERR on a CPU with protection keys)",
  "SIGSEGV PKUERR" if HAS_PKU else "0", read_code, plain=True, source="C")
