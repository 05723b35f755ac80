"""Reading /proc/self/mountinfo, and names of mount points."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from msharefs import mountpoint

from support.calls import refused

if TYPE_CHECKING:
    import pytest

LINES = """\
22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
36 22 0:31 / /mnt/a\\040b\\011c\\134d rw - fuse.msharefs msharefs rw,user_id=1000,group_id=1000
40 22 8:1 /sub /mnt/x rw master:1 shared:2 - ext4 /dev/sda1 rw
"""


def test_parsing() -> None:
    first, second, third = map(mountpoint._parse, LINES.splitlines())
    assert (first.directory, first.fstype, first.uid) == (Path("/sys"), "sysfs", 0)
    assert second.directory == Path("/mnt/a b\tc\\d")
    assert (second.fstype, second.uid, second.device) == (
        mountpoint.FSTYPE,
        1000,
        os.makedev(0, 31),
    )
    assert (third.directory, third.device) == (Path("/mnt/x"), os.makedev(8, 1))


def test_this_machine() -> None:
    assert mountpoint.covering(Path("/")) is not None
    proc = mountpoint.covering(Path("/proc"))
    assert proc is not None
    assert proc.fstype == "proc"
    assert proc.device == os.stat("/proc").st_dev
    assert mountpoint.fstype(Path("/proc/self")) == "proc"
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
