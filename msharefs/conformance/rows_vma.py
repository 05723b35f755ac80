"""Calls on the addresses of an attachment: mprotect, mremap, msync, mlock, mseal, madvise."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from msharefs import proc

from . import reasons
from .stage import HUGE, NONE, PAGE, READ, RW, Memory, Q, errno_name
from .table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from .agent import Argument
    from .stage import Stage

MAYMOVE, REMAP_FIXED, DONTUNMAP = 1, 2, 4
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
MCL_CURRENT, MCL_FUTURE = 1, 2
ONFAULT = 1
SYS_PIDFD_OPEN, SYS_PROCESS_MADVISE = 434, 440
RLIMIT_MEMLOCK = 8

WHOLE, PART = (0, Q), (0, PAGE)
ONLY_NOW = "EOPNOTSUPP"  # MLOCK_ONFAULT of a region
# Of 512 GiB, which Linux fills: with pages, or with page tables for marks that they are missing.
TOO_LONG = ""


def touched(stage: Stage) -> Memory:
    """An attachment with one page, which is present, and linked."""
    memory = stage.page()
    memory.store()
    return memory


def on(
    function: str, where: tuple[int, int], *arguments: Argument, present: bool = True
) -> Callable[[Stage], str]:
    """A call on a part of an attachment: function(address, length, ...)."""

    def check(stage: Stage) -> str:
        memory = touched(stage) if present else stage.page()
        return memory.say(function, *where, *arguments)

    return check


# A call that reaches into a hole fails, whatever else it would do, and changes nothing.
HOLE = "ENOMEM"

T = Table("mprotect and mremap of an attachment", "1.6, A, B", inner=True, library=True)
for name, where in (("whole", WHOLE), ("part", PART), ("middle", (Q // 2, PAGE))):
    for prot, what in ((READ, "PROT_READ"), (RW, "PROT_READ|PROT_WRITE"), (NONE, "PROT_NONE")):
        answer = "0" if name == "part" else HOLE
        T(f"mprotect-{name}-{prot}", f"mprotect({what}) of the {name}", "EINVAL",
          on("mprotect", where, prot), inner=answer, call="mshare_protect", calls=answer,
          library="0")


def remap(
    old: int, new: int, flags: int = MAYMOVE, *to: int, offset: int = 0
) -> Callable[[Stage], str]:
    """mremap, and whether the attachment is as it was."""

    def check(stage: Stage) -> str:
        memory = touched(stage)
        agent = memory.agent
        try:
            base = agent.call("mremap", memory.base + offset, old, new, flags, *to)
        except OSError as error:
            return f"{errno_name(error)}, {memory.load()}"
        return f"0, {agent.load(base)}"

    return check


T("mremap-grow", "mremap to 2Q", "EFAULT, 7", remap(Q, 2 * Q), inner="EINVAL, 7")
T("mremap-grow-page", "mremap to Q+4K", "EFAULT, 7", remap(Q, Q + PAGE),
  inner="EINVAL, 7")
T("mremap-shrink", "mremap to Q-4K", "EINVAL, 7", remap(Q, Q - PAGE), library="0, 7")
T("mremap-same", "mremap to the same size", "0, 7", remap(Q, Q))
T("mremap-old-0", "mremap with old size 0", "EFAULT, 7", remap(0, Q), inner="EINVAL, 7",
  library="0, 7")
T("mremap-part", "mremap of a part to a fixed place", "EINVAL, 7",
  remap(PAGE, PAGE, MAYMOVE | REMAP_FIXED, 20 * Q), source="1.6", library="0, 7")
T("mremap-move", "mremap of the whole to a fixed 20Q, a load there", "0, 7",
  remap(Q, Q, MAYMOVE | REMAP_FIXED, 20 * Q), source="B", ours="EINVAL, 7",
  why=reasons.CORRUPTS, library="EFAULT, SIGSEGV MAPERR")
T("mremap-move-odd", "mremap of the whole to 20Q+4K", "EINVAL, 7",
  remap(Q, Q, MAYMOVE | REMAP_FIXED, 20 * Q + PAGE), source="B",
  library="EFAULT, SIGSEGV MAPERR")
T("mremap-dontunmap", "mremap(MREMAP_DONTUNMAP)", "EINVAL, 7",
  remap(Q, Q, MAYMOVE | DONTUNMAP), source="B", library="EFAULT, 7")
T("remap-file-pages", "remap_file_pages of its first page", "EINVAL",
  on("remap_file_pages", PART, 0, 1, 0), source="C", library="0")

def locked_by_user(stage: Stage) -> str:
    memory = stage.page()
    os_mode = 0o666
    stage.agent.call("chmod", stage.path(), os_mode)
    again = memory.again(stage.user())
    again.store()
    return again.say("mlock", 0, PAGE)


def all_locked(stage: Stage) -> str:
    memory = touched(stage)
    before = memory.stage.memory_used()
    assert memory.agent.say("mlockall", MCL_CURRENT | MCL_FUTURE) == "0"
    memory.file.attach()
    return "none" if memory.stage.memory_used() - before < 64 << 20 else "some"


def vmlck(stage: Stage) -> str:
    memory = touched(stage)
    assert memory.say("mlock", 0, PAGE) == "0"
    return status(memory, "VmLck")


def status(memory: Memory, field: str) -> str:
    """A field of /proc/PID/status."""
    return proc.status(memory.agent.pid, field)


T = Table("msync, mlock, mseal", "A, C", inner=True, library=True)
for name, flags, answer in (
    ("async", MS_ASYNC, "0"), ("invalidate", MS_INVALIDATE, "0"), ("sync", MS_SYNC, "EINVAL"),
):
    T(f"msync-{name}", f"msync(MS_{name.upper()}) of a page", answer, on("msync", PART, flags),
      inner="0", call="mshare_sync", calls="0", library="0")
T("mlock-present", "mlock of a page that is present and linked", "0", on("mlock", PART),
  call="mshare_lock")
T("mlock-absent", "mlock of an absent page", "ENOMEM", on("mlock", PART, present=False),
  inner="0", call="mshare_lock", calls="0", library="0")
T("mlock-whole", "mlock of the whole: not every page is present", "ENOMEM", on("mlock", WHOLE),
  call="mshare_lock")
T("mlock2-onfault-present", "mlock2(MLOCK_ONFAULT) of a page that is present and linked", "0",
  on("mlock2", PART, ONFAULT), source="1.6", inner=ONLY_NOW, call="mshare_lock", calls=ONLY_NOW)
T("mlock2-onfault-absent", "mlock2(MLOCK_ONFAULT) of an absent page: nothing is marked for later",
  "ENOMEM", on("mlock2", PART, ONFAULT, present=False), source="1.6",
  inner=ONLY_NOW, call="mshare_lock", calls=ONLY_NOW, library="0")
T("mlock2-onfault-whole", "mlock2(MLOCK_ONFAULT) of the whole", "ENOMEM",
  on("mlock2", WHOLE, ONFAULT), source="1.6", inner=ONLY_NOW, call="mshare_lock", calls=ONLY_NOW,
  library="0")
T("mlock-user", "mlock of a present page by a user with the usual limit", "0",
  locked_by_user, call="mshare_lock")
T("munlock", "munlock of the whole", "0", on("munlock", WHOLE), inner=HOLE, call="mshare_unlock",
  calls=HOLE)
T("mlockall-current", "mlockall(MCL_CURRENT)", "0",
  lambda s: touched(s).agent.say("mlockall", MCL_CURRENT), library=TOO_LONG)
T("mlockall-future", "mlockall(MCL_CURRENT|MCL_FUTURE), then an attachment", "0, 0",
  lambda s: f"{s.agent.say('mlockall', MCL_CURRENT | MCL_FUTURE)}, {s.region().mmap()}")
T("mlockall-memory", "memory that mlockall(MCL_CURRENT|MCL_FUTURE) and a second attachment take",
  "none", all_locked, library=TOO_LONG)
T("mlock-vmlck", "VmLck after mlock of a present page", "0 kB", vmlck, call="mshare_lock",
  library="4 kB")


def sealed(stage: Stage) -> str:
    """Mseal of the whole, then munmap, UNMAP, a load."""
    memory = touched(stage)
    answers = [
        memory.say("mseal", 0, Q, 0),
        memory.say("munmap", 0, Q),
        memory.file.unmap(),
        memory.load(),
    ]
    return ", ".join(answers)


T("mseal-part", "mseal of a page", "EINVAL", on("mseal", PART, 0), inner="0",
  call="mshare_seal", calls="0", library="0")
T("mseal-whole", "mseal of the whole, then munmap, UNMAP, a load", "0, EPERM, 0, SIGSEGV MAPERR",
  sealed, inner=f"{HOLE}, 0, 0, SIGSEGV MAPERR", call="mshare_seal",
  calls=f"{HOLE}, 0, 0, SIGSEGV MAPERR")


def part_sealed(stage: Stage) -> str:
    """Mseal of a page, then UNMAP and CREATE of it, a load."""
    memory = touched(stage)
    answers = [
        memory.say("mseal", 0, PAGE, 0),
        memory.file.unmap(),
        memory.file.create(),
        memory.load(),
    ]
    return ", ".join(answers)


T("mseal-part-then", "mseal of a page, then UNMAP and CREATE of it, a load", "EINVAL, 0, 0, 0",
  part_sealed, inner="0, EPERM, EPERM, 7", call="mshare_seal", calls="0, EPERM, EPERM, 7",
  library="0, 0, 0, 0")

ADVICE = {
    "NORMAL": 0, "RANDOM": 1, "SEQUENTIAL": 2, "WILLNEED": 3, "DONTNEED": 4, "FREE": 8,
    "REMOVE": 9, "DONTFORK": 10, "DOFORK": 11, "MERGEABLE": 12, "HUGEPAGE": 14, "NOHUGEPAGE": 15,
    "DONTDUMP": 16, "DODUMP": 17, "WIPEONFORK": 18, "KEEPONFORK": 19, "COLD": 20, "PAGEOUT": 21,
    "POPULATE_READ": 22, "POPULATE_WRITE": 23, "COLLAPSE": 25, "GUARD_INSTALL": 102,
    "GUARD_REMOVE": 103,
}

# What a process decides for itself alone, under window=inner, too; the calls refuse it.
OWN = ("DONTFORK", "DOFORK", "MERGEABLE", "DONTDUMP", "DODUMP", "KEEPONFORK")


def advice(name: str, answer: str) -> dict[str, str]:
    """The answers to advice that is about the memory; to other advice, those of a process."""
    return {} if name in OWN else {"inner": answer, "calls": answer}


def refused(name: str) -> dict[str, str]:
    """The answer of a call to advice that is not about the memory."""
    return {"calls": "EINVAL"} if name in OWN else {}


SPLITTING = (
    "RANDOM", "SEQUENTIAL", "DONTFORK", "HUGEPAGE", "NOHUGEPAGE", "DONTDUMP", "WIPEONFORK",
    "DODUMP",
)


def unsplit(name: str) -> dict[str, str]:
    """Linux splits a mapping where it must; but only private memory can be wiped in a child."""
    return {"library": "0"} if name in SPLITTING and name != "WIPEONFORK" else {}


T = Table("madvise of an attachment", "1.6, A, B, C", inner=True, call="mshare_advise",
          library=True)
for name in (
    "NORMAL", "RANDOM", "SEQUENTIAL", "WILLNEED", "DONTNEED", "DONTFORK", "DOFORK", "MERGEABLE",
    "HUGEPAGE", "NOHUGEPAGE", "DONTDUMP", "KEEPONFORK", "COLD", "PAGEOUT",
):
    T(f"advise-{name}", f"MADV_{name} of the whole", "0", on("madvise", WHOLE, ADVICE[name]),
      **advice(name, HOLE), **refused(name))
for name in ("FREE", "DODUMP", "WIPEONFORK", "COLLAPSE"):
    T(f"advise-{name}", f"MADV_{name} of the whole", "EINVAL", on("madvise", WHOLE, ADVICE[name]),
      library={"DODUMP": "0"}.get(name))
T("advise-COLLAPSE-2M", "MADV_COLLAPSE of an object of 2 MiB", "EINVAL",
  lambda s: s.memory((0, HUGE, RW)).say("madvise", 0, HUGE, ADVICE["COLLAPSE"]),
  **advice("COLLAPSE", "0"))
for name in ("GUARD_INSTALL", "GUARD_REMOVE"):
    T(f"advise-{name}", f"MADV_{name} of the whole", "EINVAL", on("madvise", WHOLE, ADVICE[name]),
      **advice(name, HOLE), library=TOO_LONG)
    T(f"advise-{name}-part", f"MADV_{name} of a page", "EINVAL", on("madvise", PART, ADVICE[name]),
      **advice(name, "0"), library="0")
T("advise-REMOVE", "MADV_REMOVE of the whole", "EOPNOTSUPP",
  on("madvise", WHOLE, ADVICE["REMOVE"]), **advice("REMOVE", HOLE),
  library="0")
T("advise-REMOVE-part", "MADV_REMOVE of a page", "EOPNOTSUPP",
  on("madvise", PART, ADVICE["REMOVE"]), **advice("REMOVE", "0"), library="0")
for name in SPLITTING:
    T(f"advise-{name}-part", f"MADV_{name} of a page: it would split", "EINVAL",
      on("madvise", PART, ADVICE[name]),
      **advice(name, "EINVAL" if name == "WIPEONFORK" else "0"), **unsplit(name))
HARMLESS = ("NORMAL", "WILLNEED", "DONTNEED", "DOFORK", "MERGEABLE", "COLD", "PAGEOUT")
for name in HARMLESS:
    T(f"advise-{name}-part", f"MADV_{name} of a page", "0", on("madvise", PART, ADVICE[name]),
      **advice(name, "0"), **refused(name))
for name in (*SPLITTING, *HARMLESS):
    hole = advice(name, HOLE) | refused(name)
    T(f"advise-{name}-hole", f"MADV_{name} of a page in a hole, in the middle",
      "EINVAL" if name in SPLITTING else "0", on("madvise", (Q // 2, PAGE), ADVICE[name]),
      **hole, **unsplit(name))
    T(f"advise-{name}-half", f"MADV_{name} of the second half",
      "EINVAL" if name in SPLITTING else "0", on("madvise", (Q // 2, Q // 2), ADVICE[name]),
      **hole, **unsplit(name))
for name in ("POPULATE_READ", "POPULATE_WRITE"):
    T(f"advise-{name}-present", f"MADV_{name} of a present page", "0",
      on("madvise", PART, ADVICE[name]))
    T(f"advise-{name}-absent", f"MADV_{name} of an absent page", "EFAULT",
      on("madvise", PART, ADVICE[name], present=False), **advice(name, "0"), library="0")


def not_needed(stage: Stage, offset: int, size: int) -> str:
    """MADV_DONTNEED: the bytes that the process and another see then."""
    memory = touched(stage)
    other = memory.again(stage.process())
    answer = memory.say("madvise", offset, size, ADVICE["DONTNEED"])
    return f"{answer}: {memory.load()}, {other.load()}"


T("dontneed-data", "MADV_DONTNEED of the whole: the byte, for the process and another", "0: 7, 7",
  lambda s: not_needed(s, *WHOLE), source="B", **advice("DONTNEED", f"{HOLE}: 7, 7"))
T("dontneed-hole", "MADV_DONTNEED of a page in a hole: the same", "0: 7, 7",
  lambda s: not_needed(s, Q // 2, PAGE), source="B", **advice("DONTNEED", f"{HOLE}: 7, 7"))


def relinked(stage: Stage) -> str:
    """How often a process has linked: before MADV_DONTNEED and after the next touch."""
    from .figures import clients

    memory = touched(stage)
    before = clients(stage)[memory.agent.pid]["links"]
    assert memory.say("madvise", 0, PAGE, ADVICE["DONTNEED"]) == "0"
    memory.load()
    return f"{before}, {clients(stage)[memory.agent.pid]['links']}"


T("dontneed-links", "links of the process: before, and after the next touch", "1, 2", relinked,
  source="B", **advice("DONTNEED", "1, 1"), library="1, 1")


def not_forked(stage: Stage) -> str:
    """MADV_DONTFORK, then fork: a load by the child."""
    memory = touched(stage)
    memory.agent.call("madvise", memory.base, Q, ADVICE["DONTFORK"])
    return f"{memory.at(memory.agent.fork()).load()}, {memory.load()}"


T("dontfork-child", "MADV_DONTFORK of the whole, fork: a load by the child, by the parent",
  "SIGSEGV MAPERR, 7", not_forked, source="C", call="")


def paged_out(stage: Stage, advice: str) -> str:
    memory = stage.memory((0, HUGE, RW))
    memory.store()
    answer = memory.say("madvise", 0, HUGE, ADVICE[advice])
    assert answer == "0", answer
    return memory.load()


T("cold-data", "MADV_COLD of 2 MiB: the byte", "7", lambda s: paged_out(s, "COLD"), source="1.6, C")
T("pageout-data", "MADV_PAGEOUT of 2 MiB: the byte", "7", lambda s: paged_out(s, "PAGEOUT"),
  source="1.6, C")

T = Table("NUMA, userfaultfd, pages of an attachment", "1.6, A, C", inner=True, library=True)
T("mbind-whole", "mbind(MPOL_DEFAULT) of the whole: the policy it has", "0",
  lambda s: _mbind(s, WHOLE, 0), inner=HOLE, call="mshare_mbind", calls=HOLE)
T("mbind-part", "mbind(MPOL_DEFAULT) of a page", "0", lambda s: _mbind(s, PART, 0),
  call="mshare_mbind")
T("mbind-part-other", "mbind(MPOL_PREFERRED) of a page", "EINVAL", lambda s: _mbind(s, PART, 1),
  inner="0", call="mshare_mbind", calls="0", library="0")


def _mbind(stage: Stage, where: tuple[int, int], policy: int) -> str:
    """mbind(2) has no function in the C library."""
    memory = touched(stage)
    mask = (1).to_bytes(8, "little") if policy else 0
    agent = memory.agent
    if agent.by_call:
        return agent.say("mshare_mbind", memory.file.fd, *where, policy, mask, 64, 0)
    return agent.say("syscall", 237, memory.base + where[0], where[1], policy, mask, 64, 0)


def moved(stage: Stage, *, present: bool) -> str:
    """move_pages(2) without nodes: the status of a page."""
    memory = touched(stage) if present else stage.page()
    agent = memory.agent
    agent.put(agent.pool, struct.pack("=Qi", memory.base, 99))
    agent.call("syscall", 279, 0, 1, agent.pool, 0, agent.pool + 8)
    found = struct.unpack("=i", agent.get(agent.pool + 8, 4))[0]
    return "-ENOENT" if found == -2 else "a node" if found >= 0 else str(found)


T("move-pages-absent", "move_pages: the status of an absent page", "-ENOENT",
  lambda s: moved(s, present=False), source="C", plain=True)


def registered(stage: Stage) -> str:
    """Userfaultfd of the program's own: UFFDIO_REGISTER of a page."""
    memory = touched(stage)
    agent = memory.agent
    fd = agent.call("syscall", 323, 0o2000000)
    agent.call("ioctl", fd, 0xC018AA3F, struct.pack("=QQQ", 0xAA, 0, 0))
    return agent.say("ioctl", fd, 0xC020AA00, struct.pack("=QQQQ", memory.base, PAGE, 1, 0))


