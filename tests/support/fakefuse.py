"""A FUSE file system with one file, which answers until a test has it stay silent: linux/fuse.h."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import threading
from typing import TYPE_CHECKING

from . import fusectl, libc, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOOKUP, GETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FLUSH, INIT = 1, 3, 14, 15, 16, 17, 18, 25, 26
_UNANSWERED = {2, 36, 42}  # FORGET, INTERRUPT, BATCH_FORGET
_ROOT, _FILE = 1, 2
_SIZE = 1 << 20
_IN = struct.Struct("=IIQQ")
_OUT = struct.Struct("=IiQ")


class FakeFuse:
    """The daemon of a mount at `path`, where there is a file `file`."""

    def __init__(self, path: Path) -> None:
        self.file = path / "file"
        self.silent: set[int] = set()
        """The kinds of requests that get no answer from now on."""
        self.asked: list[int] = []
        """The requests that came."""
        self._held: list[bytes] = []
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,allow_other"
        libc.mount(path, "fuse", options=options)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        found = namespace.at(path)
        assert found is not None
        self._minor = found.minor

    def abort(self) -> None:
        """Ends every request, answered or not."""
        if not self._thread.is_alive():
            return
        fusectl.abort(self._minor)
        self._thread.join()
        os.close(self._device)

    def _serve(self) -> None:
        while True:
            try:
                request = os.read(self._device, 1 << 20)
            except OSError:
                return  # aborted
            op = _IN.unpack_from(request)[1]
            silent = op in self.silent
            if silent:
                self._held.append(request)
            self.asked.append(op)
            if not silent and op not in _UNANSWERED:
                self._reply(request)

    def go_on(self) -> None:
        """No request stays silent any more; those in `asked` that did are answered now."""
        self.silent = set()
        for request in self._held:
            self._reply(request)

    def _reply(self, request: bytes) -> None:
        _, op, unique, node = _IN.unpack_from(request)
        found = self._answer(op, node, request)
        error, data = (-found, b"") if isinstance(found, int) else (0, found)
        with contextlib.suppress(FileNotFoundError):  # it was interrupted
            os.write(self._device, _OUT.pack(_OUT.size + len(data), error, unique) + data)

    def _answer(self, op: int, node: int, request: bytes) -> bytes | int:
        """The answer's body, or an errno."""
        size = struct.unpack_from("=QQI", request, 40)[2] if op in (READ, WRITE) else 0
        answers = {
            INIT: struct.pack("=4I2H2I2H2I24x", 7, 31, 0, 0, 12, 12, 4096, 1, 1, 0, 0, 0),
            LOOKUP: struct.pack("=4Q2I", _FILE, 7, 0, 0, 0, 0) + _attributes(_FILE),
            GETATTR: struct.pack("=Q2I", 0, 0, 0) + _attributes(node),
            OPEN: struct.pack("=QIi", 1, 0, 0),
            READ: bytes(size),
            WRITE: struct.pack("=II", size, 0),
            STATFS: struct.pack("=5Q4I24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0),
            RELEASE: b"",
            FLUSH: b"",
        }
        return answers.get(op, errno.ENOSYS)


def _attributes(node: int) -> bytes:
    mode = 0o100666 if node == _FILE else 0o40777
    return struct.pack("=6Q10I", node, _SIZE, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


@contextlib.contextmanager
def mounted(path: Path) -> Iterator[FakeFuse]:
    """A file system in directory `path`."""
    path.mkdir()
    fuse = FakeFuse(path)
    try:
        yield fuse
    finally:
        fuse.abort()
        namespace.detach(path)
