"""Mount points: what is mounted where, whether its server still lives, and unmounting.

The questions are answered from /proc/self/mountinfo first. Looking at a mounted directory itself
asks its server, and a server that hangs would hang us too; only a child process of ours does that,
for a bounded time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from . import looking, proc
from .native import ffi, lib
from .processes import listed, named, start_time

if TYPE_CHECKING:
    from collections.abc import Callable

FSTYPE = "fuse.msharefs"

# Our own, beside the series' numbers: an ioctl on the root directory that tells who serves it: pid
# (in the server's pid namespace), start time in clock ticks after boot, and number of attachments.
SERVER_STRUCT = struct.Struct("=QQQ")
SERVER_COMMAND = 2 << 30 | SERVER_STRUCT.size << 16 | ord("x") << 8 | 0x1F  # _IOR('x', 0x1f, ...)
# Likewise: the processes that are attached, by pid; 0 after the last. There may be more.
ATTACHED_MAX = 1024
ATTACHED_STRUCT = struct.Struct(f"={ATTACHED_MAX}I")
ATTACHED_COMMAND = 2 << 30 | ATTACHED_STRUCT.size << 16 | ord("x") << 8 | 0x1E
# Likewise: the limits of the mount, and how much of each is in use, two words for each.
LIMITS = ("regions", "user_regions", "vmas", "clients", "connections", "memory", "descriptors")
LIMITS_STRUCT = struct.Struct(f"={2 * len(LIMITS)}Q")
LIMITS_COMMAND = 2 << 30 | LIMITS_STRUCT.size << 16 | ord("x") << 8 | 0x1D
# Likewise: what changes of regions would have cost TLBs (server/shootdowns.py), of all regions
# since the server has started; for each verb each figure.
SHOOTDOWN_VERBS = ("unmap", "protect", "dontneed", "pageout", "remove")
SHOOTDOWN_FIGURES = ("times", "processes", "flush_all", "list", "cpumask", "broadcast")
SHOOTDOWNS_STRUCT = struct.Struct(f"={len(SHOOTDOWN_VERBS) * len(SHOOTDOWN_FIGURES)}Q")
SHOOTDOWNS_COMMAND = 2 << 30 | SHOOTDOWNS_STRUCT.size << 16 | ord("x") << 8 | 0x2F

# Likewise: where the regions are, and how much room there is. Bytes that may be used (0: no limit),
# bytes in use, PLACE_* flags, the state directory.
PLACE_STRUCT = struct.Struct("=QQQ4064s")
PLACE_COMMAND = 2 << 30 | PLACE_STRUCT.size << 16 | ord("x") << 8 | 0x1C
PLACE_OWN, PLACE_NOEXEC, PLACE_GONE = 1, 2, 4
# Likewise: options that are to change. In: those of ``-o``; out: an errno, or 0, and a sentence.
REMOUNT_STRUCT = struct.Struct("=I4092s")
REMOUNT_COMMAND = 3 << 30 | REMOUNT_STRUCT.size << 16 | ord("x") << 8 | 0x19

# Likewise, by programs under `msharefs run --adopt`: the caller has mapped memory that Linux has
# made at [start, end), from `offset` on; it is to be a region's. The result, and a sentence if that
# is an error. native/preload/tell.c has this, too.
ADOPT_STRUCT = struct.Struct("=QQQi228s")
ADOPT_COMMAND = 3 << 30 | ADOPT_STRUCT.size << 16 | ord("x") << 8 | 0x1B

# A live server answers in well under a millisecond; the limit is for a machine that swaps.
_PROBE_SECONDS = 5.0
# After that, people want to know what is waited for.
_PATIENCE_SECONDS = 0.5


def covering(directory: Path) -> proc.Mount | None:
    """The topmost mount that is exactly on `directory`."""
    return next((mount for mount in reversed(proc.mounts()) if mount.directory == directory), None)


def fstype(device: int) -> str:
    """Type of the file system with this st_dev, empty if it is not mounted here."""
    return next((mount.fstype for mount in proc.mounts() if mount.device == device), "")


def resolve(given: Path) -> Path:
    """The absolute name of a mount point, without symbolic links.

    Does not ask its server, which may be dead. FileNotFoundError, NotADirectoryError.
    """
    absolute = Path(os.path.abspath(given))  # must not look at the last part
    candidate = absolute.parent.resolve() / absolute.name
    if covering(candidate) is not None:
        return candidate
    try:
        resolved = candidate.resolve(strict=True)
        if covering(resolved) is None and not resolved.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, "is not a directory: mount on a directory", str(given)
            )
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, "there is no such directory: make it first (mkdir -p)", str(given)
        ) from None
    return resolved


def above(path: Path) -> proc.Mount | None:
    """The mount that a file or directory is on, told by names alone: nobody is asked."""
    absolute = Path(os.path.abspath(path))
    found = None
    for mount in proc.mounts():
        if absolute.is_relative_to(mount.directory) and (
            found is None or mount.directory.is_relative_to(found.directory)
        ):
            found = mount
    return found


def server_of(mount: proc.Mount) -> str:
    """Its server for a sentence, as far as this user may see it, and whether it is stopped."""
    minor = os.minor(mount.device)
    found = looking.look(psutil.pids(), lambda pid: _serves(pid, minor)).seen
    for pid in (pid for pid, serves in found.items() if serves):
        with contextlib.suppress(OSError):  # it is gone
            stopped = proc.state(pid) in ("T", "t")
            return f"its server, {named(pid)}" + (", which is stopped" if stopped else "")
    return "its server"


def _serves(pid: int, minor: int) -> bool:
    with contextlib.suppress(OSError):  # it may be gone, or another user's
        return minor in proc.fuse_connections(pid)
    return False


def probe(
    directory: Path,
    seconds: float = _PROBE_SECONDS,
    *,
    waiting: Callable[[str], object] = lambda _: None,
) -> Literal["alive", "dead", "silent"]:
    """Whether the FUSE server behind `directory` answers, in that time.

    Where that is not at once, `waiting` gets a sentence for whoever waits.
    """
    # stat(1) reports the errno in words of the locale; those of C are the ones we look for.
    child = subprocess.Popen(
        ["stat", "--format=%i", str(directory)],
        env={**os.environ, "LC_ALL": "C"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        try:
            _, errors = child.communicate(timeout=min(seconds, _PATIENCE_SECONDS))
        except subprocess.TimeoutExpired:
            mount = covering(directory)
            who = server_of(mount) if mount is not None else "its server"
            waiting(f"{directory}: waiting for {who}, {seconds:g} s at most")
            _, errors = child.communicate(timeout=max(0, seconds - _PATIENCE_SECONDS))
    except subprocess.TimeoutExpired:
        child.kill()  # it ends at once, or when the server answers or dies
        return "silent"
    return "dead" if "not connected" in errors else "alive"


def make_free(directory: Path, waiting: Callable[[str], object] = lambda _: None) -> None:
    """Make sure that msharefs can be mounted on `directory`.

    A stale mount of ours is unmounted; a live one, or a stale one of somebody else, is an OSError.
    `waiting` as in `probe`.
    """
    while (mount := covering(directory)) is not None and mount.fstype == FSTYPE:
        match probe(directory, waiting=waiting):
            case "alive":
                raise OSError(
                    errno.EBUSY,
                    "msharefs is mounted here already: use it, or end it with "
                    f"`msharefs umount {directory}`",
                    str(directory),
                )
            case "silent":
                raise OSError(
                    errno.EBUSY,
                    "the msharefs mounted here does not answer: is its server stopped? "
                    "Kill it, then mount again",
                    str(directory),
                )
            case "dead":
                take_away(directory, mount, lazy=True)
    if (
        mount is not None
        and mount.fstype.startswith("fuse")
        and (probe(directory, waiting=waiting) == "dead")
    ):
        raise OSError(
            errno.ENOTCONN,
            f"a dead mount of type {mount.fstype} covers this directory: "
            f"take it away first (umount {directory})",
            str(directory),
        )


def take_away(directory: Path, mount: proc.Mount, *, lazy: bool = False) -> None:
    """Unmount the msharefs on `directory`.

    EBUSY while somebody uses a file of it, unless `lazy`.
    """
    if os.geteuid() == 0:
        failed = lib.umount2(os.fsencode(directory), lib.MNT_DETACH if lazy else 0)
        code = ffi.errno if failed else 0
    else:
        code = _fusermount(directory, lazy=lazy)
    if code == errno.EBUSY:
        raise OSError(code, _in_use(looking.users_of(directory)), str(directory))
    if code == errno.EPERM:
        raise OSError(
            code, f"only root and user {mount.uid}, who mounted it, may unmount it", str(directory)
        )
    if code:
        raise OSError(code, os.strerror(code), str(directory))


def _in_use(users: looking.Users) -> str:
    unseen = users.unseen
    who = listed(users.pids) if users.pids or not unseen else "processes that cannot be seen now"
    sentence = (
        f"in use by {who}, with files open, a directory entered or memory mapped: end that, or "
        "unmount with --lazy"
    )
    if unseen:
        sentence += (
            f" (what {listed(unseen)} has of it could not be seen: in the middle of execve(2), or "
            "with the address space locked)"
        )
    return sentence


def _fusermount(directory: Path, *, lazy: bool) -> int:
    """Unmount through the set-uid helper of libfuse; an errno, or 0."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(directory)]
    try:
        done = subprocess.run(
            command, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT, "is missing: install the package fuse3, or unmount as root", "fusermount3"
        ) from None
    if done.returncode == 0:
        return 0
    return errno.EBUSY if "busy" in done.stderr.lower() else errno.EPERM


