"""Functions of the C library that Python does not have, or whose arguments it checks first."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import cffi

if TYPE_CHECKING:
    import mmap
    from pathlib import Path

_ffi = cffi.FFI()
_ffi.cdef("""
int fallocate(int fd, int mode, int64_t offset, int64_t length);
void *mmap(void *addr, size_t length, int prot, int flags, int fd, int64_t offset);
int munmap(void *addr, size_t length);
int mount(const char *source, const char *target, const char *type, unsigned long flags,
          const char *data);
int prctl(int option, ...);
long ptrace(int request, int pid, void *addr, void *data);
struct clone_args {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
             set_tid_size, cgroup;
};
struct iovec { void *base; size_t size; };
ssize_t process_vm_readv(int pid, const struct iovec *local, unsigned long locals,
                         const struct iovec *remote, unsigned long remotes, unsigned long flags);
long syscall(long number, ...);
int renameat2(int old_directory, const char *old, int new_directory, const char *new,
              unsigned flags);
int epoll_wait(int epoll, void *events, int most, int milliseconds);
int umount2(const char *target, int flags);
int unshare(int flags);
""")
_libc: Any = _ffi.dlopen(None)
_FAILED = _ffi.cast("void *", -1)

CLONE_NEWNS = 0x20000  # sched.h
MS_RDONLY, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 4096, 0x4000, 0x40000
MNT_DETACH = 2
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
PTRACE_TRACEME, PTRACE_CONT, PTRACE_SINGLESTEP = 0, 7, 9
PTRACE_DETACH, PTRACE_SYSCALL, PTRACE_SEIZE, PTRACE_INTERRUPT = 17, 24, 0x4206, 0x4207
PTRACE_O_TRACESYSGOOD = 1
_AT_FDCWD = -100
_SYS_GET_MEMPOLICY, _SYS_SCHED_GETATTR, _SYS_CLONE3 = 239, 315, 435
MPOL_F_NODE, MPOL_F_ADDR = 1, 2
_PTRACE_GETSIGMASK, _PTRACE_GET_SYSCALL_INFO = 0x420A, 0x420E
_PR_SET_PDEATHSIG = 1


def epoll_wait(epoll: int, events: mmap.mmap) -> None:
    """Waits for an event, which Linux writes to `events`."""
    _libc.epoll_wait(epoll, _ffi.from_buffer(events), 1, -1)


def load(library: Path, declarations: str) -> Any:
    """A library that a test has compiled."""
    ffi = cffi.FFI()
    ffi.cdef(declarations)
    return ffi.dlopen(os.fspath(library))


def _check(what: str, failed: bool) -> None:
    if failed:
        raise OSError(_ffi.errno, f"{what}: {os.strerror(_ffi.errno)}")


def unshare(flags: int) -> None:
    """unshare(2); Python has it from 3.12 on."""
    _check("unshare", _libc.unshare(flags) < 0)


def fork_as(pid: int) -> int:
    """fork(2) with a number for the child that nobody has: clone3(2), as root.

    Precondition: the process has one thread; and the child does little but execve(2), since nobody
    is told that it is one.
    """
    arguments = _ffi.new("struct clone_args *")
    number = _ffi.new("int *", pid)
    arguments.exit_signal = signal.SIGCHLD
    arguments.set_tid, arguments.set_tid_size = int(_ffi.cast("uintptr_t", number)), 1
    size = _ffi.cast("size_t", _ffi.sizeof(arguments[0]))
    done = int(_libc.syscall(_SYS_CLONE3, arguments, size))
    _check(f"clone3 as {pid}", done < 0)
    return done


def mount(
    target: str | os.PathLike[str], fstype: str = "none", flags: int = 0, options: str | None = None
) -> None:
    """mount(2) without a source: a file system in memory, or a change of flags."""
    data = _ffi.NULL if options is None else options.encode()
    name = fstype.encode()
    failed = _libc.mount(name, os.fsencode(target), name, flags, data) < 0
    _check(f"mount of {fstype} on {target}", failed)


def bind(source: str | os.PathLike[str], target: str | os.PathLike[str], flags: int = 0) -> None:
    """mount(2) with MS_BIND, or a remount of one with other flags."""
    names = os.fsencode(source), os.fsencode(target)
    failed = _libc.mount(*names, b"none", MS_BIND | flags, _ffi.NULL) < 0
    _check(f"bind mount of {source} on {target}", failed)


def umount(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2)."""
    _check(f"umount2 of {target}", _libc.umount2(os.fsencode(target), flags) < 0)


