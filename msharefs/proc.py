"""proc(5): one function for each file of /proc that msharefs reads; nothing else here reads it.

A process that has ended, before a function is called or meanwhile, is ProcessLookupError; one that
is not ours to look at is PermissionError. Paths keep bytes that are no UTF-8 (os.fsdecode).

psutil, which we use for the machine's memory and for families of processes, has these differently
or not at all: start times in seconds and not in ticks, names completed from the command line, open
files only after asking their file systems, which may hang. It has no faults, page tables,
capabilities, device numbers of mounts, or limits of another user's process.
"""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Process = int | Literal["self"]

# linux/capability.h
CAP_IPC_LOCK, CAP_SYS_NICE = 14, 23
_PIDFD = ("pidfd:", "anon_inode:[pidfd]")


def _read(pid: Process, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def _gone(pid: Process) -> ProcessLookupError:
    return ProcessLookupError(errno.ESRCH, f"process {pid} has ended")


def _list(pid: int, name: str) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/{name}")
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def _lines(text: bytes) -> list[bytes]:
    """Unlike splitlines(): names may hold any other character that ends a line somewhere."""
    return text.removesuffix(b"\n").split(b"\n") if text else []


# A process, or a thread by its number


class Stat(NamedTuple):
    """What is used of proc_pid_stat(5)."""

    state: str
    minor_faults: int
    major_faults: int
    threads: int
    start_time: int
    """In clock ticks after boot."""
    kernel: bool
    """It is a thread of the kernel."""


_PF_KTHREAD = 0x00200000  # sched.h


def stat(pid: int) -> Stat:
    """/proc/PID/stat. It waits for a process in the middle of execve(2), which may be for long."""
    # The name in field 2 may hold blanks, parentheses and newlines; field 3 follows.
    fields = _read(pid, "stat").rpartition(b") ")[2].split()
    flags, minor, major, threads, start = (
        int(fields[number - 3]) for number in (9, 10, 12, 20, 22)
    )
    return Stat(fields[0].decode(), minor, major, threads, start, bool(flags & _PF_KTHREAD))


def birth(pid: int) -> tuple[int, ...]:
    """Where execve(2) put a program's code, data, stack and arguments; zeros if we may not know.

    Addresses are random, so processes have these in common only if one forked the other.
    """
    fields = _read(pid, "stat").rpartition(b") ")[2].split()
    return tuple(int(fields[number - 3]) for number in (26, 28, 45, 47, 48, 50))


class Running(NamedTuple):
    """Where a thread runs, or ran last, and for how long it has run in all."""

    cpu: int
    nanoseconds: int


def running(tid: int) -> Running:
    """/proc/TID/stat, field 39, and /proc/TID/schedstat (or the ticks of fields 14 and 15)."""
    fields = _read(tid, "stat").rpartition(b") ")[2].split()
    user, kernel, cpu = (int(fields[number - 3]) for number in (14, 15, 39))
    try:
        return Running(cpu, int(_read(tid, "schedstat").split()[0]))
    except (ProcessLookupError, IndexError):  # a kernel without it
        return Running(cpu, (user + kernel) * 1_000_000_000 // os.sysconf("SC_CLK_TCK"))


def status(pid: Process, field: str) -> str:
    """A field of /proc/PID/status; empty where the process has none (VmPTE of a kernel thread).

    Its first line is the name, in which the kernel escapes newlines.
    """
    text = b"\n" + _read(pid, "status")
    return text.partition(b"\n%s:" % field.encode())[2].partition(b"\n")[0].strip().decode()


def has_capability(pid: Process, number: int) -> bool:
    """Whether a process has a capability; not if it has ended."""
    try:
        return bool(int(status(pid, "CapEff"), 16) >> number & 1)
    except OSError:
        return False


def state(pid: int) -> str:
    """The letter for what a thread does. Unlike `stat`, it does not wait for one in execve(2)."""
    return status(pid, "State")[:1]


def comm(pid: int) -> str:
    """/proc/PID/comm, the name; to be shown: what is no UTF-8 is replaced."""
    return _read(pid, "comm").removesuffix(b"\n").decode(errors="replace")


def cgroup(pid: int) -> str:
    """The path of `memory_cgroup`, to be shown, as `comm`."""
    return memory_cgroup(pid)[1].decode(errors="replace")


def memory_cgroup(pid: Process) -> tuple[int, bytes]:
    """/proc/PID/cgroup, the memory cgroup: the version of cgroups that has it, and its path.

    It is that of version 1's memory controller if there is one. The kernel allows no newline in the
    name of a cgroup.
    """
    unified = b""
    for line in _lines(_read(pid, "cgroup")):
        _, controllers, path = line.split(b":", 2)
        if b"memory" in controllers.split(b","):
            return 1, path
        if not controllers:
            unified = path
    return 2, unified


def spare(pid: int) -> None:
    """/proc/PID/oom_score_adj: the OOM killer is never to choose it. It takes CAP_SYS_RESOURCE."""
    with open(f"/proc/{pid}/oom_score_adj", "wb") as file:
        file.write(b"-1000")


def set_session_nice(nice: int) -> None:
    """How much of the processors this process's session gets among others (sched(7), autogroup).

    OSError: it may not be changed, or Linux does not weigh sessions.
    """
    Path("/proc/self/autogroup").write_text(f"{nice}", encoding="ascii")


def soft_limit(pid: int, name: str) -> int | None:
    """A limit of /proc/PID/limits by its name there ("Max address space"); None: unlimited."""
    text = _read(pid, "limits").decode()
    found = re.search(rf"^{name} +(\S+)", text, re.MULTILINE)
    assert found is not None, f"no limit is called {name}"
    return None if found[1] == "unlimited" else int(found[1])


def threads(pid: int) -> list[int]:
    """/proc/PID/task."""
    return [int(name) for name in _list(pid, "task")]


def pid_namespace(pid: Process) -> int:
    """The inode number of /proc/PID/ns/pid."""
    return _namespace(pid, "pid")


def ipc_namespace(pid: Process) -> int:
    """The inode number of /proc/PID/ns/ipc."""
    return _namespace(pid, "ipc")


def _namespace(pid: Process, name: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/{name}").st_ino
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def directories(pid: int) -> list[str]:
    """/proc/PID/cwd and root."""
    try:
        return [os.readlink(f"/proc/{pid}/{name}") for name in ("cwd", "root")]
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def open_files(pid: int) -> dict[int, str]:
    """/proc/PID/fd: what each descriptor is of, told without asking a file system."""
    found = {}
    for name in _list(pid, "fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def open_count() -> int:
    """How many descriptors this process has: the size of /proc/self/fd, since Linux 6.2."""
    return os.stat("/proc/self/fd").st_size


def fuse_connections(pid: int) -> set[int]:
    """The FUSE connections that a process serves: the minor numbers of their mounts' st_dev."""
    found = set()
    for fd, path in open_files(pid).items():
        if path == "/dev/fuse":
            text = _read(pid, f"fdinfo/{fd}")
            match = re.search(rb"^fuse_connection:\t(\d+)$", text, re.MULTILINE)
            if match is not None:
                found.add(int(match[1]))
    return found


def fd_path(fd: int, pid: Process = "self") -> str:
    """A path to what a descriptor, by default of our own, is of, also where it has no name."""
    return f"/proc/{pid}/fd/{fd}"


def has_open(pid: int, device: int, inode: int) -> bool:
    """Whether process `pid` has that file open; `device` is its st_dev. No file system is asked.

    True also where that may not be seen, and for a mount of a namespace that is not the process's.
    """
    try:
        numbers = _list(pid, "fdinfo")
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    for number in numbers:
        try:
            text = _read(pid, f"fdinfo/{number}")
        except OSError:  # it has just been closed
            continue
        found = dict(re.findall(rb"^(ino|mnt_id):\t(\d+)$", text, re.MULTILINE))
        if int(found.get(b"ino", -1)) != inode:
            continue
        if _device_of(pid, found.get(b"mnt_id", b"")) in (None, device):
            return True
    return False


def _device_of(pid: int, mount: bytes) -> int | None:
    for line in _lines(_read(pid, "mountinfo")):
        number, _, where, _ = line.split(b" ", 3)
        if number == mount:
            major, minor = where.split(b":")
            return os.makedev(int(major), int(minor))
    return None


def pidfd_of(pid: int, number: int) -> tuple[int, bool]:
    """Whom descriptor `number` of process `pid` means, a pidfd, and whether one thread of it.

    -1: it has ended; 0: we do not see it. EBADF: it is no pidfd, or not open. The process can put
    another descriptor in its place meanwhile, whose fdinfo waits (epoll(7)): only for a thread.
    """
    try:
        path = os.readlink(f"/proc/{pid}/fd/{number}")
        text = _read(pid, f"fdinfo/{number}") if path.startswith(_PIDFD) else b""
    except (FileNotFoundError, ProcessLookupError):
        text = b""
    found = dict(re.findall(rb"^(Pid|flags):\t(-?\d+)$", text, re.MULTILINE))
    if b"Pid" not in found:
        raise OSError(errno.EBADF, f"descriptor {number} of process {pid} is no pidfd")
    return int(found[b"Pid"]), bool(int(found[b"flags"], 8) & os.O_EXCL)


def pid_of(pidfd: int) -> int:
    """The process of a pidfd of our own; 0: it has ended, or that is no pidfd.

    Of another file nothing is asked: it may be its file system that answers.
    """
    if not os.readlink(fd_path(pidfd)).startswith(_PIDFD):
        return 0
    with open(f"/proc/self/fdinfo/{pidfd}", "rb") as file:
        found = re.search(rb"^Pid:\t(\d+)$", file.read(), re.MULTILINE)
    return int(found[1]) if found else 0


def open_pagemap(pid: int) -> BinaryIO:
    """/proc/PID/pagemap, for PAGEMAP_SCAN."""
    try:
        return open(f"/proc/{pid}/pagemap", "rb", buffering=0)
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def has_clear_refs() -> bool:
    """Whether this kernel lets accessed bits of a process be cleared: /proc/PID/clear_refs."""
    return os.access("/proc/self/clear_refs", os.W_OK)


def clear_accessed(pid: int, *, flush: bool) -> None:
    """Clears the accessed bits of a process. ProcessLookupError, PermissionError.

    With `flush` what its processors remember of them is forgotten, too: Linux does that for
    soft-dirty marks, which are lost by it.
    """
    try:
        with open(f"/proc/{pid}/clear_refs", "wb", buffering=0) as file:
            file.write(b"1")
            if flush:
                file.write(b"4")
    except FileNotFoundError:
        raise _gone(pid) from None


def open_memory(pid: int) -> BinaryIO:
    """/proc/PID/mem, for reading. PermissionError."""
    try:
        return open(f"/proc/{pid}/mem", "rb", buffering=0)
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


class Mapping(NamedTuple):
    """What is used of a line of proc_pid_maps(5); bytes."""

    start: int
    end: int
    prot: str
    offset: int
    device: int
    """As st_dev; 0 of memory that is of no file."""
    inode: int
    path: str
    """As it is now, with " (deleted)" if it is gone; or what Linux calls it; or empty."""


_BLANKS_BEFORE_DEVICE = 2  # and so three fields
_MAPPING = rb"^([0-9a-f]+)-([0-9a-f]+) (%s) ([0-9a-f]+) (%s) (%s) *(.*)$"


def maps(
    pid: int,
    devices: Collection[int] | None = None,
    inode: int | None = None,
    *,
    shared: bool = False,
) -> list[Mapping]:
    """/proc/PID/maps; only the mappings of files on one of these devices, or with that number.

    `shared`: only those of MAP_SHARED.

    Empty for a kernel thread, and for a process whose first thread has ended.
    """
    text = _read(pid, "maps")
    if devices is not None and inode is not None:
        # Whoever looks for one file looks through all processes, which may have many mappings.
        text = b"\n".join(line for each in devices for line in _of_file(text, each, inode))
    device = b"[0-9a-f]+:[0-9a-f]+"
    if devices is not None:
        device = b"|".join(b"%02x:%02x" % (os.major(each), os.minor(each)) for each in devices)
    pattern = re.compile(
        _MAPPING
        % (b"...s" if shared else b"....", device, rb"\d+" if inode is None else b"%d" % inode),
        re.MULTILINE,
    )
    return [
        Mapping(
            int(start, 16), int(end, 16), prot.decode(), int(offset, 16),
            os.makedev(*(int(number, 16) for number in at.split(b":"))), int(number),
            os.fsdecode(name.replace(rb"\012", b"\n")),  # the one character that is escaped
        )
        for start, end, prot, offset, at, number, name in pattern.findall(text)
    ]  # fmt: skip


def mapped(pid: int, name: str) -> int | None:
    """The address of the first mapping with this in its path, found without parsing the others."""
    text = _read(pid, "maps")
    at = text.find(name.encode())
    line = text.rfind(b"\n", 0, at) + 1
    return int(text[line : text.index(b"-", line)], 16) if at >= 0 else None


def maps_file(pid: int, device: int, inode: int) -> int | None:
    """How many mappings have a file's beginning; None: /proc/PID/maps is empty, see `maps`."""
    text = _read(pid, "maps")
    offsets = [int(line.split(b" ", 3)[2], 16) for line in _of_file(text, device, inode)]
    return offsets.count(0) if text else None


def _of_file(text: bytes, device: int, inode: int) -> Iterator[bytes]:
    """The lines of /proc/PID/maps that are of a file; to parse all takes ten times as long."""
    fields = b" %02x:%02x %d " % (os.major(device), os.minor(device), inode)
    at = text.find(fields)
    while at >= 0:
        start, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        if text.count(b" ", start, at) == _BLANKS_BEFORE_DEVICE:  # it is not in a path
            yield text[start:end]
        at = text.find(fields, at + 1)


def smaps(pid: int) -> list[bytes]:
    """The lines of /proc/PID/smaps."""
    return _lines(_read(pid, "smaps"))


def map_file(pid: int, start: int, end: int) -> str:
    """A path that opens what is mapped, for whoever has CAP_CHECKPOINT_RESTORE."""
    return f"/proc/{pid}/map_files/{start:x}-{end:x}"


# Mounts


@dataclass(frozen=True)
class Mount:
    """What is used of a line of proc_pid_mountinfo(5)."""

    directory: Path
    fstype: str
    device: int
    """st_dev of the files on it."""
    uid: int
    """Who mounted it, for FUSE; 0 otherwise."""
    shared: bool
    """What is mounted below it appears in other mount namespaces, too."""
    root: Path = Path("/")
    """What of the file system is mounted."""
    options: frozenset[str] = frozenset()
    """Those of the file system."""


def mounts(pid: Process = "self") -> list[Mount]:
    """/proc/PID/mountinfo: of two mounts on one directory the later covers the earlier."""
    return [_mount(line) for line in _lines(_read(pid, "mountinfo"))]


def _mount(line: bytes) -> Mount:
    # id parent major:minor root mount-point options [optional fields] - type source super-options
    # Blanks, newlines and backslashes inside them are escaped; a source may be empty.
    fields = line.split(b" ")
    major, minor = fields[2].split(b":")
    end = fields.index(b"-", 6)
    fstype, _, options = fields[end + 1 :]
    user = re.search(rb"(?:^|,)user_id=(\d+)", options) if fstype.startswith(b"fuse") else None
    return Mount(
        directory=Path(os.fsdecode(_unescape(fields[4]))),
        fstype=os.fsdecode(_unescape(fstype)),
        device=os.makedev(int(major), int(minor)),
        uid=int(user[1]) if user else 0,
        shared=any(field.startswith(b"shared:") for field in fields[6:end]),
        root=Path(os.fsdecode(_unescape(fields[3]))),
        options=frozenset(os.fsdecode(options).split(",")),
    )


def _unescape(text: bytes) -> bytes:
    """Undo the octal escapes, each of which is a byte."""
    return re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), text)


_CAP_SYS_PTRACE = 19
_LISTS_OWN_ONLY = {f"hidepid={word}" for word in ("2", "invisible", "4", "ptraceable")}


def hides() -> bool:
    """Whether /proc does not list the processes of other users for us: its option hidepid."""
    if int(status("self", "CapEff"), 16) >> _CAP_SYS_PTRACE & 1:
        return False
    of_proc = [mount.options for mount in mounts() if mount.directory == Path("/proc")]
    options = of_proc[-1] if of_proc else frozenset()
    group = next((one.partition("=")[2] for one in options if one.startswith("gid=")), "")
    if group.isdigit() and int(group) in {os.getegid(), *os.getgroups()}:
        return False
    return not _LISTS_OWN_ONLY.isdisjoint(options)


def watch_mounts() -> BinaryIO:
    """A file that poll(2) reports with POLLPRI when a mount comes or goes."""
    return open("/proc/self/mountinfo", "rb")


# The machine


def _machines(name: str) -> str:
    # Not by a Path, which interns its parts: those that go leave gaps in Python's table of interned
    # strings, which grows until it is made anew.
    with open(f"/proc/{name}", encoding="utf-8") as file:
        return file.read()


def meminfo() -> dict[str, int]:
    """/proc/meminfo: bytes, and numbers of huge pages."""
    found = {}
    for line in _machines("meminfo").splitlines():
        name, _, value = line.partition(":")
        number, *unit = value.split()
        found[name] = int(number) << 10 if unit == ["kB"] else int(number)
    return found


def interrupts() -> dict[str, int]:
    """/proc/interrupts: how many of each there were, on all processors, by the names of lines."""
    found = {}
    for line in Path("/proc/interrupts").read_text().splitlines():
        first, *words = line.split()
        if first.endswith(":"):
            counts = itertools.takewhile(str.isdecimal, words)
            found[first[:-1]] = sum(map(int, counts))
    return found


def runnable() -> int:
    """How many threads of the machine run or wait for a processor: /proc/loadavg."""
    return int(_machines("loadavg").split()[3].partition("/")[0])


def cpuinfo(field: str) -> list[str]:
    """The different values that a field of /proc/cpuinfo has, sorted."""
    lines = _machines("cpuinfo").splitlines()
    pairs = (line.partition(":") for line in lines)
    return sorted({value.strip() for name, _, value in pairs if name.strip() == field})


def sysctl(name: str) -> str:
    """A value of /proc/sys, such as "vm/max_map_count".

    Its file stays open: each MSHAREFS_CREATE_MAPPING asks.
    """
    return os.pread(_sysctl_file(name), 32, 0).decode().strip()


@functools.cache
def _sysctl_file(name: str) -> int:
    return os.open(f"/proc/sys/{name}", os.O_RDONLY | os.O_CLOEXEC)
