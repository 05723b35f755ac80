"""The server's log: it is memory, and clients cause much of it, so it has bounds.

One place in the code writes a few messages a minute, then only how many there would have been. The
file is emptied when it is full; what was in it is kept as ``log.1`` until the next time. Whatever a
client puts into a name is shown in one line, escaped.

A server in the background writes to syslog, too, where there is one. In the foreground under
systemd standard error is the journal, which has the time, and takes the level from "<N>" before a
line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import sys
import syslog
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from msharefs import proc

if TYPE_CHECKING:
    from pathlib import Path

MOST_BYTES = 512 << 10
OLDER = "log.1"
BURST = 20
WINDOW_SECONDS = 60.0

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FORMAT_SHORT = "%(name)s: %(message)s"
DEV_LOG = "/dev/log"
_PRIORITIES = (
    (logging.CRITICAL, syslog.LOG_CRIT),
    (logging.ERROR, syslog.LOG_ERR),
    (logging.WARNING, syslog.LOG_WARNING),
    (logging.INFO, syslog.LOG_INFO),
)


class _Formatter(logging.Formatter):
    """One line a message, of characters that a terminal shows."""

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """A traceback, indented: its exception may quote a client, too."""
        return super().formatException(ei).replace("\n", "\n  ")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        record.message = escaped(record.message)
        return super().formatMessage(record)


def escaped(text: str) -> str:
    """`text` with escapes for all that cannot be printed: newlines, and bytes that are no UTF-8."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


@dataclass
class _Count:
    start: float
    passed: int = 0
    dropped: int = 0


class Limit(logging.Filter):
    """At most BURST messages of one place (and one kind of exception) in WINDOW_SECONDS.

    Debug messages are asked for, and pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[str, int, type | None], _Count] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; it may say what was dropped before it."""
        if record.levelno <= logging.DEBUG:
            return True
        now = time.monotonic()
        kind = record.exc_info[0] if record.exc_info else None
        count = self._counts.setdefault((record.pathname, record.lineno, kind), _Count(now))
        if now - count.start >= WINDOW_SECONDS:
            if count.dropped:
                record.msg = f"{record.getMessage()} ({count.dropped} like it were not written)"
                record.args = None
            count.start, count.passed, count.dropped = now, 0, 0
        if count.passed >= BURST:
            count.dropped += 1
            return False
        count.passed += 1
        if count.passed == BURST:
            record.msg = f"{record.getMessage()} (no more like it for a while)"
            record.args = None
        return True


class _JournalFormatter(_Formatter):
    """For the journal: each line has its level before it (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of one message."""
        level = f"<{_priority(record.levelno)}>"
        return "\n".join(level + line for line in super().format(record).splitlines())


def _priority(level: int) -> int:
    return next((number for least, number in _PRIORITIES if level >= least), syslog.LOG_DEBUG)


class Syslog(logging.Handler):
    """To syslog, as long as it takes messages: a server never waits for it."""

    def __init__(self, directory: str, path: str = DEV_LOG) -> None:
        super().__init__()
        self._head = f"msharefs[{os.getpid()}]: {escaped(directory)}: "
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise
        self.setFormatter(_Formatter(_FORMAT_SHORT))
        self.addFilter(Limit())

    def emit(self, record: logging.LogRecord) -> None:
        """Send one message."""
        number = syslog.LOG_DAEMON | _priority(record.levelno)
        with contextlib.suppress(OSError):
            self._socket.send(f"<{number}>{self._head}{self.format(record)}".encode())

    def close(self) -> None:
        """No more messages."""
        self._socket.close()
        super().close()


class _File(logging.StreamHandler[TextIO]):
    """A log file of a bounded size.

    It is emptied, not replaced: standard output and error are the same open file.
    """

    def __init__(self, stream: TextIO, path: Path) -> None:
        super().__init__(stream)
        self._older = path.with_name(OLDER)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        try:
            if os.fstat(self.stream.fileno()).st_size > MOST_BYTES:
                self._empty()
        except OSError:  # no memory is left for a copy: the next message tries again
            self.handleError(record)
        super().emit(record)

    def _empty(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            open(proc.fd_path(self.stream.fileno()), "rb") as full,
            os.fdopen(os.open(self._older, flags, 0o600), "wb") as older,
        ):
            shutil.copyfileobj(full, older)
        os.ftruncate(self.stream.fileno(), 0)


def handler(stream: TextIO, path: Path | None = None) -> logging.Handler:
    """What writes messages to `stream`, which is the file `path` if that is given."""
    made = logging.StreamHandler(stream) if path is None else _File(stream, path)
    in_journal = path is None and is_journal(stream)
    made.setFormatter(_JournalFormatter(_FORMAT_SHORT) if in_journal else _Formatter(_FORMAT))
    made.addFilter(Limit())
    return made


def is_journal(stream: TextIO) -> bool:
    """Whether a stream leads to systemd's journal, which says so in $JOURNAL_STREAM."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):  # not a file at all
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_up(path: Path | None, directory: Path, *, debug: bool) -> TextIO:
    """Messages of the mount on `directory` go to `path` from now on and to syslog, or to stderr.

    Returns the stream.
    """
    stream = sys.stderr if path is None else _open(path)
    level = logging.DEBUG if debug else logging.INFO
    handlers: list[logging.Handler] = [handler(stream, path)]
    if path is not None:
        with contextlib.suppress(OSError):  # there is no syslog
            handlers.append(Syslog(str(directory)))
    logging.basicConfig(handlers=handlers, level=level)
    # Its debug messages are about its own tasks.
    logging.getLogger("pyfuse3").setLevel(logging.INFO)
    return stream


def _open(path: Path) -> TextIO:
    """The log file; standard output and error go there too, and nothing comes in."""
    stream = open(  # noqa: SIM115  # ours until the process ends
        path,
        "a",
        buffering=1,
        encoding="utf-8",
        errors="backslashreplace",
        opener=lambda name, flags: os.open(name, flags, 0o600),
    )
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    os.close(nothing)
    return stream
