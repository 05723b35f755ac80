"""The file mshare_info."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import reasons
from .rows_names import AT_FDCWD, EXCHANGE
from .stage import CREATE, PAGE, READ, SHARED, UNKNOWN, UNMAP, File, Q, errno_name
from .table import Table

if TYPE_CHECKING:
    from .stage import Stage

TEXT = f"{Q}\n"


def path(stage: Stage) -> str:
    return str(stage.dir.parent / "mshare_info")


def info(stage: Stage, flags: int = os.O_RDONLY) -> File:
    return File(stage.agent, stage.agent.call("open", path(stage), flags), path(stage))


def text(file: File, function: str = "read", *position: int) -> str:
    pool = file.agent.pool
    count = file.call(function, pool, 100, *position)
    return file.agent.get(pool, count).decode() if count else ""


def mode_and_owner(stage: Stage) -> str:
    found = os.stat(path(stage))
    return f"{found.st_mode:o} {found.st_uid}:{found.st_gid}"


def linked(stage: Stage, function: str, *arguments: str) -> str:
    """A hard link l of mshare_info; the answer to a call on it."""
    answer = stage.agent.say("link", path(stage), stage.path("l"))
    return stage.agent.say(function, stage.path("l"), *arguments) if function else answer


def changed(stage: Stage, function: str, *arguments: int) -> str:
    """The answer to root's call; everything is as before afterwards."""
    before = os.stat(path(stage))
    try:
        answer = stage.agent.say(function, path(stage), *arguments)
        return f"{answer}: {os.stat(path(stage)).st_size}, {text(info(stage)).strip()}"
    finally:
        os.truncate(path(stage), 0)
        os.chmod(path(stage), before.st_mode & 0o7777)
        os.chown(path(stage), before.st_uid, before.st_gid)


def rename(stage: Stage, old: str, new: str, flags: int = 0) -> str:
    return stage.agent.say("renameat2", AT_FDCWD, old, AT_FDCWD, new, flags)


T = Table("mshare_info", "1.5, A, C")
T("info-text", "its content", TEXT.strip(), lambda s: text(info(s)).strip(), source="1.3, 1.4, A")
T("info-newline", "its last byte", "\\n", lambda s: repr(text(info(s))[-1]).strip("'"),
  source="1.4, A")
T("info-ino", "inode number", "2", lambda s: str(os.stat(path(s)).st_ino), source="1.5")
T("info-mode", "mode and owner, root having mounted", "100444 0:0", mode_and_owner)


def read_twice(stage: Stage) -> str:
    file = info(stage)
    text(file)
    return text(file)


T("info-mounter", "its uid, user 1000 having mounted", "1000",
  lambda s: s.mounted_by("mshare_info"), source="1.5, C")
T("root-mounter", "uid of the root then", "0", lambda s: s.mounted_by(""), source="C")
T("info-size", "st_size", "0", lambda s: str(os.stat(path(s)).st_size))
T("info-read-twice", "a second read", "", read_twice)
T("info-pread", "pread at 10", "88", lambda s: text(info(s), "pread", 10).strip())


def seek(stage: Stage) -> str:
    file = info(stage)
    pool = file.agent.pool
    file.call("read", pool, 5)
    try:
        return f"{file.call('lseek', 0, os.SEEK_SET)}, then {text(file).strip()}"
    except OSError as error:
        return errno_name(error)


T(
    "info-seek", "lseek to 0 after 5 bytes were read, and what is read then",
    "5, then 755813888", seek, source="C",
    ours=f"0, then {Q}", why=reasons.POSITION,
)
T("info-write", "write", "EINVAL", lambda s: info(s, os.O_RDWR).say("write", "1", 1))
T("info-open-write", "open for writing by another user", "EACCES",
  lambda s: s.user().say("open", path(s), os.O_WRONLY), source="1.5")
T("info-mmap", "mmap", "ENODEV", lambda s: info(s).mmap(PAGE, READ, SHARED))
for name, command in (("create", CREATE), ("unmap", UNMAP), ("unknown", UNKNOWN)):
    T(f"info-ioctl-{name}", f"ioctl {command:#x}", "ENOTTY",
      lambda s, command=command: info(s).say("ioctl", command, bytes(64)))
T("info-fallocate", "fallocate", "EOPNOTSUPP",
  lambda s: info(s, os.O_RDWR).say("fallocate", 0, 0, Q))
T("info-unlink", "unlink", "EPERM", lambda s: s.agent.say("unlink", path(s)))
T("info-rename", "rename of it", "EPERM", lambda s: rename(s, path(s), s.path("n")))
T("info-rename-onto", "rename onto it", "EPERM",
  lambda s: s.unsized() and rename(s, s.path(), path(s)))
T("info-exchange", "exchange with it", "EPERM",
  lambda s: s.unsized() and rename(s, s.path(), path(s), EXCHANGE))
T("info-rmdir", "rmdir", "ENOTDIR", lambda s: s.agent.say("rmdir", path(s)), source="C")
T("info-link", "link", "0", lambda s: linked(s, ""))
T("info-link-rename", "rename of a link of it", "0",
  lambda s: linked(s, "rename", s.path("m")), source="C")
T("info-link-unlink", "unlink of a link of it", "0", lambda s: linked(s, "unlink"), source="C")
T("info-chmod", "chmod by root; st_size, content", f"0: 0, {Q}",
  lambda s: changed(s, "chmod", 0o400), source="C")
T("info-chown", "chown by root", f"0: 0, {Q}",
  lambda s: changed(s, "chown", 5, 5), source="C")
T("info-utimes", "utimes by root", f"0: 0, {Q}",
  lambda s: changed(s, "utimes", 0), source="C")
T("info-truncate", "truncate to 5 by root: st_size changes, the content does not", f"0: 5, {Q}",
  lambda s: changed(s, "truncate", 5), source="C")
