"""Page faults: the outcome of an access to an attachment, its counts, and copies."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from . import reasons
from .stage import EXEC, HAS_PKU, NONE, PAGE, READ, RW, WRITE, Memory, Q, on_page
from .table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stage import Stage

RUSAGE_SELF = 0


def page(prot: int, access: str) -> Callable[[Stage], str]:
    """One access to a page of that protection."""

    def check(stage: Stage) -> str:
        memory = stage.page(prot)
        return memory.load() if access == "load" else memory.store()

    return check


T = Table("Faults", "1.8, 1.7, A, C")
T("load-absent", "a load from a page nobody touched", "0", page(RW, "load"), plain=True)
T("store-absent", "a store to it", "ok", page(RW, "store"), plain=True)
T("load-hole", "a load from a hole", "SIGSEGV MAPERR", lambda s: s.page().load(PAGE), plain=True)
T("store-hole", "a store to a hole", "SIGSEGV MAPERR", lambda s: s.page().store(PAGE), plain=True)
T("load-empty", "a load, nothing mapped in the region", "SIGSEGV MAPERR",
  lambda s: s.memory().load(), plain=True)
T("load-last", "a load from the last byte of the region, a hole", "SIGSEGV MAPERR",
  lambda s: s.page().load(Q - 1), plain=True)
for prot in range(8):
    # On x86 writable memory is readable, and so is executable memory, without protection keys.
    only_run = "SIGSEGV PKUERR" if HAS_PKU else "0"
    load = {NONE: "SIGSEGV ACCERR", EXEC: only_run}.get(prot, "0")
    T(f"load-prot-{prot}", f"a load from an object of prot {prot}", load, page(prot, "load"),
      source="1.8, A, C", plain=True)
    T(f"store-prot-{prot}", "a store to it", "ok" if prot & WRITE else "SIGSEGV ACCERR",
      page(prot, "store"), source="1.8, A, C", plain=True)


def other_access(stage: Stage, prot: int, access: str, who: str) -> str:
    """An access by another process to a page that is there, if the first may put it there."""
    memory = stage.page(prot)
    if prot & WRITE:
        memory.store(byte=0)
    elif prot & READ:
        memory.load()
    other = memory.at(memory.agent.fork()) if who == "a child" else memory.again(stage.process())
    return other.load() if access == "load" else other.store()


for who, short in (("a second process", "second"), ("a child", "child")):
    for prot in range(8):
        only_run = "SIGSEGV PKUERR" if HAS_PKU else "0"
        load = {NONE: "SIGSEGV ACCERR", EXEC: only_run}.get(prot, "0")
        T(f"{short}-load-{prot}", f"{who}: a load from an object of prot {prot}", load,
          lambda s, prot=prot, who=who: other_access(s, prot, "load", who),
          source="1.8, 1.11, A", plain=True)
        T(f"{short}-store-{prot}", f"{who}: a store to it",
          "ok" if prot & WRITE else "SIGSEGV ACCERR",
          lambda s, prot=prot, who=who: other_access(s, prot, "store", who),
          source="1.8, 1.11, A", plain=True)


def between(stage: Stage) -> str:
    """Two objects with a hole between them."""
    memory = stage.memory((0, PAGE, RW), (2 * PAGE, PAGE, READ))
    found = [memory.store(), memory.load(PAGE), memory.load(2 * PAGE), memory.store(2 * PAGE)]
    return ", ".join(found)


T("holes-and-prots", "an object, a hole, a read-only object: accesses to each",
  "ok, SIGSEGV MAPERR, 0, SIGSEGV ACCERR", between, plain=True)


def unmapped(stage: Stage) -> str:
    memory = stage.memory((0, 3 * PAGE, RW))
    for offset in (0, PAGE, 2 * PAGE):
        memory.store(offset)
    assert memory.unmap(PAGE, PAGE) == "0"
    return ", ".join(memory.load(offset) for offset in (0, PAGE, 2 * PAGE))


T("load-unmapped", "three pages, the second unmapped: loads", "7, SIGSEGV MAPERR, 7", unmapped,
  plain=True)


def unmapped_for_others(stage: Stage) -> str:
    memory = stage.page()
    memory.store()
    other = memory.again(stage.process())
    assert other.load() == "7"
    assert memory.unmap() == "0"
    return f"{memory.load()}, {other.load()}"


T("unmap-everywhere", "UNMAP of a page that two processes use: a load by each",
  "SIGSEGV MAPERR, SIGSEGV MAPERR", unmapped_for_others, source="1.7, 1.9")


def mapped_again(stage: Stage) -> str:
    """UNMAP, a refused access, CREATE again: the result of a load."""
    memory = stage.page()
    memory.store()
    memory.unmap()
    refused = memory.load()
    memory.map()
    return f"{refused}, {memory.load()}, {memory.store()}"


T("map-after-segv", "UNMAP, a load, CREATE again, a load, a store", "SIGSEGV MAPERR, 0, ok",
  mapped_again, plain=True)


def replaced(stage: Stage) -> str:
    """A CREATE over a CREATE: zeros, and the new protection."""
    memory = stage.memory((0, 2 * PAGE, RW))
    memory.store(0)
    memory.store(PAGE)
    assert memory.file.create(0, PAGE, READ) == "0"
    return f"{memory.load()}, {memory.store()}, {memory.load(PAGE)}"


T("create-over", "a read-only object over the first of two pages: a load, a store, the second",
  "0, SIGSEGV ACCERR, 7", replaced, source="1.7")


def protection_changed(stage: Stage) -> str:
    memory = stage.page(READ)
    first = memory.store()
    assert memory.file.create(0, PAGE, RW) == "0"
    return f"{first}, {memory.store()}"


T("create-writable", "a store to a read-only object, CREATE over it with PROT_WRITE, a store",
  "SIGSEGV ACCERR, ok", protection_changed, source="C")


def exact(stage: Stage, offset: int) -> str:
    """Where si_addr points: the agent says so where it is not the accessed byte."""
    return stage.page().load(offset)


T("si-addr", "si_addr of a refused load at 4K+123: the byte", "SIGSEGV MAPERR",
  lambda s: exact(s, PAGE + 123), plain=True)
T("si-addr-far", "si_addr of a refused load at Q-3: the byte", "SIGSEGV MAPERR",
  lambda s: exact(s, Q - 3), plain=True)


def one_of_two(stage: Stage, offset: int) -> str:
    """si_addr in a second process, which has the region elsewhere."""
    memory = stage.page()
    other = memory.again(stage.process())
    assert stage.plain or other.base != memory.base or other.agent.pid != memory.agent.pid
    return other.load(offset)


T("si-addr-other", "si_addr in another attacher: its own address", "SIGSEGV MAPERR",
  lambda s: one_of_two(s, 2 * PAGE + 5), plain=True)


def alternating(stage: Stage) -> str:
    """A refused access does not harm later ones."""
    memory = stage.page()
    first = f"{memory.load(PAGE)}, {memory.store()}, {memory.store(PAGE)}"
    return f"{first}, {memory.load()}, {memory.load(PAGE)}"


T("segv-then", "loads and stores, in a hole and not, in turns",
  "SIGSEGV MAPERR, ok, SIGSEGV MAPERR, 7, SIGSEGV MAPERR", alternating, plain=True)

T = Table("Faults counted", "1.8, A, C")


def minor_faults(memory: Memory) -> int:
    """ru_minflt of the process."""
    memory.agent.call("getrusage", RUSAGE_SELF, memory.agent.pool)
    return struct.unpack_from("=q", memory.agent.get(memory.agent.pool, 144), 64)[0]


COUNTED = 1024  # pages


def counted(memory: Memory, *, write: bool) -> int:
    """Minor faults of touching the first COUNTED pages of memory, in the page's own order."""
    before = minor_faults(memory)
    if write:
        memory.agent.call("memset", memory.base, 1, COUNTED * PAGE)
    else:
        memory.agent.call("memchr", memory.base, 255, COUNTED * PAGE)
    return minor_faults(memory) - before


