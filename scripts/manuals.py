"""The manual pages and the completions, made from the texts that --help and the header have.

    .venv/bin/python scripts/manuals.py DIRECTORY    # writes the pages there

`pages()` has msharefs(1), one page for each verb, msharefs(5) for the options of a mount, the
helpers of mount(8), and one for each function of msharefs.h.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from msharefs import __version__
from msharefs.cli import VERBS, _examples, _helpers, cli
from msharefs.server import options
from msharefs.server.option_texts import REMOUNT, STANDARD, TEXTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[1]
HEADER = ROOT / "native/include/msharefs.h"
FUNCTIONS = re.compile(
    r"/\*\n?((?:[^*]|\*(?!/))*?)\*/\n(?:#define .*\n)*((?:MSHARE_API [^;]+;\n)+)"
)
FAMILY = re.compile(r"/\*\n( \* What madvise\(2\)(?:[^*]|\*(?!/))*?)\*/")
"""The comment that stands before all calls on a range."""
ERROR = re.compile(r"^(E[A-Z]+)(?:  +|: )(.*)$")
ENVIRONMENT = (
    ("MSHAREFS_MOUNT", "The mount that `msharefs run` uses. It sets it for the program."),
    ("MSHAREFS_PT_BUDGET", "Bytes of its own page tables that a process keeps, as 4M."),
    ("NO_COLOR", "No colours on a terminal."),
)  # fmt: skip
RETURNS = {
    "void *": "The address; MAP_FAILED on error, with errno set.",
    "const char *": "The string, which is the library's.",
    "int ": "0; -1 on error, with errno set.",
}
SHELLS = {
    "bash": "bash-completion/completions/msharefs",
    "zsh": "zsh/vendor-completions/_msharefs",
    "fish": "fish/vendor_completions.d/msharefs.fish",
}


def escaped(text: str) -> str:
    """Text as troff takes it."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def bold(text: str) -> str:
    """Escaped, bold."""
    return f"\\fB{escaped(text)}\\fR"


class Page:
    """One manual page."""

    def __init__(self, name: str, section: int, what: str) -> None:
        self.name, self.section = name, section
        manual = {1: "User Commands", 3: "C Library", 5: "File Formats", 8: "System Administration"}
        self._lines = [
            f'.TH {name.upper()} {section} "" "msharefs {__version__}" "{manual[section]}"',
            ".SH NAME",
            f"{escaped(name)} \\- {escaped(what[:1].lower() + what[1:].rstrip('.'))}",
        ]

    def heading(self, text: str) -> None:
        """A section."""
        self._lines.append(f".SH {text}")

    def raw(self, *lines: str) -> None:
        """Lines of troff."""
        self._lines += lines

    def paragraph(self, text: str) -> None:
        """Text that is filled."""
        self._lines += [".PP", escaped(" ".join(text.split()))]

    def item(self, tag: str, text: str) -> None:
        """A tagged paragraph; the tag is troff already."""
        self._lines += [".TP", tag, escaped(" ".join(text.split()))]

    def example(self, lines: Iterable[str]) -> None:
        """Lines as they are."""
        self._lines += [".PP", ".in +4n", ".nf", *map(escaped, lines), ".fi", ".in"]

    def see(self, *others: tuple[str, int]) -> None:
        """The last section."""
        self.heading("SEE ALSO")
        shown = [f".BR {escaped(name)} ({section})" for name, section in others]
        self._lines += [f"{line} ," for line in shown[:-1]] + shown[-1:]

    def __str__(self) -> str:
        return "\n".join(self._lines) + "\n"


def described(page: Page, help_text: str) -> None:
    """The paragraphs of a docstring."""
    for part in textwrap.dedent(help_text).replace("\f", "").split("\n\n"):
        page.paragraph(part)


def synopsis(page: Page, name: str, command: click.Command) -> None:
    """The line of usage."""
    page.heading("SYNOPSIS")
    page.raw(f"{bold(name)} {escaped(' '.join(pieces(command)))}")


def pieces(command: click.Command) -> list[str]:
    """The words behind a command's name in the line of usage."""
    return command.collect_usage_pieces(click.Context(command))


def parameters(page: Page, command: click.Command) -> None:
    """Its options, under a heading."""
    page.heading("OPTIONS")
    options_of(page, command)


