"""Mount points: which are there, and their names."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from msharefs import mountpoint

from support.calls import refused

if TYPE_CHECKING:
    import pytest


def test_this_machine() -> None:
    assert mountpoint.covering(Path("/")) is not None
    proc = mountpoint.covering(Path("/proc"))
    assert proc is not None
    assert proc.fstype == "proc"
    assert proc.device == os.stat("/proc").st_dev
    assert mountpoint.fstype(os.stat("/proc/self").st_dev) == "proc"
    assert mountpoint.fstype(0xFFFFF) == ""
    assert mountpoint.covering(Path("/proc/self")) is None


def test_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for given in ("d", "./d/", "link", "d/e/..", str(tmp_path / "link")):
        assert mountpoint.resolve(Path(given)) == tmp_path / "d"
    assert mountpoint.resolve(Path()) == tmp_path
    assert mountpoint.resolve(Path("/")) == Path("/")
    with refused(errno.ENOENT):
        mountpoint.resolve(Path("no"))
    with refused(errno.ENOTDIR):
        mountpoint.resolve(Path("file"))


def test_probe(tmp_path: Path) -> None:
    assert mountpoint.probe(tmp_path) == "alive"
