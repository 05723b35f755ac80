"""Where regions live: the state directory of a mount, and the tmpfs that holds its memory.

A root server makes a tmpfs of its own for each mount::

    /run/msharefs              tmpfs, small and private: no other mount namespace sees what is below
      0-5ab1c0de5ab1c0de/      a state directory: lock, control socket, log
        memory/                tmpfs, mode 0700: names and regions; as large as `-o size=` says

Without root, and where the kernel refuses to mount one, the state directory is below /dev/shm or
$XDG_RUNTIME_DIR, if that is a tmpfs with room. Those belong to others, too: they have a size (64
MiB for /dev/shm in a container), may be noexec, and are cleaned by people who know nothing of us.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import mountpoint, units
from .native import check_errno, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path("/run/msharefs")
SHM = Path("/dev/shm")  # noqa: S108  # a name of our own below it, and checked
MEMORY = "memory"
HUGE = ("never", "always", "within_size", "advise")
"""tmpfs(5): the values of its option huge=."""

# For tmpfs 0 is no limit either, but then it does not count what is used, and can get none later.
NO_LIMIT = 1 << 62
# Sockets, locks and logs of all mounts: a log has a bound of 1 MiB (server/logs.py).
_TOP_OPTIONS = "mode=711,size=256M"
# Less is no home: the tables of one region, and some of its pages.
_LEAST_ROOM = 1 << 20
_LOCK_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.01
_HASH_DIGITS = 16
GONE = "gone-"
"""How the names of directories begin that are being removed."""
_REMOVE_SECONDS = 1.0
_DESCRIPTORS_MAX = 1 << 30


def name(directory: Path) -> str:
    """What the state directory of a mount on `directory` is called; each user has their own."""
    ident = hashlib.sha256(os.fsencode(directory)).hexdigest()[:_HASH_DIGITS]
    return f"{os.geteuid()}-{ident}"


def own(directory: Path) -> Path:
    """The state directory of a mount that has a tmpfs of its own."""
    return TOP / name(directory)


def is_own(state: Path) -> bool:
    """Whether a state directory has, or is to have, a tmpfs of its own."""
    return state.parent == TOP


def store(state: Path) -> Path:
    """Where below a state directory names and regions are."""
    memory = state / MEMORY
    return memory if memory.is_dir() else state


def default_state(directory: Path) -> Path:
    """The state directory of a mount on `directory`: one that a server has left, or a new place.

    OSError with a sentence: there is no place.
    """
    places = [own(directory)] if may_mount() else []
    places += [parent / f"msharefs-{name(directory)}" for parent in _shared()]
    for state in places:
        if _is_ours(state) and (store(state) / "tree").is_dir():
            return state
    if places and is_own(places[0]):
        return places[0]
    return shared_place() / f"msharefs-{name(directory)}"


def shared_place() -> Path:
    """The directory of others that is best for regions. OSError with a sentence: none will do."""
    reasons = {parent: unfit(parent) for parent in _shared()}
    fit = [parent for parent, reason in reasons.items() if not reason]
    if fit:
        return next(filter(executes, fit), fit[0])
    said = "; ".join(f"{parent} {reason}" for parent, reason in reasons.items())
    raise OSError(
        errno.ENOSPC,
        f"there is no place for regions: {said}. Name a directory on tmpfs (-o state=DIR)",
    )


def unfit(parent: Path) -> str:
    """Why regions cannot live below a directory; empty if they can."""
    try:
        kind = mountpoint.fstype(parent.stat().st_dev)
        room = os.statvfs(parent)
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    if kind != "tmpfs":
        return f"is on {kind or 'a file system that cannot be told'} and not on tmpfs, in memory"
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        return "may not be written to by this user"
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < _LEAST_ROOM:
        return f"has only {units.size(free)} free"
    return ""


def executes(parent: Path) -> bool:
    """Whether code may run in files there: otherwise executable memory is kept elsewhere."""
    return not os.statvfs(parent).f_flag & os.ST_NOEXEC


def room(directory: Path) -> int | None:
    """Bytes that are free on a file system; None: it has no limit."""
    found = os.statvfs(directory)
    if not found.f_blocks or found.f_blocks * found.f_frsize >= NO_LIMIT:
        return None
    return found.f_bavail * found.f_frsize


def may_mount() -> bool:
    """Whether this process can have a tmpfs of its own."""
    if os.geteuid() != 0 or not os.access(TOP if TOP.exists() else TOP.parent, os.W_OK):
        return False
    fd = lib.syscall(lib.SYS_fsopen, ffi.new("char[]", b"tmpfs"), ffi.cast("unsigned", 1))
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


@contextlib.contextmanager
def entered() -> Iterator[None]:
    """TOP is mounted, and nobody else makes or removes a state directory in it meanwhile."""
    fd = _locked()
    while mountpoint.covering(TOP) is None:
        try:
            _mount(TOP, _TOP_OPTIONS, lib.MS_NOEXEC)
            check_errno(
                lib.mount(b"none", os.fsencode(TOP), b"none", lib.MS_PRIVATE, ffi.NULL) < 0,
                f"making {TOP} private",
            )
        finally:
            os.close(fd)
        fd = _locked()
    try:
        yield
    finally:
        os.close(fd)


def mount_memory(state: Path, size: int, huge: str) -> None:
    """Mount the tmpfs of a state directory, or give the one that is there other options.

    `size` is in bytes, 0: no limit, or the one that it has.
    """
    memory = state / MEMORY
    memory.mkdir(mode=0o700, exist_ok=True)
    options = [f"size={size or NO_LIMIT}", *([f"huge={huge}"] if huge else [])]
    if mountpoint.covering(memory) is None:
        _mount(memory, ",".join((*options, "mode=700,nr_inodes=0")))
        return
    if not size:
        del options[0]
    if options:
        try:
            _mount(memory, ",".join(options), lib.MS_REMOUNT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise OSError(
                errno.EINVAL,
                f"holds regions of an earlier server that do not fit into -o {','.join(options)}: "
                "mount with a larger size, or without",
                str(state),
            ) from None


def discard(state: Path) -> None:
    """Remove a state directory with its tmpfs. Processes keep what they have mapped."""
    memory = state / MEMORY
    for each in (memory, state):  # a mount keeps all its files as long as one of them is mapped
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(each)):
                if entry.is_dir(follow_symlinks=False):
                    if entry.name != MEMORY:
                        remove_tree(Path(entry.path))
                else:
                    os.unlink(entry.path)
    while mountpoint.covering(memory) is not None:
        failed = lib.umount2(os.fsencode(memory), lib.MNT_DETACH) < 0
        check_errno(failed, f"unmounting {memory}")
    for each in (memory, state):
        with contextlib.suppress(FileNotFoundError):
            each.rmdir()  # it is no longer mounted in any other namespace, either


def remove_tree(directory: Path) -> None:
    """Removes a directory by a process of its own, and waits for that for a moment.

    Other processes may have files in it open. One can keep such a file locked: unlink(2) waits for
    that and cannot be ended, and nobody can use the directory meanwhile. So it has another name
    first, and a server that ends leaves nobody but that process behind.
    """
    gone = directory.with_name(f"{GONE}{os.getpid()}-{directory.name}")
    directory.rename(gone)
    child = os.fork()
    if not child:
        try:
            os.closerange(0, _DESCRIPTORS_MAX)  # the lock of the state directory is one
            shutil.rmtree(gone, ignore_errors=True)
        finally:
            os._exit(0)
    pidfd = os.pidfd_open(child)
    try:
        if mountpoint.wait_for_end(pidfd, _REMOVE_SECONDS):
            os.waitpid(child, 0)
    finally:
        os.close(pidfd)


def written_by_others(path: Path) -> bool:
    """Whether anybody has a file of ours open for writing, or mapped.

    Nobody else can keep it locked, so that unlink(2) or rename(2) would wait. A lease can be had
    for a file only if nobody writes it (fcntl(2)).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:  # somebody has forbidden leases (fs.leases-enable)
        return False
    finally:
        os.close(fd)
    return False


