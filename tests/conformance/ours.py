"""A stage of ours, on which a row may also make mounts."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from msharefs.conformance.stage import Stage
from msharefs.server.tree import Tree

from support import namespace
from support.calls import in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from msharefs.conformance.agent import Agent
    from msharefs.conformance.world import World

    from support.server import Mount


class OwnStage(Stage):
    """A stage whose mount is ours, and has its memory on our own tmpfs."""

    def __init__(
        self,
        world: World,
        directory: Path,
        elsewhere: Path,
        zygote: Agent,
        mount: Callable[[], Mount],
    ) -> None:
        super().__init__(world, directory, elsewhere, zygote)
        self.tmpfs = directory.parent.parent
        """A directory on tmpfs; the row removes what it makes there."""
        self.mount = mount
        """Makes one more mount, with the options of this world."""

    def memory_used(self) -> int:
        """Bytes on that tmpfs: Shmem of /proc/meminfo would count everybody's on this machine."""
        status = os.statvfs(namespace.SHM)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    def mounted_by(self, name: str) -> str:
        """uid of a name in the tree that a server of user 1000 makes."""
        top = self.tmpfs / "tree"
        top.mkdir()
        os.chown(top, 1000, 1000)

        def uid() -> int:
            tree = Tree(top)
            return tree.entry(tree.lookup(1, name.encode()).ino if name else 1).stat.st_uid

        try:
            return str(in_child(uid, uid=1000, gid=1000))
        finally:
            shutil.rmtree(top)
