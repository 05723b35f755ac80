"""mount(2) and the mount table, as a program for the series finds them under `msharefs run`."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from msharefs.launch import running

from support import cc
from support.actor import SOURCES

if TYPE_CHECKING:
    from pathlib import Path

    from support.server import Mount

TABLES = """
    entry of /proc/mounts: {0}
    entry of /proc/self/mounts: {0}
    again: 1
    kept by exec: 1
    line of /proc/self/mounts: {0}
    again: 1
    kept by exec: 0
    line of /proc/self/mountinfo: {0}
    text of /proc/self/mounts: fuse.msharefs
    next descriptor: 3
"""
PLAIN = """
    mount: ENODEV
    mount again: ENODEV
"""
UNDER_RUN = """
    mount: 0
    mount again: 0
    umount: 0
    umount by a child: 0
    umount: 0
    entry of /proc/mounts: msharefs
"""
REST = """
    mount elsewhere: ENODEV
    mount nowhere: ENOENT
    mount of a file: ENODEV
    mount, read-only: ENODEV
    mount with an option: ENODEV
    mount of an unknown type: ENODEV
    mount of a bad pointer: EFAULT
    umount of no mount: EINVAL
    umount, bad flags: EINVAL
    tmpfs: 0
    its umount: 0
    bind: 0
    mount there: {0}
    umount there: 0
    ours goes: 0
    mount without it: ENODEV
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled tests/programs/mounts.c."""
    return cc.build(SOURCES / "mounts.c", tmp_path_factory.mktemp("mounts") / "mounts")


def lines(text: str, *values: str) -> list[str]:
    return [line.strip() for line in text.format(*values).strip().splitlines()]


def answers(program: Path, mount: Mount, elsewhere: Path, **options: Any) -> list[str]:
    """What it prints: the mount is there before and after."""
    done = subprocess.run(
        [program, mount.path, elsewhere], capture_output=True, text=True, check=True, timeout=60,
        **options,
    )  # fmt: skip
    assert (mount.path / "mshare_info").is_file()
    return done.stdout.splitlines()


def test_plain(program: Path, shared_mount: Mount, tmp_path: Path) -> None:
    expected = lines(TABLES, "fuse.msharefs") + lines(PLAIN) + lines(REST, "ENODEV")
    assert answers(program, shared_mount, tmp_path) == expected


def test_under_run(program: Path, shared_mount: Mount, tmp_path: Path) -> None:
    environment = running.environment(shared_mount.path, None)
    expected = lines(TABLES, "msharefs") + lines(UNDER_RUN) + lines(REST, "0")
    assert answers(program, shared_mount, tmp_path, env=environment) == expected
