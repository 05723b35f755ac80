"""Documents of --json against their schemas in docs/schema."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

DIRECTORY = Path(__file__).parents[2] / "docs/schema"


def name(kind: str) -> str:
    """The file of a kind's schema: "msharefs plan-check" has plan-check.json."""
    return f"{kind.removeprefix('msharefs ')}.json"


@cache
def _validator(kind: str) -> Any:
    schema = json.loads((DIRECTORY / name(kind)).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def check(document: Any) -> Any:
    """The document, which must say what it is and be that."""
    assert document["kind"].startswith("msharefs ")
    errors = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message}"
        for error in _validator(document["kind"]).iter_errors(document)
    ]
    assert not errors, "\n".join(errors)
    return document
