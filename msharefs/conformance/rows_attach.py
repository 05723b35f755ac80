"""Attaching: mmap(2) of a region file."""

from __future__ import annotations

import os
import struct
from itertools import count
from typing import TYPE_CHECKING

from msharefs import proc

from . import reasons
from .agent import Agent
from .stage import (
    ANON,
    FIXED,
    GROWSDOWN,
    HUGETLB,
    LOCKED,
    NONE,
    NOREPLACE,
    NORESERVE,
    PAGE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    VALIDATE,
    WRITE,
    Q,
    errno_name,
)
from .table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stage import File, Stage
RLIMIT_STACK, RLIMIT_MEMLOCK, RLIMIT_AS = 3, 8, 9
UNLIMITED = (1 << 64) - 1


def mmap(**arguments: int) -> Callable[[Stage], str]:
    """Mmap of a region of Q."""
    return lambda stage: stage.region().mmap(**arguments)


def where(file: File, **arguments: int) -> str:
    """The address of an attachment in units of Q, or the errno."""
    try:
        address = file.attach(**arguments)
    except OSError as error:
        return errno_name(error)
    whole, rest = divmod(address, Q)
    return f"{whole}Q" if rest == 0 else hex(address)


def limit(agent: Agent, resource: int, soft: int, hard: int | None = None) -> None:
    agent.call("setrlimit", resource, struct.pack("=QQ", soft, soft if hard is None else hard))


def opened(stage: Stage, flags: int) -> File:
    """A sized region, opened once more with these flags."""
    stage.region()
    return stage.open(flags=flags)


ATTACH = "mshare_attach"
T = Table("Attach: what is refused", "1.6, A")
T("attach", "mmap(NULL, Q, RW, MAP_SHARED)", "0", mmap(), call=ATTACH)
T("attach-aligned", "its address modulo Q", "0",
  lambda s: str(s.region().attach() % Q), source="1.4", call=ATTACH)
T("attach-unsized", "of an unsized region", "EINVAL", lambda s: s.unsized().mmap(), call=ATTACH)
T("attach-private", "MAP_PRIVATE", "EINVAL", mmap(flags=PRIVATE))
T("attach-private-unsized", "MAP_PRIVATE of an unsized region", "EINVAL",
  lambda s: s.unsized().mmap(flags=PRIVATE))
T("attach-validate", "MAP_SHARED_VALIDATE", "0", mmap(flags=VALIDATE))
T("attach-growsdown", "MAP_GROWSDOWN", "EINVAL", mmap(flags=SHARED | GROWSDOWN), call=ATTACH)
T("attach-hugetlb", "MAP_HUGETLB", "EINVAL", mmap(flags=SHARED | HUGETLB), call=ATTACH)
for name, length in (
    ("0", 0), ("4K", PAGE), ("1G", 1 << 30), ("Q-4K", Q - PAGE), ("Q+4K", Q + PAGE), ("2Q", 2 * Q),
):
    T(f"attach-length-{name}", f"length {name}", "EINVAL", mmap(length=length), call=ATTACH,
      calls="EINVAL" if length else "0")
T("attach-length-Q-1", "length Q-1 counts as Q", "0", mmap(length=Q - 1), call=ATTACH)
T("attach-length-part", "length Q of a region of 2Q", "EINVAL", lambda s: s.region(2 * Q).mmap(Q),
  default="0", why=reasons.PARTS, call=ATTACH)
T("attach-length-all", "length 2Q of a region of 2Q", "0", lambda s: s.region(2 * Q).mmap(2 * Q),
  call=ATTACH)


def by_descriptor(mode: str, prot: int) -> dict[str, str]:
    """mshare_attach() takes no protection: the descriptor's rights are what there is."""
    if prot not in (READ, RW):
        return {}
    return {"call": ATTACH, "calls": "EACCES" if mode == "write-only" else "0"}


