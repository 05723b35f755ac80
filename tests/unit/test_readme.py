"""README.md: its first steps work, and its differences are those of the conformance report."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def test_every_difference_has_its_reason() -> None:
    """The table "Where it differs from the series" has the rows that differ with quirks=v3."""
    report = (TOP / "CONFORMANCE.md").read_text(encoding="utf-8")
    differ = re.findall(r"^\| (\S+) \|.*\| \*\*differs\*\* \|", report, re.MULTILINE)
    section = (TOP / "README.md").read_text(encoding="utf-8")
    section = section.partition("## Where it differs from the series")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert differ
    assert sorted(re.findall(r"`(\S+)`", " ".join(rows))) == sorted(differ)


def first_steps() -> list[str]:
    """The blocks of code of the section "Use it", before its subsections."""
    section = (TOP / "README.md").read_text(encoding="utf-8").partition("\n## Use it\n")[2]
    section = section.partition("\n## ")[0].partition("\n### ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in blocks]


def test_the_first_steps_work(tmp_path: Path) -> None:
    """All that the section "Use it" shows, one after the other, the C program included."""
    shell, program = [], ""
    for block in first_steps():
        if "#include" in block:
            program = block
        else:
            shell.append(block)
    (tmp_path / "hello.c").write_text(program)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "Makefile").write_text("setup:\n")
    script = "set -e\ntrap 'umount -l /mnt' ERR\n" + "".join(shell)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, check=False, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    said = done.stdout.splitlines()
    assert "hello" in said  # written by Python, read by the C program
    assert any(line.startswith("r  ") and "512 GiB" in line for line in said)  # ls


def test_every_folder_of_tests_has_its_question() -> None:
    folders = {path.name for path in (TOP / "tests").iterdir() if any(path.glob("*.[pc]*"))}
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", (TOP / "tests/README.md").read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(folders - {"__pycache__"})
    assert all(question for _, question in rows)
