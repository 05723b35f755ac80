"""Running a program under the preload library, on an existing mount or on one of its own.

On an existing mount the program takes our place (execve). With a mount of its own there are
three of us: this process, which stands in for the program for its parent process; a keeper,
which serves the mount as long as the program or any descendant lives, daemons included; and the
mount's server::

    stand-in        waits for the program's end, forwards signals, ends with its status
      keeper        adopts orphans (PR_SET_CHILD_SUBREAPER), takes the mount away at the end
        server
        program
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

import psutil

from msharefs import home, installed, mountpoint, native, proc
from msharefs.processes import by_parent, is_shadow

from . import suited
from .private_mount import STOP_SECONDS, PrivateMount, is_private, sweep

if TYPE_CHECKING:
    from collections.abc import Sequence


# The exit statuses of env(1), nohup(1) and the shells for a program that cannot be started.
NOT_FOUND, NOT_EXECUTABLE = 127, 126
SIGNALLED = 128  # plus the signal's number

MOUNT = "MSHAREFS_MOUNT"
VERBOSE = "MSHAREFS_VERBOSE"
ADOPT, ADOPT_OTHERS = "MSHAREFS_ADOPT_ANON", "MSHAREFS_ADOPT"
CLASSES = ("anon", "zero", "sysv", "memfd", "shm", "file")
"""The classes of shared memory that may be adopted."""
SHARED_PT = "MSHAREFS_SHARED_PT"
"""In a program's environment: the mode and value of MAP_SHARED_PT, as "android:0x40000"."""
REGION, ANDROID = SHARED_PT_MODES = ("region", "android")
SHARED_PT_FLAGS = {REGION: 1 << 21, ANDROID: 0x40000}
"""Its value if none is named. A bit that Linux has no use for; Android's, which is MAP_HUGETLB."""
PRELOAD = "LD_PRELOAD"
SANITIZER, _LINK_ORDER = "ASAN_OPTIONS", "verify_asan_link_order"

_FORWARDED = {
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH,
}  # fmt: skip
_FROM_KERNEL = 0x80  # siginfo_t.si_code SI_KERNEL: of a terminal, which tells the program itself
_CLOSED_POLL_SECONDS = 0.2  # that a process closes a descriptor is told to nobody
_WORD_MAX = 1 << 16  # bytes: an OSError with its sentence


Adopt = Mapping[str, int] | int | None
"""The least size, in bytes, of each class of memory that becomes a region; alone: that of anon."""


class KeeperError(OSError):
    """The keeper was killed before the program had ended: its status is unknown."""


class SeveralMountsError(ValueError):
    """There are several mounts and none was named; the text lists them."""


def choose_mount(
    given: Path | None, *, adopts: bool = False, tell: Callable[[str], object] = lambda _: None
) -> Path | None:
    """The mount that a program should use: the one given, or $MSHAREFS_MOUNT, or the only one.

    That is the only one of root or of this user. None: it needs its own. Where none was named and
    there are some, `tell` gets a sentence that says which one it is. OSError with a sentence if
    what was given is no msharefs that works, or one that is no home for memory that the program
    makes (`adopts`). SeveralMountsError.
    """
    named = given or (Path(os.environ[MOUNT]) if os.environ.get(MOUNT) else None)
    if named is not None:
        directory = mountpoint.resolve(named)
        mount = mountpoint.covering(directory)
        if mount is None or mount.fstype != mountpoint.FSTYPE:
            raise OSError(
                errno.EINVAL,
                "no msharefs is mounted here: mount one (`msharefs mount DIR`), or name none "
                "to get one for the time of the program",
                str(named),
            )
        match mountpoint.probe(directory):
            case "dead":
                raise OSError(
                    errno.ENOTCONN,
                    f"its server does not answer; `msharefs mount {directory}` brings it back",
                    str(named),
                )
            case "silent":
                raise OSError(
                    errno.ETIMEDOUT,
                    f"{mountpoint.server_of(mount)}, does not answer: let it go on (kill -CONT), "
                    "or end it and mount again",
                    str(named),
                )
        if adopts and (kind := _owner_kind(directory)) != "file":
            raise OSError(
                errno.EINVAL,
                f"its regions end with their owner (-o owner={kind}): a program's memory must "
                "outlive the process that makes it. Mount with -o owner=file, or name none to get "
                "one for the time of the program",
                str(named),
            )
        return directory
    found, strangers = _usable(tell)
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise SeveralMountsError(
            f"there are several mounts ({names}): name one with --mount or ${MOUNT}"
        )
    if not found:
        if strangers:
            users = ", ".join(map(str, sorted(strangers)))
            tell(
                f"on a private mount: the only ones there are belong to user {users}, who could "
                f"read and change the program's memory there (--mount or ${MOUNT} names one)"
            )
        return None
    if adopts and (kind := _owner_kind(found[0])) != "file":
        tell(
            f"on a private mount: the regions on {found[0]} end with their owner (-o owner={kind})"
        )
        return None
    tell(f"on the mount {found[0]}, the only one there is (--mount or ${MOUNT} names another)")
    return found[0]


