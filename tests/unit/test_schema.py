"""The contract of --json: each kind has a schema, and the page of documentation knows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from support import schema

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.name for path in schema.DIRECTORY.iterdir())


def properties(found: object) -> list[str]:
    """The names of all values of a schema, at any depth."""
    if isinstance(found, list):
        return [name for each in found for name in properties(each)]
    if not isinstance(found, dict):
        return []
    names = list(found["properties"]) if isinstance(found.get("properties"), dict) else []
    return names + [name for each in found.values() for name in properties(each)]


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_says_kind_and_version(name: str) -> None:
    found = json.loads((schema.DIRECTORY / name).read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["title"] == f"msharefs {name.removesuffix('.json')}"
    assert found["properties"]["kind"] == {"const": found["title"]}
    assert {"kind", "version"} <= set(found["required"])
    assert not {"size", "offset", "start_time"} & set(properties(found)), "without a unit"


def test_a_document_that_breaks_its_schema_is_found() -> None:
    with pytest.raises(AssertionError, match="'mappings' is a required property"):
        schema.check({"kind": "msharefs maps", "version": 1, "region": "r"})


def test_the_page_lists_every_kind() -> None:
    page = (ROOT / "docs/json.md").read_text()
    listed = re.findall(r"^\| `(msharefs [a-z-]+)` \|", page, re.MULTILINE)
    assert sorted(map(schema.name, listed)) == NAMES


def test_every_verb_with_json_prints_kind_and_version() -> None:
    """A verb that prints JSON without `_json.document`, or what has its own kind, is forgotten."""
    for path in (ROOT / "msharefs/cli").glob("[a-z]*.py"):
        text = path.read_text()
        if "_show.json_option" in text:
            assert "_json.document" in text or path.stem == "survey", path