@dataclass(frozen=True)
class Server:
    """The server of a mount; `pidfd` is -1 if it is invisible from here (pid namespace)."""

    pid: int
    pidfd: int
    attached: int
    """Attachments of processes to its regions."""


def _server(directory: Path) -> tuple[int, int, int]:
    """A live mount's server and its start time, and how many attachments there are."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found: tuple[int, int, int] = SERVER_STRUCT.unpack(
            fcntl.ioctl(fd, SERVER_COMMAND, bytes(SERVER_STRUCT.size))
        )
    finally:
        os.close(fd)
    return found


def attachments(directory: Path) -> int:
    """Ask the live mount on `directory` how many attachments its regions have."""
    return _server(directory)[2]


def open_server(directory: Path) -> Server:
    """Ask the live mount on `directory` for its server; the caller closes the pidfd."""
    pid, started, attached = _server(directory)
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return Server(pid, -1, attached)
    # After pidfd_open, which pins the process: the number may be another's by now, or here.
    if looking.look([pid], start_time).seen.get(pid) != started:
        os.close(pidfd)
        pidfd = -1
    return Server(pid, pidfd, attached)


def attached_processes(directory: Path) -> list[int]:
    """Ask the live mount on `directory` who is attached to its regions, adopted ones included."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer = bytearray(ATTACHED_STRUCT.size)
        fcntl.ioctl(fd, ATTACHED_COMMAND, answer)
    finally:
        os.close(fd)
    return [pid for pid in ATTACHED_STRUCT.unpack(answer) if pid]


