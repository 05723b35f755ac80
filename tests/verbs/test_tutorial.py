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
    lines = [re.sub(" +", " ", line) for line in done.stdout.splitlines()]
    refuse, inner, private = (
        lines.index(f"window={mode}") for mode in ("refuse", "inner", "private")
    )
    the_verbs(lines[:refuse])
    assert lines[refuse + 1 : inner] == [
        "madvise POPULATE_WRITE Bad address child 7, 1 pages in memory",
        "madvise DONTNEED done child 7, 1 pages in memory",
        "madvise REMOVE Operation not supported child 7, 1 pages in memory",
        "mlock of 4 pages Cannot allocate memory child 7, 1 pages in memory",
        "mprotect of 4 pages Invalid argument child 7, 1 pages in memory",
        "mprotect over the hole Invalid argument child 7, 1 pages in memory",
        "munmap of 4 pages Invalid argument child 7, 1 pages in memory",
        "000000000000-000000200000 rw-s 00000000 00:00 0 [anon]",
        "Rss: 4 kB",
        "Pss: 2 kB",
        "Locked: 0 kB",
        str({"unmap": 0, "protect": 0, "dontneed": 0, "pageout": 0, "remove": 0}),
        "unshared tables: [0, 0]",
    ]
    assert lines[inner + 1 : private] == [
        "madvise POPULATE_WRITE done child 7, 16 pages in memory",
        "madvise DONTNEED done child 7, 16 pages in memory",
        "madvise REMOVE done child 0, 9 pages in memory",
        "mlock of 4 pages done child 0, 12 pages in memory",
        "mprotect of 4 pages done child 0, 12 pages in memory",
        "mprotect over the hole Cannot allocate memory child 0, 12 pages in memory",
        "munmap of 4 pages done child 0, 12 pages in memory",
        "000000000000-000000004000 rw-s 00000000 00:00 0 [anon]",
        "000000004000-000000008000 rw-s 00004000 00:00 0 [anon]",
        "000000008000-00000000c000 r--s 00008000 00:00 0 [anon]",
        "00000000c000-000000010000 rw-s 0000c000 00:00 0 [anon]",
        "000000014000-000000200000 rw-s 00014000 00:00 0 [anon]",
        "Rss: 16 kB",
        "Pss: 8 kB",
        "Locked: 8 kB",
        str({"unmap": 1, "protect": 1, "dontneed": 1, "pageout": 0, "remove": 1}),
        "unshared tables: [0, 0]",
    ]
    assert lines[private + 1 :] == [
        "madvise POPULATE_WRITE done child 7, 16 pages in memory",
        "madvise DONTNEED done child 7, 16 pages in memory",
        "madvise REMOVE Operation not supported child 7, 16 pages in memory",
        "mlock of 4 pages done child 7, 16 pages in memory",
        "mprotect of 4 pages done child 7, 16 pages in memory",
        "mprotect over the hole Cannot allocate memory child 7, 16 pages in memory",
        "munmap of 4 pages done child 7, 16 pages in memory",
        "000000000000-000000200000 rw-s 00000000 00:00 0 [anon]",
        "Rss: 64 kB",
        "Pss: 32 kB",
        "Locked: 0 kB",
        str({"unmap": 0, "protect": 0, "dontneed": 0, "pageout": 0, "remove": 0}),
        "unshared tables: [1, 0]",
    ]


def the_verbs(said: list[str]) -> None:
    """The first program's lines."""
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
    assert said[-1] == str({"unmap": 0, "protect": 1, "dontneed": 1, "pageout": 0, "remove": 1})
