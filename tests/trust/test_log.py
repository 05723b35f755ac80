"""The server's log: clients cause what is in it, and it takes memory, so it has a bound."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.server import logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MSHAREFS = [sys.executable, "-P", "-m", "msharefs"]
REQUESTS = 5000
MOST = 2 * logs.MOST_BYTES + (64 << 10)
# A request for something that there is not: text of a client's choice goes into the log.
ODD = "\x01\n" * 90


@contextlib.contextmanager
def mounted(base: Path, *options: str) -> Iterator[tuple[Path, Path]]:
    """A mount as users make it, with a server in the background; and its state directory."""
    directory, state = base / "mnt", base / "state"
    directory.mkdir()
    given = ["-o", f"quantum=2M,state={state}", *options, directory]
    subprocess.run([*MSHAREFS, "mount", *given], check=True)
    try:
        yield directory, state
    finally:
        subprocess.run([*MSHAREFS, "umount", directory], check=True)
    assert not state.exists()


def test_a_flood_does_not_fill_memory(public_tmp: Path) -> None:
    with mounted(public_tmp, "--debug") as (directory, state):
        with msharefs.open(directory / "r", os.O_RDWR | os.O_CREAT) as region:
            for _ in range(REQUESTS):
                with pytest.raises(OSError, match="there is no"):
                    region.describe(ODD)
        files = {path: path.stat() for path in state.glob("log*")}
        assert sum(status.st_size for status in files.values()) < MOST
        assert {status.st_mode & 0o777 for status in files.values()} == {0o600}
        # The last messages are there, and none has made a line of its own.
        lines = [line for path in files for line in path.read_text().splitlines()]
        assert "DEBUG" in (state / "log").read_text().splitlines()[-1]
        assert not [line for line in lines if not line.startswith("20")]


@pytest.fixture
def log() -> tuple[logging.Logger, io.StringIO]:
    """A logger set up as the server's is, and what it writes."""
    out = io.StringIO()
    handler = logs.handler(out)
    logger = logging.Logger("test")  # noqa: LOG001  # not in the tree of loggers
    logger.addHandler(handler)
    return logger, out


def test_one_place_does_not_drown_the_others(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, out = log
    for number in range(1000):
        logger.warning("process %d does not answer", number)
    logger.warning("something else")
    lines = out.getvalue().splitlines()
    assert len(lines) == logs.BURST + 1
    assert lines[-2].endswith("process 19 does not answer (no more like it for a while)")
    assert lines[-1].endswith("something else")


def test_later_it_says_how_many_there_were(
    log: tuple[logging.Logger, io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, out = log
    monkeypatch.setattr(logs, "WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(logs, "BURST", 0)
    for name in "ab":
        logger.warning("100%% of %s", name)
    assert out.getvalue() == ""
    monkeypatch.setattr(logs, "BURST", 1 << 10)
    for name in "cd":
        logger.warning("100%% of %s", name)
    lines = out.getvalue().splitlines()
    assert [line.partition(": ")[2] for line in lines] == ["100% of c", "100% of d"]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (os.fsdecode(b"\xff"), "\\udcff"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u2028", "\\u2028"),
        ("Grüße", "Grüße"),
    ],
)
def test_a_name_stays_in_its_line(
    log: tuple[logging.Logger, io.StringIO], name: str, shown: str
) -> None:
    logger, out = log
    logger.warning("%s: is lost", name)
    assert out.getvalue().endswith(f" test: {shown}: is lost\n")


def test_a_traceback_cannot_look_like_messages(
    log: tuple[logging.Logger, io.StringIO],
) -> None:
    logger, out = log
    try:
        raise OSError(5, "evil\n2026-01-01 00:00:00,000 ERROR root: forged")
    except OSError:
        logger.exception("failed")
    lines = out.getvalue().splitlines()
    assert sum(line.startswith("20") for line in lines) == 1