def _ask(directory: Path, command: int, given: bytes) -> bytearray:
    """The answer of a live mount to an ioctl on its root. ENOTTY: `directory` is something else."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        answer = bytearray(given)
        fcntl.ioctl(fd, command, answer)
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        raise OSError(
            errno.ENOTTY, f"{directory} is not the root of a mount: its limits are those of that"
        ) from None
    finally:
        os.close(fd)
    return answer


def place(directory: Path) -> dict[str, str | int | bool | None]:
    """Ask the live mount on `directory` where its regions are, and how much room there is."""
    limit, used, flags, path = PLACE_STRUCT.unpack(
        _ask(directory, PLACE_COMMAND, bytes(PLACE_STRUCT.size))
    )
    return {
        "state": os.fsdecode(path.rstrip(b"\0")),
        "limit_bytes": limit or None,
        "used_bytes": used,
        "own_tmpfs": bool(flags & PLACE_OWN),
        "executes": not flags & PLACE_NOEXEC,
        "gone": bool(flags & PLACE_GONE),
    }


def limits(directory: Path) -> dict[str, dict[str, int]]:
    """Ask the live mount on `directory` for its limits: "limit" (0: none) and "used" of each."""
    numbers = LIMITS_STRUCT.unpack(_ask(directory, LIMITS_COMMAND, bytes(LIMITS_STRUCT.size)))
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return {
        name: {"limit": limit, "used": used}
        for name, (limit, used) in zip(LIMITS, pairs, strict=True)
    }


def shootdowns(directory: Path) -> dict[str, dict[str, int]]:
    """Ask the live mount on `directory` what changes would have cost, as in a region's stat."""
    answer = _ask(directory, SHOOTDOWNS_COMMAND, bytes(SHOOTDOWNS_STRUCT.size))
    numbers = iter(SHOOTDOWNS_STRUCT.unpack(answer))
    return {verb: {name: next(numbers) for name in SHOOTDOWN_FIGURES} for verb in SHOOTDOWN_VERBS}


def remount(directory: Path, options: str) -> None:
    """Ask the live mount on `directory` to take other options.

    OSError with a sentence: EINVAL, one of them cannot change; EPERM, this user may not.
    """
    given = REMOUNT_STRUCT.pack(0, os.fsencode(options))
    code, text = REMOUNT_STRUCT.unpack(_ask(directory, REMOUNT_COMMAND, given))
    if code:
        raise OSError(code, text.rstrip(b"\0").decode(errors="replace"), str(directory))


def wait_for_end(pidfd: int, seconds: float) -> bool:
    """Wait until the process behind `pidfd` has ended; False: it has not, in that time."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
