"""`make install`: what it puts where, and that it works there with nothing of the work tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from msharefs.cli import VERBS, _helpers, cli

from support import namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "native/include/msharefs.h"
PROGRAM = """
#include <fcntl.h>
#include <msharefs.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
    struct mshare_stat st;
    if (argc != 2 || fd < 0 || mshare_stat(fd, &st, sizeof st))
        return 1;
    return printf("%lu\\n", st.quantum) < 0;
}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation. Without numpy, which is large, and which only figures need."""
    base = tmp_path_factory.mktemp("install")
    subprocess.run(
        [sys.executable, ROOT / "scripts/install.py", "--prefix", base / "usr", "--sbindir",
         base / "sbin", "--without", "numpy", "--destdir", "."],
        cwd="/", check=True, timeout=60, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return base


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    with namespace.mount_point(tmp_path) as directory:
        yield directory


def run(*command: str | Path, **environ: str) -> str:
    """What a command prints, which must be all that it says."""
    done = subprocess.run(
        list(map(str, command)), env={"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", **environ},
        cwd="/", check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_a_mount_a_program_and_the_end(base: Path, directory: Path, tmp_path: Path) -> None:
    command = base / "usr/bin/msharefs"
    state = f"state={namespace.SHM}/{tmp_path.parent.name}"
    run(base / "sbin/mount.fuse.msharefs", "none", directory, "-o", f"quantum=2M,{state}")
    (tmp_path / "p.c").write_text(PROGRAM)
    path = str(base / "usr/lib/pkgconfig")
    flags = run("pkg-config", "--cflags", "--libs", "msharefs", PKG_CONFIG_PATH=path).split()
    run("cc", "-o", tmp_path / "p", tmp_path / "p.c", *flags)
    assert run(tmp_path / "p", directory / "r") == "2097152\n"
    assert run(command, "ls", directory).splitlines()[1].split()[:2] == ["r", "unsized"]
    python = base / "usr/lib/msharefs/bin/python3"
    assert run(python, "-I", "-c", "import msharefs.client, trio; print(msharefs.__file__)") == (
        f"{base}/usr/lib/msharefs/lib/python3.{sys.version_info.minor}/site-packages/msharefs/"
        "__init__.py\n"
    )
    libdir = Path(run(command, "--libdir").strip())
    assert (libdir / "libmsharefs-preload.so.1").is_file()
    assert (libdir.parent / "libexec/mshare-agent").is_file()
    assert (libdir.parent / "libexec/mshare-worker").is_file()
    assert (libdir / "libmsharefs.so.1").samefile(base / "usr/lib/libmsharefs.so.1")
    run(base / "sbin/umount.msharefs", directory)
    assert namespace.at(directory) is None


def test_nothing_knows_the_work_tree(base: Path) -> None:
    for path in base.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            is_text = b"\0" not in content  # in programs the debugger's figures know it
            assert not is_text or str(ROOT).encode() not in content, path


def test_the_unit_starts_what_is_installed(base: Path) -> None:
    text = (base / "usr/lib/systemd/system/msharefs@.service").read_text()
    assert f"ExecStart={base}/usr/bin/msharefs mount -f -o ${{OPTIONS}} %f\n" in text
    assert "Type=notify\n" in text
    if shutil.which("systemd-analyze"):  # it says nothing of a unit that is right
        unit = base / "usr/lib/systemd/system/msharefs@.service"
        assert run("systemd-analyze", "verify", "--man=no", unit) == ""


def test_there_is_a_page_for_each_verb_and_each_function(base: Path) -> None:
    pages = {path.name for path in (base / "usr/share/man").rglob("*.?")}
    functions = re.findall(r"^MSHARE_API .*?(\w+)\(", HEADER.read_text(), re.MULTILINE)
    assert pages == {
        "msharefs.1", "msharefs.5", "mount.msharefs.8", "umount.msharefs.8",
        "mount.fuse.msharefs.8", "umount.fuse.msharefs.8",
        *(f"msharefs-{verb}.1" for verb in VERBS), *(f"{name}.3" for name in functions),
    }  # fmt: skip


def test_pages_are_troff_that_says_what_help_says(base: Path) -> None:
    man = base / "usr/share/man"
    attach = (man / "man3/mshare_attach.3").read_text()
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "RETURN VALUE", "ERRORS", "EXAMPLES"):
        assert f".SH {heading}\n" in attach
    assert ".TP\n\\fBENOTTY\\fR\n" in attach
    mount = (man / "man5/msharefs.5").read_text()
    assert "\\fBquantum\\fR=\\fI512G/1G/2M\\fR\nWhat sizes" in mount
    if shutil.which("groff"):  # as man(1) has it drawn
        for page in sorted(man.rglob("*.?")):
            done = subprocess.run(
                ["groff", "-man", "-Tutf8", "-ww", "-z", page],
                check=False, capture_output=True, text=True, timeout=30, cwd=man,
            )  # fmt: skip
            assert done.stderr == "", page


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it."""
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            below = command.get_command(context, each)
            assert below is not None, each
            yield from commands(below, f"{name} {each}")


