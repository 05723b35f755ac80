"""The command as a whole: its verbs, its exit status, its sentences."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

import msharefs
from msharefs import cli, installed

if TYPE_CHECKING:
    from pathlib import Path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "msharefs", *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_loads_and_help_says_what_the_verb_says(verb: str) -> None:
    command = cli.cli.get_command(click.Context(cli.cli), verb)
    assert command is not None
    assert command.get_short_help_str(limit=200) == cli.VERBS[verb]


def test_help_names_every_verb_and_loads_none() -> None:
    code = (
        "import sys; from msharefs.cli import cli; cli(['--help'], standalone_mode=False);"
        "print([m for m in sys.modules if m in ('rich', 'trio', 'pyfuse3', 'msharefs._native')])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    listed = [line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")]
    assert set(cli.VERBS) <= set(listed)
    assert result.stdout.splitlines()[-1] == "[]"


def test_version_is_the_package_version() -> None:
    assert run("--version").stdout.strip().endswith(msharefs.__version__)


@pytest.mark.parametrize("arguments", [["stat"], ["nosuchverb"], ["ls", "--nosuch", "."]])
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr


A_VERB = """
import errno, sys, types
import click
from msharefs import cli
@click.command()
def command():
    {does}
sys.modules["msharefs.cli.verb"] = types.SimpleNamespace(command=command)
cli.VERBS["verb"] = ""
sys.argv = ["msharefs", "verb"]
cli.main()
"""


def test_a_server_that_ends_a_connection_is_a_sentence() -> None:
    """It is EPIPE, as a reader who has gone is."""
    code = A_VERB.format(does='raise OSError(errno.EPIPE, "it has ended", "/mnt/r")')
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (1, "msharefs: /mnt/r: it has ended\n")


def test_a_reader_who_has_gone_is_no_error_to_tell() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        code = A_VERB.format(does='click.echo("x")')
        result = subprocess.run(
            [sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, timeout=60,
            check=False,
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize("verb", ["ls", "stat", "maps", "pagetable", "clients"])
def test_not_on_a_mount_is_one_sentence_and_1(verb: str, tmp_path: Path) -> None:
    target = tmp_path / "plain"
    target.write_text("x")
    result = run(verb, str(target))
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert f"{target} is not on an msharefs mount" in result.stderr
    assert "msharefs mount DIR" in result.stderr


def test_missing_file_is_one_sentence_and_1(tmp_path: Path) -> None:
    result = run("stat", str(tmp_path / "none"))
    assert result.returncode == 1
    assert result.stderr == (
        f"msharefs: {tmp_path}/none: there is no such file; "
        "`msharefs ls DIR` lists the regions of a mount\n"
    )


def test_libdir_and_nothing_more() -> None:
    result = run("--libdir")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{installed.libdir()}\n", "")
    assert (installed.libdir() / "libmsharefs.so.1").is_file()
    assert (installed.libdir() / "pkgconfig/msharefs.pc").is_file()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EINVAL, "region r: offset 5 is no page"), "region r: offset 5 is no page"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), "/a/b: No such file"),
        (OSError(errno.EXDEV, "Other device", "/a", None, "/b"), "/a -> /b: Other device"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_sentence_of_an_error(error: OSError, expected: str) -> None:
    assert cli.sentence(error) == expected