def _usable(tell: Callable[[str], object]) -> tuple[list[Path], set[int]]:
    """The mounts that may be taken unasked, sorted; and the users, not to be trusted, of others.

    Who serves a mount sees and changes all that is in it: only root may, and we ourselves. The
    first are those that answer and that this user may enter, but private ones.
    """
    tops = {mount.directory: mount for mount in proc.mounts()}  # the later covers the earlier
    ours = [
        tops[directory]
        for directory in sorted(tops)
        if tops[directory].fstype == mountpoint.FSTYPE and not is_private(directory)
    ]
    trusted = {0, os.geteuid()}
    usable = [mount.directory for mount in ours if mount.uid in trusted and _answers(mount, tell)]
    return usable, {mount.uid for mount in ours} - trusted


def _answers(mount: proc.Mount, tell: Callable[[str], object]) -> bool:
    """Whether its server does, for this user, under that name: nothing is mounted above it."""
    answer = mountpoint.probe(mount.directory, waiting=tell)
    if answer == "silent":
        tell(f"{mount.directory}: {mountpoint.server_of(mount)}, does not answer: not used")
    return (
        answer == "alive"
        and os.access(mount.directory, os.X_OK, effective_ids=True)
        and mount.directory.stat().st_dev == mount.device
    )


def _owner_kind(directory: Path) -> str:
    """Whose end ends a region of a mount: "file", "process" or "thread". Asked by making one."""
    from msharefs import client

    path = directory / f".run-{os.getpid()}"
    with client.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as region:
        path.unlink()
        kind: str = region.stat()["owner"]["kind"]
    return kind


def environment(directory: Path, adopt: Adopt, program: str | None = None) -> dict[str, str]:
    """The environment of a program.

    Standard error has a sentence if our library has no effect on the program.
    """
    unsuited = suited.look(program) if program is not None else None
    if unsuited is not None:
        sys.stderr.write(
            f"msharefs: {program} {unsuited.sentence}: it runs without it, and its mmap(2) is "
            "Linux's own\n"
        )
    if unsuited is not None and unsuited.harms:
        return {**os.environ, MOUNT: str(directory)}
    library = str(installed.preload())
    if set(library) & set(" :"):
        raise OSError(
            errno.EINVAL,
            "the dynamic linker takes no library with a blank or a colon in its path: "
            "install msharefs elsewhere",
            library,
        )
    # Ours comes last: it calls the kernel, not the next library.
    others = [name for name in os.environ.get(PRELOAD, "").split(":") if name not in ("", library)]
    added = {PRELOAD: ":".join((*others, library)), MOUNT: str(directory), **_for_sanitizers()}
    sizes = {"anon": adopt} if isinstance(adopt, int) else dict(adopt or {})
    if "anon" in sizes:
        added[ADOPT] = str(sizes.pop("anon"))
    if sizes:
        added[ADOPT_OTHERS] = ",".join(f"{name}:{size}" for name, size in sizes.items())
    return {**os.environ, **added}


def _for_sanitizers() -> dict[str, str]:
    """AddressSanitizer refuses to be behind another library, unless it is told that it may."""
    given = os.environ.get(SANITIZER, "")
    if _LINK_ORDER in given:
        return {}
    return {SANITIZER: ":".join(filter(None, (given, f"{_LINK_ORDER}=0")))}


class GivenMount:
    """An existing mount, as far as a keeper needs it; `state` is its server's directory."""

    server_pid = 0  # none of our children

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> Self:
        self.state = _state_of(self.directory)
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note_end(self) -> None:
        """We need not wait for the end of its server."""


