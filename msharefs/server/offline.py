"""The regions of a state directory whose server is gone, checked and repaired."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from typing import TYPE_CHECKING, Any

import trio

from msharefs import home

from . import checking
from .files import aside, check_size, is_adopted, object_paths, restore, set_aside
from .hostmm import HostMM
from .state import Holder
from .tree import Tree
from .view import View

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def is_state(path: Path) -> bool:
    """Whether that is a state directory."""
    store = home.store(path)
    return (store / "tree" / "root").is_dir() and (store / "regions").is_dir()


@contextlib.contextmanager
def taken(path: Path) -> Iterator[int]:
    """Keeps servers away meanwhile; gives the quantum. EBUSY: one has it."""
    status = path.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        # Whoever may write there chooses what we would open.
        raise OSError(
            errno.EPERM,
            "this state directory belongs to another user, or others may write to it: "
            "let its owner check it",
            str(path),
        )
    fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        holder = Holder.read(fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = f": process {holder.pid}, for {holder.directory}" if holder else ""
            raise OSError(
                errno.EBUSY, f"a server has this state directory{where}; check its mount", str(path)
            ) from None
        if holder is None:
            raise OSError(
                errno.EINVAL, "its lock file does not say which quantum it has", str(path)
            )
        yield holder.quantum
    finally:
        os.close(fd)


def names(path: Path) -> dict[int, tuple[str, int]]:
    """The regions of a state directory by number: a name and the size. "": it has none."""
    store = home.store(path)
    root = store / "tree" / "root"
    with contextlib.closing(Tree(root)) as tree:
        sizes = tree.region_sizes()
    found = {ident: ("", size) for ident, size in sizes.items()}
    for directory, _, files in os.walk(root):
        for name in files:
            full = os.path.join(directory, name)
            ident = os.lstat(full).st_ino
            if ident in found:
                found[ident] = os.path.relpath(full, root), sizes[ident]
    for name in os.listdir(store / "regions"):
        number, _, kind = name.partition(".")
        if kind in ("mm", "mm.broken"):
            found.setdefault(int(number), ("", 0))
    return found


def check(path: Path, ident: int, size: int, quantum: int) -> list[dict[str, Any]]:
    """What is wrong with region `ident` of `size` bytes; 0: it is unsized, or has no name."""
    regions = home.store(path) / "regions"
    mm, _ = object_paths(regions, ident)
    if is_adopted(
        regions, ident
    ):  # of programs, which need nobody; the next server finds it or lets go
        return []
    if not mm.exists():
        if aside(mm).exists():
            sentence = "its files are set aside as damaged (.broken)"
            return [checking.finding("aside", sentence, mended=True)]
        return [checking.finding("missing", f"{mm} is missing", mended=False)] if size else []
    try:
        check_size(regions, ident, size or None, quantum)
        with View(f"region {ident}", regions, ident) as view:
            return checking.findings(view)
    except OSError as error:
        if error.errno != errno.EUCLEAN:
            raise
        return [checking.finding("damaged", str(error.strerror), mended=False)]


def repair(path: Path, ident: int, size: int, quantum: int) -> None:
    """Brings back what was set aside, if it is whole; then as a new server and its `mend`."""
    regions = home.store(path) / "regions"
    if is_adopted(regions, ident):
        return
    restored = restore(regions, ident)
    try:
        check_size(regions, ident, size or None, quantum)
        host = HostMM(f"region {ident}", regions, ident)
        try:
            trio.run(host.recover)
            trio.run(host.mend)
        finally:
            host.close()
    except OSError as error:
        if restored:
            set_aside(regions, ident)
        if error.errno != errno.EUCLEAN:
            raise