HELPERS = [("mount.msharefs", _helpers.mount), ("umount.msharefs", _helpers.umount)]
COMMANDS = [*commands(cli, "msharefs"), *HELPERS]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_help_has_examples_of_its_own(name: str, command: click.Command) -> None:
    context = click.Context(command, info_name=name, max_content_width=200)
    _, examples = re.split(r"^ *Examples:\n", command.get_help(context), flags=re.MULTILINE)
    about = name.removesuffix(".msharefs")
    assert len(re.findall(rf"^ +{about}\b", examples, re.MULTILINE)) >= 1


def test_every_page_has_examples_and_what_goes_wrong(base: Path) -> None:
    for page in sorted((base / "usr/share/man").rglob("*.?")):
        text = page.read_text()
        if text.startswith(".so "):
            assert (base / "usr/share/man" / text.split()[1]).is_file()
            continue
        parts = re.split(r"^\.SH (.+)\n", text, flags=re.MULTILINE)
        found = dict(zip(parts[1::2], parts[2::2], strict=True))
        wanted = {"NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "SEE ALSO"}
        if page.suffix in (".1", ".8"):
            wanted |= {"OPTIONS", "EXIT STATUS"}
        if page.suffix == ".3":
            wanted.add("RETURN VALUE")
            assert f"{page.stem}(" in found["EXAMPLES"]
            if page.stem != "mshare_version":  # which cannot fail
                wanted.add("ERRORS")
        assert wanted <= set(found), page


def test_shells_complete_verbs_options_and_mounts(base: Path) -> None:
    share = base / "usr/share"
    assert "#compdef msharefs" in (share / "zsh/vendor-completions/_msharefs").read_text()
    assert "complete" in (share / "fish/vendor_completions.d/msharefs.fish").read_text()

    def complete(*words: str) -> list[str]:
        script = (
            f"source {share}/bash-completion/completions/msharefs\n"
            f"COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}\n"
            "_msharefs_completion msharefs; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        path = f"{base}/usr/bin:{os.environ['PATH']}"
        return run("bash", "-c", script, PATH=path).split()

    assert complete("msharefs", "pa") == ["pagetable"]
    assert complete("msharefs", "mount", "-o", "ro,qu") == ["ro,quantum=", "ro,quirks="]
    assert complete("msharefs", "mount", "-o", "quantum=") == [
        "quantum=512G", "quantum=1G", "quantum=2M",
    ]  # fmt: skip


@pytest.mark.timeout(600)  # ten seconds of a processor, on a machine that has others to do
def test_a_debian_package_has_all_where_debian_has_it() -> None:
    """`make deb` also asks lintian, where it is installed, which takes longer than all of this."""
    python = Path("/usr/bin/python3")
    if shutil.which("dpkg-deb") is None or not python.exists():
        pytest.skip("a package is made on Debian, for its own python3: apt-get install python3")
    version = run(python, "-c", "import sys; print(*sys.version_info[:2])").split()
    if version != list(map(str, sys.version_info[:2])):
        pytest.skip(f"the package is for Debian's python3, and .venv has another: {sys.version}")
    done = subprocess.run(
        [ROOT / "scripts/deb"], env={**os.environ, "LINTIAN": "none"},
        check=False, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    package = ROOT / done.stdout.splitlines()[0].removeprefix("deb: ")
    listed = run("dpkg-deb", "--contents", package)
    found = {line.split()[5] for line in listed.splitlines()}
    libdir = f"./usr/lib/{run('gcc', '-print-multiarch').strip()}"
    wanted = {
        "./sbin/mount.msharefs", "./sbin/umount.msharefs", "./sbin/mount.fuse.msharefs",
        "./usr/bin/msharefs", f"{libdir}/libmsharefs.so.1", f"{libdir}/libmsharefs.so",
        f"{libdir}/pkgconfig/msharefs.pc", "./usr/include/msharefs.h",
        "./lib/systemd/system/msharefs@.service", "./usr/lib/python3/dist-packages/msharefs/cli/",
        "./usr/share/bash-completion/completions/msharefs",
        "./usr/share/zsh/vendor-completions/_msharefs",
        "./usr/share/fish/vendor_completions.d/msharefs.fish",
        "./usr/share/man/man3/mshare_attach.3.gz", "./usr/share/man/man5/msharefs.5.gz",
        "./usr/share/man/man8/mount.msharefs.8.gz", "./usr/share/doc/msharefs/copyright",
        "./usr/share/doc/msharefs/changelog.gz",
        *(f"./usr/share/man/man1/msharefs-{verb}.1.gz" for verb in VERBS),
    }  # fmt: skip
    assert wanted <= found
