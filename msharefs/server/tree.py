"""The names of a mount: a real directory tree on tmpfs, one descriptor per inode the kernel knows.

Each region is an empty regular file in that tree, its *marker*. The marker's mode, owner, times and
link count are the region's, and its st_size is the region's size. So every errno of create, mkdir,
rename, link and the rest comes from Linux itself, and a crash of the server leaves nothing to
repair.

An inode the FUSE kernel side knows (its lookup count is not 0) is held by an O_PATH descriptor:
names may change under it, and an unlinked marker lives until the kernel forgets it. No function
here waits, so each request is atomic.

FUSE inode numbers: the root is 1 and mshare_info 2, as in the kernel; everything else is the
marker's st_ino + 2.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from msharefs import proc
from msharefs.native import ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOT_INO = 1
INFO_INO = 2
INFO_NAME = b"mshare_info"
_INO_OFFSET = 2
_LOOKUP = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


def inode_of(ident: int) -> int:
    """The FUSE inode number of region `ident`."""
    return ident + _INO_OFFSET


class Entry(NamedTuple):
    """An inode, as the answer to a request."""

    ino: int
    stat: os.stat_result


@dataclass
class Node:
    """One inode the kernel knows."""

    ino: int
    ident: int
    """st_ino of the marker: the region's identity."""
    fd: int
    is_region: bool
    """A regular file other than mshare_info."""
    user: int = 0
    """Whose it was when it was looked up."""
    lookups: int = 0
    """The kernel's lookup count: 0 means it has forgotten the inode."""

    @property
    def path(self) -> str:
        """A path of this inode, whatever its names are."""
        return proc.fd_path(self.fd)

    def stat(self) -> os.stat_result:
        """Status of the marker."""
        return os.fstat(self.fd)


