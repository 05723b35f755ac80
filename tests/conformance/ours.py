"""A stage of ours, on which a row may also make mounts."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import msharefs
from msharefs.conformance.stage import PAGE, Q, Stage
from msharefs.server.tree import Tree

from support import namespace
from support.audit import assert_whole
from support.calls import in_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from msharefs.conformance.agent import Agent
    from msharefs.conformance.stage import Memory
    from msharefs.conformance.world import World

    from support.server import Mount

FREE = Q // 4  # no row maps anything there


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
        self.memories: list[Memory] = []
        """Those that the row has made."""

    def memory(self, *objects: tuple[int, int, int], name: str = "r") -> Memory:
        made = super().memory(*objects, name=name)
        self.memories.append(made)
        return made

    def assert_unharmed(self) -> None:
        """Whatever the row did to its attachments: others use the regions, and it can detach."""
        for each in self.memories:
            if not os.path.exists(each.file.path):
                continue
            fresh = each.again(self.process())
            assert fresh.map(FREE, PAGE) == "0"
            assert (fresh.store(FREE, 5), fresh.load(FREE)) == ("ok", "5")
            left = each.agent.say("mshare_detach", each.base)
            assert left in ("0", "EPERM"), left  # EPERM: it is sealed
            with msharefs.open(each.file.path, os.O_RDONLY) as region:
                pids = {client["pid"] for client in region.describe("clients")}
                assert (each.agent.pid in pids) == (left == "EPERM")
                assert_whole(region)
            if left == "0":
                assert not [line for line in each.lines() if line.path.endswith(".mem")]

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
