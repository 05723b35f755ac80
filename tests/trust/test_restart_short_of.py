"""A server that is started with too little of something takes nothing of that for damage."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

import msharefs
from msharefs import mountpoint
from msharefs.server import hostmm, owners, regions
from msharefs.server.options import MountOptions
from msharefs.server.tree import Tree

from support.calls import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.server import Mount

SIZE = 2 << 20
TEXT = b"still here"


def limited(**limits: int) -> tuple[str, ...]:
    """A command that runs another under these limits, which it cannot raise."""
    options = (f"--{name}={value}:{value}" for name, value in limits.items())
    return "prlimit", *options, "setpriv", "--bounding-set=-sys_resource"


def start(mount: Mount, **limits: int) -> str:
    """Starts a server under limits, and kills it if that works; what it said if not."""
    msharefs_command = (sys.executable, "-P", "-m", "msharefs")
    verb = ("mount", "-o", ",".join(mount.options), str(mount.path))
    made = subprocess.run(
        [*limited(**limits), *msharefs_command, *verb], capture_output=True, text=True, check=False
    )
    if not made.returncode:
        pid = int((mount.state / "lock").read_text().split()[0])
        pidfd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert mountpoint.wait_for_end(pidfd, 10)
        os.close(pidfd)
    return made.stderr


def make(mount: Mount, count: int, size: int = SIZE) -> None:
    """Regions r0 and so on. The first and the last have text in them."""
    for number in range(count):
        with msharefs.open(mount.path / f"r{number}", os.O_RDWR | os.O_CREAT) as region:
            region.truncate(size)
            region.map(0, SIZE)
            if number in (0, count - 1):
                region.attach()[: len(TEXT)] = TEXT
                region.detach()


def check_whole(mount: Mount, count: int) -> None:
    """All are as they were made."""
    assert not list((mount.state / "regions").glob("*.broken"))
    for number in range(count):
        with msharefs.open(mount.path / f"r{number}", os.O_RDWR) as region:
            assert region.stat()["vmas"] == 1
            if number in (0, count - 1):
                assert bytes(region.attach()[: len(TEXT)]) == TEXT
                region.detach()


@pytest.mark.mount("quantum=2M")
def test_few_descriptors(mount: Mount) -> None:
    count = 60
    make(mount, count)
    mount.kill()
    said = [start(mount, nofile=limit) for limit in (20, 24, 28, 32, 36, 40, 48, 64)]
    assert any(f"its {count} regions stay as they are: RLIMIT_NOFILE is" in each for each in said)
    mount.start()
    check_whole(mount, count)


@pytest.mark.mount("quantum=512G")
def test_little_address_space(mount: Mount) -> None:
    make(mount, 8, size=1 << 39)
    mount.kill()
    assert "RLIMIT_AS is 6442450944 bytes" in start(mount, **{"as": 6 << 30})
    mount.start()
    check_whole(mount, 8)


@pytest.mark.mount("quantum=2M", limit=100)
def test_regions_that_nobody_uses_cost_few_descriptors(mount: Mount) -> None:
    def fds() -> int:
        return len(os.listdir(f"/proc/{mount.pid}/fd"))

    count = 300
    mount.wrapper = limited(nofile=1024)
    mount.stop()
    mount.start()
    before = fds()
    make(mount, count)
    # The kernel knows each by an inode, which costs one.
    assert fds() - before < count + 2 * 1024 // 32 + 16
    check_whole(mount, count)
    mount.kill()
    mount.start()
    assert fds() - before < 2 * 1024 // 32 + 16
    check_whole(mount, count)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO])
def test_only_damage_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    state = tmp_path / "regions"
    state.mkdir()
    owner = owners.Owner(os.getpid(), 1, "")
    hostmm.HostMM.make("r", state, 1, SIZE, SIZE, owner).close()
    options = MountOptions(directory=tmp_path, state=tmp_path, quantum=SIZE)

    async def fail(_: hostmm.HostMM) -> None:
        raise OSError(code, "a shortage")

    with monkeypatch.context() as patch, refused(code):
        patch.setattr(hostmm.HostMM, "recover", fail)
        with contextlib.closing(regions.Regions(options, tmp_path)) as found:
            trio.run(found.adopt, {1: SIZE})
    with contextlib.closing(regions.Regions(options, tmp_path)) as found:
        trio.run(found.adopt, {1: SIZE})
        assert found.size(1) == SIZE


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_an_owner_that_cannot_be_watched_has_not_ended(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(code, "a shortage")

    me = os.getpid()
    monkeypatch.setattr(os, "pidfd_open", fail)
    with refused(code):
        owners.Watch(owners.Owner(me, 1, "", "process"))


def test_a_directory_that_cannot_be_listed_has_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "r").touch()
    real = os.open

    def fail(path: Any, *arguments: Any, **names: Any) -> int:
        if path in ("below", b"below"):
            raise OSError(errno.EMFILE, "a shortage")
        return real(path, *arguments, **names)

    with contextlib.closing(Tree(tmp_path)) as tree:
        monkeypatch.setattr(os, "open", fail)
        with refused(errno.EMFILE):
            tree.region_sizes()


def damage(mount: Mount, how: Callable[[Path], None]) -> None:
    """Restarts with a region whose host mm is damaged meanwhile."""
    make(mount, 2)
    ident = (mount.path / "r0").stat().st_ino - 2
    mount.kill()
    how(mount.state / "regions" / f"{ident}.mm")
    mount.expect(r"\S+ \S+ ERROR .* cannot be taken over and is set aside; .*\n")
    mount.start()


def longer(path: Path) -> None:
    """As long as that of a region that does not fit any address space twice."""
    os.truncate(path, 1 << 46)


def repeated(path: Path) -> None:
    """An intent of nothing at all."""
    with path.open("r+b") as file:
        header = file.read(512)
        file.seek(472)
        file.write((2).to_bytes(8, "little") + bytes(16) + header[448:456])


@pytest.mark.mount("quantum=2M")
@pytest.mark.parametrize("how", [longer, repeated])
def test_damage_that_looks_like_a_shortage(mount: Mount, how: Callable[[Path], None]) -> None:
    damage(mount, how)
    with msharefs.open(mount.path / "r0", os.O_RDWR) as region, refused(errno.EUCLEAN):
        region.map(0, SIZE)
    with msharefs.open(mount.path / "r1", os.O_RDWR) as region:
        assert region.stat()["vmas"] == 1
    with msharefs.open(mount.path / "r0", os.O_RDWR) as region:
        region.truncate(SIZE)  # anew
        region.map(0, SIZE)
    assert not list((mount.state / "regions").glob("*.broken*"))
