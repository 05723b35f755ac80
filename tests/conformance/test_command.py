"""``msharefs conformance``: the rows that can be asked of any mount, as users ask them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from msharefs.conformance import asking, rows
from msharefs.conformance.stage import Q
from msharefs.conformance.table import ROWS
from msharefs.conformance.world import SkippedError

from support import schema

if TYPE_CHECKING:
    from pathlib import Path

    from msharefs.conformance.stage import Stage

    from support.server import Mount

SEEK = "lseek to 0 after 5 bytes were read, and what is read then"

pytestmark = pytest.mark.mount()


def conformance(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "msharefs", "conformance", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_json(shared_mount: Mount) -> None:
    done = conformance("--json", "--only", "munmap-*", "--only", "info-m*", shared_mount.path)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    schema.check(found)
    by_row = {each["row"]: each for each in found["rows"]}
    assert by_row["munmap-first"]["answer"] == by_row["munmap-first"]["kernel"] == "EINVAL, 7"
    assert by_row["info-mounter"]["verdict"] == "skipped"
    assert (found["differs"], found["skipped"]) == (0, 1)
    assert found["same"] == len(by_row) - 1


def test_tap(shared_mount: Mount) -> None:
    done = conformance("--tap", "--only", "info-[ns]*", "--only", "info-mounter", shared_mount.path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["TAP version 14", "1..4"]
    assert "ok 1 - info-newline: its last byte" in lines
    assert any(line.startswith("ok ") and "# SKIP needs mshare_info" in line for line in lines)
    assert any(line.startswith("not ok ") and " # TODO The kernel keeps" in line for line in lines)


def test_for_people(shared_mount: Mount) -> None:
    done = conformance("--only", "info-seek", shared_mount.path)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"known    info-seek: {SEEK}: 0, then {Q} (v3: 5, then 755813888)",
        f"1 rows of {shared_mount.path}: 0 same, 1 known, 0 differs, 0 skipped",
    ]
    assert list(shared_mount.path.iterdir()) == [shared_mount.path / "mshare_info"]


@pytest.mark.mount("window=inner")
def test_of_a_mount_with_inner_calls(mount: Mount) -> None:
    done = conformance("--json", "--only", "mprotect-part-1", mount.path)
    [row] = json.loads(done.stdout)["rows"]
    assert (done.returncode, row["answer"], row["verdict"]) == (0, "0", "known")
    assert "window=inner" in row["why"]


def test_what_cannot_be_asked(shared_mount: Mount, tmp_path: Path) -> None:
    assert "there is no such row" in conformance("--only", "x", shared_mount.path).stderr
    assert conformance("--tap", "--json", shared_mount.path).returncode == 2
    none = conformance(tmp_path)
    assert none.returncode == 1
    assert none.stderr == (
        f"msharefs: {tmp_path}: is not the root of a mount of msharefs: it has no mshare_info\n"
    )
    (tmp_path / "mshare_info").write_text("2097152\n")
    assert "mount with -o quantum=512G" in conformance(tmp_path).stderr


def test_answers_are_judged(shared_mount: Mount) -> None:
    """An answer that nobody expects, a check that fails, one that cannot be asked."""
    rows.load()
    row = asking.chosen(["info-ino"])[0]

    def missing(_: Stage) -> str:
        raise SkippedError("a second moon")

    def failing(stage: Stage) -> str:
        return str(stage.agent.call("open", stage.path("nothing"), 0))

    asked = [
        row,
        replace(row, check=lambda _: "3"),
        replace(row, check=lambda _: "3", quirks="3"),
        replace(row, check=missing),
        replace(row, check=failing),
    ]
    found = list(asking.ask(shared_mount.path, asked))
    assert [each.verdict for each in found] == ["same", "differs", "known", "skipped", "differs"]
    assert found[3].said == "needs a second moon"
    assert found[4].said.startswith("FileNotFoundError: ")


def test_the_list() -> None:
    rows.load()
    listed = [line.partition(":")[0] for line in conformance("--list").stdout.splitlines()]
    assert len(listed) > 800
    assert set(listed) <= set(ROWS)
    assert "calls-create" not in listed, "there is nothing to compare it with"
