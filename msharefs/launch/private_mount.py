"""A mount of msharefs for one purpose: there for the time of a `with`, then nothing of it is left.

The demonstration measures on one, so it needs none of the user's mounts and disturbs none.

Its process holds a lock on the directory that has all of it. Where that process was killed, and
its server too, the mount and its memory stay: whoever makes the next one sweeps them away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from msharefs import home, mountpoint, proc

if TYPE_CHECKING:
    from types import TracebackType

PREFIX = "msharefs-private-"

# `python -m msharefs mount`, with a SIGTERM when we die: the mount must not outlive us, however we
# end. Its argument is our process id.
_SERVER = (
    "import sys; from msharefs.native import end_with_parent; from msharefs.cli import main; "
    "end_with_parent(int(sys.argv.pop(1))); main()"
)
_START_SECONDS = 30.0
STOP_SECONDS = 15.0
# A server whose parent was killed ends by itself.
_LEAVE_SECONDS = 5.0
_LEAVE_POLL_SECONDS = 0.05


def parent() -> Path:
    """Where private mounts are; the regions of a user who has no tmpfs of their own, too."""
    if home.may_mount() and not os.access(home.SHM, os.W_OK):
        return Path(tempfile.gettempdir())
    return home.SHM if home.may_mount() else home.shared_place()


def is_private(directory: Path) -> bool:
    """Whether a mount point is that of somebody's private mount."""
    return directory.parent.name.startswith(PREFIX)


def sweep(patience: float = _LEAVE_SECONDS) -> None:
    """Take away what is left of this user's private mounts whose makers were killed.

    A server that still ends gets `patience` seconds for it.
    """
    place = parent()
    for name in os.listdir(place):
        if name.startswith(PREFIX):
            with contextlib.suppress(OSError):  # gone meanwhile, or still served: the next time
                _sweep(place / name, patience)


def _sweep(base: Path, patience: float) -> None:
    status = base.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    held = _lock(base)
    if held < 0:
        return
    try:
        # Its maker may have been one that could mount, or an older version of us, where we are not.
        states = {base / "state", _state(base)}
        for state in states:
            _wait_for_server(state / "lock", patience)
        mount = mountpoint.covering(base / "mount")
        while mount is not None and mount.fstype == mountpoint.FSTYPE:
            mountpoint.take_away(base / "mount", mount, lazy=True)
            mount = mountpoint.covering(base / "mount")
        if mount is None:
            for state in states:
                _discard(state)
            shutil.rmtree(base)
    finally:
        os.close(held)


def _state(base: Path) -> Path:
    """The state directory of a private mount: with a tmpfs of its own, if that may be."""
    return home.own(base / "mount") if home.may_mount() else base / "state"


def _discard(state: Path) -> None:
    """Remove what a server that was killed has left of its state directory."""
    if home.is_own(state):
        with home.entered():
            if state.exists():
                home.discard(state)
            home.leave()


def _lock(directory: Path) -> int:
    """A descriptor that holds the lock on a directory; -1: another process has it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(directory, flags)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def _wait_for_server(lock: Path, patience: float) -> None:
    """Wait until no server holds the lock of a state directory. BlockingIOError: one does."""
    deadline = time.monotonic() + patience
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_LEAVE_POLL_SECONDS)
            else:
                return
    finally:
        os.close(fd)


class PrivateMount:
    """A mounted msharefs, served by a child of ours; a context manager. Its `directory` is there.

    `options` are those of ``msharefs mount -o``. Entering raises OSError with the sentence of the
    mount if it cannot be done. Other users cannot reach it, unless `shared`.
    """

    def __init__(self, *options: str, shared: bool = False) -> None:
        self._options = options
        self._shared = shared

    def __enter__(self) -> Self:
        sweep()
        self._base, self._lock = _make()
        self._log = self._base / "log"
        self._server: subprocess.Popen[bytes] | None = None
        self.directory = self._base / "mount"
        self.state = _state(self._base)
        try:
            self.directory.mkdir()
            if self._shared:  # others may pass through; mount and state have modes of their own
                self._base.chmod(0o711)
            self._start()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        server = self._server
        died = server is not None and server.poll() is not None
        self._clean_up()
        if died and isinstance(error, OSError):
            assert server is not None
            raise OSError(
                errno.EIO, f"the private server died (status {server.returncode}): {self._said}"
            ) from error

    @property
    def server_pid(self) -> int:
        """The server's process, our child."""
        assert self._server is not None
        return self._server.pid

    def note_end(self) -> None:
        """Reaps the server, which has ended. For a caller that waits for all children."""
        assert self._server is not None
        self._server.poll()

    def host_mm_bytes(self) -> int:
        """Memory that the host mms of all its regions take: page tables, slots, mappings."""
        objects = (home.store(self.state) / "regions").glob("*.mm")
        return sum(path.stat().st_blocks * 512 for path in objects)  # st_blocks: stat(2)

    def _start(self) -> None:
        place = () if home.is_own(self.state) else (f"state={self.state}",)
        options = ",".join((*place, *self._options))
        with self._log.open("wb") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVER, str(os.getpid()), "mount", "-f",
                 *(["-o", options] if options else []), self.directory],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                process_group=0,  # a Ctrl-C is meant for us: we end the server when we are done
            )  # fmt: skip
        pidfd = os.pidfd_open(self._server.pid)
        # The kernel tells by POLLPRI that the table of mounts has changed.
        with proc.watch_mounts() as table:
            poll = select.poll()
            poll.register(table, select.POLLPRI)
            poll.register(pidfd, select.POLLIN)
            try:
                while mountpoint.covering(self.directory) is None:
                    events = poll.poll(_START_SECONDS * 1000)
                    if not events:
                        raise TimeoutError(
                            errno.ETIMEDOUT,
                            f"no mount after {_START_SECONDS:g} seconds: {self._last_words()}",
                        )
                    if any(fd == pidfd for fd, _ in events):
                        raise OSError(errno.EIO, self._last_words())
            finally:
                os.close(pidfd)

    def _last_words(self) -> str:
        """The last line the server wrote: its error, if it has ended with one."""
        lines = self._log.read_text(errors="replace").splitlines()
        return lines[-1].removeprefix("msharefs: ") if lines else "the server said nothing"

    def _clean_up(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            try:
                self._server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._server.kill()
                # It may be in the kernel, where a client keeps a lock: then it ends after that.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._server.wait(STOP_SECONDS)
            self._said = self._last_words()
        while (mount := mountpoint.covering(self.directory)) is not None:
            mountpoint.take_away(self.directory, mount, lazy=True)
        if self.state.exists():
            _discard(self.state)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._base)
        os.close(self._lock)


def _make() -> tuple[Path, int]:
    """A new directory for all of a mount, and the descriptor that locks it."""
    place = parent()
    while True:
        base = Path(tempfile.mkdtemp(dir=place, prefix=PREFIX)).resolve()
        with contextlib.suppress(FileNotFoundError):
            lock = _lock(base)
            if lock >= 0 and base.exists():
                return base, lock
            if lock >= 0:
                os.close(lock)
        # Somebody's sweep was faster than our lock.
