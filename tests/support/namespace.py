"""One private mount namespace for the whole run.

Whatever a test mounts, nobody outside sees it, and it ends with us.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from . import fusectl, libc
from .fusectl import CONNECTIONS
from .proc import MountPoint, mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

SHM = Path("/dev/shm")  # noqa: S108  # our own, once we are in the namespace


def enter() -> None:
    """Give this process and its future children mounts of their own, and an empty /dev/shm.

    Raises `PermissionError` if the caller is not root.
    """
    libc.unshare(libc.CLONE_NEWNS)
    libc.mount("/", flags=libc.MS_REC | libc.MS_PRIVATE)
    # Copies of mounts from outside: our programs would have one more mount to choose from.
    for mount in reversed(mounts()):
        if mount.fstype == "fuse.msharefs":
            detach(Path(mount.path))
    # State directories are here by default: ours are then the only ones, and go with the namespace.
    libc.mount(SHM, "tmpfs", options="mode=1777")
    if not any(mount.path == str(CONNECTIONS) for mount in mounts()):
        libc.mount(CONNECTIONS, "fusectl")


def tmpfs(path: Path, options: str) -> None:
    """Mount a tmpfs on a directory."""
    libc.mount(path, "tmpfs", options=options)


def hugetlbfs(path: Path, options: str) -> None:
    """Mount a hugetlbfs on a directory."""
    libc.mount(path, "hugetlbfs", options=options)


def at(path: Path) -> MountPoint | None:
    """The topmost mount on a directory, if there is one; never touches the directory itself."""
    return next((mount for mount in reversed(mounts()) if mount.path == str(path)), None)


@contextlib.contextmanager
def mount_point(base: Path) -> Iterator[Path]:
    """An empty directory in `base`; whatever is mounted on it is ended afterwards."""
    directory = base / "mnt"
    directory.mkdir()
    yield directory
    while (mount := at(directory)) is not None:
        fusectl.abort(mount.minor)
        detach(directory)


def detach(path: Path) -> None:
    """Lazy unmount of the topmost mount on a directory."""
    libc.umount(path, libc.MNT_DETACH)
