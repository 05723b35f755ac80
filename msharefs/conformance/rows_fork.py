"""fork, vfork, exec, exit, core dumps; sharing between processes."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from . import reasons
from .stage import NONE, PAGE, READ, RW, SHARED_FIXED, Memory, Q, on_page
from .table import Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from .stage import Check, Stage

RLIMIT_CORE = 4
SOON = 5.0  # seconds
SOME = 64 << 20


def present(stage: Stage) -> Memory:
    memory = stage.page()
    memory.store()
    return memory


def child_sees(stage: Stage) -> str:
    memory = present(stage)
    return memory.at(memory.agent.fork()).load()


def child_writes(stage: Stage) -> str:
    memory = present(stage)
    memory.at(memory.agent.fork()).store(byte=9)
    return memory.load()


def parent_writes(stage: Stage) -> str:
    memory = present(stage)
    child = memory.at(memory.agent.fork())
    memory.store(1, 9)
    return child.load(1)


def grandchild(stage: Stage) -> str:
    memory = present(stage)
    return memory.at(memory.agent.fork().fork()).load()


T = Table("fork and vfork", "1.11, C")
T("fork-load", "a child of fork: a load", "7", child_sees, plain=True)
T("fork-child-store", "a store by the child, a load by the parent", "9", child_writes, plain=True)
T("fork-parent-store", "a store by the parent, a load by the child", "9", parent_writes, plain=True)
T("fork-grandchild", "a child of the child: a load", "7", grandchild, plain=True)
T("fork-absent", "a store by the child to a page nobody touched, a load by the parent", "5",
  on_page(lambda m: m.at(m.agent.fork()).store(0, 5) and m.load()), plain=True)
T("fork-hole", "a load by the child from a hole", "SIGSEGV MAPERR",
  on_page(lambda m: m.at(m.agent.fork()).load(PAGE)), plain=True)


def unmapped_later(stage: Stage) -> str:
    memory = present(stage)
    child = memory.at(memory.agent.fork())
    child.load()
    memory.file.unmap()
    return f"{child.load()}, {memory.load()}"


T("fork-unmap", "UNMAP by the parent: a load by the child, by the parent",
  "SIGSEGV MAPERR, SIGSEGV MAPERR", unmapped_later)


def child_detaches(stage: Stage) -> str:
    memory = present(stage)
    child = memory.agent.fork()
    return f"{child.say('munmap', memory.base, Q)}, {memory.at(child).load()}, {memory.load()}"


T("fork-munmap", "munmap by the child, a load by it, by the parent", "0, SIGSEGV MAPERR, 7",
  child_detaches, plain=True)


def child_ends(stage: Stage) -> str:
    memory = present(stage)
    memory.agent.fork().exit(by="kill")
    return memory.load()


T("fork-kill", "the child is killed: a load by the parent", "7", child_ends, plain=True)


def parent_ends(stage: Stage) -> str:
    """The region was made by another process: the parent's end ends nothing."""
    maker = present(stage)
    parent = maker.again(stage.process())
    child = parent.at(parent.agent.fork())
    parent.agent.exit(by="kill")
    return f"{child.load()}, {child.store(0, 3)}, {maker.load()}"


T("fork-parent-kill", "the parent is killed: a load and a store by the child, a load by a third",
  "7, ok, 3", parent_ends, plain=True)


def children(stage: Stage) -> str:
    """Loads by twenty children that live at the same time."""
    memory = present(stage)
    forked = [memory.agent.fork() for _ in range(20)]
    return str(sum(memory.at(child).load() == "7" for child in forked))


T("fork-many", "twenty children at once: how many load the byte", "20", children, plain=True)


def by_a_thread(stage: Stage) -> str:
    memory = present(stage)
    return memory.at(memory.agent.thread().fork()).load()


T("fork-thread", "fork by another thread: a load by the child", "7", by_a_thread, plain=True)
T("vfork-store", "vfork: a store by the child; its status, a load by the parent", "0, 9",
  on_page(lambda m: f"{m.agent.ask('vfork', m.base, 9)}, {m.load()}"), plain=True)


def links(stage: Stage) -> str:
    """Links of a child before and after its first touch."""
    from .figures import clients

    memory = present(stage)
    child = memory.agent.fork()
    before = clients(stage)[child.pid]["links"]
    memory.at(child).load()
    return f"{before}, {clients(stage)[child.pid]['links']}"


T("fork-links", "links of a child: before and after its first touch", "0, 1", links)



T = Table("A child of _Fork(3) or clone(2), without handlers of fork(3)", "1.11")


def bare(work: Callable[[Memory], str], how: str = "_Fork") -> Check:
    """`work` on the memory of such a child."""
    return lambda stage: work((m := present(stage)).at(m.agent.fork(how)))


def refusing(prot: int, work: Callable[[Memory], str], how: str = "_Fork") -> Check:
    """`work` on such a child's memory, whose first page has fewer rights."""
    return lambda stage: work((m := stage.page(prot)).at(m.agent.fork(how)))


