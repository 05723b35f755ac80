"""One private mount namespace for the whole run.

Whatever a test mounts, nobody outside sees it, and it ends with us.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass
from pathlib import Path

CLONE_NEWNS = 0x20000  # sched.h
MS_REC, MS_PRIVATE = 0x4000, 0x40000  # mount(2)
MNT_DETACH = 2  # umount2(2)
SHM = Path("/dev/shm")  # noqa: S108  # our own, once we are in the namespace
CONNECTIONS = Path("/sys/fs/fuse/connections")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class MountPoint:
    """One line of /proc/self/mountinfo."""

    path: str
    fstype: str
    minor: int  # of st_dev; names a FUSE mount's directory under fusectl


def enter() -> None:
    """Give this process and its children to come mounts of their own, and an empty /dev/shm.

    Raises `PermissionError` where the caller is not root.
    """
    _call("unshare", CLONE_NEWNS)
    _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
    # Copies of mounts from outside: to our programs they would be one more to choose from.
    for mount in reversed(mounts()):
        if mount.fstype == "fuse.msharefs":
            detach(Path(mount.path))
    # State directories are here by default: ours are then the only ones, and go with the namespace.
    _call("mount", b"tmpfs", os.fsencode(SHM), b"tmpfs", 0, b"mode=1777")
    if not any(mount.path == str(CONNECTIONS) for mount in mounts()):
        _call("mount", b"fusectl", os.fsencode(CONNECTIONS), b"fusectl", 0, None)


def tmpfs(path: Path, options: str) -> None:
    """Mount a tmpfs on a directory."""
    _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", 0, options.encode())


def hugetlbfs(path: Path, options: str) -> None:
    """Mount a hugetlbfs on a directory."""
    _call("mount", b"hugetlbfs", os.fsencode(path), b"hugetlbfs", 0, options.encode())


def mounts() -> list[MountPoint]:
    """All mounts this process sees."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, device, _, path = fields.split()[:5]
        plain = re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), path)
        found.append(MountPoint(plain, rest.split()[0], int(device.partition(":")[2])))
    return found


def at(path: Path) -> MountPoint | None:
    """The topmost mount on a directory, if there is one; never touches the directory itself."""
    return next((mount for mount in reversed(mounts()) if mount.path == str(path)), None)


def abort(minor: int) -> None:
    """Cut a FUSE connection: whoever waits for its server gets ECONNABORTED.

    No error if it is gone already.
    """
    try:
        (CONNECTIONS / str(minor) / "abort").write_text("1")
    except FileNotFoundError:
        return


def detach(path: Path) -> None:
    """Lazy unmount of the topmost mount on a directory."""
    _call("umount2", os.fsencode(path), MNT_DETACH)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")