MODES = {"read-only": os.O_RDONLY, "write-only": os.O_WRONLY, "read-write": os.O_RDWR}
for mode, opening in MODES.items():
    for prot in range(8):
        refused = mode == "write-only" or (mode == "read-only" and prot & WRITE)
        T(f"attach-{mode}-{prot}", f"prot {prot}, by a {mode} descriptor",
          "EACCES" if refused else "0",
          lambda s, opening=opening, prot=prot: opened(s, opening).mmap(prot=prot),
          source="1.6, A, C", **by_descriptor(mode, prot))
T("attach-read-only-length", "the same with length 4K: the length is checked before", "EINVAL",
  lambda s: opened(s, os.O_RDONLY).mmap(PAGE), source="A, C")
T("attach-write-only-length", "write-only descriptor and length 4K", "EINVAL",
  lambda s: opened(s, os.O_WRONLY).mmap(PAGE), source="A, C")
T("attach-read-only-fixed", "read-only descriptor and MAP_FIXED at Q+4K", "EINVAL",
  lambda s: opened(s, os.O_RDONLY).mmap(flags=SHARED | FIXED, addr=Q + PAGE))
PART = {"source": "B", "call": ATTACH, "calls": "EINVAL"}  # that offset of the region
T("attach-offset", "file offset 4096", "0", mmap(offset=PAGE), **PART)
T("attach-offset-Q", "file offset Q", "0", mmap(offset=Q), **PART)
T("attach-offset-2^62", "file offset 2^62", "0", mmap(offset=1 << 62), **PART)
T("attach-offset-odd", "file offset 1", "EINVAL", mmap(offset=1), **PART)
T("attach-offset-2^63", "file offset 2^63-4096", "EOVERFLOW", mmap(offset=(1 << 63) - PAGE),
  **PART)


def offset_is_all(stage: Stage) -> str:
    """A byte at 0, read through an attachment with file offset 4096."""
    memory = stage.page()
    memory.store()
    return stage.agent.load(memory.file.attach(offset=PAGE))


T("attach-offset-whole", "what file offset 4096 maps: the byte at region offset 0", "7",
  offset_is_all, source="1.6, B")


def limited(stage: Stage, resource: int, value: int, **arguments: int) -> str:
    agent = stage.user() if resource == RLIMIT_MEMLOCK else stage.agent
    file = stage.region(mode=0o666)
    limit(agent, resource, value)
    return file.by(agent).mmap(**arguments)


T("attach-rlimit-as", "beyond RLIMIT_AS", "ENOMEM",
  lambda s: limited(s, RLIMIT_AS, 1 << 36), source="A, C")
T("attach-locked", "MAP_LOCKED by root", "0", mmap(flags=SHARED | LOCKED), source="C")
T("attach-locked-limit", "MAP_LOCKED beyond RLIMIT_MEMLOCK", "EAGAIN",
  lambda s: limited(s, RLIMIT_MEMLOCK, 1 << 16, flags=SHARED | LOCKED), source="C")

T = Table("Attach: where", "1.6, A, C", call=ATTACH)
T("hint-20Q", "hint 20Q", "20Q", lambda s: where(s.region(), addr=20 * Q))
for quantum in (1, 2, 50, 100, 150, 200):
    T(f"hint-{quantum}Q", f"hint {quantum}Q", f"{quantum}Q",
      lambda s, quantum=quantum: where(s.region(), addr=quantum * Q))
    T(f"attach-fixed-{quantum}Q", f"MAP_FIXED at {quantum}Q", f"{quantum}Q",
      lambda s, quantum=quantum: where(s.region(), flags=SHARED | FIXED, addr=quantum * Q))
    T(f"attach-noreplace-{quantum}Q", f"MAP_FIXED_NOREPLACE at {quantum}Q", f"{quantum}Q",
      lambda s, quantum=quantum: where(s.region(), flags=SHARED | NOREPLACE, addr=quantum * Q))
