"""What only the calls of 2026 have: regions without names, parts, seals, another owner."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .stage import FIXED, NOREPLACE, PAGE, READ, SHARED, File, Memory, Q
from .table import NO_CALL, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from .agent import Agent
    from .stage import Stage

T = Table("What only the calls of 2026 have", "LSFMM+BPF 2026")
F_GETFD = 1
SYS_PIDFD_OPEN = 434
REMOVE, PAGEOUT, GUARD_INSTALL = 9, 21, 102


def created(stage: Stage, agent: Agent, size: int = Q) -> File:
    """A region without a name."""
    agent.call("setenv", "MSHAREFS_MOUNT", str(stage.dir.parent), 1)
    fd = agent.call("mshare_create", 0)
    file = File(agent, fd, f"/proc/{agent.pid}/fd/{fd}")
    if size:
        file.call("ftruncate", size)
    return file


def two_parts(stage: Stage) -> Memory:
    """A region of 2Q, of which the second half is attached; a page of it is mapped, and written."""
    file = stage.region(2 * Q)
    assert file.create(Q) == "0"
    memory = Memory(stage, file, file.attach(Q, offset=Q))
    memory.store()
    return memory


def attached_again(size: int) -> Callable[[Stage], str]:
    """A load through a second attachment of the second half."""
    return lambda stage: stage.agent.load(two_parts(stage).file.attach(size, offset=Q))


def created_and_used(stage: Stage) -> str:
    file = created(stage, stage.agent)
    assert file.create() == "0"
    memory = Memory(stage, file, file.attach())
    return f"{memory.store()}, {memory.load()}"


def created_with(flags: int) -> Callable[[Stage], str]:
    """mshare_create with these flags: its errno, or the descriptor's flags."""

    def check(stage: Stage) -> str:
        agent = stage.agent
        agent.call("setenv", "MSHAREFS_MOUNT", str(stage.dir.parent), 1)
        if (answer := agent.say("mshare_create", flags)) != "0":
            return answer
        return str(agent.call("fcntl", agent.call("mshare_create", flags), F_GETFD))

    return check