Home = PrivateMount | GivenMount


@dataclass
class Outcome:
    """What a watcher learns of the program."""

    status: int = 0
    """Its exit status, once it has ended."""
    tell_so_far: Callable[[], object] = lambda: None
    """To be called once it has ended and others of its processes go on, but standard error is about
    to be closed: what is to be said there is said now."""


Watcher = Callable[[Home], "contextlib.AbstractContextManager[Outcome]"]
"""Looks on from the mount to the program's end, as `msharefs run --report` does."""


def _state_of(directory: Path) -> Path:
    """The state directory of a mount: its server holds the lock there. EACCES: not for us."""
    server = mountpoint.open_server(directory)
    if server.pidfd >= 0:
        os.close(server.pidfd)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            for target in map(Path, proc.open_files(server.pid).values()):
                if target.name == "lock" and os.access(
                    home.store(target.parent) / "regions", os.R_OK | os.X_OK
                ):
                    return target.parent
    raise OSError(
        errno.EACCES,
        "--report and --verbose read its page tables and may not: run as the user of its server, "
        "or let the program have a mount of its own",
        str(directory),
    )


def run(
    arguments: Sequence[str],
    directory: Path | None,
    adopt: Adopt,
    watcher: Watcher | None = None,
) -> int:
    """Run a program to its end; the exit status to end with.

    With an existing mount (`directory`) and nobody who watches, this process becomes the program,
    and nothing returns. OSError: the program cannot be started (then `filename` is the program's),
    or the mount cannot.
    """
    if directory is not None and watcher is None:
        _become(arguments, environment(directory, adopt, arguments[0]))
    if directory is not None:
        return _stand_in(arguments, GivenMount(directory), adopt, watcher)
    # Its windows are rounded up to the quantum: a program's own shared memory needs a small one.
    options = ("quantum=2M",) if adopt is not None else ()
    return _stand_in(arguments, PrivateMount(*options, shared=True), adopt, watcher)


def _become(arguments: Sequence[str], environ: dict[str, str]) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec keeps that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(arguments[0], list(arguments), environ)  # noqa: S606  # to run it is what we are for
    except OSError as error:
        raise OSError(error.errno, error.strerror, arguments[0]) from None


def _stand_in(arguments: Sequence[str], home: Home, adopt: Adopt, watcher: Watcher | None) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    if (keeper := os.fork()) == 0:
        status = 1
        try:
            ours.close()
            _Keeper(theirs, mask).keep(arguments, home, adopt, watcher)
            status = 0
        finally:
            os._exit(status)
    theirs.close()
    program = -1
    with ours:
        try:
            program = _hear(ours)
            threading.Thread(target=_forward, args=(program,), daemon=True).start()
            return _hear(ours)
        except KeeperError:
            # The program goes on with its memory, but nobody else knows of the mount any more.
            if program >= 0:
                select.select([program], [], [])
            # Nor is it swept while the keeper closes its files: the mount's lock is one of them.
            pidfd = os.pidfd_open(keeper)
            mountpoint.wait_for_end(pidfd, STOP_SECONDS)
            os.close(pidfd)
            sweep(STOP_SECONDS)
            raise


def _hear(channel: socket.socket) -> int:
    """The keeper's next word: the program's pidfd, its exit status, or an OSError to raise."""
    data, fds, _, _ = socket.recv_fds(channel, _WORD_MAX, 1)
    if not data:
        raise KeeperError(
            errno.ECHILD,
            "the process that keeps the mount and waits for the program was killed: how the "
            "program ended is not known",
        )
    word = pickle.loads(data)  # noqa: S301  # our own child's words
    if isinstance(word, OSError):
        raise word
    return fds[0] if fds else word


def _forward(program: int) -> NoReturn:
    """Pass on the signals that we get, except those of the terminal."""
    while True:
        info = signal.sigwaitinfo(_FORWARDED)
        if info.si_code == _FROM_KERNEL:
            continue
        with contextlib.suppress(ProcessLookupError):  # it has ended; its status is on the way
            signal.pidfd_send_signal(program, info.si_signo)


def _nobody(_: Home) -> contextlib.AbstractContextManager[Outcome]:
    """The watcher when there is none."""
    return contextlib.nullcontext(Outcome())