class Tree:
    """The namespace below the directory `top`, which must exist. One user of `top` at a time.

    `gone` says whether somebody has removed it meanwhile: then requests for names are ESTALE.
    """

    def __init__(self, top: Path, gone: Callable[[], bool] = lambda: False) -> None:
        self.gone = gone
        self._of: Counter[int] = Counter()
        self._nodes: dict[int, Node] = {}
        root = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._info_ident = _make_info(root)
        # The kernel never looks up the root and never forgets it.
        self._nodes[ROOT_INO] = Node(
            ROOT_INO, os.fstat(root).st_ino, root, is_region=False, lookups=1
        )

    def close(self) -> None:
        """Let go of all descriptors."""
        for node in self._nodes.values():
            os.close(node.fd)
        self._nodes.clear()

    def node(self, ino: int) -> Node:
        """The inode the kernel calls `ino`; ESTALE if it is not known."""
        try:
            return self._nodes[ino]
        except KeyError:
            raise OSError(
                errno.ESTALE, f"inode {ino} is not known; the kernel forgot it or never asked"
            ) from None

    def _directory(self, ino: int) -> Node:
        """A directory that names are looked up in. Once the tree is gone, it only looks empty."""
        if self.gone():
            raise OSError(errno.ESTALE, "the state directory of this mount is gone")
        return self.node(ino)

    # Each request below that answers with an entry raises the entry's lookup count by one, as FUSE
    # expects.

    def lookup(self, parent: int, name: bytes) -> Entry:
        """Find `name`; ENOENT and other errors as from open(2)."""
        return self._known(os.open(name, _LOOKUP, dir_fd=self._directory(parent).fd))

    def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, exclusive: bool
    ) -> tuple[Entry, bool]:
        """Make a marker; if there is one and not `exclusive`, find it.

        The second answer is whether it was made.
        """
        directory = self._directory(parent)
        try:
            fd = os.open(
                name, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0, dir_fd=directory.fd
            )
        except FileExistsError:
            if exclusive:
                raise
            return self.lookup(parent, name), False
        os.close(fd)
        return self._made(directory, name, mode, uid, gid, os.unlink), True

    def mkdir(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Entry:
        """Make a directory."""
        directory = self._directory(parent)
        os.mkdir(name, 0, dir_fd=directory.fd)
        return self._made(directory, name, mode, uid, gid, os.rmdir)

    def link(self, ino: int, parent: int, name: bytes) -> Entry:
        """Give the inode one more name; mshare_info may have more, too."""
        node = self.node(ino)
        os.link(node.path, name, dst_dir_fd=self._directory(parent).fd, follow_symlinks=True)
        node.lookups += 1
        return self.entry(ino)

    def unlink(self, parent: int, name: bytes) -> None:
        """Take a name away; EPERM for mshare_info itself, not for a hard link to it."""
        _forbid_info(parent, name)
        os.unlink(name, dir_fd=self._directory(parent).fd)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        os.rmdir(name, dir_fd=self._directory(parent).fd)

    def rename(self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int) -> None:
        """Rename; `flags` is 0, RENAME_NOREPLACE or RENAME_EXCHANGE, anything else EINVAL.

        EPERM from or onto mshare_info.
        """
        _forbid_info(old_parent, old)
        _forbid_info(new_parent, new)
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise OSError(
                errno.EINVAL,
                f"rename flags {flags:#x}: only NOREPLACE or EXCHANGE",
                os.fsdecode(old),
            )
        old_fd, new_fd = self._directory(old_parent).fd, self._directory(new_parent).fd
        if lib.renameat2(old_fd, old, new_fd, new, flags):
            code = ffi.errno
            raise OSError(code, os.strerror(code), os.fsdecode(old), None, os.fsdecode(new))

    # The rest does not touch lookup counts.

    def entry(self, ino: int) -> Entry:
        """The inode's present status.

        The root directory belongs to root, whoever mounted, as it does in the kernel.
        """
        status = self.node(ino).stat()
        if ino == ROOT_INO and status.st_uid == os.geteuid():
            fields = list(status)
            fields[stat.ST_UID] = fields[stat.ST_GID] = 0
            # Times in ns and st_blocks stand after the ten numbers a list has.
            extra = {
                name: getattr(status, name)
                for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
            }
            status = os.stat_result(fields, extra)
        return Entry(ino, status)

    def chown(self, ino: int, uid: int, gid: int) -> None:
        """Change owner and group; -1 leaves one as it is."""
        os.chown(self.node(ino).path, uid, gid)

    def chmod(self, ino: int, mode: int) -> None:
        """Change the permission bits."""
        os.chmod(self.node(ino).path, stat.S_IMODE(mode))

    def utime(self, ino: int, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set the times, in ns since the epoch; None leaves one as it is."""
        node = self.node(ino)
        status = node.stat()
        atime = status.st_atime_ns if atime_ns is None else atime_ns
        mtime = status.st_mtime_ns if mtime_ns is None else mtime_ns
        os.utime(node.path, ns=(atime, mtime))

    def set_size(self, ino: int, size: int) -> None:
        """Set st_size of the marker, in bytes; no memory is used.

        Changes mtime and ctime, as ftruncate(2) does.
        """
        path = self.node(ino).path
        try:
            os.truncate(path, size)
        except PermissionError:
            # The kernel has checked the caller's descriptor. A server that is not root needs
            # the bit in the file's mode as well, for a moment.
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | stat.S_IWUSR)
            try:
                os.truncate(path, size)
            finally:
                os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~stat.S_IWUSR)

    def names(self, ino: int) -> list[bytes]:
        """The names in a directory, without "." and "..", in the order of the file system."""
        fd = os.open(
            b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory(ino).fd
        )
        try:
            return [os.fsencode(name) for name in os.listdir(fd)]
        finally:
            os.close(fd)

    def forget(self, ino: int, count: int) -> Node | None:
        """The kernel gives back `count` lookups.

        Returns the node if it was a region with no name left: it is gone now.
        """
        node = self._nodes.get(ino)
        if node is None or ino == ROOT_INO:
            return None
        node.lookups -= count
        if node.lookups > 0:
            return None
        unlinked = node.stat().st_nlink == 0
        del self._nodes[ino]
        self._of[node.user] -= 1
        os.close(node.fd)
        return node if unlinked and node.is_region else None

    def known(self, user: int | None = None) -> int:
        """How many files and directories the kernel knows; each has a descriptor.

        With `user`: those that were that user's when the kernel asked for them.
        """
        return len(self._nodes) if user is None else self._of[user]

    def region_sizes(self) -> dict[int, int]:
        """The region files below the root by number, each with its size in bytes, 0 if unsized."""
        return {found.st_ino: found.st_size for found in self._region_files()}

    def region_users(self) -> dict[int, int]:
        """The same files, each with the user whose it is."""
        return {found.st_ino: found.st_uid for found in self._region_files()}

    def _region_files(self) -> Iterator[os.stat_result]:
        def fail(error: OSError) -> None:
            raise error  # or the regions of a directory would have no names

        for _, _, names, directory in os.fwalk(b".", onerror=fail, dir_fd=self.node(ROOT_INO).fd):
            for name in names:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_ino != self._info_ident:
                    yield status

    def is_unlinked(self, ident: int) -> bool:
        """Whether a region has no name any more, and somebody has it open."""
        node = self._nodes.get(inode_of(ident))
        return node is not None and node.stat().st_nlink == 0

    def unlinked_regions(self) -> Iterator[Node]:
        """The regions that live only because somebody has them open."""
        for node in self._nodes.values():
            if node.is_region and node.stat().st_nlink == 0:
                yield node

    def _known(self, fd: int) -> Entry:
        """Count a lookup of the inode behind O_PATH descriptor `fd`, which is ours from now on."""
        status = os.fstat(fd)
        ident = status.st_ino
        is_info = ident == self._info_ident
        ino = INFO_INO if is_info else inode_of(ident)
        node = self._nodes.get(ino)
        if node is None:
            is_region = stat.S_ISREG(status.st_mode) and not is_info
            node = self._nodes[ino] = Node(ino, ident, fd, is_region, user=status.st_uid)
            self._of[node.user] += 1
        else:
            os.close(fd)
        node.lookups += 1
        return Entry(ino, status)

    def _made(
        self,
        directory: Node,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        remove: Callable[..., None],
    ) -> Entry:
        """Make the new inode `name` the caller's and count a lookup of it.

        If that cannot be, `remove` takes the name away again. EPERM: the server may not give files
        to other users. EMFILE: it has too many descriptors.
        """
        fd = -1
        try:
            fd = os.open(name, _LOOKUP, dir_fd=directory.fd)
            _hand_over(fd, directory, mode, uid, gid)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            remove(name, dir_fd=directory.fd)
            raise
        return self._known(fd)


def _hand_over(fd: int, directory: Node, mode: int, uid: int, gid: int) -> None:
    """Make the new inode behind O_PATH descriptor `fd` the caller's.

    A set-group-ID directory has already handed down its group and bit.
    """
    path = proc.fd_path(fd)  # O_PATH descriptors have no fchmod
    parent = directory.stat()
    inherited = 0
    if parent.st_mode & stat.S_ISGID:
        gid = parent.st_gid
        inherited = os.fstat(fd).st_mode & stat.S_ISGID
    os.chown(path, uid, gid)
    os.chmod(path, stat.S_IMODE(mode) | inherited)  # after chown, which clears set-ID bits


def _make_info(root: int) -> int:
    """Make sure mshare_info is there, 0444 and owned by the mounter; return its st_ino.

    Its content is never read.
    """
    with contextlib.suppress(FileExistsError):
        os.close(
            os.open(
                INFO_NAME, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444, dir_fd=root
            )
        )
    return os.stat(INFO_NAME, dir_fd=root, follow_symlinks=False).st_ino


def _forbid_info(parent: int, name: bytes) -> None:
    if parent == ROOT_INO and name == INFO_NAME:
        raise OSError(errno.EPERM, "mshare_info can be neither removed nor renamed nor replaced")