def with_file(work: Callable[[Memory], str], *, touched: bool) -> Check:
    """`work` on such a child's memory, whose first page is a file's; it begins with 7."""

    def check(stage: Stage) -> str:
        memory = stage.memory()
        agent = memory.agent
        fd = agent.call("memfd_create", "object", 0)
        agent.call("ftruncate", fd, PAGE)
        agent.call("pwrite", fd, b"\7", 1, 0)
        assert memory.file.create(flags=SHARED_FIXED, fd=fd) == "0"
        if touched:
            memory.load()
        return work(memory.at(agent.fork("_Fork")))

    return check


def bare_unmap(stage: Stage) -> str:
    memory = present(stage)
    child = memory.at(memory.agent.fork("_Fork"))
    memory.unmap()
    return child.load()


def bare_attaches(stage: Stage) -> str:
    """The child attaches: a store there, seen at the old address; a load by its own child."""
    memory = present(stage)
    child = memory.agent.fork("_Fork")
    again = memory.file.by(child)
    base = again.attach()
    stored = child.store(base + 1, 5)
    at_old = child.load(memory.base + 1)
    forked = child.fork().load(base + 1)
    answers = [stored, at_old, forked, child.say("munmap", base, Q), memory.load(1)]
    return ", ".join(answers)


for name, how in (("", "_Fork"), ("-clone", "clone"), ("-syscall", "syscall")):
    T(f"bare{name}-load", f"{how}: a load by the child", "7", bare(Memory.load, how), plain=True)
    T(f"bare{name}-read-only", f"{how}: a store by the child to a read-only page",
      "SIGSEGV ACCERR", refusing(READ, Memory.store, how), plain=True)
T("bare-store", "_Fork: a store by the child to a page nobody touched, a load by the parent", "5",
  on_page(lambda m: m.at(m.agent.fork("_Fork")).store(0, 5) and m.load()), plain=True)
T("bare-none", "_Fork: a load by the child of a PROT_NONE page", "SIGSEGV ACCERR",
  refusing(NONE, Memory.load), plain=True)
T("bare-file", "_Fork: a load by the child of a file that its parent has touched", "7",
  with_file(Memory.load, touched=True))
T("bare-file-absent", "_Fork: a load by the child of a file that nobody has touched", "7",
  with_file(Memory.load, touched=False), ours="SIGSEGV ACCERR", why=reasons.UNSERVED)
T("bare-hole", "_Fork: a load by the child from a hole", "SIGSEGV MAPERR",
  bare(lambda m: m.load(PAGE)), ours="0", why=reasons.UNSERVED)
T("bare-unmap", "_Fork, and then UNMAP by the parent: a load by the child", "SIGSEGV MAPERR",
  bare_unmap, ours="0", why=reasons.UNSERVED)
T("bare-attach", "_Fork: the child attaches, stores; loads at the old address, by a child of it; "
  "munmap; a load by the parent", "ok, 5, 5, 0, 5", bare_attaches)

T = Table("exec, exit, core dumps", "1.11, B, C")


def executed(stage: Stage) -> str:
    memory = present(stage)
    agent = memory.again(stage.process()).agent.exec()
    return agent.load(memory.base)


T("exec", "a load from the old address after exec", "SIGSEGV MAPERR", executed, plain=True)


def reattached(stage: Stage) -> str:
    memory = present(stage)
    agent = memory.again(stage.process()).agent.exec()
    return memory.again(agent).load()


T("exec-attach", "attached again after exec: a load", "7", reattached, plain=True)


def slots(stage: Stage, how: str) -> str:
    """How many attachments the region has after one of two ended."""
    from .figures import clients

    memory = present(stage)
    other = memory.again(stage.process())
    if how == "exec":
        other.agent.exec()
    else:
        other.agent.exit(by=how)
    deadline = time.monotonic() + SOON  # a shadow ends a moment after its program
    while (count := len(clients(stage))) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    return str(count)


T("exec-detaches", "attachments of the region after one of two processes called exec", "1",
  lambda s: slots(s, "exec"))
T("exit-detaches", "after one of two exited", "1", lambda s: slots(s, "exit"))
T("kill-detaches", "after one of two was killed", "1", lambda s: slots(s, "kill"))


def core(stage: Stage, *, unlink: bool) -> str:
    """Size of the core file of a process that touched 64 MiB."""
    with open("/proc/sys/kernel/core_pattern") as pattern:
        if pattern.read().startswith("|"):
            raise NotImplementedError("this system gives core dumps to a program")
    memory = stage.memory((0, SOME, RW))
    agent = stage.process()
    again = memory.again(agent)
    agent.call("memset", again.base, 1, SOME)
    if unlink:
        agent.call("unlink", stage.path())
    agent.call("chdir", str(stage.elsewhere))
    agent.call("setrlimit", RLIMIT_CORE, b"\xff" * 16)
    agent.call("prctl", 4, 1, 0, 0, 0)  # PR_SET_DUMPABLE
    pidfd = os.pidfd_open(agent.pid)
    signal.pidfd_send_signal(pidfd, signal.SIGABRT)
    os.close(pidfd)
    assert agent.answer() == ""
    size = max((each.stat().st_size for each in stage.elsewhere.glob("core*")), default=0)
    return "no core" if not size else "with it" if size > SOME else "without it"


T("core", "core dump of a process that touched 64 MiB of a region", "without it",
  lambda s: core(s, unlink=False))
T("core-unlinked", "the same, the region unlinked", "the dump walks 512 GiB",
  lambda s: core(s, unlink=True), source="B, D", ours="without it", why=reasons.BROKEN)
