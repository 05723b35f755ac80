"""The file system a mount shows: thin FUSE handlers over `Tree` (names) and `Regions` (host mms).

Sources: the series' msharefs.rst and the behaviour of its fs/ part. Region files are control files:
their memory is reached by attaching, never by read(2) or write(2).

Any exception but FUSEError in a handler would end the mount for everybody, so `guarded` wraps them.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from msharefs import summary
from msharefs.mountpoint import (
    ADOPT_COMMAND,
    ATTACHED_COMMAND,
    ATTACHED_MAX,
    ATTACHED_STRUCT,
    LIMITS_COMMAND,
    LIMITS_STRUCT,
    PLACE_COMMAND,
    REMOUNT_COMMAND,
    SERVER_COMMAND,
    SERVER_STRUCT,
    SHOOTDOWNS_COMMAND,
)
from msharefs.processes import start_time

from . import listing, remount, shootdowns
from .backing import BackingFiles
from .existing import Existing
from .fuse import Caller, backed_handle, pyfuse3
from .guarded import guarded
from .tree import INFO_INO, ROOT_INO, Entry, Node, Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .ioctls import Ioctls
    from .options import MountOptions
    from .regions import Regions

# libfuse's FUSE_IOCTL_COMPAT: a 32-bit caller. The series has no compat ioctl.
_IOCTL_COMPAT = 1
_NAME_MAX = 255
# Names change only through the kernel's requests, so it need not ask for them again. It does ask
# for attributes, so that stat(2) on a mount whose server is gone fails.
_NAME_SECONDS = 3600
# These bits of a file handle are ours; see fuse.backed_handle.
_NUMBERS = (1 << 31) - 1
# What the kernel says in place of a name: open(2) with O_TMPFILE.
_NAMELESS = b"/"


@dataclass
class Handle:
    """One open(2) of a file; `flags` are its O_* flags, `backing` is 0 if it has no such file."""

    node: Node
    flags: int
    backing: int


@dataclass
class Listing:
    """One opendir(3).

    The names are those of the last rewind, so no entry is seen twice or skipped.
    """

    ino: int
    names: list[bytes]


@guarded
class Filesystem(pyfuse3.Operations):
    """The handlers.

    The kernel never caches attributes, so changes by others are seen at once.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        tree: Tree,
        regions: Regions,
        ioctls: Ioctls,
        options: MountOptions,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._ready = ready
        self._tree = tree
        self._regions = regions
        self._ioctls = ioctls
        self._existing = Existing(tree, regions, options)
        self._zero_freezes = options.quirks == "v3"
        self._info = b"%d\n" % options.quantum
        self._backing = BackingFiles(wanted=options.passthrough)
        self._handles: dict[int, Handle] = {}
        self._listings: dict[int, Listing] = {}
        self._next_handle = count(1)
        self._nameless = count()

    def init(self) -> None:
        """The kernel has shaken hands: requests will come."""
        self._ready()

    def gone(self) -> bool:
        """Whether somebody has removed the state directory."""
        return self._tree.gone()

    async def shut_down(self) -> None:
        """No more requests will come: let go of regions without a name that were only open."""
        for node in list(self._tree.unlinked_regions()):
            await self._regions.evict(node.ident)

    # Names

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """Find a name."""
        del ctx
        return self._attributes(self._tree.lookup(parent, name))

    async def forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        """The kernel dropped inodes. One without a name is evicted, as the kernel evicts it."""
        gone = [self._tree.forget(ino, times) for ino, times in inodes]
        for node in filter(None, gone):
            await self._regions.evict(node.ident)

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """open(2) with O_CREAT: make a region file, unsized, owned by the caller."""
        if name == _NAMELESS:
            return await self._create_nameless(mode, flags, ctx)
        entry, made = self._make(parent, name, mode, ctx, exclusive=bool(flags & os.O_EXCL))
        try:
            # A file that this open(2) made is not truncated.
            info = await self._open(entry.ino, flags & ~os.O_TRUNC if made else flags, ctx.pid)
        except BaseException:
            # The file stays, as in the kernel, where O_DIRECT is refused after the file was made.
            await self.forget([(entry.ino, 1)])
            raise
        return info, self._attributes(entry)

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """Make a region file; EPERM for devices, fifos and sockets."""
        del rdev
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise OSError(
                errno.EPERM,
                "only regular files and directories can be made here",
                os.fsdecode(name),
            )
        entry, _ = self._make(parent, name, mode, ctx, exclusive=True)
        return self._attributes(entry)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        self._regions.limits.check_names(self._tree.known(), ctx.uid, self._tree.known(ctx.uid))
        return self._attributes(self._tree.mkdir(parent, name, mode, ctx.uid, ctx.gid))

    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        """EPERM, always."""
        del parent, target, ctx
        raise OSError(errno.EPERM, "there are no symbolic links on msharefs", os.fsdecode(name))

    async def link(self, ino: int, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        """One more name for a region."""
        del ctx
        return self._attributes(self._tree.link(ino, parent, name))

    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        """Take a name away; the region lives while it is open or attached."""
        del ctx
        self._tree.unlink(parent, name)

    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        """Remove an empty directory."""
        del ctx
        self._tree.rmdir(parent, name)

    async def rename(
        self, old_parent: int, old: bytes, new_parent: int, new: bytes, flags: int, ctx: Any
    ) -> None:
        """Rename, with RENAME_NOREPLACE or RENAME_EXCHANGE; EINVAL for other flags."""
        del ctx
        self._tree.rename(old_parent, old, new_parent, new, flags)

    # Attributes

    async def getattr(self, ino: int, ctx: Any) -> pyfuse3.EntryAttributes:
        """stat(2)."""
        del ctx
        return self._attributes(self._tree.entry(ino))

    async def setattr(
        self,
        ino: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: Any,
    ) -> pyfuse3.EntryAttributes:
        """chmod, chown, utimensat, and truncate, which sizes the region.

        The kernel has checked permissions.
        """
        del fh, ctx
        if fields.update_size:
            await self._resize(self._tree.node(ino), attr.st_size)
        if fields.update_uid or fields.update_gid:
            uid = attr.st_uid if fields.update_uid else -1
            gid = attr.st_gid if fields.update_gid else -1
            self._tree.chown(ino, uid, gid)
        if fields.update_mode:  # after chown, which clears the set-ID bits
            self._tree.chmod(ino, attr.st_mode)
        if fields.update_atime or fields.update_mtime:
            atime = attr.st_atime_ns if fields.update_atime else None
            mtime = attr.st_mtime_ns if fields.update_mtime else None
            self._tree.utime(ino, atime, mtime)
        return self._attributes(self._tree.entry(ino))

    async def fallocate(self, ino: int, fh: int, mode: int, offset: int, length: int) -> None:
        """Size a region by the rules of ftruncate, but only from offset 0, and the times stay."""
        del fh
        node = self._tree.node(ino)
        if mode or not node.is_region:
            raise OSError(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}: only mode 0 of a region")
        if offset:
            raise OSError(errno.EINVAL, f"fallocate offset {offset}: a region is sized from 0")
        before = node.stat()
        await self._resize(node, length)
        self._tree.utime(ino, before.st_atime_ns, before.st_mtime_ns)

    async def listxattr(self, ino: int, ctx: Any) -> list[bytes]:
        """A region has no extended attributes.

        The other calls on them answer ENOSYS, which the kernel turns into EOPNOTSUPP.
        """
        del ino, ctx
        return []

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        """Block size and longest name; the counts are 0. The type is FUSE's, whatever we want."""
        del ctx
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = resource.getpagesize()
        data.f_namemax = _NAME_MAX
        return data

    # Open files

    async def open(self, ino: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        """Open an existing file. The kernel has checked the permission bits."""
        return await self._open(ino, flags, ctx.pid)

    async def flush(self, fh: int) -> None:
        """A close(2) of one of perhaps many descriptors: see `Regions.opened`."""
        node = self._handles[fh].node
        if node.is_region:
            await self._regions.closed(node.ident)

    async def release(self, fh: int) -> None:
        """The last close of a descriptor."""
        handle = self._handles.pop(fh)
        if handle.backing:
            self._backing.close(handle.node.ident)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """mshare_info has the quantum as text; EINVAL for a region."""
        if self._handles[fh].node.ino == INFO_INO:
            return self._info[offset : offset + size]
        raise OSError(errno.EINVAL, "a region is read by attaching it, not by read(2)")

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """EINVAL, always."""
        del fh, offset, data
        raise OSError(errno.EINVAL, "a region is written by attaching it, not by write(2)")

    async def fsync(self, fh: int, datasync: bool) -> None:
        """EINVAL, always: the kernel's region file has no such operation."""
        del fh, datasync
        raise OSError(errno.EINVAL, "a region is memory: there is nothing to sync")

    async def seek_data(self, ino: int, fh: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE: ESPIPE on a region; on mshare_info the offset, unchanged."""
        del fh, whence
        if ino == INFO_INO:
            return offset
        raise OSError(errno.ESPIPE, "a region file has no position")

    async def ioctl(
        self, ino: int, fh: int, command: int, data: bytes, flags: int, caller: Caller
    ) -> tuple[int, bytes]:
        """The control interface of a region; ENOTTY on anything else."""
        if ino == ROOT_INO:
            answer = await self._of_mount(command, data, caller)
            if answer is not None:
                return 0, answer
        node = self._tree.node(ino)
        if not node.is_region or flags & _IOCTL_COMPAT:
            raise OSError(
                errno.ENOTTY, f"ioctl {command:#x}: only a region takes it, from a 64-bit program"
            )
        return await self._ioctls.answer(
            node.ident, command, data, self._handles[fh].flags, caller.pid, caller.uid
        )

    async def _of_mount(self, command: int, data: bytes, caller: Caller) -> bytes | None:
        """The answer to an ioctl of ours on the root directory; None if it is none."""
        answer: bytes | None = None
        if command == SERVER_COMMAND:
            pid = os.getpid()
            answer = SERVER_STRUCT.pack(pid, start_time(pid), await self._regions.attached())
        elif command == ATTACHED_COMMAND:
            pids = await self._regions.attached_processes() + [0] * ATTACHED_MAX
            answer = ATTACHED_STRUCT.pack(*pids[:ATTACHED_MAX])
        elif command == LIMITS_COMMAND:
            answer = LIMITS_STRUCT.pack(*self._ioctls.limits())
        elif command == SHOOTDOWNS_COMMAND:
            answer = shootdowns.total()
        elif command == PLACE_COMMAND:
            answer = self._regions.room.describe(gone=self.gone())
        elif command == ADOPT_COMMAND:
            answer = await self._existing.answer(data, caller)
        elif command == summary.COMMAND:
            answer = await listing.answer(
                self._regions,
                self._tree,
                data,
                caller.uid,
                partial(self._ioctls.turn, caller.uid, caller.pid),
            )
        elif command == REMOUNT_COMMAND:
            answer = remount.answer(self._regions, data, caller.uid)
        return answer

    # Directories

    async def opendir(self, ino: int, ctx: Any) -> int:
        """Start a listing."""
        del ctx
        handle = next(self._next_handle)
        self._listings[handle] = Listing(ino, [])
        return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """List from position `start_id`; 0 is opendir(3) or rewinddir(3)."""
        listing = self._listings[fh]
        if start_id == 0:
            listing.names = [b".", b"..", *self._tree.names(listing.ino)]
        for position in range(start_id, len(listing.names)):
            name = listing.names[position]
            if name in (b".", b".."):
                # The kernel takes only number and type from "." and "..", and counts no lookup
                # for them.
                entry, counted = self._tree.entry(listing.ino), False
            else:
                try:
                    entry, counted = self._tree.lookup(listing.ino, name), True
                except FileNotFoundError:
                    continue  # removed since the listing was made
            if not pyfuse3.readdir_reply(token, name, self._attributes(entry), position + 1):
                if counted:
                    self._tree.forget(entry.ino, 1)
                break

    async def releasedir(self, fh: int) -> None:
        """End a listing."""
        del self._listings[fh]

    # Shared by several handlers

    def _make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        ctx: Any,
        exclusive: bool,
        nameless: bool = False,
    ) -> tuple[Entry, bool]:
        entry, made = self._tree.create(parent, name, mode, ctx.uid, ctx.gid, exclusive)
        if made:
            try:
                self._regions.limits.check_names(
                    self._tree.known() - 1, ctx.uid, self._tree.known(ctx.uid) - 1
                )
                self._regions.create(
                    self._tree.node(entry.ino).ident, ctx.pid, ctx.uid, nameless=nameless
                )
            except BaseException:
                self._tree.unlink(parent, name)
                self._tree.forget(entry.ino, 1)
                raise
        return entry, made

    async def _create_nameless(
        self, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """mshare_create(): no directory shows it. O_TMPFILE alone is EOPNOTSUPP, as in v3."""
        if not flags & os.O_EXCL:
            raise OSError(errno.EOPNOTSUPP, "O_TMPFILE is for O_EXCL only: it can get no name")
        name = b".nameless-%d-%d" % (os.getpid(), next(self._nameless))
        entry, _ = self._make(ROOT_INO, name, mode, ctx, exclusive=True, nameless=True)
        self._tree.unlink(ROOT_INO, name)
        try:
            return await self._open(entry.ino, flags, ctx.pid), self._attributes(
                self._tree.entry(entry.ino)
            )
        except BaseException:
            await self.forget([(entry.ino, 1)])
            raise

    async def _open(self, ino: int, flags: int, tid: int) -> pyfuse3.FileInfo:
        node = self._tree.node(ino)
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "O_DIRECT means nothing for a region: open it without")
        if node.is_region:
            await self._regions.settle(node.ident)
            self._regions.check_open(node.ident, flags)
        backing = 0
        if node.is_region:
            backing = self._backing.open(node.ident, lambda: self._regions.open_memory(node.ident))
        if flags & os.O_TRUNC:  # last, as in Linux: nothing can fail afterwards
            try:
                await self._resize(node, 0)
            except BaseException:
                if backing:
                    self._backing.close(node.ident)
                raise
        told = node.is_region and self._regions.opened(node.ident, tid)
        handle = backed_handle(next(self._next_handle) & _NUMBERS, backing, told_of_close=told)
        self._handles[handle] = Handle(node, flags, backing)
        # direct_io: there is no page cache in between, so read and write reach us, and a shared
        # mmap(2) maps the backing file, or is ENODEV. nonseekable: lseek is ESPIPE as in the
        # kernel, but FUSE answers pread and pwrite so too, for which v3 has EINVAL. A file with a
        # backing file cannot have it: FUSE answers EIO to an open(2) that is given both.
        return pyfuse3.FileInfo(
            fh=handle,
            direct_io=True,
            keep_cache=False,
            nonseekable=node.is_region and not backing,
        )

    async def _resize(self, node: Node, size: int) -> None:
        """Size a region, once.

        Size 0 leaves an unsized region as it is; with quirks=v3 it is for ever, as in v3.
        """
        if node.is_region and (size or self._zero_freezes or self._regions.size(node.ident)):
            await self._regions.set_size(node.ident, size)
        self._tree.set_size(node.ino, size)

    def _attributes(self, entry: Entry) -> pyfuse3.EntryAttributes:
        status = entry.stat
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = entry.ino
        attributes.generation = 0
        attributes.entry_timeout, attributes.attr_timeout = _NAME_SECONDS, 0
        attributes.st_mode = status.st_mode
        attributes.st_nlink = status.st_nlink
        attributes.st_uid = status.st_uid
        attributes.st_gid = status.st_gid
        attributes.st_rdev = 0
        attributes.st_size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        attributes.st_blksize = resource.getpagesize()
        attributes.st_blocks = 0
        attributes.st_atime_ns = status.st_atime_ns
        attributes.st_mtime_ns = status.st_mtime_ns
        attributes.st_ctime_ns = status.st_ctime_ns
        return attributes
