"""`msharefs check` and `reap`: what is wrong is found, named, and mended where that is possible."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import msharefs

from support import wire
from support.rawmm import HEADER
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", limit=100)
SIZE = 4 << 20
PAGE = 4096
TEXT = b"whole"
CLEAN, REPAIRED, BROKEN = range(3)


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit status and output of msharefs."""
    command = [sys.executable, "-P", "-m", "msharefs", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def mm(mount: Mount) -> Path:
    """The host mm of a region with text in it."""
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        region.attach()[: len(TEXT)] = TEXT
        region.detach()
    return mount.state / "regions" / f"{(mount.path / 'r').stat().st_ino - 2}.mm"


def check_text(mount: Mount) -> None:
    with msharefs.open(mount.path / "r", os.O_RDWR) as region:
        assert bytes(region.attach()[: len(TEXT)]) == TEXT
        region.detach()


def lose_a_frame(mm: Path) -> None:
    """A server died between cutting a table off and freeing it."""
    frame = 7
    with mm.open("r+b") as file, mmap.mmap(file.fileno(), 0) as header:

        def word(name: str) -> int:
            return int(struct.unpack_from("=Q", header, HEADER[name])[0])

        struct.pack_into("=Q", header, word("words_at") + 8 * frame, 2)
        struct.pack_into("=Q", header, word("frames_at") + PAGE * frame, 0)
        struct.pack_into("=Q", header, HEADER["frames_high"], frame + 1)


def leave_a_slot(mm: Path) -> None:
    """A process has died without a word."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with mm.open("r+b") as file:
        slots = wire.Slots(file.fileno())
        slots.write(3, process.pid, 1, 4711)
        slots.close()


def bend_a_mapping(mm: Path) -> None:
    """A mapping ends beyond the region."""
    with mm.open("r+b") as file, mmap.mmap(file.fileno(), 0) as header:
        for name in ("vmas_at0", "vmas_at1"):
            at = struct.unpack_from("=Q", header, HEADER[name])[0]
            struct.pack_into("=Q", header, at + 8, 1 << 40)


def test_a_mount_in_use_is_clean(mount: Mount, mm: Path) -> None:
    with msharefs.open(mount.path / "r") as region:
        region.attach()
        for path in (mount.path, mount.path / "r"):
            assert run("check", path) == (CLEAN, "1 regions checked, 0 with something wrong\n")
        region.detach()
    code, said = run("check", mount.state)
    assert code == BROKEN
    assert f"a server has this state directory: process {mount.pid}" in said
    assert mm.exists()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lose_a_frame, "1 page tables are in use and not reachable"),
        (leave_a_slot, "slot 3 is held by process "),
    ],
)
def test_what_the_dead_have_left_is_mended(
    mount: Mount, mm: Path, harm: Callable[[Path], None], says: str
) -> None:
    mount.kill()
    harm(mm)
    code, said = run("check", mount.state)
    assert code == BROKEN
    assert f"r: {says}" in said
    assert "--repair can mend that" in said
    code, said = run("check", "--repair", mount.state)
    assert code == REPAIRED, said
    assert ": mended" in said
    assert run("check", mount.state)[0] == CLEAN
    mount.start()
    check_text(mount)
    assert run("check", mount.path)[0] == CLEAN


def test_a_server_mends_what_it_has(mount: Mount, mm: Path) -> None:
    lose_a_frame(mm)
    assert run("check", mount.path)[0] == BROKEN
    code, said = run("check", "--repair", mount.path / "r")
    assert code == REPAIRED, said
    assert run("check", mount.path)[0] == CLEAN
    check_text(mount)


def test_what_cannot_be_mended(mount: Mount, mm: Path) -> None:
    bend_a_mapping(mm)
    mount.damaged = True
    for arguments in ((), ("--repair",)):
        code, said = run("check", *arguments, mount.path)
        assert code == BROKEN
        assert "mappings are out of order" in said


def set_aside(mount: Mount, mm: Path) -> None:
    """As a server does with files that it takes for damaged."""
    mount.kill()
    for path in (mm, mm.with_suffix(".mem")):
        path.rename(f"{path}.broken")


def test_what_was_set_aside_comes_back(mount: Mount, mm: Path) -> None:
    set_aside(mount, mm)
    assert run("check", mount.state)[0] == BROKEN
    assert run("check", "--repair", mount.state)[0] == REPAIRED
    mount.start()
    check_text(mount)


def test_what_was_set_aside_comes_back_to_its_server(mount: Mount, mm: Path) -> None:
    set_aside(mount, mm)
    mount.expect(r"\S+ \S+ ERROR .* cannot be taken over and is set aside; .*\n")
    mount.start()
    code, said = run("check", mount.path)
    assert code == BROKEN
    assert "is set aside" in said
    assert run("check", "--repair", mount.path)[0] == REPAIRED
    check_text(mount)


def test_what_is_damaged_stays_aside(mount: Mount, mm: Path) -> None:
    set_aside(mount, mm)
    os.truncate(f"{mm}.broken", PAGE)
    assert run("check", "--repair", mount.state)[0] == BROKEN
    assert os.path.exists(f"{mm}.broken")
    assert os.path.exists(f"{mm.with_suffix('.mem')}.broken")


def test_a_state_directory_of_others_is_left_alone(mount: Mount, mm: Path) -> None:
    mount.kill()
    mount.state.chmod(0o777)
    code, said = run("check", mount.state)
    assert code == BROKEN
    assert "let its owner check it" in said
    assert mm.exists()


def test_reap(mount: Mount, mm: Path) -> None:
    def reaped() -> bool:
        leave_a_slot(mm)
        code, said = run("reap", mount.path)
        assert code == 0
        return said == "1 attachments of dead processes ended, in 1 regions\n"

    until(reaped, "we are faster than the server, which looks every 5 s")
    assert run("reap", mount.path / "r")[1].startswith("0 attachments")