def options_of(page: Page, command: click.Command) -> None:
    """Its options."""
    context = click.Context(command)
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1]:
            page.item(bold(record[0]), record[1])


def verb(name: str) -> Page:
    """The page of a verb."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, name
    page = Page(f"msharefs-{name}", 1, VERBS[name])
    synopsis(page, f"msharefs {name}", command)
    page.heading("DESCRIPTION")
    described(page, command.help or "")
    parameters(page, command)
    for each, below in getattr(command, "commands", {}).items():
        page.heading(escaped(each.upper()))
        page.raw(f"{bold(f'msharefs {name} {each}')} {escaped(' '.join(pieces(below)))}")
        described(page, below.help or "")
        options_of(page, below)
    if name == "mount":
        page.paragraph("msharefs(5) has the options that -o takes.")
    page.heading("EXIT STATUS")
    page.paragraph(_STATUS.get(name, _DONE))
    page.heading("EXAMPLES")
    page.example(_examples.lines(name))
    page.see(("msharefs", 1), ("msharefs", 5))
    return page


_DONE = "0 if it is done, 1 if not, which a sentence explains, and 2 for wrong usage."
_STATUS = {
    "check": "0 if nothing is wrong, 1 if all is mended or could not be checked, 2 if not all is.",
    "run": "The program's own; 128+N if signal N ended it; 126 or 127 if it cannot be started.",
}


def command_page() -> Page:
    """msharefs(1)."""
    page = Page("msharefs", 1, "shared page tables between processes, in user space")
    synopsis(page, "msharefs", cli)
    page.heading("DESCRIPTION")
    page.paragraph(
        "A file of an msharefs mount is a region: memory whose page tables belong to the file, and "
        "which any number of processes attach. Its verbs mount, look, and measure."
    )
    page.heading("COMMANDS")
    for name, text in VERBS.items():
        page.item(f"\\fBmsharefs\\-{escaped(name)}\\fR(1)", text)
    parameters(page, cli)
    page.heading("ENVIRONMENT")
    for name, text in ENVIRONMENT:
        page.item(bold(name), text)
    page.heading("EXIT STATUS")
    page.paragraph(_DONE)
    page.heading("EXAMPLES")
    page.example(_examples.lines("msharefs"))
    functions = ((name, 3) for name in functions_of_header())
    page.see(("msharefs", 5), ("mount.msharefs", 8), *functions)
    return page


def options_page() -> Page:
    """msharefs(5)."""
    page = Page("msharefs", 5, "options of an msharefs mount")
    page.heading("SYNOPSIS")
    page.raw(f"{bold('mount -t msharefs')} \\fINAME DIRECTORY\\fR {bold('-o')} \\fIOPTIONS\\fR")
    page.heading("DESCRIPTION")
    page.paragraph(
        "Each file of the mount is a region: made with open(2), sized once with ftruncate(2), "
        "filled by ioctl(2) or mshare_map(3), and attached. mshare_info has the quantum."
    )
    page.heading("MOUNT OPTIONS")
    for key, values in options.KEYS.items():
        page.item(f"{bold(key)}=\\fI{escaped(values)}\\fR", TEXTS[key])
    page.paragraph(STANDARD)
    page.paragraph(REMOUNT)
    page.heading("FILES")
    page.item("\\fI/run/msharefs\\fR", "Regions and the log of root's servers, not to be entered.")
    page.item(
        "\\fI/etc/msharefs/NAME.conf\\fR",
        "OPTIONS= of the unit msharefs@NAME.service; NAME is the mount point as "
        "systemd-escape(1) --path writes it.",
    )
    page.heading("EXAMPLES")
    page.example(
        [
            "mount -t msharefs none /mnt -o quantum=2M,size=8G",
            "none  /mnt  msharefs  quantum=2M,size=8G,nofail  0  0     # in /etc/fstab",
            "systemctl start msharefs@mnt                          # /etc/msharefs/mnt.conf",
        ]
    )
    page.see(("msharefs", 1), ("mount.msharefs", 8), ("fstab", 5), ("mount", 8))
    return page


def helper(name: str, command: click.Command, other: str) -> Page:
    """The page of a helper of mount(8) or umount(8)."""
    text = command.help or ""
    page = Page(name, 8, text.partition(",")[0])
    synopsis(page, name, command)
    page.heading("DESCRIPTION")
    described(page, text)
    parameters(page, command)
    page.heading("EXIT STATUS")
    page.paragraph("0 if it is done, 1 for wrong usage, 32 if it could not be done.")
    page.heading("EXAMPLES")
    page.example(_examples.lines(name))
    page.see((other, 8), ("msharefs", 5))
    return page


def functions_of_header() -> dict[str, tuple[str, str]]:
    """The functions of msharefs.h, each with its declaration and the comment above it."""
    found = {}
    header = HEADER.read_text(encoding="utf-8")
    family = FAMILY.search(header)
    assert family is not None
    for match in FUNCTIONS.finditer(header):
        text = _text(match[1])
        for each in re.findall(r"MSHARE_API ([^;]+);", match[2]):
            declaration = " ".join(each.split())
            name = re.search(r"(\w+)\(", declaration)
            assert name is not None, declaration
            on_range = match.start() > family.start() and "off_t offset" in declaration
            more = f"\n\n{_text(family[1])}" if on_range else ""
            found[name[1]] = declaration, text + more
    return found


def _text(comment: str) -> str:
    """A comment without its stars."""
    return re.sub(r"^ ?\* ?", "", comment, flags=re.MULTILINE).strip()


def function(name: str, declaration: str, text: str) -> Page:
    """The page of a function: the comment's paragraphs, and its errors."""
    errors: list[list[str]] = []
    described_: list[str] = []
    for line in text.rstrip().splitlines():
        match = ERROR.match(line)
        if match:
            errors.append([match[1], match[2]])
        elif errors and errors[-1] and line.startswith(" "):
            errors[-1][1] += f" {line.strip()}"
        elif line or not errors:
            described_.append(line)
    what = re.split(r"[,.:;] |\.$|\.\n", " ".join(described_), maxsplit=1)[0]
    page = Page(name, 3, " ".join(what.split()))
    page.heading("SYNOPSIS")
    page.raw(".nf", bold("#include <msharefs.h>"), "", bold(f"{declaration};"), ".fi")
    page.paragraph("Compile and link with `pkg-config --cflags --libs msharefs`.")
    page.heading("DESCRIPTION")
    for part in "\n".join(described_).split("\n\n"):
        if re.search(r"^  +\w", part, re.MULTILINE):
            page.example(part.splitlines())
        else:
            page.paragraph(part)
    page.heading("RETURN VALUE")
    page.paragraph(next(said for what, said in RETURNS.items() if declaration.startswith(what)))
    if errors:
        page.heading("ERRORS")
        for code, meaning in errors:
            page.item(bold(code), meaning[:1].upper() + meaning[1:].rstrip(".") + ".")
    page.heading("EXAMPLES")
    page.example(calls()[name].splitlines())
    others = [(other, 3) for other in functions_of_header() if other != name]
    page.see(*others, ("msharefs", 5))
    return page


