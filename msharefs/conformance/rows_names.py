"""The namespace: mount root, names, links, kinds of files, attributes."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

from . import reasons
from .stage import Q, said
from .table import Table

if TYPE_CHECKING:
    from .stage import Stage

AT_FDCWD = -100
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
MSHARE_MAGIC = 0x4D534852


def root(stage: Stage) -> os.stat_result:
    return os.stat(stage.dir.parent)


def rename(stage: Stage, old: str, new: str, flags: int = 0) -> str:
    return stage.agent.say(
        "renameat2", AT_FDCWD, stage.path(old), AT_FDCWD, stage.path(new), flags
    )


def mknod(stage: Stage, kind: int) -> str:
    device = os.makedev(1, 3) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
    return stage.agent.say("mknod", stage.path("n"), kind | 0o600, device)


def bind(stage: Stage) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        # Its own directory: a socket's address is short.
        here = os.open(stage.dir, os.O_PATH)
        try:
            return said(lambda: sock.bind(f"/proc/self/fd/{here}/s"))
        finally:
            os.close(here)


def xattr(stage: Stage, function: str, *arguments: str | int | bytes) -> str:
    stage.unsized()
    return stage.agent.say(function, stage.path(), *arguments)


T = Table("Mount root and statfs", "1.5, A")
T(
    "root-mode", "mode of the root directory", "40777", lambda s: f"{root(s).st_mode:o}",
    default="41777", why=reasons.STICKY,
)
T("root-ino", "inode number of the root", "1", lambda s: str(root(s).st_ino))
T(
    "root-nlink", "link count of the root of an empty mount", "2",
    # The row's own directory is there meanwhile, and is one link.
    lambda s: str(root(s).st_nlink - 1),
)
T(
    "root-owner", "uid and gid of the root", "0:0",
    lambda s: f"{root(s).st_uid}:{root(s).st_gid}", source="1.5, C",
)
T(
    "root-sticky", "sticky bit of the root", "0", lambda s: f"{root(s).st_mode & stat.S_ISVTX:o}",
    default="1000", why=reasons.STICKY,
)
T("statfs-bsize", "statfs: f_bsize", "4096", lambda s: str(os.statvfs(s.dir).f_bsize))
T("statfs-namelen", "statfs: f_namelen", "255", lambda s: str(os.statvfs(s.dir).f_namemax))


def counts(stage: Stage) -> str:
    found = os.statvfs(stage.dir)
    return str(found.f_blocks + found.f_bfree + found.f_bavail + found.f_files + found.f_ffree)


def magic(stage: Stage, function: str = "statfs") -> str:
    """f_type, as a program under `msharefs run` sees it."""
    agent = stage.agent
    if function == "statfs":
        agent.call("statfs", str(stage.dir), agent.pool)
    else:
        stage.region().call("fstatfs", agent.pool)
    return f"{int.from_bytes(agent.get(agent.pool, 8), 'little'):x}"


def native_magic(stage: Stage) -> str:
    """The same by the system call itself: the preloaded library does not see it."""
    path = str(stage.dir)
    text = subprocess.check_output(["stat", "--file-system", "--format=%t", path], text=True)
    return text.strip()


T("statfs-counts", "statfs: sum of all counts", "0", counts, source="1.5")
T("statfs-type", "statfs: f_type", f"{MSHARE_MAGIC:x}", magic, source="1.2, 1.5, A")
T("fstatfs-type", "fstatfs of a region: f_type", f"{MSHARE_MAGIC:x}",
  lambda s: magic(s, "fstatfs"), source="1.2, 1.5, A")
T(
    "statfs-type-native", "statfs by a program that is not run by `msharefs run`",
    f"{MSHARE_MAGIC:x}", native_magic, source="1.2, 1.5, A",
    ours="65735546", why=reasons.MAGIC,
)

T = Table("Names", "1.5, A")
T("create", "open(O_CREAT) of a new name", "0", lambda s: said(s.unsized), plain=True)
T("create-size", "st_size of a new region", "0", lambda s: str(s.unsized().size()), plain=True)
T(
    "create-again", "open(O_CREAT) of a region that is there", "0", plain=True,
    check=lambda s: s.unsized() and said(lambda: s.open(flags=os.O_RDWR | os.O_CREAT)),
)
T(
    "create-excl", "open(O_CREAT|O_EXCL) of a name that is there", "EEXIST", plain=True,
    check=lambda s: s.unsized() and said(s.unsized),
)
T("open-missing", "open of a name that is not there", "ENOENT", lambda s: said(s.open), plain=True)
T(
    "name-255", "a name of 255 characters", "0", plain=True,
    check=lambda s: said(lambda: s.unsized("x" * 255)),
)
T(
    "name-256", "a name of 256 characters", "ENAMETOOLONG", plain=True,
    check=lambda s: said(lambda: s.unsized("x" * 256)),
)
T("mkdir", "mkdir", "0", lambda s: s.agent.say("mkdir", s.path("d"), 0o700), plain=True)
T(
    "mkdir-exists", "mkdir of a name that is there", "EEXIST", plain=True,
    check=lambda s: s.unsized() and s.agent.say("mkdir", s.path(), 0o700),
)


def in_directory(stage: Stage, *calls: tuple[str, str]) -> str:
    """A directory d with a region d/r in it; the answer to the last of some calls."""
    stage.agent.call("mkdir", stage.path("d"), 0o700)
    stage.unsized("d/r")
    answer = ""
    for function, name in calls:
        answer = stage.agent.say(function, stage.path(name))
    return answer


T(
    "rmdir", "rmdir of an empty directory", "0", plain=True,
    check=lambda s: in_directory(s, ("unlink", "d/r"), ("rmdir", "d")),
)
T(
    "rmdir-full", "rmdir of a directory that is not empty", "ENOTEMPTY", plain=True,
    check=lambda s: in_directory(s, ("rmdir", "d")),
)
T(
    "unlink-directory", "unlink of a directory", "EISDIR", plain=True,
    check=lambda s: in_directory(s, ("unlink", "d")),
)
T(
    "link", "link", "0", plain=True,
    check=lambda s: s.unsized() and s.agent.say("link", s.path(), s.path("l")),
)


def links(stage: Stage) -> str:
    file = stage.region()
    stage.agent.call("link", file.path, stage.path("l"))
    status, other = os.stat(file.path), os.stat(stage.path("l"))
    assert status.st_ino == other.st_ino
    return f"{other.st_nlink}, {other.st_size}"


T("link-same", "st_nlink and st_size of a region linked once", f"2, {Q}", links, plain=True)
T(
    "link-directory", "link of a directory", "EPERM", plain=True,
    check=lambda s: s.agent.say("mkdir", s.path("d"), 0o700)
    and s.agent.say("link", s.path("d"), s.path("l")),
)
T(
    "link-across", "link to another mount", "EXDEV", plain=True,
    check=lambda s: s.unsized() and s.agent.say("link", s.path(), str(s.elsewhere / "l")),
)
T(
    "rename-across", "rename to another mount", "EXDEV", plain=True,
    check=lambda s: s.unsized() and s.agent.say("rename", s.path(), str(s.elsewhere / "l")),
)
T(
    "rename", "rename", "0", plain=True,
    check=lambda s: s.unsized() and s.agent.say("rename", s.path(), s.path("n")),
)
T(
    "rename-over", "rename over a region: it is gone", "0", plain=True,
    check=lambda s: s.unsized() and s.unsized("n") and rename(s, "r", "n"),
)
T(
    "rename-noreplace", "renameat2(NOREPLACE) to a free name", "0", plain=True,
    check=lambda s: s.unsized() and rename(s, "r", "n", NOREPLACE),
)
T(
    "rename-noreplace-over", "renameat2(NOREPLACE) over a region", "EEXIST", plain=True,
    check=lambda s: s.unsized() and s.unsized("n") and rename(s, "r", "n", NOREPLACE),
)
T(
    "rename-exchange", "renameat2(EXCHANGE)", "0", plain=True,
    check=lambda s: s.unsized() and s.unsized("n") and rename(s, "r", "n", EXCHANGE),
)
T(
    "rename-whiteout", "renameat2(WHITEOUT)", "EINVAL",
    lambda s: s.unsized() and rename(s, "r", "n", WHITEOUT),
)
def renamed(stage: Stage) -> str:
    memory = stage.page()
    memory.store()
    stage.agent.call("rename", stage.path(), stage.path("n"))
    memory.file.path = stage.path("n")
    return memory.again(stage.process()).load()


T(
    "rename-in-use", "a region that is open and mapped is renamed: the memory is the same", "7",
    renamed,
)


T = Table("Kinds of files", "1.5, A, C")
T("symlink", "symlink", "EPERM", lambda s: s.agent.say("symlink", "r", s.path("l")))
T("mknod-fifo", "mknod of a fifo", "EPERM", lambda s: mknod(s, stat.S_IFIFO))
T("mknod-socket", "mknod of a socket", "EPERM", lambda s: mknod(s, stat.S_IFSOCK))
T("mknod-char", "mknod of a character device", "EPERM", lambda s: mknod(s, stat.S_IFCHR))
T("mknod-block", "mknod of a block device", "EPERM", lambda s: mknod(s, stat.S_IFBLK))
T("bind", "bind of an AF_UNIX socket to a name", "EPERM", bind)
T(
    "mknod-regular", "mknod of a regular file: it is a region, and can be sized", "0",
    lambda s: (mknod(s, stat.S_IFREG), s.open("n").size_to(Q))[1],
)
T(
    "tmpfile", "open(O_TMPFILE)", "EOPNOTSUPP",
    lambda s: s.agent.say("open", str(s.dir), os.O_RDWR | os.O_TMPFILE, 0o600),
)
T(
    "direct", "open(O_DIRECT)", "EINVAL",
    lambda s: s.unsized() and s.agent.say("open", s.path(), os.O_RDWR | os.O_DIRECT),
)

T = Table("Attributes", "1.5, A, C")
T("stat-blocks", "st_blocks of a region with memory", "0",
  lambda s: str(s.page().store() and os.stat(s.path()).st_blocks))


def changed(stage: Stage, function: str, *arguments: int | bytes) -> str:
    """The answer to the call, and which of mode, owner and times have changed then."""
    stage.unsized()
    answer = stage.agent.say(function, stage.path(), *arguments)
    found = os.stat(stage.path())
    values = {
        "chmod": f"{found.st_mode & 0o7777:o}",
        "chown": f"{found.st_uid}:{found.st_gid}",
        "utimes": f"{found.st_atime_ns // 10**9}, {found.st_mtime_ns // 10**9}",
    }
    return f"{answer}: {values[function]}"


T("chmod", "chmod 0640", "0: 640", lambda s: changed(s, "chmod", 0o640), plain=True)
T("chown", "chown", "0: 7:8", lambda s: changed(s, "chown", 7, 8), plain=True)
T(
    "utimes", "utimes", "0: 5, 9", plain=True,
    check=lambda s: changed(
        s, "utimes", b"".join(each.to_bytes(8, "little") for each in (5, 0, 9, 0))
    ),
)
T(
    "unlink-by-other", "unlink of a region by another user", "0", plain=True,
    check=lambda s: s.unsized() and s.user().say("unlink", s.path()),
)
T(
    "open-by-other", "open of a region of mode 0600 by another user", "EACCES", plain=True,
    check=lambda s: s.unsized() and s.user().say("open", s.path(), os.O_RDWR),
)
for name in ("user.x", "trusted.x", "security.x"):
    T(
        f"setxattr-{name}", f"setxattr {name}", "EOPNOTSUPP",
        lambda s, name=name: xattr(s, "setxattr", name, "1", 1, 0),
    )
T("getxattr", "getxattr", "EOPNOTSUPP", lambda s: xattr(s, "getxattr", "user.x", s.agent.pool, 9))
T("removexattr", "removexattr", "EOPNOTSUPP", lambda s: xattr(s, "removexattr", "user.x"))
T(
    "listxattr", "listxattr: the length of the list", "0",
    lambda s: s.unsized() and str(s.agent.call("listxattr", s.path(), s.agent.pool, 99)),
)


def handle(stage: Stage) -> str:
    pool = stage.agent.pool
    stage.unsized()
    stage.agent.put(pool, (128).to_bytes(8, "little"))
    return stage.agent.say("name_to_handle_at", AT_FDCWD, stage.path(), pool, pool + 512, 0)


T(
    "handle", "name_to_handle_at", "EOPNOTSUPP", handle, source="C",
    ours="0", why=reasons.HANDLE,
)
