"""docs/try-the-semantics.md: its commands work, and say what the page says."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/try-the-semantics.md"


def test_the_tutorial(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    script = "set -e\ntrap 'umount -l /mnt' ERR\n" + "".join(map(textwrap.dedent, blocks))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, check=False, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    said = [re.sub(" +", " ", line) for line in done.stdout.splitlines()]
    assert said[:7] == [
        "written by the parent parent 7 child 7, 2 pages in memory",
        "DONTNEED: the data stay parent 7 child 7, 2 pages in memory",
        "POPULATE_WRITE: nobody faults now parent 7 child 7, 512 pages in memory",
        "REMOVE: zeros for both parent 7 child 7, 1 pages in memory",
        "PAGEOUT of what is locked Invalid argument",
        "UNMAP of what is sealed Operation not permitted",
        "a range with a hole Cannot allocate memory",
    ]
    assert [line.split()[1] for line in said[7:11]] == ["rw-s", "rw-s", "rw-s", "r--s"]
    assert said[-1] == str({"unmap": 0, "protect": 1, "dontneed": 1, "pageout": 0})
