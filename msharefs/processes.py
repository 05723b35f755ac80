"""The server's knowledge of other processes: identity, life, descriptors.

Sources: proc(5), pidfd_getfd(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from . import proc
from .native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

PIDFD_THREAD = os.O_EXCL
"""pidfd_open(2), since Linux 6.9."""

SHORT = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR))
"""Errors of a call for which we are short of something now: they say nothing about its object."""

_KCMP_FILE = 0
_SHADOW = "msharefs: "
_LISTED = 8  # in one sentence


def start_time(pid: int) -> int:
    """When a process started, in clock ticks after boot; 0 if there is no such process."""
    try:
        return proc.stat(pid).start_time
    except ProcessLookupError:
        return 0


def is_alive(pid: int, started: int) -> bool:
    """Whether process `pid` that started at `started` (0: unknown) still runs.

    It runs while any of its threads does; the first, whose state is shown, may have ended.
    """
    try:
        found = proc.stat(pid)
    except ProcessLookupError:
        return False
    if found.state in "ZX" and found.threads <= 1:
        return False
    return started in (0, found.start_time)


class Census:
    """Which of many processes run: all processes of other pid namespaces are looked for once.

    It answers for processes that were there before it was made. For a thread that answers no
    requests: there may be many processes, and one of those that are asked for may be in the middle
    of execve(2).
    """

    def __init__(self) -> None:
        self._ours = proc.pid_namespace("self")
        self._by_number: dict[int, list[int]] | None = None

    def find(self, namespace: int, pid: int, started: int) -> list[int]:
        """The processes, by our numbers, that may be the one which calls itself `pid` there.

        The namespace is an inode number; 0 is our own. We know the processes of another one only by
        their numbers in ours. A process that we may not ask counts, if it started at that time.
        """
        if namespace in (0, self._ours):
            return [pid] if is_alive(pid, started) else []
        if self._by_number is None:
            self._by_number = _by_number()
        return [
            ours
            for ours in self._by_number.get(pid, ())
            if is_alive(ours, started) and _may_be_of(ours, namespace)
        ]


def _by_number() -> dict[int, list[int]]:
    """All processes by their numbers in their own pid namespaces. It waits for none of them."""
    found: dict[int, list[int]] = {}
    for pid in psutil.pids():
        with contextlib.suppress(OSError):  # it has ended
            number = proc.status(pid, "NSpid").split()[-1]
            found.setdefault(int(number), []).append(pid)
    return found


def _may_be_of(ours: int, namespace: int) -> bool:
    try:
        return proc.pid_namespace(ours) == namespace
    except PermissionError:
        return True
    except ProcessLookupError:
        return False


def runs(pid: int) -> bool:
    """Whether there is a process `pid` that has not ended; nothing is read of its memory."""
    return mark(pid) != 0


def mark(pid: int) -> int:
    """A number that no other process of this boot has, since Linux 6.9; 0: it has ended.

    Unlike `start_time`, it does not wait for a process in the middle of execve(2).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return 0 if poll.poll(0) else os.fstat(pidfd).st_ino
    finally:
        os.close(pidfd)


def times_mapped(pid: int, file: os.stat_result) -> int | None:
    """How many mappings of a file's beginning process `pid` has; None: we cannot know.

    The maps of a process whose first thread has ended are empty here. It waits for the process's
    address space, which may be large, or locked: only for a thread that answers no requests.
    """
    try:
        if proc.stat(pid).kernel:
            return 0
        return proc.maps_file(pid, file.st_dev, file.st_ino)
    except ProcessLookupError:
        return 0
    except OSError:
        return None


def thread_runs(tid: int) -> bool:
    """Whether thread `tid` has not ended, whatever the rest of its process does."""
    try:
        return proc.state(tid) not in "ZX"
    except ProcessLookupError:
        return False


def command(pid: int) -> str:
    """The name of process `pid`, to be shown; empty if it is gone."""
    try:
        # A process chooses its name, and could choose one that a terminal obeys.
        return "".join(each if each.isprintable() else "?" for each in proc.comm(pid))
    except ProcessLookupError:
        return ""


def is_shadow(pid: int) -> bool:
    """Whether a process only serves another one's memory, by its name (native/client/shadow.h)."""
    return command(pid).startswith(_SHADOW)


def shadow_name(pid: int) -> str:
    """What the shadows of process `pid` are called: a name has room for 15 bytes."""
    return f"{_SHADOW}{proc.status(pid, 'NSpid').split()[-1]}"[:15]


