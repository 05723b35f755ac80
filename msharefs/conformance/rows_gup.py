"""Kernel-side access to an attachment's pages: futex, O_DIRECT, vmsplice, other processes."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from . import reasons
from .stage import ANON, NONE, PAGE, PRIVATE, READ, RW, Memory
from .table import Table

if TYPE_CHECKING:
    from .agent import Agent
    from .stage import Stage

SYS_FUTEX, SYS_PROCESS_VM_READV, SYS_PROCESS_VM_WRITEV = 202, 310, 311
SYS_GET_MEMPOLICY = 239
NODE_OF = 1 | 2  # MPOL_F_NODE | MPOL_F_ADDR
FUTEX_WAIT, FUTEX_WAKE, FUTEX_PRIVATE = 0, 1, 128
PTRACE_PEEKDATA, PTRACE_ATTACH, PTRACE_DETACH = 2, 16, 17
MUTEX_BYTES, ROBUST, PSHARED = 40, 1, 1
F_SETPIPE_SZ = 1031


def memory(stage: Stage, *, present: bool) -> Memory:
    """Two pages; the first is present, or neither."""
    made = stage.memory((0, 2 * PAGE, RW))
    if present:
        made.store()
    return made


def number(agent: Agent, function: str, *arguments: int | str | bytes) -> str:
    """The result of a call, or its errno."""
    result, error = agent.result(function, *arguments)
    return error if result == -1 else str(result)


def futex(stage: Stage, *, present: bool, private: int = 0) -> str:
    """FUTEX_WAKE of a word: how many it woke."""
    made = memory(stage, present=present)
    return number(made.agent, "syscall", SYS_FUTEX, made.base, FUTEX_WAKE | private, 1)


def futex_between(stage: Stage) -> str:
    """One process waits, another, which has the region elsewhere, wakes it."""
    made = memory(stage, present=True)
    made.store(byte=0)
    other = made.again(stage.process())
    other.load()
    made.agent.tell("call", "syscall", SYS_FUTEX, made.base, FUTEX_WAIT, 0, 0)
    for _ in range(1000):
        if number(other.agent, "syscall", SYS_FUTEX, other.base, FUTEX_WAKE, 1) == "1":
            break
        other.agent.call("usleep", 1000)
    return made.agent.answer().split("\x1f")[0]


def robust(stage: Stage) -> str:
    """A process dies with a robust mutex; the result of locking it in another."""
    made = memory(stage, present=True)
    other = made.again(stage.process())
    other.load()
    first, attributes = made.agent, made.agent.pool
    first.call("pthread_mutexattr_init", attributes)
    first.call("pthread_mutexattr_setpshared", attributes, PSHARED)
    first.call("pthread_mutexattr_setrobust", attributes, ROBUST)
    first.call("pthread_mutex_init", made.base, attributes)
    # v3 ends the region with its maker: another process must be the one that dies.
    third = made.again(stage.process())
    assert third.agent.result("pthread_mutex_lock", third.base)[0] == 0
    third.agent.exit(by="kill")
    found = other.agent.result("pthread_mutex_lock", other.base)[0]
    return {0: "0", 130: "EOWNERDEAD"}.get(found, str(found))


def direct_file(stage: Stage) -> str:
    """A file of two pages on a disk file system."""
    path = stage.elsewhere / "direct"
    path.write_bytes(b"\5" * 2 * PAGE)
    return str(path)


def direct(stage: Stage, *, present: bool, size: int, function: str = "read") -> str:
    """An O_DIRECT transfer between a file and the memory: bytes or errno."""
    made = memory(stage, present=present)
    fd = made.agent.call("open", direct_file(stage), os.O_RDWR | os.O_DIRECT)
    return number(made.agent, function, fd, made.base, size)


def spliced(stage: Stage, *, present: bool) -> str:
    """vmsplice(2) of a page into a pipe."""
    made = memory(stage, present=present)
    agent = made.agent
    agent.call("pipe", agent.pool)
    _, writer = struct.unpack("=ii", agent.get(agent.pool, 8))
    agent.put(agent.pool, struct.pack("=QQ", made.base, PAGE))
    return number(agent, "vmsplice", writer, agent.pool, 1, 0)


def vm(stage: Stage, made: Memory, *, write: bool = False) -> str:
    """process_vm_readv or writev of 8 bytes, by another process."""
    agent = stage.process()
    local, remote = agent.pool + 256, agent.pool + 512
    agent.put(local, struct.pack("=QQ", agent.pool, 8))
    agent.put(remote, struct.pack("=QQ", made.base, 8))
    call = SYS_PROCESS_VM_WRITEV if write else SYS_PROCESS_VM_READV
    return number(agent, "syscall", call, made.agent.pid, local, 1, remote, 1, 0)


def peek(stage: Stage, *, present: bool) -> str:
    """PTRACE_PEEKDATA by another process: a word, or its errno."""
    made = memory(stage, present=present)
    tracer = stage.process()
    pid = made.agent.pid
    tracer.call("ptrace", PTRACE_ATTACH, pid, 0, 0)
    tracer.call("waitpid", pid, tracer.pool, 0)
    answer = number(tracer, "ptrace", PTRACE_PEEKDATA, pid, made.base, 0)
    tracer.call("ptrace", PTRACE_DETACH, pid, 0, 0)
    return answer


def through_proc(made: Memory, function: str) -> str:
    """Pread or pwrite of /proc/self/mem."""
    agent = made.agent
    fd = agent.call("open", "/proc/self/mem", os.O_RDWR)
    return number(agent, function, fd, agent.pool, 8, made.base)


def placed(stage: Stage, *, present: bool) -> str:
    """get_mempolicy(MPOL_F_NODE | MPOL_F_ADDR): on which node a page is; there is one."""
    made = memory(stage, present=present)
    agent = made.agent
    asked = number(agent, "syscall", SYS_GET_MEMPOLICY, agent.pool, 0, 0, made.base, NODE_OF)
    return asked if asked != "0" else f"0: {int.from_bytes(agent.get(agent.pool, 4), 'little')}"


T = Table("Kernel-side access to absent and present pages", "1.8, A, C")
T("futex-present", "FUTEX_WAKE, shared, of a present page", "0",
  lambda s: futex(s, present=True), plain=True)
T("futex-absent", "FUTEX_WAKE, shared, of an absent page", "EFAULT",
  lambda s: futex(s, present=False), ours="0", why=reasons.FILLED)
T("futex-private-absent", "FUTEX_WAKE, private, of an absent page", "0",
  lambda s: futex(s, present=False, private=FUTEX_PRIVATE), plain=True)
T("futex-between", "FUTEX_WAIT and FUTEX_WAKE by processes that have it at different addresses",
  "0", futex_between, plain=True)
T("robust-mutex", "a process dies with a robust mutex: locking by another", "EOWNERDEAD", robust,
  plain=True)
T("direct-present", "read(2) of an O_DIRECT file into a present page", str(PAGE),
  lambda s: direct(s, present=True, size=PAGE), plain=True)
T("direct-absent", "read(2) of an O_DIRECT file into an absent page", "EFAULT",
  lambda s: direct(s, present=False, size=PAGE), ours=str(PAGE), why=reasons.FILLED)
T("direct-both", "read(2) of an O_DIRECT file into a present and an absent page", str(2 * PAGE),
  lambda s: direct(s, present=True, size=2 * PAGE), plain=True)
T("direct-out", "write(2) to an O_DIRECT file from a present page", str(PAGE),
  lambda s: direct(s, present=True, size=PAGE, function="write"), plain=True)
T("get-mempolicy-present", "get_mempolicy of the node of a present page", "0: 0",
  lambda s: placed(s, present=True), plain=True)
T("get-mempolicy-absent", "get_mempolicy of the node of an absent page", "EFAULT",
  lambda s: placed(s, present=False), ours="0: 0", why=reasons.FILLED)
T("vmsplice-present", "vmsplice of a present page", str(PAGE),
  lambda s: spliced(s, present=True), plain=True)
T("vmsplice-absent", "vmsplice of an absent page", "EFAULT",
  lambda s: spliced(s, present=False), ours=str(PAGE), why=reasons.FILLED)
T("process-vm-present", "process_vm_readv of a present page", "8",
  lambda s: vm(s, memory(s, present=True)), plain=True)
T("process-vm-absent", "process_vm_readv of an absent page", "EFAULT",
  lambda s: vm(s, memory(s, present=False)), ours="8", why=reasons.FILLED)
T("peek-present", "PTRACE_PEEKDATA of a present page", "7",
  lambda s: peek(s, present=True), plain=True)
T("peek-absent", "PTRACE_PEEKDATA of an absent page", "EIO",
  lambda s: peek(s, present=False))
T("proc-mem-present", "/proc/self/mem: read of a present page", "8",
  lambda s: through_proc(memory(s, present=True), "pread"), plain=True)
T("proc-mem-absent", "/proc/self/mem: read of an absent page", "EIO",
  lambda s: through_proc(memory(s, present=False), "pread"))


def unlinked(stage: Stage, *, touched: bool) -> str:
    """process_vm_readv from a process that has not touched the quantum, of a present page."""
    made = memory(stage, present=True)
    other = made.again(stage.process())
    if touched:
        other.load()
    return vm(stage, other)


T("gup-unlinked", "process_vm_readv of a present page of a process that touched nothing", "EFAULT",
  lambda s: unlinked(s, touched=False), source="B, A", ours="8", why=reasons.FILLED)
T("gup-linked", "process_vm_readv of a process that touched another byte", "8",
  lambda s: unlinked(s, touched=True), source="B, A", plain=True)

T = Table("Kernel-side access and the attachment's protection", "C")


def attached_with(stage: Stage, prot: int) -> Memory:
    made = memory(stage, present=True)
    again = made.again(stage.process(), prot=prot)
    again.load()
    return again


def fast(stage: Stage) -> str:
    made = attached_with(stage, READ)
    fd = made.agent.call("open", direct_file(stage), os.O_RDWR | os.O_DIRECT)
    return number(made.agent, "read", fd, made.base, PAGE)


T("gup-prot-none", "process_vm_readv of a PROT_NONE attachment", "EFAULT",
  lambda s: vm(s, attached_with(s, NONE)), quirks="8", why=reasons.OPEN)
T("gup-prot-read", "/proc/self/mem: write to a PROT_READ attachment", "EIO",
  lambda s: through_proc(attached_with(s, READ), "pwrite"), quirks="8", why=reasons.OPEN)
T("gup-fast", "read(2) of an O_DIRECT file into a PROT_READ attachment", str(PAGE),
  fast, default="EFAULT", why=reasons.SAFE)


T = Table("Private memory beside an attachment", "1.6")
T("malloc", "anonymous private memory of the program: a store", "ok",
  lambda s: (s.page().agent.store(
      s.agent.call("mmap", 0, PAGE, RW, PRIVATE | ANON, -1, 0), 1)), plain=True)
