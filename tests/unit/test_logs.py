"""Where a server's messages go: syslog, the journal."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from msharefs.server import logs

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("msharefs.test", level, __file__, 1, text, None, None)


def test_syslog_gets_messages_and_never_keeps_a_server_waiting(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "log"))
        handler = logs.Syslog("/mnt\n/x", str(tmp_path / "log"))
        handler.handle(record(logging.WARNING, "two\nlines"))
        head = f"<28>msharefs[{os.getpid()}]: /mnt\\n/x: "
        assert daemon.recv(4096).decode() == head + "msharefs.test: two\\nlines"
        for number in range(2000):  # nobody reads: a daemon's queue is full after some
            handler.emit(record(logging.ERROR, f"{number}"))
    handler.emit(record(logging.ERROR, "the daemon is gone"))
    handler.close()


def test_lines_for_the_journal_have_their_level(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "stream").open("w") as stream:
        found = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        logs.handler(stream).handle(record(logging.ERROR, "wrong"))
        monkeypatch.setenv("JOURNAL_STREAM", "1:1")
        logs.handler(stream).handle(record(logging.ERROR, "elsewhere"))
    first, second = (tmp_path / "stream").read_text().splitlines()
    assert first == "<3>msharefs.test: wrong"
    assert second.endswith("ERROR msharefs.test: elsewhere")
    assert not logs.is_journal(sys.stderr)
