"""The one door to FUSE: pyfuse3, and through our hook the three requests it does not know.

Importing this module imports both, in the only order that works: the hook's ``fuse_session_new``
must be in the global symbol scope before pyfuse3 binds to it (see native/fuse/fuse_hook.h). Import
it only in the process that will serve, after the last fork: both libraries keep state that does
not survive one.

The requests arrive in `ExtraOperations`, whose methods are awaited like pyfuse3's handlers: they
raise `FUSEError` and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import signal
import sys
import types
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import trio

from msharefs import proc

from . import reading

if "pyfuse3" in sys.modules:
    raise ImportError(
        "pyfuse3 was imported before msharefs.server.fuse, so ioctl() would not reach the server: "
        "import msharefs.server.fuse first"
    )

_flags = sys.getdlopenflags()
sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
try:
    from msharefs._fuse_hook import ffi as _ffi
    from msharefs._fuse_hook import lib as _lib
finally:
    sys.setdlopenflags(_flags)

import pyfuse3  # noqa: E402  # after the hook: see above
from pyfuse3 import FUSEError  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
    from pathlib import Path
    from types import TracebackType

__all__ = [
    "Caller",
    "ExtraOperations",
    "FUSEError",
    "backed_handle",
    "backing_close",
    "backing_open",
    "libfuse_version",
    "mount",
    "pyfuse3",
    "serve",
    "unmount",
]

log = logging.getLogger(__name__)

# enum fuse_log_level is syslog's: EMERG 0 ... DEBUG 7.
_LOG_LEVELS = [logging.CRITICAL] * 3 + [
    logging.ERROR,
    logging.WARNING,
    logging.INFO,
    logging.INFO,
    logging.DEBUG,
]
# Debian 12's: the oldest whose session the hook was tried with (CMakeLists.txt).
_LIBFUSE_OLDEST = (3, 14)
# How often we look whether the signal that interrupted a caller's ioctl has killed the caller.
_KILLED_POLL_SECONDS = 0.1
# So many requests may wait at once, which is no limit. pyfuse3 starts another task when the last
# one is busy.
_TASKS = 1 << 30

if TYPE_CHECKING:
    Work = Callable[["ExtraOperations"], Awaitable[Callable[[], int]]]
    Callback = TypeVar("Callback", bound=Callable[..., bool | None])


class Caller(NamedTuple):
    """Who made a request: thread id (0: outside the mount's pid namespace), fsuid, fsgid."""

    pid: int
    uid: int
    gid: int


class ExtraOperations(Protocol):
    """The handlers beside those of `pyfuse3.Operations`. Only `FUSEError` may be raised."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """As in pyfuse3. Our requests come in its place: see native/fuse/fuse_hook.c."""

    async def ioctl(
        self, ino: int, fh: int, command: int, data: bytes, flags: int, caller: Caller
    ) -> tuple[int, bytes]:
        """Carry out a command: its result, and bytes for the argument.

        There are at most as many bytes as the command's encoding says.
        """

    async def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int) -> None:
        """Size the file: to end at `offset` + `length`, in bytes."""

    async def seek_data(self, ino: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE of lseek(2); the kernel does the other three itself."""


class _Server:
    """Where the callbacks, which C calls without context, find their file system.

    There is one per process, as in pyfuse3.
    """

    operations: ExtraOperations | None = None
    nursery: trio.Nursery | None = None
    last_message = ""
    """Of libfuse."""
    waiting: dict[Any, _Request] = {}  # noqa: RUF012  # by libfuse's handle
    begun: Awaitable[None] | None = None
    """The rest of the last request, which pyfuse3 is about to await."""


def libfuse_version() -> str:
    """Version of the libfuse in use, e.g. "3.14.0"."""
    version: bytes = _ffi.string(_lib.hook_libfuse_version())
    return version.decode()


def mount(
    operations: pyfuse3.Operations, directory: Path, options: set[str], *, passthrough: bool = False
) -> None:
    """Mount `operations` on `directory` with libfuse's mount options; `serve` then answers.

    With `passthrough` files may have a backing file, if the kernel lets us: `backing_open` tells.
    Raises OSError with the last words of libfuse or its helper fusermount3 if it could not mount.
    """
    if tuple(map(int, libfuse_version().split(".")[:2])) < _LIBFUSE_OLDEST:
        raise OSError(
            errno.ELIBBAD,
            f"libfuse {libfuse_version()} is too old: install 3.14 or later (Debian 12 has it)",
        )
    _lib.hook_take_log()
    _Server.last_message = ""
    before = _lib.hook_sessions()
    with os.fdopen(os.memfd_create("stderr"), "w+", errors="replace") as written:
        try:
            with _stderr_into(written.fileno()):
                pyfuse3.init(operations, os.fspath(directory), options)
        except RuntimeError as error:
            written.seek(0)
            lines = written.read().splitlines()
            reason = lines[-1] if lines else _Server.last_message or str(error)
            text = f"libfuse cannot mount here: {reason}"
            raise OSError(errno.EIO, text, os.fspath(directory)) from None
    if _lib.hook_sessions() != before + 1:
        pyfuse3.close(unmount=True)
        raise OSError(
            errno.ENOSYS,
            "pyfuse3 does not call our fuse_session_new(), so ioctl() would fail: it must use a "
            "shared libfuse3; reinstall it from source (pip install --no-binary pyfuse3 pyfuse3)",
            os.fspath(directory),
        )
    # A program the server starts must not keep the mount alive.
    os.set_inheritable(_lib.hook_session_fd(), False)
    # A request may be gone when we come to read it, and that must not wait for the next one.
    os.set_blocking(_lib.hook_session_fd(), False)
    if passthrough:
        _checked(_lib.passthrough_request(), "asking for passthrough")


def _or_ours(
    fsync: Callable[[int, bool], Awaitable[None]],
) -> Callable[[int, bool], Coroutine[Any, Any, None]]:
    """The coroutine that pyfuse3 awaits as fsync: fsync itself, or a request it does not know."""

    async def handler(fh: int, datasync: bool) -> None:
        begun, _Server.begun = _Server.begun, None
        await (begun or fsync(fh, datasync))

    return handler


def backing_open(fd: int) -> int:
    """The id of a backing file, for `backed_handle`; `fd` may be closed then.

    Needs CAP_SYS_ADMIN and Linux 6.9, or raises OSError.
    """
    return _checked(_lib.passthrough_open(fd), "naming a backing file")


def backing_close(backing: int) -> None:
    """No file is opened with that id any more; those that are open or mapped stay so."""
    _checked(_lib.passthrough_close(backing), f"letting go of backing file {backing}")


def backed_handle(number: int, backing: int, *, told_of_close: bool = False) -> int:
    """The file handle to open a file with: `number` fills 31 bits; `backing` 0 is none.

    Only with `told_of_close` there is a `flush` for each close(2).

    All opens of one inode that overlap in time must have the same `backing`.
    """
    told = told_of_close << _lib.PASSTHROUGH_FLUSH
    return int(backing << _lib.PASSTHROUGH_SHIFT | told | number)


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


@contextlib.contextmanager
def _stderr_into(fd: int) -> Iterator[None]:
    """Redirect standard error to `fd`: fusermount3 has no other way to explain."""
    before = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


async def serve(operations: ExtraOperations, end: trio.Event) -> None:
    """Answer requests until the file system is unmounted or `end` is set."""
    pyfuse3.trio = reading.Trio()  # type: ignore[attr-defined]
    operations.fsync = _or_ours(operations.fsync)  # type: ignore[assignment, method-assign]
    async with trio.open_nursery() as nursery:
        _Server.operations, _Server.nursery = operations, nursery
        try:
            with trio.CancelScope() as serving:
                nursery.start_soon(_terminate, end, serving)
                await pyfuse3.main(max_tasks=_TASKS)
        finally:
            _Server.operations = _Server.nursery = None
        nursery.cancel_scope.cancel()


def unmount() -> None:
    """End the session; takes the mount off the directory if it is still there."""
    pyfuse3.close(unmount=True)


async def _terminate(end: trio.Event, serving: trio.CancelScope) -> None:
    await end.wait()
    pyfuse3.terminate()
    # Requests still waiting belong to callers who are cut off now: their descriptors answer
    # ENOTCONN.
    serving.cancel()


class _Request:
    """One request that waits for its answer, which is given exactly once."""

    __slots__ = ("_answered", "caller", "fh", "handle", "ino")

    def __init__(self, request: Any) -> None:
        self.handle = request.handle
        self.ino: int = request.ino
        self.fh: int = request.fh
        self.caller = Caller(request.pid, request.uid, request.gid)
        self._answered = False

    def start(self, work: Work) -> bool:
        """Begin `work`, which makes the answer; True if pyfuse3 must await the rest of it."""
        operations = _Server.operations
        if operations is None:  # between terminate() and the last request already read
            self._answer(lambda: _lib.hook_reply_error(self.handle, errno.ENOTCONN))
            return False
        running = self._run(work(operations))
        try:
            trap = running.send(None)
        except (StopIteration, trio.Cancelled):
            return False  # answered; the reading task finds out by itself that it is cancelled
        _Server.waiting[self.handle] = self
        _lib.hook_watch_interrupt(self.handle)
        _Server.begun = _rest(running, trap)
        return True

    async def _run(self, work: Awaitable[Callable[[], int]]) -> None:
        """Do the work and send the answer it makes."""
        error = errno.ENOTCONN  # the answer of a cancelled request: the server stops
        try:
            reply = await work
        except FUSEError as raised:
            error = raised.errno
        else:
            error = 0
        finally:
            self._answer(reply if error == 0 else lambda: _lib.hook_reply_error(self.handle, error))

    def _answer(self, reply: Callable[[], int]) -> None:
        if self._answered:
            return
        self._answered = True
        _Server.waiting.pop(self.handle, None)
        failed = reply()
        # ENOENT: the kernel dropped the request because its caller was killed meanwhile.
        if failed not in (0, -errno.ENOENT):
            log.error("an answer to the kernel failed: %s", os.strerror(-failed))

    async def answer_if_killed(self) -> None:
        """Answer EINTR once the signal that came turns out to kill the caller.

        The work goes on to its end. Without this, a caller that waits for us could not be killed. A
        signal that does not kill changes nothing, as in the kernel, where a wait for the series'
        locks is killable but not interruptible.
        """
        while not self._answered:
            if _killed(self.caller.pid):
                self._answer(lambda: _lib.hook_reply_error(self.handle, errno.EINTR))
                return
            await trio.sleep(_KILLED_POLL_SECONDS)


@types.coroutine
def _rest(running: Coroutine[Any, Any, None], trap: Any) -> Generator[Any, Any, None]:
    """Continues a coroutine that has already begun; it has yielded `trap` to trio."""
    while True:
        try:
            value = yield trap
        except BaseException as error:  # noqa: BLE001  # raised inside `running`
            step = functools.partial(running.throw, error)
        else:
            step = functools.partial(running.send, value)
        try:
            trap = step()
        except StopIteration:
            return


def _killed(pid: int) -> bool:
    """Whether thread `pid` has SIGKILL pending: the kernel turns every fatal signal into that."""
    try:
        pending = int(proc.status(pid, "SigPnd"), 16)
    except OSError:
        return False  # another pid namespace; a thread that waits for us cannot be gone
    return bool(pending & 1 << (signal.SIGKILL - 1))


def _callback_failed(
    kind: type[BaseException], error: BaseException, traceback: TracebackType
) -> None:
    """Called by cffi when a callback raised.

    Its request stays unanswered, so say it loudly.
    """
    log.critical("a FUSE callback failed", exc_info=(kind, error, traceback))


def _called_by_c(function: Callback) -> Callback:
    """Let C call `function` by its name."""
    _ffi.def_extern(onerror=_callback_failed)(function)
    return function


@_called_by_c
def hook_on_ioctl(
    given: Any, command: int, flags: int, data: Any, size: int, out_size: int
) -> bool:
    """Take one FUSE_IOCTL. `given` and `data` are valid only during this call."""
    request = _Request(given)
    argument = bytes(_ffi.buffer(data, size)) if size else b""

    async def work(operations: ExtraOperations) -> Callable[[], int]:
        result, out = await operations.ioctl(
            request.ino, request.fh, command, argument, flags, request.caller
        )
        if len(out) > out_size:
            log.error(
                "ioctl %#x answers %d bytes, but its number says %d", command, len(out), out_size
            )
            raise FUSEError(errno.EIO)
        return lambda: _lib.hook_reply_ioctl(request.handle, result, out, len(out))

    return request.start(work)


@_called_by_c
def hook_on_fallocate(given: Any, mode: int, offset: int, length: int) -> bool:
    """Take one FUSE_FALLOCATE."""
    request = _Request(given)

    async def work(operations: ExtraOperations) -> Callable[[], int]:
        await operations.fallocate(request.ino, request.fh, mode, offset, length)
        return lambda: _lib.hook_reply_error(request.handle, 0)

    return request.start(work)


@_called_by_c
def hook_on_lseek(given: Any, offset: int, whence: int) -> bool:
    """Take one FUSE_LSEEK."""
    request = _Request(given)

    async def work(operations: ExtraOperations) -> Callable[[], int]:
        position = await operations.seek_data(request.ino, request.fh, offset, whence)
        return lambda: _lib.hook_reply_lseek(request.handle, position)

    return request.start(work)


@_called_by_c
def hook_on_interrupt(handle: Any) -> None:
    """A signal arrived for the caller of a waiting request."""
    request = _Server.waiting.get(handle)
    if request is not None and _Server.nursery is not None:
        _Server.nursery.start_soon(request.answer_if_killed)


@_called_by_c
def hook_on_log(level: int, text: Any) -> None:
    """Pass a message of libfuse on to logging."""
    _Server.last_message = _ffi.string(text).decode(errors="replace").strip()
    log.log(_LOG_LEVELS[level], "libfuse: %s", _Server.last_message)
