"""docs/zygote.md: its commands work, and find what the page says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from support import schema

PAGE = Path(__file__).resolve().parents[2] / "docs/zygote.md"
COMMANDS = ("cat", "gcc", ".venv/bin/")
TABLE = 4096
IMAGE = 16
"""PTE tables."""
CHILDREN = 12
"""And 40 libraries, where the page has 50 and 200."""
SPARE = (IMAGE - 1) * (CHILDREN - 1) + CHILDREN - 2
"""Of their tables for the image, those that would go."""


def blocks() -> list[str]:
    """The commands of the page; the other blocks are what they print."""
    sizes = "LIBRARIES, CHILDREN, IMAGE, PLACE ="
    page = PAGE.read_text(encoding="utf-8")
    assert f"{sizes} 200, 50," in page
    page = page.replace(f"{sizes} 200, 50,", f"{sizes} 40, {CHILDREN},")
    found = re.findall(r"(?:^    .*\n|^\n(?=    ))+", page, re.MULTILINE)
    texts = [textwrap.dedent(text).lstrip("\n") for text in found]
    return [text for text in texts if text.startswith(COMMANDS)]


def run(directory: Path, script: str) -> str:
    done = subprocess.run(
        ["bash", "-ec", script], cwd=directory, check=False, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the zygote and its libraries are."""
    made = tmp_path_factory.mktemp("zygote")
    (made / ".venv").symlink_to(sys.prefix)
    run(made, blocks()[0])
    return made


@pytest.fixture(scope="module")
def survey(directory: Path) -> tuple[str, dict[str, Any]]:
    """What the page's survey prints, and its JSON."""
    said = run(directory, blocks()[1])
    return said, json.loads((directory / "zygote.json").read_text())


def saved(found: dict[str, Any]) -> dict[str, int]:
    return {one["class"]: one["saved_bytes"] for one in found["classes"]}


def test_the_survey(survey: tuple[str, dict[str, Any]]) -> None:
    said, found = survey
    by_class = saved(found)
    # With the parent, and the shell that has started the survey.
    assert re.match(rf"{CHILDREN + 2} processes: page tables .* sharing would take away ", said)
    (image,) = (one for one in found["objects"] if one["path"].endswith("/image"))
    # The parent has not touched it, and in one table one child has other rights.
    assert image["by_class"]["unwritten"] == SPARE * TABLE
    # The libraries' private pages are the parent's still; but half of the children have written to
    # two of them.
    assert by_class["forked"] >= 2 * (CHILDREN - 1) * TABLE
    assert found["unwritten_bytes"] >= (CHILDREN / 2 - 1) * TABLE
    assert by_class["relro"] == by_class["anon"] == 0
    ways = {one["scheme"]: one["saved_bytes"] for one in found["schemes"]}
    assert (ways["series"], ways["in place 2M"]) == (0, found["saved_bytes"])


def test_the_run(directory: Path, survey: tuple[str, dict[str, Any]]) -> None:
    del survey  # made first: the zygote writes its files
    for seconds in (2, 10, 30):  # nobody outside sees when the watcher has looked
        run(directory, blocks()[2].replace("sleep 2", f"sleep {seconds}"))
        found = json.loads((directory / "run.json").read_text())
        schema.check(found)
        flagged = found["shared_pt"]
        if flagged["own_tables_bytes"] == CHILDREN * IMAGE * TABLE and flagged["unshared"]:
            break
    assert flagged == {
        "processes": 1 + CHILDREN,
        "mappings": 1,
        "own_tables_bytes": CHILDREN * IMAGE * TABLE,
        "page_table_bytes": IMAGE * TABLE,
        "saved_bytes": SPARE * TABLE,
        "unshared": [{"cause": "mprotect", "what": "mprotect(2)", "bytes": TABLE}],
        "inexact": False,
    }


def test_the_plan(directory: Path, survey: tuple[str, dict[str, Any]]) -> None:
    _, found = survey
    said = run(directory, blocks()[3])
    before = CHILDREN + 2
    assert said.startswith(f"150 processes like the {before} that were surveyed: page tables ")
    planned = json.loads(run(directory, blocks()[3].rstrip() + " --json"))
    schema.check(planned)
    assert saved(planned) == {
        kind: round(size * 149 / (before - 1)) for kind, size in saved(found).items() if size
    }
    assert planned["vmpte_bytes"] == round(found["vmpte_bytes"] * 150 / before)
