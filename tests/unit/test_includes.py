"""The check of rooms and floors finds every violation, and says why."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def found(tree: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/includes.py", tree],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert not done.stderr
    assert done.returncode == bool(done.stdout)
    return done.stdout.splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the code, to break."""
    for folder in ("native", "msharefs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def append(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")


def test_the_code_keeps_the_rule() -> None:
    assert found(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "sentence"),
    [
        (
            "native/client/clock.h", '#include "client/attach.h"',
            ("native/client/clock.h includes native/client/attach.h: that goes up: clock is on "
            "floor 6 (tables and figures), attach is on floor 2 (the life of an attachment, and "
            "who takes its faults); calls go down"),
        ),
        (
            "native/server/hostmm.c", '#include "client/view.h"',
            ("native/server/hostmm.c includes native/client/view.h: that goes through a wall: "
            "server (the host mm's only writer) may use include, core only"),
        ),
        (
            "native/core/mm.h", '#  include "preload/sys.h"',
            ("native/core/mm.h includes native/preload/sys.h: that goes through a wall: "
            "core (any process; knows nothing of an attachment) may use include only"),
        ),
        (
            "native/include/msharefs.h", '#include "core/layout.h"',
            ("native/include/msharefs.h includes native/core/layout.h: that goes through a wall: "
            "include (the public header, which a program compiles without the rest) "
            "uses no other room"),
        ),
        (
            "native/fuse/fuse_hook.c", '#include "core/mm.h"',
            ("native/fuse/fuse_hook.c includes native/core/mm.h: that goes through a wall: "
            "fuse (the server's hook in libfuse) may use include, core/linger only"),
        ),
        (
            "native/core/frames.c", '#include "mm.h"',
            ('native/core/frames.c includes "mm.h": there is no such file; '
            'paths begin in native/, as in "core/mm.h"'),
        ),
        (
            "msharefs/launch/running.py", "    from msharefs.lab import report",
            ("msharefs/launch/running.py imports msharefs.lab.report: that goes through a wall: "
            "launch (how a program gets its mount and its library) may use root only"),
        ),
        (
            "msharefs/units.py", "from . import server",
            ("msharefs/units.py imports msharefs.server: that goes through a wall: "
            "root (what every part needs, and the client) uses no other room"),
        ),
        (
            "msharefs/lab/bench/run.py", "import msharefs.cli.bench",
            ("msharefs/lab/bench/run.py imports msharefs.cli.bench: that goes through a wall: "
            "lab (the demonstration and the measurements) may use root, launch, server/view, "
            "server/describe only"),
        ),
    ],
)  # fmt: skip
def test_what_goes_up_or_through_a_wall(tree: Path, file: str, line: str, sentence: str) -> None:
    if line.startswith(" "):  # in a function
        line = f"def late():\n{line}"
    append(tree / file, line)
    assert sentence in found(tree)


def test_a_circle(tree: Path) -> None:
    append(tree / "native/core/mm.h", '#include "core/touched.h"')
    assert set(found(tree)) == {
        "native/core/mm.h includes native/core/touched.h: that closes a circle of 2 files",
        "native/core/touched.h includes native/core/mm.h: that closes a circle of 2 files",
    }


def test_a_circle_of_modules(tree: Path) -> None:
    append(tree / "msharefs/units.py", "from .verbs import pack")
    append(tree / "msharefs/verbs.py", "from . import mountpoint")
    append(tree / "msharefs/mountpoint.py", "from msharefs.units import format_size")
    assert set(found(tree)) == {
        "msharefs/units.py imports msharefs.verbs.pack: that closes a circle of 3 files",
        "msharefs/verbs.py imports msharefs.mountpoint: that closes a circle of 3 files",
        (
            "msharefs/mountpoint.py imports msharefs.units.format_size: "
            "that closes a circle of 3 files"
        ),
    }


def test_a_file_that_is_new_or_gone(tree: Path) -> None:
    (tree / "native/client/late.c").write_text("")
    (tree / "native/client/clock.c").unlink()
    (tree / "native/client/clock.h").rename(tree / "native/client/time.h")
    assert {
        "native/client/late has no floor: give it one in scripts/rooms.toml",
        "native/client/time has no floor: give it one in scripts/rooms.toml",
        "scripts/rooms.toml has a floor for native/client/clock, which is not there",
        (
            "native/client/late.c does not include client/late.h: each .c has a header of its "
            "name, so that what it lends to others is seen"
        ),
    } <= {*found(tree)}