def named(pid: int) -> str:
    """A process for a sentence, with number and name."""
    return f"process {pid} ({command(pid) or 'gone'})" if pid else "an attached process"


def listed(pids: Collection[int]) -> str:
    """Processes for a sentence: number and name of the first few, and how many more there are."""
    if not pids:
        return "processes that this user may not see"
    chosen = sorted(pids)[:_LISTED]
    text = ", ".join(f"{pid} ({command(pid) or 'gone'})" for pid in chosen)
    more = len(pids) - len(chosen)
    return f"{text} and {more} more" if more else text


def by_parent(pids: Iterable[int]) -> dict[int, list[int]]:
    """These processes by the numbers of their parents.

    Unlike psutil's `children`, it does not wait for a process in the middle of execve(2).
    """
    found = defaultdict(list)
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended, or is hidden (hidepid)
            found[int(proc.status(pid, "PPid"))].append(pid)
    return found


def cgroup(pid: int) -> str:
    """The memory cgroup of `pid`, empty if it is gone."""
    try:
        return proc.cgroup(pid)
    except ProcessLookupError:
        return ""


def cgroup_directory(version: int, path: bytes) -> Path:
    """The directory of a memory cgroup, of proc.memory_cgroup(). OSError: it cannot be reached."""
    inside = Path(os.fsdecode(path))
    if ".." in inside.parts:
        raise OSError(errno.EXDEV, "it is outside of the server's cgroup namespace")
    for mount in proc.mounts():
        is_one = version == 1 and mount.fstype == "cgroup" and "memory" in mount.options
        if (is_one or (version == 2 and mount.fstype == "cgroup2")) and inside.is_relative_to(
            mount.root
        ):
            return mount.directory / inside.relative_to(mount.root)
    raise OSError(errno.ENOENT, "no cgroup file system that has it is mounted for the server")


def process_of(tid: int) -> int:
    """The process of thread `tid`, by which FUSE names the caller. 0 if it is gone."""
    with contextlib.suppress(OSError):
        # This works only for a first thread, which has the process's number. Reading /proc takes
        # twenty times as long.
        os.close(os.pidfd_open(tid))
        return tid
    try:
        return int(proc.status(tid, "Tgid"))
    except ProcessLookupError:
        return 0


def fetch_descriptor(pid: int, number: int) -> int:
    """A duplicate of descriptor `number` of process `pid`.

    EBADF: it has none of that number. EPERM: ptrace rules forbid it. ESRCH: the process is gone.
    """
    for thread in holders_of_descriptors(pid):
        try:
            return _fetch_descriptor(thread, number)
        except ProcessLookupError:
            continue
    raise ProcessLookupError(errno.ESRCH, f"descriptor {number} of process {pid}: it has ended")


def _fetch_descriptor(thread: int, number: int) -> int:
    pidfd = os.pidfd_open(thread, PIDFD_THREAD)
    try:
        found = lib.syscall(
            lib.SYS_pidfd_getfd,
            ffi.cast("int", pidfd),
            ffi.cast("int", number),
            ffi.cast("unsigned int", 0),
        )
    finally:
        os.close(pidfd)
    if found < 0:
        raise OSError(
            ffi.errno, f"descriptor {number} of thread {thread}: {os.strerror(ffi.errno)}"
        )
    return int(found)


def holders_of_descriptors(pid: int) -> Iterator[int]:
    """The threads of process `pid`, which all have its descriptors until they end.

    The first one may have ended, long ago.
    """
    yield pid
    with contextlib.suppress(OSError):
        yield from proc.threads(pid)


def same_file(one: int, other: int) -> bool:
    """Whether two of our own descriptors are one open file: kcmp(2)."""
    pid = os.getpid()
    numbers = [ffi.cast("long", value) for value in (pid, pid, _KCMP_FILE, one, other)]
    return bool(lib.syscall(lib.SYS_kcmp, *numbers) == 0)


def is_userfaultfd(fd: int) -> bool:
    """Whether a descriptor of ours is a userfaultfd, told without asking a file system."""
    return os.readlink(proc.fd_path(fd)) == "anon_inode:[userfaultfd]"


def mapped_files(pid: int, inode: int) -> list[str]:
    """Paths that open the files with that inode number which process `pid` has mapped.

    They work for files without a name too, for a process with CAP_CHECKPOINT_RESTORE. EMFILE and
    its like: we cannot look.
    """
    try:
        return [proc.map_file(pid, each.start, each.end) for each in proc.maps(pid, inode=inode)]
    except OSError as error:
        if error.errno in SHORT:
            raise
        return []
