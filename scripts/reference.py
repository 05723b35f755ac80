"""The reference of the documentation, in Markdown: verbs, options of a mount, functions.

python scripts/reference.py DIRECTORY    # writes the pages there
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
import manuals

from msharefs.cli import VERBS, cli
from msharefs.server import options
from msharefs.server.option_texts import REMOUNT, STANDARD, TEXTS

WIDTH = 100


def fenced(text: str, language: str = "none") -> str:
    """Text as it is."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def verbs() -> str:
    """What --help says, of each verb."""
    parts = ["# The command\n", "Each verb, as `msharefs VERB --help` shows it.\n"]
    for name in VERBS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, name
        context = click.Context(command, info_name=f"msharefs {name}", max_content_width=WIDTH)
        context.terminal_width = WIDTH
        parts.append(f"## {name}\n\n{VERBS[name]}\n\n{fenced(command.get_help(context))}")
        for each, below in getattr(command, "commands", {}).items():
            inner = click.Context(below, parent=context, info_name=each, max_content_width=WIDTH)
            inner.terminal_width = WIDTH
            parts.append(f"### {name} {each}\n\n{fenced(below.get_help(inner))}")
    return "\n".join(parts)


def mount_options() -> str:
    """The options of a mount, as a table."""
    lines = ["# Options of a mount\n", "| option | values | meaning |", "|---|---|---|"]
    lines += [f"| `{key}` | `{values}` | {TEXTS[key]} |" for key, values in options.KEYS.items()]
    return "\n".join((*lines, "", STANDARD, "", REMOUNT, ""))


def functions() -> str:
    """The calls of msharefs.h."""
    parts = [
        "# The library\n",
        "`#include <msharefs.h>`, with `pkg-config --cflags --libs msharefs`.\n",
    ]
    for name, (declaration, text) in manuals.functions_of_header().items():
        shown = re.sub(r"\n{3,}", "\n\n", text)
        parts.append(f"## {name}\n\n{fenced(declaration + ';', 'c')}\n{fenced(shown)}")
    return "\n".join(parts)


def main() -> None:
    """Writes the pages."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True)
    pages = {"command": verbs(), "mount-options": mount_options(), "library": functions()}
    for name, text in pages.items():
        (directory / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