def ended(how: Callable[[File], object]) -> Callable[[Stage], str]:
    """A load by an attached child of the creator, after something happened to the creator."""

    def check(stage: Stage) -> str:
        file = created(stage, stage.process())
        assert file.create() == "0"
        other = File(stage.agent, stage.agent.call("open", file.path, os.O_RDWR), file.path)
        memory = Memory(stage, other, other.attach())
        memory.store()
        how(file)
        other.unmap(Q // 2)  # any request: the owner is looked at before
        return memory.load()

    return check


T("calls-create", "mshare_create, ftruncate, mshare_map, mshare_attach: a store, a load", NO_CALL,
  created_and_used, call="mshare_create", calls="ok, 7")
T("calls-create-unsized", "mshare_attach of it before ftruncate", NO_CALL,
  lambda s: created(s, s.agent, 0).mmap(), call="mshare_create", calls="EINVAL")
T("calls-create-twice", "a second ftruncate", NO_CALL,
  lambda s: created(s, s.agent).size_to(2 * Q), call="mshare_create", calls="EINVAL")
T("calls-create-cloexec", "O_CLOEXEC: F_GETFD", NO_CALL,
  created_with(os.O_CLOEXEC), call="mshare_create", calls="1")
T("calls-create-flags", "any other flag", NO_CALL,
  created_with(os.O_NONBLOCK), call="mshare_create", calls="EINVAL")
T("calls-create-exit", "its creator exits: a load by another process", NO_CALL,
  ended(lambda f: f.agent.exit()), call="mshare_create", calls="SIGSEGV MAPERR")
T("calls-create-close", "its creator closes the descriptor: a load by another process", NO_CALL,
  ended(lambda f: f.call("close")), call="mshare_create", calls="SIGSEGV MAPERR")

ATTACH = "mshare_attach"
T("calls-part", "the second half of a region: a load of what was written there", NO_CALL,
  lambda s: two_parts(s).load(), call=ATTACH, calls="7")
T("calls-part-twice", "the same part attached again: a load", NO_CALL,
  attached_again(Q), call=ATTACH, calls="7")
T("calls-part-rest", "size 0, offset Q: the rest: a load", NO_CALL,
  attached_again(0), call=ATTACH, calls="7")
T("calls-part-beyond", "offset Q, size 2Q, of a region of 2Q", NO_CALL,
  lambda s: s.region(2 * Q).mmap(2 * Q, offset=Q), call=ATTACH, calls="EINVAL")
T("calls-part-odd", "offset Q/2, size Q", NO_CALL,
  lambda s: s.region(2 * Q).mmap(Q, offset=Q // 2), call=ATTACH, calls="EINVAL")
T("calls-read", "for reading only, by a read-write descriptor: a store", NO_CALL,
  lambda s: s.page().again(s.process(), READ).store(), call=ATTACH, calls="SIGSEGV ACCERR")


def over(flags: int) -> Callable[[Stage], str]:
    """Another region, attached where one is."""

    def check(stage: Stage) -> str:
        memory = stage.page()
        other = stage.region(name="other")
        return other.mmap(addr=memory.base, flags=SHARED | flags)

    return check


T("calls-over", "MAP_FIXED over an attachment", NO_CALL, over(FIXED), call=ATTACH, calls="0")
T("calls-over-noreplace", "MAP_FIXED_NOREPLACE over one", NO_CALL, over(NOREPLACE), call=ATTACH,
  calls="EEXIST")


def detached(offset: int) -> Callable[[Stage], str]:
    """mshare_detach at an address, and a load then."""

    def check(stage: Stage) -> str:
        memory = stage.page()
        memory.store()
        return f"{stage.agent.say('mshare_detach', memory.base + offset)}, {memory.load()}"

    return check


T("calls-detach", "mshare_detach, a load", NO_CALL, detached(0), call="mshare_detach",
  calls="0, SIGSEGV MAPERR")
T("calls-detach-middle", "mshare_detach of an address in the middle, a load", NO_CALL,
  detached(PAGE), call="mshare_detach", calls="EINVAL, 7")


def for_all(ask: Callable[[File], str]) -> Callable[[Stage], str]:
    """A call by one of two processes that have a page attached; a load by each."""

    def check(stage: Stage) -> str:
        memory = stage.page()
        memory.store()
        other = memory.again(stage.process())
        assert other.load() == "7"
        return f"{ask(memory.file)}: {memory.load()}, {other.load()}"

    return check


def verb(name: str, *arguments: int) -> Callable[[File], str]:
    return lambda file: file.say(name, 0, PAGE, *arguments)


for name, call, arguments, answer in (
    ("protect", "mshare_protect", (0,), "0: SIGSEGV ACCERR, SIGSEGV ACCERR"),
    ("unmap", "mshare_unmap", (), "0: SIGSEGV MAPERR, SIGSEGV MAPERR"),
    ("remove", "mshare_advise", (REMOVE,), "0: 0, 0"),
    ("guard", "mshare_advise", (GUARD_INSTALL,), "0: SIGSEGV MAPERR, SIGSEGV MAPERR"),
    ("pageout", "mshare_advise", (PAGEOUT,), "0: 7, 7"),
):
    T(f"calls-all-{name}", f"{call}{arguments or ''} of a page that two processes use: loads",
      NO_CALL, for_all(verb(call, *arguments)), call=call, calls=answer)


def sealed(ask: Callable[[File], str]) -> Callable[[Stage], str]:
    """A call on a sealed page, and a load."""

    def check(stage: Stage) -> str:
        memory = stage.page()
        memory.store()
        assert memory.file.say("mshare_seal", 0, PAGE) == "0"
        return f"{ask(memory.file)}, {memory.load()}"

    return check


for name, work in (
    ("unmap", File.unmap), ("replace", File.create),
    ("protect", verb("mshare_protect", READ)), ("remove", verb("mshare_advise", REMOVE)),
    ("guard", verb("mshare_advise", GUARD_INSTALL)),
):
    T(f"calls-sealed-{name}", f"a sealed page: {name}, a load", NO_CALL, sealed(work),
      call="mshare_seal", calls="EPERM, 7")
T("calls-sealed-pageout", "a sealed page: PAGEOUT, a load", NO_CALL,
  sealed(verb("mshare_advise", PAGEOUT)), call="mshare_seal", calls="0, 7")
T("calls-locked-pageout", "a locked page: PAGEOUT", NO_CALL, lambda s: (
    (f := s.page().file).say("mshare_lock", 0, PAGE, 0) + ", "
    + f.say("mshare_advise", 0, PAGE, PAGEOUT)), call="mshare_lock", calls="0, EINVAL")


def handed_over(stage: Stage, *, dead: bool = False) -> str:
    """mshare_set_owner to another process, which may have ended; then the first exits."""
    file = created(stage, stage.process())
    assert file.create() == "0"
    heir = stage.process()
    other = File(stage.agent, stage.agent.call("open", file.path, os.O_RDWR), file.path)
    memory = Memory(stage, other, other.attach())
    memory.store()
    pidfd = file.agent.call("syscall", SYS_PIDFD_OPEN, heir.pid, 0)
    if dead:
        heir.exit()
    answer = file.say("mshare_set_owner", pidfd)
    file.agent.exit()
    other.unmap(Q // 2)
    return f"{answer}, {memory.load()}"


T("calls-owner", "handed over, then the creator exits: a load", NO_CALL, handed_over,
  call="mshare_set_owner", calls="0, 7")
T("calls-owner-dead", "handed over to a process that has ended", NO_CALL,
  lambda s: handed_over(s, dead=True), call="mshare_set_owner", calls="ESRCH, SIGSEGV MAPERR")