class _Keeper:
    """Serves the private mount while a descendant lives.

    It reports the program's end when the mount is gone, or at once if other descendants live on.
    `mask` is the signal mask that the program gets.
    """

    def __init__(self, channel: socket.socket, mask: set[int | signal.Signals]) -> None:
        self._channel = channel
        for number in _FORWARDED:  # a Ctrl-C goes to the whole process group
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda *_: None)  # unlike SIG_IGN, not kept by exec
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def keep(
        self, arguments: Sequence[str], home: Home, adopt: Adopt, watcher: Watcher | None
    ) -> None:
        """From mount to unmount; sends the program's pidfd, then its exit status, or an OSError."""
        native.become_subreaper()
        try:
            with home as mount, (watcher or _nobody)(mount) as outcome:
                program = self._start(arguments, environment(mount.directory, adopt, arguments[0]))
                outcome.status = status = self._wait(mount, program)
                if not all(map(is_shadow, self._descendants(mount))):
                    self._tell(status)
                    self._let_go(mount, outcome.tell_so_far)
                self._wait(mount)  # a shadow ends right after its program
        except OSError as error:
            self._tell(error)
        else:
            self._tell(status)

    def _start(self, arguments: Sequence[str], environ: dict[str, str]) -> int:
        try:
            # Kept, because a Popen object that goes away waits for its process: we do that.
            self._program = subprocess.Popen(arguments, env=environ, close_fds=False)
        except OSError as error:
            raise OSError(error.errno, error.strerror, arguments[0]) from None
        pidfd = os.pidfd_open(self._program.pid)
        self._tell(0, pidfd)
        os.close(pidfd)
        return self._program.pid

    def _wait(self, mount: Home, program: int | None = None) -> int:
        """Wait for the program, or until no descendant is left; the status as in a shell."""
        known: set[int] = set()  # to look for them takes long: once for all that there are
        while program is not None or known or (known := self._descendants(mount)):
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            known.discard(ended.si_pid)
            if ended.si_pid == mount.server_pid:
                mount.note_end()
                continue
            _, status = os.waitpid(ended.si_pid, 0)
            if ended.si_pid == program:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else SIGNALLED - code
        return 0

    @staticmethod
    def _descendants(mount: Home) -> set[int]:
        """Those that are our children: the ones whose parents have ended, and the first."""
        return {*by_parent(psutil.pids()).get(os.getpid(), ())} - {mount.server_pid}

    def _tell(self, word: object, fd: int = -1) -> None:
        # The stand-in may have been killed, or have all it waits for; everything else goes on.
        with contextlib.suppress(BrokenPipeError, OSError):
            socket.send_fds(self._channel, [pickle.dumps(word)], [fd] if fd >= 0 else [])

    def _let_go(self, mount: Home, tell_so_far: Callable[[], object]) -> None:
        """Closes the standard streams: a reader of the program's output must not wait for us.

        Standard error stays until all is over where nobody waits for its end, and as long as one of
        the program's processes could write there, too.
        """
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nothing, number)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a shell has the terminal again
        with contextlib.suppress(OSError):  # it is closed
            mode = os.fstat(2).st_mode
            if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
                arguments = mount, nothing, tell_so_far
                threading.Thread(target=self._let_go_later, args=arguments, daemon=True).start()

    def _let_go_later(self, mount: Home, nothing: int, tell_so_far: Callable[[], object]) -> None:
        while (holder := self._writer(mount)) is not None:
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(holder)
                while not select.select([pidfd], [], [], _CLOSED_POLL_SECONDS)[0]:
                    if not _may_write(holder):
                        break
                os.close(pidfd)
        if not all(map(is_shadow, self._descendants(mount))):
            tell_so_far()
            os.dup2(nothing, 2)

    @staticmethod
    def _writer(mount: Home) -> int | None:
        """One of the program's processes that has our standard error open."""
        children = by_parent(psutil.pids())
        found = [*children.get(os.getpid(), ())]
        for parent in found:  # grows meanwhile
            found += children.get(parent, ())
        return next((pid for pid in found if pid != mount.server_pid and _may_write(pid)), None)


def _may_write(pid: int) -> bool:
    """Whether a process has our standard error open."""
    ours = os.fstat(2)
    return proc.has_open(pid, ours.st_dev, ours.st_ino)
