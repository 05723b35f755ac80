"""The server's knowledge of other processes: identity, life, descriptors.

Sources: proc(5), pidfd_getfd(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

import psutil

from .native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

PIDFD_THREAD = os.O_EXCL
"""pidfd_open(2), since Linux 6.9."""

_KCMP_FILE = 0
_LISTED = 8  # in one sentence


def _stat_fields(pid: int) -> list[bytes] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name in field 2 may hold blanks and parentheses.
            return file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat, 0 if there is no such process."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else 0


def is_alive(pid: int, started: int) -> bool:
    """Whether process `pid` that started at `started` (0: unknown) still runs.

    It runs while any of its threads does; the first, whose state is shown, may have ended.
    """
    fields = _stat_fields(pid)
    if fields is None or (fields[0] in (b"Z", b"X") and int(fields[17]) <= 1):
        return False
    return started in (0, int(fields[19]))


def is_alive_in(namespace: int, pid: int, started: int) -> bool:
    """Whether a process that calls itself `pid` in a pid namespace (its inode number) still runs.

    0 is our own namespace. We know the processes of another one only by their numbers in ours, so
    all have to be asked. A process that we may not ask counts, if it started at that time.
    """
    if namespace in (0, os.stat("/proc/self/ns/pid").st_ino):
        return is_alive(pid, started)
    return any(
        is_alive(ours, started) and _may_be(ours, namespace, pid)
        for ours in map(int, filter(str.isdigit, os.listdir("/proc")))
    )


def _may_be(ours: int, namespace: int, pid: int) -> bool:
    try:
        if os.stat(f"/proc/{ours}/ns/pid").st_ino != namespace:
            return False
        with open(f"/proc/{ours}/status", encoding="utf-8", errors="replace") as file:
            return any(line.startswith("NSpid:") and int(line.split()[-1]) == pid for line in file)
    except PermissionError:
        return True
    except OSError:
        return False


def has_mapped(pid: int, file: os.stat_result) -> bool:
    """Whether process `pid` has a file mapped; True also if we cannot know.

    The maps of a process whose first thread has ended are empty here.
    """
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            fields = [line.split(maxsplit=5)[3:5] for line in maps]
    except OSError:
        return True
    return not fields or [device, str(file.st_ino)] in fields


def thread_runs(tid: int) -> bool:
    """Whether thread `tid` has not ended, whatever the rest of its process does."""
    fields = _stat_fields(tid)
    return fields is not None and fields[0] not in (b"Z", b"X")


def command(pid: int) -> str:
    """The name of process `pid`, empty if it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().rstrip("\n")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def listed(pids: Collection[int]) -> str:
    """Processes for a sentence: number and name of the first few, and how many more there are."""
    if not pids:
        return "processes that this user may not see"
    chosen = sorted(pids)[:_LISTED]
    text = ", ".join(f"{pid} ({command(pid) or 'gone'})" for pid in chosen)
    more = len(pids) - len(chosen)
    return f"{text} and {more} more" if more else text


def users_of(directory: Path) -> set[int]:
    """The processes that keep the mount on `directory` busy, as far as this user may see them.

    By the names in /proc alone: its server is not asked.
    """
    return {pid for pid in psutil.pids() if any(_is_below(name, directory) for name in _uses(pid))}


def _is_below(name: str, directory: Path) -> bool:
    return name == str(directory) or name.startswith(f"{directory}/")


def _uses(pid: int) -> Iterator[str]:
    """What a process has open, mapped or entered, by name."""
    proc = f"/proc/{pid}"
    with contextlib.suppress(OSError):  # it may be gone, or another user's
        numbers = os.listdir(f"{proc}/fd")
        for link in (f"{proc}/cwd", f"{proc}/root", *(f"{proc}/fd/{number}" for number in numbers)):
            with contextlib.suppress(OSError):
                yield os.readlink(link)
        with open(f"{proc}/maps", encoding="utf-8", errors="surrogateescape") as maps:
            yield from (line.rstrip("\n").split(maxsplit=5)[-1] for line in maps)


def cgroup(pid: int) -> str:
    """The memory cgroup of `pid`: the path of version 2, or that of the memory controller."""
    unified = ""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="replace") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if "memory" in controllers.split(","):
                    return path
                if not controllers:
                    unified = path
    except (FileNotFoundError, ProcessLookupError):
        pass
    return unified


def process_of(tid: int) -> int:
    """The process of thread `tid`, by which FUSE names the caller. 0 if it is gone."""
    with contextlib.suppress(OSError):
        # This works only for a first thread, which has the process's number. Reading /proc takes
        # twenty times as long.
        os.close(os.pidfd_open(tid))
        return tid
    try:
        with open(f"/proc/{tid}/status", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def fetch_descriptor(pid: int, number: int) -> int:
    """A duplicate of descriptor `number` of process `pid`.

    EBADF: it has none of that number. EPERM: ptrace rules forbid it. ESRCH: the process is gone.
    """
    # Any thread that has not ended has them; the first one may have, long ago.
    for thread in (pid, *_threads(pid)):
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


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def same_file(one: int, other: int) -> bool:
    """Whether two of our own descriptors are one open file: kcmp(2)."""
    pid = os.getpid()
    numbers = [ffi.cast("long", value) for value in (pid, pid, _KCMP_FILE, one, other)]
    return bool(lib.syscall(lib.SYS_kcmp, *numbers) == 0)


def is_userfaultfd(fd: int) -> bool:
    """Whether a descriptor of ours is a userfaultfd, told without asking a file system."""
    return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[userfaultfd]"


def mapped_files(pid: int, inode: int) -> list[str]:
    """Paths that open the files with that inode number which process `pid` has mapped.

    They work for files without a name too, for a process with CAP_CHECKPOINT_RESTORE.
    """
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            fields = [line.split(maxsplit=5) for line in maps]
    except OSError:
        return []
    return [f"/proc/{pid}/map_files/{each[0]}" for each in fields if each[4] == str(inode)]
