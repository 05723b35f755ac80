"""The files of a region in the state directory: host mm, pages, records of its other objects."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import shutil
from typing import TYPE_CHECKING

from msharefs.home import written_by_others
from msharefs.native import ffi, lib

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""Of a memfd that clients get: its size stays."""


def object_paths(directory: Path, ident: int) -> tuple[Path, Path]:
    """Where region `ident` keeps its host mm and its pages."""
    return directory / f"{ident}.mm", directory / f"{ident}.mem"


def adopted_path(directory: Path, ident: int) -> Path:
    """What adopted memory is, also for the next server; see memory.py."""
    return directory / f"{ident}.adopted"


def is_adopted(directory: Path, ident: int) -> bool:
    """Whether a region's memory is adopted: its pages are elsewhere."""
    return adopted_path(directory, ident).exists()


def open_memory(directory: Path, ident: int) -> int:
    """Opens a region's pages, which exist from its first open(2) on: native mappings map them."""
    return os.open(object_paths(directory, ident)[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def open_shared(*paths: Path) -> list[int]:
    """Opens files of a region for writing, to be passed to clients: they cannot truncate them.

    Nor can we, by these descriptors.
    """
    names = [ffi.from_buffer("char[]", os.fsencode(path) + b"\0") for path in paths]
    fds = ffi.new("int[]", len(paths))
    failed, lacking = ffi.new("unsigned *"), ffi.new("int *")
    error = lib.landlock_open(
        ffi.new("char *[]", names), len(paths), os.O_RDWR | os.O_CLOEXEC, fds, failed, lacking
    )
    if error < 0:
        raise OSError(-error, os.strerror(-error), os.fspath(paths[failed[0]]))
    if lacking[0]:
        _tell_lack(lacking[0])
    return list(fds)


@functools.cache  # once is enough
def _tell_lack(reason: int) -> None:
    log.warning(
        "attached processes can make the files of their regions shorter, which ends the others by "
        "SIGBUS: a kernel with Landlock prevents that, from Linux 6.2 on (%s)",
        os.strerror(reason),
    )


def reset_objects(directory: Path, ident: int) -> None:
    """The region has no size yet. Mappings of its pages stay when it gets one."""
    mm, mem = object_paths(directory, ident)
    mm.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if mem.stat().st_size:
            os.truncate(mem, 0)
    shutil.rmtree(records_path(directory, ident), ignore_errors=True)


def records_path(directory: Path, ident: int) -> Path:
    """Where region `ident` keeps the records of its other objects."""
    return directory / f"{ident}.objects"


def owner_path(directory: Path, ident: int) -> Path:
    """Where region `ident` keeps who owns it."""
    return directory / f"{ident}.owner"


def is_written(directory: Path, ident: int) -> bool:
    """Whether a process has files of a region open for writing, set aside or not."""
    paths = object_paths(directory, ident)
    return any(written_by_others(path) for path in (*paths, *map(aside, paths)))


def remove_objects(directory: Path, ident: int) -> bool:
    """Removes both files; whether that was possible.

    A process that has one open for writing can keep it locked as long as it likes. unlink(2) would
    wait for that, and whoever wants anything in the directory for unlink(2).
    """
    if is_written(directory, ident):
        return False
    for path in (
        *object_paths(directory, ident),
        adopted_path(directory, ident),
        owner_path(directory, ident),
    ):
        path.unlink(missing_ok=True)
    shutil.rmtree(records_path(directory, ident), ignore_errors=True)
    remove_set_aside(directory, ident)
    return True


def check_size(directory: Path, ident: int, size: int | None, quantum: int) -> None:
    """EUCLEAN: the files of a region of `size` bytes are missing, or the host mm is too short.

    It is checked before any of it is mapped: a client may have made it as long as it likes. Without
    a `size`, for a region without a name, that of the pages counts.
    """
    paths = object_paths(directory, ident)
    try:
        mm, mem = (os.stat(path).st_size for path in paths)
    except FileNotFoundError as error:
        missing = os.path.basename(error.filename)
        raise OSError(errno.EUCLEAN, f"region {ident}: {missing} is missing") from None
    if paths[1].is_symlink():  # adopted memory need not fill its region
        mem = -(-mem // quantum) * quantum
    expected = lib.mm_file_size(mem if size is None else size, quantum)
    if mm != expected:
        raise OSError(
            errno.EUCLEAN,
            f"region {ident}: its host mm has {mm} bytes and not {expected}: "
            f"{os.strerror(errno.EUCLEAN)}",
        )


def set_aside(directory: Path, ident: int) -> None:
    """Renames the files of a damaged region; nothing is lost by that.

    EBUSY: see `remove_objects`.
    """
    if is_written(directory, ident):
        raise OSError(
            errno.EBUSY,
            f"region {ident}: a process still has its files open for writing; end the processes "
            "that had it attached, and try again",
        )
    for path in _all_paths(directory, ident):
        if path.exists() and not aside(path).exists():
            path.rename(aside(path))


def restore(directory: Path, ident: int) -> bool:
    """Gives the files of a damaged region their names back; whether there were any."""
    if object_paths(directory, ident)[0].exists():  # it has been sized anew
        return False
    found = [path for path in _all_paths(directory, ident) if aside(path).exists()]
    for path in found:
        aside(path).replace(path)
    return bool(found)


def aside(path: Path) -> Path:
    """The name of a file of a damaged region."""
    return path.with_name(path.name + ".broken")


def remove_set_aside(directory: Path, ident: int) -> None:
    """The region is gone, or has been made anew."""
    mm, mem, records = map(aside, _all_paths(directory, ident))
    mm.unlink(missing_ok=True)
    mem.unlink(missing_ok=True)
    shutil.rmtree(records, ignore_errors=True)


def _all_paths(directory: Path, ident: int) -> tuple[Path, Path, Path]:
    return *object_paths(directory, ident), records_path(directory, ident)