def rate(found: int) -> str:
    """How many faults there were; some are the agent's own."""
    if found <= 8:
        return "none"
    return "1 a page" if found >= COUNTED else "1 for several pages"


def first_touch(stage: Stage) -> str:
    return rate(counted(stage.memory((0, COUNTED * PAGE, RW)), write=True))


def second_process(stage: Stage, *, write: bool) -> str:
    memory = stage.memory((0, COUNTED * PAGE, RW))
    memory.agent.call("memset", memory.base, 1, COUNTED * PAGE)
    other = memory.again(stage.process())
    return rate(counted(other, write=write))


def present_again(stage: Stage) -> str:
    """A page that the process has touched already."""
    memory = stage.memory((0, COUNTED * PAGE, RW))
    counted(memory, write=True)
    return rate(counted(memory, write=True))


T("minflt-first", "minor faults of the first writes to 1024 pages", "1 a page", first_touch)
T("minflt-second-write", "of a second process that writes them", "none",
  lambda s: second_process(s, write=True), ours="1 for several pages", why=reasons.EMULATED)
T("minflt-second-read", "of a second process that reads them", "none",
  lambda s: second_process(s, write=False), ours="1 for several pages", why=reasons.EMULATED)
T("minflt-again", "of writing them once more", "none", present_again, plain=True)


T = Table("Copies by the kernel", "1.8, A, C")


def copy_in(memory: Memory, offset: int, size: int = 8) -> str:
    """read(2) of a file to `offset`: bytes read or errno."""
    path = memory.stage.elsewhere / "in"
    path.write_bytes(b"\x05" * size)
    fd = memory.agent.call("open", str(path), os.O_RDONLY)
    result, error = memory.agent.result("read", fd, memory.base + offset, size)
    return error if result == -1 else str(result)


def copy_out(memory: Memory, offset: int, size: int = 8) -> str:
    """write(2) from `offset` to a file: bytes written or errno."""
    path = str(memory.stage.elsewhere / "out")
    fd = memory.agent.call("open", path, os.O_WRONLY | os.O_CREAT, 0o600)
    result, error = memory.agent.result("write", fd, memory.base + offset, size)
    return error if result == -1 else str(result)


T("copy-in-absent", "read(2) into an absent page", "8, 5",
  on_page(lambda m: f"{copy_in(m, 0)}, {m.load()}"), plain=True)
T("copy-out-absent", "write(2) from an absent page", "8", lambda s: copy_out(s.page(), 0),
  plain=True)
T("copy-in-hole", "read(2) into a hole", "EFAULT", lambda s: copy_in(s.page(), PAGE), plain=True)
T("copy-out-hole", "write(2) from a hole", "EFAULT", lambda s: copy_out(s.page(), PAGE), plain=True)
T("copy-in-straddling", "read(2) of 8 bytes into 4 of an object and a hole", "4",
  lambda s: copy_in(s.page(), PAGE - 4), plain=True)
T("copy-out-straddling", "write(2) of 8 bytes from 4 of an object and a hole", "4",
  lambda s: copy_out(s.page(), PAGE - 4), plain=True)
T("copy-in-read-only", "read(2) into a read-only object", "EFAULT",
  lambda s: copy_in(s.page(READ), 0), plain=True)