def renameat2(old: str | os.PathLike[str], new: str | os.PathLike[str], flags: int) -> None:
    """renameat2(2)."""
    names = _AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new)
    _check("renameat2", _libc.renameat2(*names, flags) < 0)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); posix_fallocate(3) hides modes and errnos."""
    _check("fallocate", _libc.fallocate(fd, mode, offset, length) < 0)


def mmap(fd: int, length: int, prot: int, flags: int) -> None:
    """mmap(2), for its errno: Python's own mmap makes checks of its own first."""
    address = _libc.mmap(_ffi.NULL, length, prot, flags, fd, 0)
    _check("mmap", address == _FAILED)


def map_at(address: int, length: int, prot: int, flags: int, fd: int) -> int:
    """mmap(2) at an address, 0 for any; the address it is mapped at."""
    got = _libc.mmap(_ffi.cast("void *", address), length, prot, flags, fd, 0)
    _check("mmap", got == _FAILED)
    return int(_ffi.cast("uintptr_t", got))


def bytes_at(address: int, length: int) -> memoryview:
    """Memory of this process."""
    return memoryview(_ffi.buffer(_ffi.cast("char *", address), length)).cast("B")


def unmap_at(address: int, length: int) -> None:
    """munmap(2)."""
    _check("munmap", _libc.munmap(_ffi.cast("void *", address), length) < 0)


def ptrace(request: int, pid: int = 0, data: int = 0) -> None:
    """ptrace(2), for requests that take at most a number."""
    number = _ffi.cast("void *", data)
    _check("ptrace", _libc.ptrace(request, pid, _ffi.NULL, number) < 0)


def signal_mask(pid: int) -> int:
    """The signals that a traced and stopped thread has blocked: one bit for each, from 1 on."""
    mask = _ffi.new("uint64_t *")
    size = _ffi.cast("void *", _ffi.sizeof("uint64_t"))
    _check("ptrace", _libc.ptrace(_PTRACE_GETSIGMASK, pid, size, mask) < 0)
    return int(mask[0])


def traced_call(tid: int) -> tuple[int, int]:
    """Where a thread stands that PTRACE_SYSCALL has stopped: 1 before a call, 2 after one.

    And, before it, the number of the call.
    """
    info = _ffi.new("uint64_t[16]")  # struct ptrace_syscall_info
    size = _ffi.cast("void *", _ffi.sizeof(info))
    _check("ptrace", _libc.ptrace(_PTRACE_GET_SYSCALL_INFO, tid, size, info) < 0)
    return int(info[0]) & 0xFF, int(info[3])


def slice_ns(pid: int) -> int:
    """How long a thread runs before others that wait, as sched_getattr(2) says."""
    attr = _ffi.new("uint32_t[14]")  # struct sched_attr
    size = _ffi.sizeof(attr)
    failed = _libc.syscall(
        _SYS_SCHED_GETATTR, _ffi.cast("int", pid), attr, _ffi.cast("unsigned", size),
        _ffi.cast("unsigned", 0),
    )  # fmt: skip
    _check("sched_getattr", failed != 0)
    return int(attr[6] | attr[7] << 32)


def get_mempolicy(address: int, flags: int) -> int:
    """get_mempolicy(2) of an address: the mode of its policy, or with MPOL_F_NODE its node."""
    mode = _ffi.new("int *")
    arguments = (mode, _ffi.NULL, _ffi.cast("long", 0), _ffi.cast("long", address))
    done = _libc.syscall(_SYS_GET_MEMPOLICY, *arguments, _ffi.cast("long", flags))
    _check("get_mempolicy", done < 0)
    return int(mode[0])


def die_with_parent() -> None:
    """A SIGKILL for this process when the thread that started it ends."""
    failed = _libc.prctl(_PR_SET_PDEATHSIG, _ffi.cast("unsigned long", signal.SIGKILL)) < 0
    _check("prctl", failed)


def vm_read(pid: int, address: int, size: int) -> bytes:
    """Memory of another process, by process_vm_readv(2)."""
    data = _ffi.new("char[]", size)
    local = _ffi.new("struct iovec *", (data, size))
    remote = _ffi.new("struct iovec *", (_ffi.cast("void *", address), size))
    got = _libc.process_vm_readv(pid, local, 1, remote, 1, 0)
    _check("process_vm_readv", got < 0)
    return bytes(_ffi.buffer(data, got))
