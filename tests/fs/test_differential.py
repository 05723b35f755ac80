"""The same random operations on a plain tmpfs and on a mount: the same errnos and the same tree.

Hypothesis shrinks a difference to the shortest sequence that shows it.
"""

from __future__ import annotations

import os
import shutil
import stat
from itertools import count
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.libc import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.server import Mount

CREATE = os.O_RDWR | os.O_CREAT
# Few names, so that operations meet; all of them exist at first.
DIRECTORIES = ["", "d", "d/d"]
NAMES = ["a", "b", "d"]

path = st.builds(os.path.join, st.sampled_from(DIRECTORIES), st.sampled_from(NAMES))
mode = st.sampled_from([0o000, 0o644, 0o777, 0o1777, 0o2755, 0o4711])
flags = st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE])
owner = st.sampled_from([-1, 0, 7, 65534])


def create(top: Path, name: str, flags: int, mode: int) -> None:
    os.close(os.open(top / name, flags, mode))


def open_unlink(top: Path, name: str) -> tuple[int, int]:
    """The attributes that a descriptor shows after its last name is gone."""
    fd = os.open(top / name, os.O_RDWR)
    try:
        (top / name).unlink()
        return os.fstat(fd).st_nlink, os.fstat(fd).st_mode
    finally:
        os.close(fd)


operation = st.one_of(
    st.tuples(st.just(create), path, st.sampled_from([CREATE, CREATE | os.O_EXCL]), mode),
    st.tuples(st.just(lambda top, a, m: os.mkdir(top / a, m)), path, mode),
    st.tuples(st.just(lambda top, a: os.unlink(top / a)), path),
    st.tuples(st.just(lambda top, a: os.rmdir(top / a)), path),
    st.tuples(st.just(lambda top, a, b: os.link(top / a, top / b)), path, path),
    st.tuples(st.just(lambda top, a, b, f: renameat2(top / a, top / b, f)), path, path, flags),
    st.tuples(st.just(lambda top, a, m: os.chmod(top / a, m)), path, mode),
    st.tuples(st.just(lambda top, a, u, g: os.chown(top / a, u, g)), path, owner, owner),
    st.tuples(st.just(lambda top, a, n: os.utime(top / a, ns=(n, n + 1))), path, st.integers(0, 9)),
    st.tuples(st.just(open_unlink), path),
    st.tuples(st.just(lambda top, a: sorted(os.listdir(top / a))), st.sampled_from(["", "d", "a"])),
)


def populate(top: Path) -> None:
    (top / "d" / "d" / "d").mkdir(parents=True)
    for directory in DIRECTORIES:
        (top / directory / "a").touch()
        os.link(top / directory / "a", top / directory / "b")


def attempt(act: Callable[..., object], top: Path, arguments: tuple[object, ...]) -> object:
    try:
        return act(top, *arguments)
    except OSError as error:
        return error.errno


def look(top: Path) -> list[tuple[object, ...]]:
    """Everything visible of a tree that must be equal; inode numbers only tell equal files."""
    found: list[tuple[object, ...]] = []
    first_name: dict[int, str] = {}
    for directory, directories, files in os.walk(top):
        directories.sort()
        for name in sorted(directories + files):
            whole = os.path.join(directory, name)
            status = os.lstat(whole)
            shown = os.path.relpath(whole, top)
            same = first_name.setdefault(status.st_ino, shown)
            rest = (stat.filemode(status.st_mode), status.st_nlink, status.st_uid, status.st_gid)
            size = status.st_size if stat.S_ISREG(status.st_mode) else None
            found.append((shown, same, *rest, size))
    return found


@pytest.mark.slow
@pytest.mark.mount(limit=110)
def test_as_on_tmpfs(mount: Mount, public_tmp: Path) -> None:
    examples = count()

    @settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(operation, min_size=10, max_size=40))
    def same(operations: list[tuple[object, ...]]) -> None:
        name = f"example{next(examples)}"
        plain, ours = public_tmp / name, mount.path / name
        for top in (plain, ours):
            top.mkdir()
            populate(top)
        for act, *arguments in operations:
            assert callable(act)
            expected = attempt(act, plain, tuple(arguments))
            assert attempt(act, ours, tuple(arguments)) == expected
        assert look(ours) == look(plain)
        shutil.rmtree(plain)
        shutil.rmtree(ours)

    same()