@cache
def calls() -> dict[str, str]:
    """The examples of the functions' pages, from a program that is run by a test."""
    text = (ROOT / "examples/c/calls.c").read_text(encoding="utf-8")
    _, *parts = re.split(r"^/\* (?:(\w+)\(3\)|main) \*/\n", text, flags=re.MULTILINE)
    return {name: part.strip() for name, part in zip(parts[::2], parts[1::2], strict=True) if name}


def _all() -> Iterator[Page]:
    yield command_page()
    yield from map(verb, VERBS)
    yield options_page()
    yield helper("mount.msharefs", _helpers.mount, "mount")
    yield helper("umount.msharefs", _helpers.umount, "umount")
    for name, (declaration, text) in functions_of_header().items():
        yield function(name, declaration, text)


def pages() -> dict[str, str]:
    """The pages, by the names of their files."""
    found = {f"{page.name}.{page.section}": str(page) for page in _all()}
    for name in ("mount", "umount"):
        found[f"{name}.fuse.msharefs.8"] = f".so man8/{name}.msharefs.8\n"
    return found


def completions() -> dict[str, str]:
    """The completion of each shell, by its place below share/."""
    found = {}
    for shell, place in SHELLS.items():
        found[place] = subprocess.check_output(
            [sys.executable, "-m", "msharefs"], text=True,
            env={**os.environ, "_MSHAREFS_COMPLETE": f"{shell}_source"},
        )  # fmt: skip
    return found


def main() -> None:
    """Writes the pages into a directory."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
