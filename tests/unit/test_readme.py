"""README.md is short and its first steps work; the pages agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(TOP)
    for pattern in ("*.md", "docs/*.md", "native/*.md", "tests/*.md")
    for path in TOP.glob(pattern)
)
FIRST_SCREEN = 44  # lines: what it is, the two commands, and what they print
THE_REST = 90


def text(page: Path | str) -> str:
    return (TOP / page).read_text(encoding="utf-8")


def first_steps() -> list[str]:
    """The blocks of code of the section "Use it", before its subsections."""
    section = (TOP / "README.md").read_text(encoding="utf-8").partition("\n## Use it\n")[2]
    section = section.partition("\n## ")[0].partition("\n### ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in blocks]


@pytest.mark.unsanitized("what README says of the compiler is for a library without sanitizers")
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


def figures(page: str) -> dict[str, list[str]]:
    """Rows of its tables of figures, by what was measured: target, measured, verdict."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text(page).splitlines()
        if re.search(r"\| (reached|missed)[^|]*\|$", line)
    ]
    return {what: cells for what, *cells in rows}


def test_readme_is_short() -> None:
    first, heading, rest = text("README.md").partition("## Use it\n")
    assert heading
    assert len(first.splitlines()) <= FIRST_SCREEN
    assert len(rest.splitlines()) + 1 <= THE_REST


def test_readme_has_six_figures_of_one_number_each() -> None:
    rows = figures("README.md")
    assert len(rows) == 6
    for what, (target, measured, verdict) in rows.items():
        assert verdict in {"reached", "missed"}, what
        goal, got = (
            re.fullmatch(r"([\d.]+)(x| MiB| KiB| us)", cell) for cell in (target, measured)
        )
        assert goal, what
        assert got, what
        assert goal[2] == got[2], what
        signed = -1 if "a second" in what else 1  # of these, more is better
        reached = signed * float(got[1]) <= signed * float(goal[1])
        assert verdict == ("reached" if reached else "missed"), what


def test_readme_and_the_page_of_figures_agree() -> None:
    everything = figures("docs/figures.md")
    for what, (target, measured, verdict) in figures("README.md").items():
        all_targets, all_measured, in_words = everything[what]
        assert target in all_targets, what
        assert measured in all_measured, what
        assert in_words.startswith(verdict), what


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        there = TOP / page if not name else (TOP / page).parent / name
        assert there.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(there), f"{page}: {target}"


def test_every_page_is_linked() -> None:
    """A page of docs/ that no other page leads to is never found."""
    linked = "".join(text(page) for page in PAGES)
    for page in PAGES:
        assert page.parent != Path("docs") or page.name in linked, page


def test_every_folder_of_tests_has_its_question() -> None:
    folders = {path.name for path in (TOP / "tests").iterdir() if any(path.glob("*.[pc]*"))}
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", text("tests/README.md"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(folders - {"__pycache__"})
    assert all(question for _, question in rows)


def test_files_that_pages_name_are_there() -> None:
    """Files of native/ by their folder, so that the name says who runs the code."""
    essay = text("native/README.md")
    names = set(re.findall(r"`([\w/]+\.(?:c|h|py))`", essay))
    assert "core/fault.c" in names
    for name in names:
        assert (TOP / "native" / name).exists() or (TOP / name).exists(), name


def test_contributing_says_where_things_live() -> None:
    folders = [
        path
        for top in ("native", "msharefs")
        for path in (TOP / top).iterdir()
        if path.is_dir() and any(path.glob("*.*"))
    ]
    rows = re.findall(r"^\| `([\w/]+/)` \|", text("CONTRIBUTING.md"), re.MULTILINE)
    assert {f"{path.relative_to(TOP)}/" for path in folders if path.name != "__pycache__"} <= set(
        rows
    )
    assert all((TOP / row).is_dir() for row in rows)
