"""The namespace without a mount: lookup counts, descriptors, its own refusals."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from typing import TYPE_CHECKING

import pytest

from msharefs.server.tree import INFO_INO, INFO_NAME, RENAME_EXCHANGE, ROOT_INO, Tree

from support.calls import NOBODY, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def top(public_tmp: Path) -> Path:
    top = public_tmp / "tree"
    top.mkdir()
    return top


@pytest.fixture
def tree(top: Path) -> Iterator[Tree]:
    before = len(os.listdir("/proc/self/fd"))
    tree = Tree(top)
    yield tree
    tree.close()
    assert len(os.listdir("/proc/self/fd")) == before


def make(tree: Tree, name: bytes, parent: int = ROOT_INO) -> int:
    entry, made = tree.create(parent, name, 0o600, 0, 0, exclusive=True)
    assert made
    return entry.ino


def test_numbers(tree: Tree, top: Path) -> None:
    ino = make(tree, b"r")
    ident = (top / "r").stat().st_ino
    assert (ino, tree.node(ino).ident) == (ident + 2, ident)
    assert tree.lookup(ROOT_INO, INFO_NAME).ino == INFO_INO
    assert tree.entry(ROOT_INO).ino == ROOT_INO


def test_counts(tree: Tree) -> None:
    ino = make(tree, b"r")
    tree.lookup(ROOT_INO, b"r")
    tree.link(ino, ROOT_INO, b"s")
    assert tree.node(ino).lookups == 3
    assert tree.forget(ino, 2) is None
    assert tree.node(ino).lookups == 1
    assert tree.forget(ino, 1) is None  # it has names: only forgotten
    with refused(errno.ESTALE):
        tree.node(ino)
    assert tree.lookup(ROOT_INO, b"s").ino == ino


def test_the_last_forget_of_an_unlinked_region_tells_so(tree: Tree) -> None:
    ino = make(tree, b"r")
    tree.unlink(ROOT_INO, b"r")
    assert [node.ino for node in tree.unlinked_regions()] == [ino]
    assert stat.S_ISREG(tree.entry(ino).stat.st_mode)
    gone = tree.forget(ino, 1)
    assert gone is not None
    assert gone.ino == ino
    assert list(tree.unlinked_regions()) == []


def test_a_forgotten_directory_is_no_region(tree: Tree) -> None:
    ino = tree.mkdir(ROOT_INO, b"d", 0o700, 0, 0).ino
    tree.rmdir(ROOT_INO, b"d")
    assert tree.forget(ino, 1) is None


def test_the_root_is_never_forgotten(tree: Tree) -> None:
    tree.forget(ROOT_INO, 10**6)
    assert tree.entry(ROOT_INO).stat.st_nlink == 2


def test_forget_of_what_is_not_known(tree: Tree) -> None:
    assert tree.forget(12345, 1) is None


def test_a_link_of_mshare_info_is_mshare_info(tree: Tree) -> None:
    tree.lookup(ROOT_INO, INFO_NAME)
    assert tree.link(INFO_INO, ROOT_INO, b"link").ino == INFO_INO
    assert tree.lookup(ROOT_INO, b"link").ino == INFO_INO
    assert not tree.node(INFO_INO).is_region
    tree.unlink(ROOT_INO, b"link")
    with refused(errno.EPERM):
        tree.unlink(ROOT_INO, INFO_NAME)
    make(tree, b"r")
    for old, new in ((INFO_NAME, b"x"), (b"r", INFO_NAME)):
        with refused(errno.EPERM):
            tree.rename(ROOT_INO, old, ROOT_INO, new, 0)
        with refused(errno.EPERM):
            tree.rename(ROOT_INO, old, ROOT_INO, new, RENAME_EXCHANGE)


def test_region_sizes(tree: Tree, top: Path) -> None:
    directory = tree.mkdir(ROOT_INO, b"d", 0o700, 0, 0).ino
    one, two = make(tree, b"r"), make(tree, b"s", directory)
    tree.set_size(two, 1 << 40)
    tree.link(one, directory, b"again")
    idents = [(top / name).stat().st_ino for name in ("r", "d/s")]
    assert tree.region_sizes() == dict(zip(idents, [0, 1 << 40], strict=True))


def test_a_tree_of_an_earlier_server(tree: Tree, top: Path) -> None:
    make(tree, b"r")
    (top / "mshare_info").chmod(0o400)
    again = Tree(top)
    try:
        assert again.lookup(ROOT_INO, INFO_NAME).ino == INFO_INO
        assert stat.S_IMODE(again.entry(INFO_INO).stat.st_mode) == 0o400
        assert again.names(ROOT_INO) == tree.names(ROOT_INO)
    finally:
        again.close()


def test_no_way_out(tree: Tree, top: Path) -> None:
    """A symbolic link that somebody put there by hand is shown, never followed."""
    (top / "out").symlink_to("/etc/passwd")
    entry = tree.lookup(ROOT_INO, b"out")
    assert stat.S_ISLNK(entry.stat.st_mode)
    assert not tree.node(entry.ino).is_region


@pytest.fixture
def unprivileged(top: Path) -> Iterator[Tree]:
    """A tree whose server is an ordinary user, who cannot make another user the owner."""
    os.chown(top, NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        tree = Tree(top)
        yield tree
        tree.close()
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_what_cannot_be_another_users_is_not_made(unprivileged: Tree, top: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for user, group in ((1, NOBODY), (NOBODY, 1)):
        with refused(errno.EPERM):
            unprivileged.create(ROOT_INO, b"r", 0o600, user, group, exclusive=True)
        with refused(errno.EPERM):
            unprivileged.mkdir(ROOT_INO, b"d", 0o700, user, group)
    assert os.listdir(top) == [INFO_NAME.decode()]
    assert len(os.listdir("/proc/self/fd")) == before
    entry, made = unprivileged.create(ROOT_INO, b"r", 0o600, NOBODY, NOBODY, exclusive=True)
    assert made
    assert (entry.stat.st_uid, stat.S_IMODE(entry.stat.st_mode)) == (NOBODY, 0o600)
    assert unprivileged.node(entry.ino).lookups == 1


def test_what_cannot_be_looked_up_is_not_made(tree: Tree, top: Path) -> None:
    """No descriptor is left for the new inode."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limit[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/", os.O_PATH))
        with refused(errno.EMFILE):
            tree.mkdir(ROOT_INO, b"d", 0o700, 0, 0)
        with refused(errno.EMFILE):
            tree.create(ROOT_INO, b"r", 0o600, 0, 0, exclusive=True)
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert os.listdir(top) == [INFO_NAME.decode()]


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o2440, 0o600])
def test_a_size_needs_no_right_to_write_the_marker(
    unprivileged: Tree, top: Path, mode: int
) -> None:
    """The maker of the region has it open for writing, whatever its mode."""
    entry, _ = unprivileged.create(ROOT_INO, b"r", mode, NOBODY, NOBODY, exclusive=True)
    unprivileged.set_size(entry.ino, 1 << 30)
    status = (top / "r").stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (1 << 30, mode)
