"""MSHAREFS_CREATE_MAPPING: its refusals, their order, and their errnos."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from . import reasons
from .stage import (
    ANON,
    CREATE,
    EXEC,
    FIXED,
    GROWSDOWN,
    HUGETLB,
    NOREPLACE,
    PAGE,
    POPULATE,
    PRIVATE,
    RW,
    SHARED,
    SHARED_FIXED,
    UNKNOWN,
    VALIDATE,
    File,
    Q,
    create_bytes,
    unmap_bytes,
)
from .table import Table
from .world import SkippedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stage import Memory, Stage

WRAP = 1 << 64
LOW = 0x40  # MAP_32BIT
DEFAULT = SHARED_FIXED | ANON


def flags(value: int) -> Callable[[Stage], str]:
    return lambda stage: stage.region().create(flags=value)


def result(stage: Stage, command: int, request: bytes) -> str:
    """The result of ioctl(2)."""
    file = stage.region()
    return str(file.agent.result("ioctl", file.fd, command, request)[0])


def compat(stage: Stage) -> str:
    """The ioctl of a 32-bit program: system call 54 by int 0x80."""
    agent, file = stage.agent, stage.region()
    low = agent.call("mmap", 0, PAGE, RW | EXEC, PRIVATE | ANON | LOW, -1, 0)
    code = (
        b"\x53\xb8" + struct.pack("=i", 54)  # push rbx; mov eax, 54
        + b"\xbb" + struct.pack("=i", file.fd)  # mov ebx, fd
        + b"\xb9" + struct.pack("=I", CREATE)  # mov ecx, command
        + b"\xba" + struct.pack("=I", low + 512)  # mov edx, argument
        + b"\xcd\x80\xa3" + struct.pack("=Q", low + 1024)  # int 0x80; mov [low+1024], eax
        + b"\x5b\xc3"  # pop rbx; ret
    )  # fmt: skip
    agent.put(low, code)
    agent.put(low + 512, create_bytes(0, PAGE, RW, DEFAULT))
    assert agent.run(low) == "ok"
    found = struct.unpack("=i", agent.get(low + 1024, 4))[0]
    if found == -errno.ENOSYS:
        raise SkippedError("32-bit programs, which this kernel does not run")
    return errno.errorcode[-found] if found < 0 else str(found)


def place(offset: int, size: int = PAGE) -> Callable[[Stage], str]:
    return lambda stage: stage.region().create(offset, size)


def order(
    *, offset: int = 0, size: int = PAGE, value: int = SHARED_FIXED, fd: int = 99, prot: int = RW
) -> Callable[[Stage], str]:
    """A CREATE of a file with several things wrong; descriptor 99 is not open."""
    return lambda stage: stage.region().create(offset, size, prot, value, fd)


def short(stage: Stage, readable: int, request: bytes, command: int) -> str:
    """The argument lies at the end of a page, with nothing after it."""
    agent, file = stage.agent, stage.region()
    end = agent.call("mmap", 0, 2 * PAGE, RW, PRIVATE | ANON, -1, 0) + PAGE
    agent.call("munmap", end, PAGE)
    agent.put(end - readable, request[:readable])
    return file.say("ioctl", command, end - readable)


T = Table("CREATE_MAPPING: the argument", "1.2, 1.7, A, C")
T("create-anon", "a page of anonymous memory", "0", place(0))
T("ioctl-unknown", "an unknown ioctl of a sized region", "ENOTTY",
  lambda s: s.region().say("ioctl", UNKNOWN, bytes(4)))
T("create-result", "its result, at region_offset 4K", "0", lambda s: result(s, CREATE, create_bytes(
  PAGE, PAGE, RW, DEFAULT)))
for number in range(2, 32):
    T(f"ioctl-{number}", f"ioctl _IO('x', {number})", "ENOTTY",
      lambda s, number=number: s.region().say("ioctl", ord("x") << 8 | number, 0),
      source="1.2")
T("create-pointer", "a bad pointer", "EFAULT", lambda s: s.region().say("ioctl", CREATE, 8))
T("create-null", "a null pointer", "EFAULT", lambda s: s.region().say("ioctl", CREATE, 0))
T("create-short", "36 bytes of the struct are readable", "EFAULT",
  lambda s: short(s, 36, create_bytes(0, PAGE, RW, DEFAULT), CREATE))
T("create-whole", "40 bytes of it are", "0",
  lambda s: short(s, 40, create_bytes(0, PAGE, RW, DEFAULT), CREATE))
T("create-padding", "garbage in its padding", "0",
  lambda s: s.region().say("ioctl", CREATE, create_bytes(0, PAGE, RW, DEFAULT)[:36] + b"\xff" * 4))
T("create-compat", "by a 32-bit program", "ENOTTY", compat, source="1.7")
T("create-anon-fd", "MAP_ANONYMOUS with a descriptor: it is ignored", "0",
  lambda s: s.region().create(fd=99))

T = Table("CREATE_MAPPING: place and size", "1.7, A, C", call="mshare_map")
T("create-at-page", "at region_offset 4K: objects need page alignment only", "0", place(PAGE),
  source="1.4")
T("create-last", "the last page of the region", "0", place(Q - PAGE))
T("create-all", "all of the region, MAP_NORESERVE", "0",
  lambda s: s.region().create(0, Q, flags=DEFAULT | 0x4000))
T("create-offset-end", "region_offset = size of the region", "EINVAL", place(Q))
T("create-offset-beyond", "region_offset beyond", "EINVAL", place(2 * Q))
T("create-offset-wrap", "region_offset 2^64-4096", "EINVAL", place(WRAP - PAGE))
UNALIGNED = {"1": 1, "511": 511, "4095": 4095, "4097": 4097, "4K+512": PAGE + 512,
             "2M-1": (2 << 20) - 1, "2M+1": (2 << 20) + 1, "Q-1": Q - 1, "Q-4095": Q - 4095}
for name, odd in UNALIGNED.items():
    T(f"create-offset-odd-{name}", f"region_offset {name}", "EINVAL", place(odd))
for name, size in {"2": 2, "511": 511, "4095": 4095, "4097": 4097, "2M+1": (2 << 20) + 1}.items():
    T(f"create-size-{name}", f"size {name}: rounded up to pages", "0", place(PAGE, size))
T("create-beyond", "region_offset + size beyond the region", "EINVAL", place(Q - PAGE, 2 * PAGE))
T("create-size-more", "size of more than the region", "EINVAL", place(0, Q + PAGE))
T("create-size-0", "size 0", "EINVAL", place(0, 0))
T("create-size-0-end", "size 0 at the last page", "EINVAL", place(Q - PAGE, 0))


def one_byte(stage: Stage) -> str:
    memory = stage.memory()
    assert memory.file.create(0, 1) == "0"
    return f"{memory.store(PAGE - 1)}, {memory.store(PAGE)}"


T("create-size-1", "size 1: the last byte of the page, the first of the next",
  "ok, SIGSEGV MAPERR", one_byte)
T("create-size-2^64-1", "size 2^64-1 at 4K", "ENOMEM", place(PAGE, WRAP - 1))
T("create-size-2^64-4K", "size 2^64-4096 at 4K", "ENOMEM", place(PAGE, WRAP - PAGE),
  source="1.12, A")
for name, size in {"2^64-1": WRAP - 1, "2^64-Q": WRAP - Q}.items():
    T(f"create-size-{name}-at-0", f"size {name} at 0: the check of the end wraps", "ENOMEM",
      place(0, size), source="1.12, A")
T("create-size-2^64-2Q-at-0", "size 2^64-2Q at 0: it does not", "EINVAL", place(0, WRAP - 2 * Q),
  source="1.12")
T("create-size-2^63", "size 2^63", "EINVAL", place(0, 1 << 63))

T = Table("CREATE_MAPPING: flags", "1.7, A, C", call="mshare_map")
T("flags-none", "neither MAP_SHARED nor MAP_FIXED", "EINVAL", flags(ANON))
T("flags-not-shared", "without MAP_SHARED", "EINVAL", flags(FIXED | ANON))
T("flags-not-fixed", "without MAP_FIXED", "EINVAL", flags(SHARED | ANON))
T("flags-private", "MAP_PRIVATE", "EINVAL", flags(PRIVATE | FIXED | ANON))
T("flags-validate", "MAP_SHARED_VALIDATE, anonymous", "EINVAL", flags(VALIDATE | FIXED | ANON))
T("flags-growsdown", "MAP_GROWSDOWN", "EINVAL", flags(DEFAULT | GROWSDOWN))
T("flags-type-9", "mapping type 9", "EINVAL", flags(9 | FIXED | ANON))
for ident, name, bits in (
    ("populate", "MAP_POPULATE", POPULATE),
    ("nonblock", "MAP_NONBLOCK", 0x10000),
    ("stack", "MAP_STACK", 0x20000),
    ("32bit", "MAP_32BIT", 0x40),
    ("sync", "MAP_SYNC", 0x80000),
    ("denywrite", "MAP_DENYWRITE", 0x800),
    ("executable", "MAP_EXECUTABLE", 0x1000),
    ("noreserve", "MAP_NORESERVE", 0x4000),
    ("uninitialized", "MAP_UNINITIALIZED", 0x4000000),
    ("huge-2mb", "MAP_HUGE_2MB without MAP_HUGETLB", 21 << 26),
    ("huge-1gb", "MAP_HUGE_1GB without MAP_HUGETLB", 30 << 26),
    ("bit-9", "unknown bit 9", 0x200),
    ("bit-25", "unknown bit 25", 0x2000000),
):
    # In mshare_map() bit 25 is MSHARE_MAP_FROM, which takes no descriptor and no MAP_ANONYMOUS.
    T(f"flags-{ident}", f"{name}: ignored", "0", flags(DEFAULT | bits),
      calls="EINVAL" if ident == "bit-25" else None)


def populated(stage: Stage) -> str:
    """Whether a populated mapping of 8 MiB takes memory."""
    file = stage.region()
    before = stage.memory_used()
    assert file.create(0, 8 << 20, flags=DEFAULT | POPULATE) == "0"
    return "none" if stage.memory_used() - before < 4 << 20 else "some"


T("flags-populate-shmem", "memory that MAP_POPULATE of 8 MiB takes", "none", populated, source="C")


def noreplace(*places: tuple[int, int]) -> Callable[[Stage], str]:
    """Two pages at 4K, then one CREATE each with MAP_FIXED|MAP_FIXED_NOREPLACE."""

    def check(stage: Stage) -> str:
        file = stage.region()
        assert file.create(PAGE, 2 * PAGE) == "0"
        return ", ".join(
            file.create(offset, size, flags=DEFAULT | NOREPLACE) for offset, size in places
        )

    return check


T("noreplace-hole", "MAP_FIXED_NOREPLACE on a hole", "0", noreplace((0, PAGE)), source="A, B")
T("noreplace-same", "on what is mapped", "EEXIST", noreplace((PAGE, PAGE)), source="A, B")
T("noreplace-part", "over the begin, the end, all of what is mapped", "EEXIST, EEXIST, EEXIST",
  noreplace((0, 2 * PAGE), (2 * PAGE, 2 * PAGE), (0, 4 * PAGE)), source="A, B")
T("noreplace-unfixed", "MAP_FIXED_NOREPLACE without MAP_FIXED", "EINVAL",
  flags(SHARED | ANON | NOREPLACE), source="B")

for prot in range(8):
    T(f"prot-{prot}", f"prot {prot}", "0",
      lambda s, prot=prot: s.region().create(prot=prot), source="A, C")
T("prot-high", "prot 0xfffffff8|READ: bits above 7 are ignored", "0",
  lambda s: s.region().create(prot=0xFFFFFFF9), source="A, C")

T = Table("CREATE_MAPPING: the order of the checks", "1.7, C", call="mshare_map")
T("order-unsized", "unsized, and all else wrong", "EINVAL",
  lambda s: s.unsized().create(Q, 0, flags=0, fd=99))
T("order-offset-fd", "region_offset = size, descriptor not open", "EINVAL", order(offset=Q))
T("order-flags-fd", "MAP_PRIVATE, descriptor not open", "EINVAL", order(value=PRIVATE | FIXED))
T("order-unfixed-fd", "no MAP_FIXED, descriptor not open", "EINVAL", order(value=SHARED))
T("order-fd-range", "descriptor not open, end beyond the region", "EBADF",
  order(offset=Q - PAGE, size=2 * PAGE))
T("order-fd-size", "descriptor not open, size 0", "EBADF", order(size=0))
T("order-fd-odd", "descriptor not open, region_offset 1", "EBADF", order(offset=1))
T("order-fd-hugetlb", "descriptor not open, MAP_HUGETLB", "EBADF",
  order(value=SHARED_FIXED | HUGETLB))


T = Table("CREATE_MAPPING: who may", "A", call="mshare_map")


def unlinked(stage: Stage) -> str:
    file = stage.region()
    file.unlink()
    return file.create()


def by_child(stage: Stage, uid: int = 0) -> str:
    """CREATE of anonymous memory by a child that has the descriptor, maybe as another user."""
    file = stage.region()
    child = file.agent.fork()
    if uid:
        child.call("setresgid", uid, uid, uid)
        child.call("setresuid", uid, uid, uid)
    return File(child, file.fd, file.path).create()


T("create-child", "CREATE by a child of fork that has the descriptor", "0", by_child, source="A")
T("create-user", "CREATE by another user who has the descriptor", "0",
  lambda s: by_child(s, 65534), source="A")
T("create-unlinked", "CREATE in a region that is unlinked", "0",
  unlinked, source="A")

T = Table("UNMAP", "1.7, A", call="mshare_unmap")


def unmap(offset: int, size: int) -> Callable[[Stage], str]:
    """UNMAP of a region with 8 pages from 4K on."""

    def check(stage: Stage) -> str:
        file = stage.region()
        assert file.create(PAGE, 8 * PAGE) == "0"
        return file.unmap(offset, size)

    return check


T("unmap", "all of an object", "0", unmap(PAGE, 8 * PAGE))
T("unmap-part", "a part of an object", "0", unmap(2 * PAGE, PAGE))
T("unmap-more", "more than an object", "0", unmap(0, 16 * PAGE))
T("unmap-all", "all of the region", "0", unmap(0, Q))
T("unmap-hole", "a hole", "0", unmap(Q // 2, PAGE))
T("unmap-size-0", "size 0", "EINVAL", unmap(PAGE, 0))
for name, odd in UNALIGNED.items():
    T(f"unmap-offset-odd-{name}", f"region_offset {name}", "EINVAL", unmap(odd, 1))
for name, size in {"1": 1, "2": 2, "511": 511, "4095": 4095, "2M+1": (2 << 20) + 1}.items():
    T(f"unmap-size-{name}", f"size {name}: rounded up to pages", "0", unmap(PAGE, size))
T("unmap-odd-hole", "region_offset 4K+512 in a hole", "EINVAL", unmap(Q // 2 + 512, PAGE))
T("unmap-offset-end", "region_offset = size of the region", "EINVAL", unmap(Q, PAGE))
T("unmap-offset-beyond", "region_offset beyond", "EINVAL", unmap(2 * Q, PAGE))
T("unmap-beyond", "end beyond the region", "EINVAL", unmap(Q - PAGE, 2 * PAGE))
T("unmap-size-more", "size of more than the region", "EINVAL", unmap(0, Q + PAGE))
T("unmap-wrap", "end beyond 2^64", "EINVAL", unmap(PAGE, WRAP - PAGE))
T("unmap-offset-wrap", "region_offset 2^64-4096", "EINVAL", unmap(WRAP - PAGE, PAGE))
T("unmap-pointer", "a bad pointer", "EFAULT", lambda s: s.region().say("ioctl", 0x40107801, 8),
  call="")
T("unmap-short", "12 bytes of the struct are readable", "EFAULT",
  lambda s: short(s, 12, unmap_bytes(0, PAGE), 0x40107801), call="")


def rounded(stage: Stage) -> str:
    memory = stage.memory((0, 3 * PAGE, RW))
    assert memory.file.unmap(0, PAGE + 1) == "0"
    return f"{memory.load(PAGE)}, {memory.load(2 * PAGE)}"


T("unmap-size-odd", "size 4097: the second page, the third", "SIGSEGV MAPERR, 0", rounded)


def numbered(stage: Stage, objects: tuple[tuple[int, int], ...]) -> Memory:
    """Objects of some pages; each page has its number, from 1 on."""
    memory = stage.memory(*((at * PAGE, count * PAGE, RW) for at, count in objects))
    for at, count in objects:
        for number in range(at, at + count):
            memory.store(number * PAGE, number + 1)
    return memory


def six_pages(memory: Memory) -> str:
    """The content of the first six pages; "-": none is there."""
    found = [memory.load(number * PAGE) for number in range(6)]
    return "".join("-" if each.startswith("SIG") else each for each in found)


def pattern(*objects: tuple[int, int], cut: tuple[int, int]) -> Callable[[Stage], str]:
    """Objects of some pages, one UNMAP: which of six pages are there afterwards."""

    def check(stage: Stage) -> str:
        memory = numbered(stage, objects)
        assert memory.unmap(cut[0] * PAGE, cut[1] * PAGE) == "0"
        return six_pages(memory)

    return check


for objects, cut, left in (
    (((0, 6),), (0, 6), "------"), (((0, 6),), (0, 2), "--3456"), (((0, 6),), (4, 2), "1234--"),
    (((0, 6),), (2, 2), "12--56"), (((0, 3), (3, 3)), (2, 2), "12--56"),
    (((0, 3), (3, 3)), (0, 3), "---456"), (((0, 3), (3, 3)), (3, 3), "123---"),
    (((0, 2), (4, 2)), (1, 4), "1----6"), (((0, 2), (4, 2)), (2, 2), "12--56"),
    (((0, 2), (4, 2)), (0, 6), "------"), (((1, 1), (3, 1), (5, 1)), (2, 3), "-2---6"),
    (((1, 4),), (0, 2), "--345-"), (((1, 4),), (4, 2), "-234--"), (((0, 1),), (1, 5), "1-----"),
):
    shape = ", ".join(f"[{at}, {at + count})" for at, count in objects)
    name = "-".join(f"{at}+{count}" for at, count in (*objects, cut))
    T(f"unmap-{name}", f"objects at pages {shape}; UNMAP [{cut[0]}, {cut[0] + cut[1]}): the pages",
      left, pattern(*objects, cut=cut), plain=True)


def replaced(*objects: tuple[int, int], by: tuple[int, int]) -> Callable[[Stage], str]:
    """Objects of some pages, one CREATE over them: the content of six pages afterwards."""

    def check(stage: Stage) -> str:
        memory = numbered(stage, objects)
        assert memory.file.create(by[0] * PAGE, by[1] * PAGE) == "0"
        return six_pages(memory)

    return check


T = Table("CREATE_MAPPING over objects", "1.7, A", call="mshare_map")
for objects, new, after in (
    (((0, 6),), (0, 6), "000000"), (((0, 6),), (0, 2), "003456"), (((0, 6),), (4, 2), "123400"),
    (((0, 6),), (2, 2), "120056"), (((0, 3), (3, 3)), (2, 2), "120056"),
    (((0, 2), (4, 2)), (1, 4), "100006"), (((0, 2), (4, 2)), (2, 2), "120056"),
    (((1, 1), (3, 1), (5, 1)), (2, 3), "-20006"), (((1, 4),), (0, 2), "00345-"),
    (((1, 4),), (4, 2), "-23400"),
):
    shape = ", ".join(f"[{at}, {at + count})" for at, count in objects)
    name = "-".join(f"{at}+{count}" for at, count in (*objects, new))
    T(f"create-over-{name}", f"objects at pages {shape}; CREATE [{new[0]}, {new[0] + new[1]}): "
      "the pages", after, replaced(*objects, by=new))

T = Table("UNMAP of a large region", "C", call="mshare_unmap")


def large(count: int) -> Callable[[Stage], str]:
    """UNMAP of `count` quanta of a region of 255 (127.5 TiB)."""
    return lambda stage: stage.region(255 * Q).unmap(0, count * Q)


T("unmap-255Q", "the whole of a region of 255Q (127.5 TiB)", "EINVAL", large(255), source="C")
T("unmap-254Q", "254Q of it", "0", large(254), source="C")

T = Table("Memory given back", "1.7, C")


def part_unmapped(stage: Stage) -> str:
    """64 MiB are touched, 63 of them unmapped."""
    memory = stage.memory((0, 64 << 20, RW))
    memory.agent.call("memset", memory.base, 1, 64 << 20)
    before = stage.memory_used()
    memory.file.unmap(0, 63 << 20)
    return "freed" if before - stage.memory_used() > 48 << 20 else "kept"


T("unmap-part-memory", "UNMAP of 63 of 64 MiB of an anonymous object: its memory", "kept",
  part_unmapped, source="C", ours="freed", why=reasons.FREED)


def all_unmapped(stage: Stage) -> str:
    memory = stage.memory((0, 64 << 20, RW))
    memory.agent.call("memset", memory.base, 1, 64 << 20)
    before = stage.memory_used()
    memory.file.unmap(0, 64 << 20)
    return "freed" if before - stage.memory_used() > 48 << 20 else "kept"


T("unmap-all-memory", "UNMAP of all of it", "freed", all_unmapped, source="1.7, C")


def hole_refilled(stage: Stage) -> str:
    memory = stage.memory((0, 4 * PAGE, RW))
    memory.store(PAGE)
    memory.file.unmap(PAGE, PAGE)
    memory.file.create(PAGE, PAGE)
    return memory.load(PAGE)


T("unmap-create-zero", "UNMAP of a page that was written, CREATE again: a load", "0", hole_refilled,
  source="C")
