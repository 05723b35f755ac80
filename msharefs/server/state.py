"""The state directory of a mount: all that outlives a server. On tmpfs, for one server at a time.

    tree/root/  names, modes, owners, times: see tree.py. tree/ itself is private, because the modes
                inside are for the users of the mount
    regions/    the host mms and memory of the regions
    devices     device numbers of the mount, and of earlier ones whose files are mapped: mappings.py
    control     the control socket
    lock        locked by the running server; says who that is and what it does (`Holder`)
    gone-*      what is being removed
    log         the server's log, unless it runs in the foreground; log.1 is what was in it before

Of a root server the first three are on a tmpfs of its own, memory/; see home.py.

Anybody who may remove the directory can do so under a running server. So names and regions are
reached through descriptors: what is attached goes on, and requests for names are ESTALE.

The next server adopts a directory that a crashed one left. It also adopts that of a server which
was unmounted while processes were attached: such a server stays for them, until they are gone or
somebody mounts with the same state directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import signal
import stat
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Literal

from msharefs import home, mountpoint, proc

from . import logs
from .options import QUANTA, MountOptions

log = logging.getLogger(__name__)

# Clients reach the control socket by path and need nothing else in here.
_MODE = 0o711
# Of the mount's root. As in /tmp everybody makes files there and removes only their own; v3 has no
# sticky bit.
_ROOT_MODE, _ROOT_MODE_V3 = 0o1777, 0o777
_SOCKET_PATH_MAX = 107  # sockaddr_un.sun_path, with a final NUL
_LEAVE_SECONDS = 10.0
_GONE, _HELD = -1, -2
_ENTRIES = {"tree", "regions", "control", "devices", "lock", "log", logs.OLDER, home.MEMORY}


@dataclass(frozen=True)
class Holder:
    """The present or the last server of a state directory, as the lock file names it."""

    pid: int
    doing: Literal["mounted", "unmounted"]
    """ "unmounted": it stays only for the processes that are attached."""
    quantum: int
    directory: str

    def write(self, fd: int) -> None:
        """Put this into the lock file."""
        os.ftruncate(fd, 0)
        os.pwrite(fd, "\n".join(map(str, astuple(self))).encode(), 0)

    @classmethod
    def read(cls, fd: int) -> Holder | None:
        """The holder that the lock file names; None if it is empty or makes no sense."""
        fields = os.pread(fd, 8192, 0).decode(errors="replace").split("\n", 3)
        try:
            pid, doing, quantum, directory = fields
            if doing not in ("mounted", "unmounted"):
                return None
            return cls(int(pid), doing, int(quantum), directory)  # type: ignore[arg-type]
        except ValueError:
            return None


class StateDirectory:
    """A state directory taken by this process, until `release`."""

    def __init__(self, options: MountOptions) -> None:
        """Take `options.state`, making it if needed.

        OSError with a sentence if that cannot be, nothing changed.
        """
        self.path = options.state
        self._own = home.is_own(self.path)
        self._options = options
        self._is_default = self._own or self.path.name == f"msharefs-{home.name(options.directory)}"
        self._made = False
        self._said_gone = False
        self._holder = Holder(os.getpid(), "mounted", options.quantum, str(options.directory))
        self._held: list[int] = []
        try:
            self._lock = self._take()
            try:
                self._fill()
            except BaseException:
                self._close()
                raise
        except BaseException:
            if self._made:
                self._remove()
            raise

    def _fill(self) -> None:
        """What a server needs in there, and descriptors of it."""
        if self._own:
            home.mount_memory(self.path, self._options.size, self._options.huge)
        store = home.store(self.path)
        self.fresh = not (store / "tree" / "root").exists()
        """Nothing was here: no server ran on this directory before."""
        if not self.fresh:
            self._check_quantum()
        self._holder.write(self._lock)
        self.store = Path(proc.fd_path(self._hold(store)))
        """Where names and regions are, whatever happens to the path."""
        for name in ("tree", "regions"):
            (self.store / name).mkdir(mode=0o700, exist_ok=True)
        if self.fresh:
            self.tree.mkdir()
            self.tree.chmod(_ROOT_MODE_V3 if self._options.quirks else _ROOT_MODE)
        self._hold(self.tree)
        self._hold(self.store / "regions")

    def _hold(self, directory: Path) -> int:
        """A descriptor of a directory, locked so that systemd-tmpfiles(8) does not clean it."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held.append(fd)
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd

    @property
    def tree(self) -> Path:
        """The directory of markers, which the mount's root shows."""
        return self.store / "tree" / "root"

    @property
    def log(self) -> Path:
        """The log file."""
        return self.path / "log"

    def gone(self) -> bool:
        """Whether somebody has removed it; the log is told once."""
        if all(os.fstat(fd).st_nlink for fd in self._held[1:]):
            return False
        if not self._said_gone:
            self._said_gone = True
            said = (
                f"the state directory {self.path} of {self._options.directory} is gone: attached "
                "processes go on, but no name can be found or made; unmount, and mount again"
            )
            log.error("%s", said)  # to syslog, too: the log may have been in there
        return True

    def release(self, *, clear: bool) -> None:
        """Give the directory back.

        With `clear` remove its contents, and the directory too if it is the default or we made it.
        """
        if clear:
            self._remove()
        self._close()

    def _close(self) -> None:
        for fd in (*self._held, self._lock):
            os.close(fd)
        self._held.clear()

    def _remove(self) -> None:
        if self._own:
            with home.entered():
                home.discard(self.path)
                home.leave()
            return
        for name in (*sorted(_ENTRIES - {"lock"}), "lock"):
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                home.remove_tree(entry)
            else:
                entry.unlink(missing_ok=True)
        if self._made or self._is_default:
            with contextlib.suppress(OSError):  # somebody's file in it is not ours to remove
                self.path.rmdir()

    def say_unmounted(self) -> None:
        """From now on another server may end this one and take over."""
        replace(self._holder, doing="unmounted").write(self._lock)

    def _check_quantum(self) -> None:
        last = Holder.read(self._lock)
        if last is not None and last.quantum != self._holder.quantum:
            name = next((n for n, size in QUANTA.items() if size == last.quantum), last.quantum)
            raise OSError(
                errno.EINVAL,
                f"holds regions of quantum {name}: mount with -o quantum={name}, "
                "or use another (-o state=DIR)",
                str(self.path),
            )

    def _make(self) -> None:
        parent = self.path.parent
        try:
            if mountpoint.fstype(parent.stat().st_dev) != "tmpfs" and not (
                self.path.exists() and mountpoint.fstype(self.path.stat().st_dev) == "tmpfs"
            ):
                raise OSError(
                    errno.EINVAL,
                    "the state directory must be on tmpfs, whose files are memory: "
                    "use one below /dev/shm (-o state=DIR)",
                    str(self.path),
                )
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(mode=_MODE)
                self._made = True
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT,
                "cannot make the state directory: its parent is missing",
                str(self.path),
            ) from None
        if len(os.fsencode(self.path / "control")) > _SOCKET_PATH_MAX:
            raise OSError(
                errno.ENAMETOOLONG,
                f"is too long a name: with /control a socket's may have {_SOCKET_PATH_MAX} bytes",
                str(self.path),
            )
        status = self.path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(
                errno.ENOTDIR, "is in the place of the state directory: remove it", str(self.path)
            )
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError(
                errno.EPERM,
                "the state directory must belong to the server's user, and nobody else may write "
                "to it: change that, or use another (-o state=DIR)",
                str(self.path),
            )
        names = {entry.name for entry in self.path.iterdir()}
        strangers = {name for name in names - _ENTRIES if not name.startswith(home.GONE)}
        if strangers:
            raise OSError(
                errno.ENOTEMPTY,
                f"is no state directory: {min(strangers)} is in it; "
                "name an empty directory (-o state=DIR)",
                str(self.path),
            )
        self.path.chmod(_MODE)

    def _take(self) -> int:
        """Make the directory if needed and lock it; the descriptor of the lock."""
        while True:
            with home.entered() if self._own else contextlib.nullcontext():
                if self._own:
                    home.sweep(self.path)
                self._make()
                fd, running = self._lock_it()
            if fd >= 0:
                return fd
            if fd == _HELD:
                self._ask_to_leave(running)

    def _lock_it(self) -> tuple[int, Holder | None]:
        """The descriptor of the lock. Below 0: try again; `_HELD`: when that server has ended."""
        path = self.path / "lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            return _GONE, None  # a server that has just ended removed the directory
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd, None
        except FileNotFoundError:
            pass  # ... or the file between our open and our lock
        except BlockingIOError:
            running = Holder.read(fd)
            os.close(fd)
            return _HELD, running
        os.close(fd)
        return _GONE, None

    def _ask_to_leave(self, running: Holder | None) -> None:
        """End a server that is unmounted; returns when it has ended. EBUSY for any other server."""
        if running is None or running.doing == "mounted":
            who = f"process {running.pid}, mounted on {running.directory}" if running else "unknown"
            raise OSError(
                errno.EBUSY,
                f"is the state directory of a running server ({who}): "
                "unmount that, or use another (-o state=DIR)",
                str(self.path),
            )
        try:
            pidfd = os.pidfd_open(running.pid)
        except ProcessLookupError:
            return  # it has just ended
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if mountpoint.wait_for_end(pidfd, _LEAVE_SECONDS):
                return
        except ProcessLookupError:
            return
        finally:
            os.close(pidfd)
        raise OSError(
            errno.EBUSY,
            f"the server that had it before (process {running.pid}) does not end: kill it",
            str(self.path),
        )