def leave() -> None:
    """Inside `entered`: unmount TOP if nothing is in it."""
    above = mountpoint.above(TOP.parent)
    # Where it is shared, others have a copy of the empty TOP, which a new one would cover.
    if above is not None and not above.shared and not os.listdir(TOP):
        lib.umount2(os.fsencode(TOP), lib.MNT_DETACH)


def sweep(wanted: Path) -> None:
    """Inside `entered`: remove what killed servers have left, if no name and no region is in it.

    Not the state directory `wanted`.
    """
    for state in set(TOP.iterdir()) - {wanted}:
        with contextlib.suppress(OSError):  # a server has it, or it is no state directory
            _sweep(state)


def _sweep(state: Path) -> None:
    fd = os.open(state / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Without a mount here, it may be that of another mount namespace.
        if mountpoint.covering(state / MEMORY) is not None and _is_empty(state / MEMORY):
            discard(state)
    finally:
        os.close(fd)


def _is_empty(memory: Path) -> bool:
    """Nobody has made anything there: a root directory has one name from the beginning."""
    root, regions = memory / "tree" / "root", memory / "regions"
    return all(
        not place.exists() or len(os.listdir(place)) <= names
        for place, names in ((root, 1), (regions, 0))
    )


def _shared() -> list[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return [SHM, *([Path(runtime)] if os.path.isabs(runtime) else [])]


def _is_ours(state: Path) -> bool:
    try:
        status = state.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _locked() -> int:
    """TOP, locked: a descriptor of what is seen there."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        with contextlib.suppress(FileExistsError):
            TOP.mkdir(mode=0o711)
        fd = os.open(TOP, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not _is_ours(TOP) or TOP.stat().st_mode & 0o022:
                raise PermissionError(
                    errno.EPERM,
                    "must belong to the server's user, and nobody else may write to it: change "
                    "that, or name another place (-o state=DIR)",
                    str(TOP),
                )
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), TOP.stat()):
                    return fd
            if time.monotonic() > deadline:
                raise TimeoutError(
                    errno.ETIMEDOUT,
                    f"another server has been at it for {_LOCK_SECONDS:g} s: is it stopped?",
                    str(TOP),
                )
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        time.sleep(_LOCK_POLL_SECONDS)


def _mount(target: Path, options: str, flags: int = 0) -> None:
    failed = lib.mount(
        b"msharefs",
        os.fsencode(target),
        b"tmpfs",
        lib.MS_NOSUID | lib.MS_NODEV | flags,
        ffi.new("char[]", options.encode()),
    )
    check_errno(failed < 0, f"mounting a tmpfs on {target} ({options})")