for name, odd in (("1", 1), ("4K", PAGE), ("2M", 2 << 20), ("Q/2", Q // 2), ("Q-4K", Q - PAGE)):
    T(f"attach-fixed-odd-{name}", f"MAP_FIXED at 20Q+{name}", "EINVAL",
      mmap(flags=SHARED | FIXED, addr=20 * Q + odd))
    T(f"attach-noreplace-odd-{name}", f"MAP_FIXED_NOREPLACE at 20Q+{name}", "EINVAL",
      mmap(flags=SHARED | NOREPLACE, addr=20 * Q + odd))
T("hint-20Q+1", "hint 20Q+1: the core drops the low 12 bits", "20Q",
  lambda s: where(s.region(), addr=20 * Q + 1))
T("hint-20Q+4K", "hint 20Q+4096: rounded up", "21Q",
  lambda s: where(s.region(), addr=20 * Q + PAGE))
T("hint-4K", "hint 4096", "1Q", lambda s: where(s.region(), addr=PAGE))


def searched(stage: Stage, hint: int) -> str:
    """Whether an attachment with a hint goes where one without would have."""
    file = stage.region()
    first = file.attach()
    file.detach(first)
    second = file.attach(addr=hint)
    return "as without a hint" if first == second else where(file)


T("hint-1", "hint 1: as NULL", "as without a hint", lambda s: searched(s, 1))
T("hint-high", "hint 300Q: too high", "as without a hint", lambda s: searched(s, 300 * Q))


def busy_hint(stage: Stage) -> str:
    file = stage.region()
    first = file.attach(addr=20 * Q)
    second = file.attach(addr=20 * Q)
    return "elsewhere" if second % Q == 0 and second != first else hex(second)


T("hint-busy", "hint that is taken", "elsewhere", busy_hint)


def free_above(agent: Agent, address: int) -> list[int]:
    """The aligned holes of Q bytes between an address and the stack."""
    taken: set[int] = set()
    for each in proc.maps(agent.pid):
        taken.update(range(each.start // Q, (each.end - 1) // Q + 1))
    return [slot for slot in range(address // Q + 1, 255) if slot not in taken]


def top_down(stage: Stage) -> str:
    """Whether two attachments without a hint are in the highest holes."""
    file = stage.region()
    first = file.attach()
    second = file.attach()
    above = free_above(stage.agent, second)
    return "the highest two holes" if not above and second < first else f"below {above}"


T("attach-null", "twice without a hint: 0x7f0000000000 or 0x7e8000000000, then the next lower",
  "the highest two holes", top_down, source="C")


def bottom_up(stage: Stage) -> str:
    """After exec with an unlimited stack addresses are given from below."""
    file = stage.region()
    limit(stage.agent, RLIMIT_STACK, UNLIMITED)
    agent = stage.agent.exec()
    address = file.by(agent).attach()
    return "low" if 0x100000000000 <= address <= 0x180000000000 else hex(address)


T("attach-bottom-up", "without a hint, RLIMIT_STACK unlimited: 0x138000000000 or near", "low",
  bottom_up, source="C", call="")
T("attach-fixed", "MAP_FIXED at 20Q", "20Q",
  lambda s: where(s.region(), flags=SHARED | FIXED, addr=20 * Q))
T("attach-fixed-odd", "MAP_FIXED at 20Q+4K", "EINVAL",
  mmap(flags=SHARED | FIXED, addr=20 * Q + PAGE))
T("attach-fixed-255Q", "MAP_FIXED at 255Q", "ENOMEM", mmap(flags=SHARED | FIXED, addr=255 * Q))
T("attach-fixed-300Q", "MAP_FIXED at 300Q", "ENOMEM", mmap(flags=SHARED | FIXED, addr=300 * Q))
T("attach-fixed-0-user", "MAP_FIXED at 0 by a user", "EPERM",
  lambda s: s.region(mode=0o666).by(s.user()).mmap(flags=SHARED | FIXED),
  source="C")
T("attach-fixed-0-root", "MAP_FIXED at 0 by root", "0",
  lambda s: where(s.region(), flags=SHARED | FIXED).replace("0Q", "0"), source="C")
T("attach-noreplace", "MAP_FIXED_NOREPLACE at a free 20Q", "20Q",
  lambda s: where(s.region(), flags=SHARED | NOREPLACE, addr=20 * Q))
T("attach-noreplace-odd", "MAP_FIXED_NOREPLACE at 20Q+4K", "EINVAL",
  mmap(flags=SHARED | NOREPLACE, addr=20 * Q + PAGE), source="C")


def clash(stage: Stage, over: int) -> str:
    """MAP_FIXED_NOREPLACE at 20Q, where something is mapped."""
    file = stage.region()
    if over == Q:
        file.attach(addr=20 * Q)
    else:
        flags = PRIVATE | ANON | FIXED
        stage.agent.call("mmap", 20 * Q + over, PAGE, NONE, flags, -1, 0)
    return file.mmap(flags=SHARED | NOREPLACE, addr=20 * Q)


T("attach-noreplace-clash", "MAP_FIXED_NOREPLACE on an attachment", "EEXIST",
  lambda s: clash(s, Q))
T("attach-noreplace-page", "MAP_FIXED_NOREPLACE where one page is mapped", "EEXIST",
  lambda s: clash(s, Q // 2))


def many(stage: Stage) -> str:
    """How many attachments fit into a process, and the answer to the next one."""
    file = stage.region()
    for number in count():
        answer = file.mmap()
        if answer != "0":
            return f"{'about 250' if 240 <= number <= 255 else number}, then {answer}"
    raise AssertionError


T("attach-many", "how many fit a process", "about 250, then ENOMEM", many, source="A, C")
T("attach-127Q", "a region of 127Q", "0", lambda s: s.region(127 * Q).mmap(127 * Q), source="C")
T("attach-254Q", "a region of 254Q", "ENOMEM",
  lambda s: s.region(254 * Q).mmap(254 * Q), source="C")
T("attach-2^62", "a region of 2^62", "ENOMEM",
  lambda s: s.region(1 << 62).mmap(1 << 62), source="1.6, C")


def lines(stage: Stage) -> str:
    """How many lines /proc/PID/maps has for two attachments side by side."""
    file = stage.region()
    file.attach(addr=20 * Q)
    file.attach(addr=21 * Q)
    starts = {each.start for each in proc.maps(stage.agent.pid)}
    return str(len(starts & {20 * Q, 21 * Q}))


T("attach-adjacent", "two attachments side by side: lines in /proc/PID/maps", "2", lines,
  source="C")


def twice(stage: Stage) -> str:
    """One region attached twice in a process, and at another address in another."""
    memory = stage.page()
    memory.store()
    again = memory.file.attach()
    other = stage.process()
    there = memory.file.by(other).attach(addr=20 * Q)
    assert len({memory.base, again, there}) == 3
    return f"{stage.agent.load(again)}, {other.load(there)}"


T("attach-twice", "a second attachment in the process, one elsewhere in another", "7, 7", twice,
  source="1.4")

T = Table("Attach: its protection", "1.6, 1.12, C")


def with_prot(stage: Stage, prot: int, flags: int, work: Callable[[Agent, int], str]) -> str:
    """`work` on an attachment with `prot`, by a descriptor open with `flags`, of an RW page."""
    memory = stage.page()
    memory.store()
    agent = stage.process()
    address = memory.file.by(agent, flags).attach(prot=prot)
    return work(agent, address)


for prot in (NONE, READ, WRITE, RW):
    for mode, opening in MODES.items():
        if mode == "write-only" or (mode == "read-only" and prot & WRITE):
            continue  # impossible
        T(f"prot-{mode}-{prot}-load", f"prot {prot} by a {mode} descriptor: a load", "7",
          lambda s, prot=prot, opening=opening: with_prot(s, prot, opening, Agent.load),
          default=None if prot else "SIGSEGV ACCERR", why=None if prot else reasons.SAFE)
        T(f"prot-{mode}-{prot}-store", f"prot {prot} by a {mode} descriptor: a store", "ok",
          lambda s, prot=prot, opening=opening: with_prot(
              s, prot, opening, lambda a, at: a.store(at, 9)),
          default=None if prot & WRITE else "SIGSEGV ACCERR",
          why=None if prot & WRITE else reasons.SAFE)


def copy_into(agent: Agent, address: int) -> str:
    """read(2) of a file into the attachment."""
    fd = agent.call("open", "/proc/self/cmdline", os.O_RDONLY)
    return agent.say("read", fd, address, 4)


def copy_out(agent: Agent, address: int) -> str:
    """write(2) from the attachment."""
    agent.call("pipe", agent.pool)
    _, writer = struct.unpack("=ii", agent.get(agent.pool, 8))
    return agent.say("write", writer, address, 4)


T("prot-none-copy-out", "PROT_NONE: write(2) from it", "0",
  lambda s: with_prot(s, NONE, os.O_RDWR, copy_out), default="EFAULT", why=reasons.SAFE)
T("prot-read-copy", "PROT_READ: read(2) into it", "0",
  lambda s: with_prot(s, READ, os.O_RDWR, copy_into), default="EFAULT", why=reasons.SAFE)
T("prot-none-copy", "PROT_NONE: read(2) into it", "0",
  lambda s: with_prot(s, NONE, os.O_RDWR, copy_into), default="EFAULT", why=reasons.SAFE)

T = Table("munmap and MAP_FIXED over an attachment", "1.6, A, C", inner=True, library=True)


def unmapped(offset: int, length: int) -> Callable[[Stage], str]:
    """Munmap of a part of an attachment, and whether a byte in it is still there."""

    def check(stage: Stage) -> str:
        memory = stage.page()
        memory.store()
        answer = memory.say("munmap", offset, length)
        return f"{answer}, {memory.load()}"

    return check


# UNMAP of a page that is mapped, and of a hole.
GONE = {"inner": "0, SIGSEGV MAPERR", "call": "mshare_unmap", "calls": "0, SIGSEGV MAPERR",
        "library": "0, SIGSEGV MAPERR"}
HOLE = {"inner": "0, 7", "call": "mshare_unmap", "calls": "0, 7", "library": "0, 7"}

T("munmap-first", "munmap of its first page", "EINVAL, 7", unmapped(0, PAGE), **GONE)
T("munmap-middle", "munmap of a page in the middle", "EINVAL, 7", unmapped(Q // 2, PAGE), **HOLE)
T("munmap-last", "munmap of its last page", "EINVAL, 7", unmapped(Q - PAGE, PAGE), **HOLE)
for name, start, length in (
    ("2M", 0, 2 << 20), ("all-but-first", PAGE, Q - PAGE), ("all-but-last", 0, Q - PAGE),
    ("second-half", Q // 2, Q // 2), ("1G", 1 << 30, 1 << 30),
):
    T(f"munmap-{name}", f"munmap of [{start:#x}, {start + length:#x})", "EINVAL, 7",
      unmapped(start, length), **HOLE if start else GONE)
T("munmap-half", "munmap of the first half", "EINVAL, 7", unmapped(0, Q // 2), **GONE)
T("munmap", "munmap of the whole: what a load says then", "0, SIGSEGV MAPERR", unmapped(0, Q),
  source="1.6, B", call="mshare_detach")


def neighbours(stage: Stage, call: Callable[[Agent, int], str]) -> str:
    """A call on a page before an attachment and the first of it; whether both are still there."""
    agent = stage.agent
    memory_file = stage.region()
    assert memory_file.create() == "0"
    base = memory_file.attach(addr=20 * Q)
    agent.call("mmap", base - PAGE, PAGE, RW, PRIVATE | ANON | FIXED, -1, 0)
    agent.store(base - PAGE, 5)
    agent.store(base, 7)
    return f"{call(agent, base - PAGE)}, {agent.load(base - PAGE)}, {agent.load(base)}"


T("munmap-neighbour", "munmap of the page before it and its first page", "EINVAL, 5, 7",
  lambda s: neighbours(s, lambda a, at: a.say("munmap", at, 2 * PAGE)), source="C",
  inner="ENOMEM, 5, 7", library="0, SIGSEGV MAPERR, SIGSEGV MAPERR")
T("fixed-neighbour", "MAP_FIXED over the page before it and its first page", "EINVAL, 5, 7",
  lambda s: neighbours(s, lambda a, at: a.say(
      "mmap", at, 2 * PAGE, RW, PRIVATE | ANON | FIXED, -1, 0)), source="C",
  inner="ENOMEM, 5, 7", library="0, 0, 0")


def over(offset: int, length: int, kind: int = PRIVATE) -> Callable[[Stage], str]:
    """MAP_FIXED of anonymous memory over it, and the result of a load then."""

    def check(stage: Stage) -> str:
        memory = stage.page()
        memory.store()
        flags = kind | ANON | FIXED | NORESERVE
        if stage.agent.by_call:
            return f"{memory.file.create(offset, length, flags=flags)}, {memory.load()}"
        answer = stage.agent.say("mmap", memory.base + offset, length, RW, flags, -1, 0)
        return f"{answer}, {memory.load()}"

    return check


T("fixed-part", "MAP_FIXED over a part", "EINVAL, 7", over(PAGE, PAGE),
  call="mshare_map", library="0, 7")
T("fixed-part-shared", "MAP_FIXED of shared memory over its first page", "EINVAL, 7",
  over(0, PAGE, SHARED), inner="0, 0", call="mshare_map", calls="0, 0", library="0, 0")
T("fixed-whole", "MAP_FIXED over the whole: what a load says then", "0, 0", over(0, Q))


def other_region(stage: Stage) -> str:
    """Another region over an attachment: which of the two a store reaches."""
    memory = stage.page()
    memory.store(byte=1)
    other = stage.region(name="other")
    assert other.create() == "0"
    other.attach(flags=SHARED | FIXED, addr=memory.base)
    memory.store(byte=9)
    first, second = memory.again(stage.process()), stage.process()
    return f"{first.load()}, {second.load(other.by(second).attach())}"


T("fixed-other", "another region attached over it with MAP_FIXED; a store to 9 of both regions",
  "9, 0", other_region, source="D", ours="1, 9", why=reasons.BROKEN)


def reattached(stage: Stage) -> str:
    memory = stage.page()
    memory.store()
    memory.file.detach(memory.base)
    return stage.agent.load(memory.file.attach())


T("munmap-again", "detached and attached again: the byte", "7", reattached, source="1.6")


def stays(stage: Stage) -> str:
    """The descriptor is closed, then the name goes: the attachment lives."""
    memory = stage.page()
    memory.store()
    memory.file.call("close")
    stage.agent.call("unlink", stage.path())
    return f"{memory.load()}, {memory.store(1, 3)}"


T("attach-closed", "descriptor closed and name unlinked: a load, a store", "7, ok", stays,
  source="1.5, C")


def memory_back(stage: Stage, *, attached: bool) -> str:
    """Whether 32 MiB go back when a region is unlinked and closed."""
    file = stage.region()
    assert file.create(0, 32 << 20) == "0"
    base = file.attach()
    stage.agent.call("memset", base, 1, 32 << 20)
    full = stage.memory_used()
    file.call("close")
    stage.agent.call("unlink", file.path)
    if not attached:
        file.detach(base)
    for _ in range(100):  # eviction follows the last close by a moment
        if full - stage.memory_used() > 24 << 20:
            return "goes back"
        stage.agent.call("usleep", 5000)
        if attached:
            break
    return "stays"


T("unlink-memory", "unlinked, closed and detached: its memory", "goes back",
  lambda s: memory_back(s, attached=False), source="1.5")
T("unlink-memory-attached", "unlinked and closed, but attached: its memory", "stays",
  lambda s: memory_back(s, attached=True), source="1.5")