T("userfaultfd", "UFFDIO_REGISTER by the program", "EINVAL", registered, source="C", library="0")


def resident(stage: Stage, *, present: bool) -> str:
    """mincore(2) of a page."""
    memory = touched(stage) if present else stage.page()
    agent = memory.agent
    assert memory.say("mincore", 0, PAGE, agent.pool) == "0"
    return str(agent.get(agent.pool, 1)[0] & 1)


T("mincore-present", "mincore of a page that the process touched", "1",
  lambda s: resident(s, present=True), source="A, C", plain=True, call="mshare_query")
T("mincore-absent", "mincore of an absent page", "0",
  lambda s: resident(s, present=False), source="A, C", plain=True, call="mshare_query")


def resident_elsewhere(stage: Stage) -> str:
    """Mincore of a page that only another process touched."""
    memory = touched(stage)
    other = memory.again(stage.process())
    agent = other.agent
    assert other.say("mincore", 0, PAGE, agent.pool) == "0"
    return str(agent.get(agent.pool, 1)[0] & 1)


T("mincore-other", "mincore of a page that another process touched", "0", resident_elsewhere,
  source="A, C", inner="1", call="mshare_query", calls="1", library="1")


def advised_by_itself(advice: str) -> Callable[[Stage], str]:
    """process_madvise(2) of two pages of an attachment, and whether the first is as it was."""

    def check(stage: Stage) -> str:
        memory = touched(stage)
        agent = memory.agent
        ranges = [(memory.base, PAGE), (memory.base + Q // 2, PAGE)]
        agent.put(agent.pool, b"".join(struct.pack("=QQ", *each) for each in ranges))
        own = agent.call("syscall", SYS_PIDFD_OPEN, agent.pid, 0)
        try:
            answer = str(agent.call("process_madvise", own, agent.pool, 2, ADVICE[advice], 0))
        except OSError as error:
            answer = errno_name(error)
        by_number, number = agent.result(
            "syscall", SYS_PROCESS_MADVISE, own, agent.pool, 2, ADVICE[advice], 0
        )
        assert answer == (number if by_number == -1 else str(by_number))
        return f"{answer}, {memory.load()}"

    return check


T = Table("process_madvise of an attachment, by its own process", "1.6, C", inner=True,
          library=True)
for name in ("WILLNEED", "COLD", "DONTNEED"):
    T(f"process-madvise-{name.lower()}", f"MADV_{name} of two pages, the second in a hole",
      f"{2 * PAGE}, 7", advised_by_itself(name), inner=f"{PAGE}, 7")
for name in ("GUARD_INSTALL", "DONTDUMP", "FREE"):
    T(f"process-madvise-{name.lower()}", f"MADV_{name} of two pages", "EINVAL, 7",
      advised_by_itself(name),
      inner=f"{PAGE}, SIGSEGV MAPERR" if name == "GUARD_INSTALL" else None,
      library={"GUARD_INSTALL": f"{2 * PAGE}, SIGSEGV MAPERR", "DONTDUMP": f"{2 * PAGE}, 7"}.get(
          name))
