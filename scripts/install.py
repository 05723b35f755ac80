"""`make install`: puts what `make setup` has built where a system has such things.

    PREFIX/bin/msharefs                   the command
    SBINDIR/mount.msharefs ...            what mount(8) starts, from /sbin alone
    LIBDIR/libmsharefs.so*, pkgconfig/    the library, for C programs
    PREFIX/include/msharefs.h
    PREFIX/lib/msharefs/                  a Python environment: msharefs and the packages it needs
    UNITDIR/msharefs@.service
    PREFIX/share/                         manual pages, completion for bash, zsh and fish

Nothing knows DESTDIR, which a package is made in. `--without` leaves out Python packages that the
system has: those of its Python are seen from the environment.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import manuals
from packaging.requirements import Requirement

from msharefs import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
SYSTEM = ROOT / "scripts/system"
LINKED = ("/usr", "/usr/local")
"""Below these the dynamic linker looks by itself (ldconfig(8), and what Debian adds)."""


class Installation:
    """One installation: where things go, and that they go there below `destdir`."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.destdir: Path = given.destdir
        self.prefix: Path = given.prefix
        self.libdir: Path = given.libdir or self.prefix / "lib"
        self.sbindir: Path = given.sbindir
        self.unitdir: Path = given.unitdir or self.prefix / "lib/systemd/system"
        self.private = self.prefix / "lib/msharefs"
        self.python: Path = given.python
        self.packages = self.private / f"lib/python3.{sys.version_info.minor}/site-packages"
        self.modules: Path = given.modules or self.packages
        self.without: set[str] = {name for name in given.without.split(",") if name}

    def real(self, path: Path) -> Path:
        """Where a path is now; its directory is made."""
        real = self.destdir / path.relative_to("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        return real

    def copy(self, source: Path, path: Path, mode: int = 0o644) -> None:
        """A file at `path`."""
        target = self.real(path)
        target.unlink(missing_ok=True)
        shutil.copyfile(source, target)
        target.chmod(mode)

    def write(self, path: Path, text: str, mode: int = 0o644) -> None:
        """A file at `path` with this text."""
        target = self.real(path)
        target.unlink(missing_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(mode)

    def link(self, path: Path, to: Path) -> None:
        """A relative symbolic link at `path`."""
        target = self.real(path)
        target.unlink(missing_ok=True)
        target.symlink_to(os.path.relpath(to, path.parent))

    def script(self, path: Path, function: str) -> None:
        """A program at `path` that calls a function of msharefs.cli."""
        module, _, name = function.partition(":")
        call = f"from {module} import {name}; {name}()"
        # Not as an interpreter, which Debian wants to be its own.
        python = self.private / "bin/python3"
        self.write(path, f'#!/bin/sh\nexec {python} -I -c "{call}" "$@"\n', 0o755)


def install(to: Installation) -> None:
    """Everything."""
    libraries(to)
    environment(to)
    scripts = project()["scripts"]
    to.script(to.prefix / "bin/msharefs", scripts["msharefs"])
    for name in ("mount", "umount"):
        to.script(to.sbindir / f"{name}.msharefs", scripts[f"{name}.msharefs"])
        to.link(to.sbindir / f"{name}.fuse.msharefs", to.sbindir / f"{name}.msharefs")
    unit = (SYSTEM / "msharefs@.service").read_text()
    to.write(to.unitdir / "msharefs@.service", unit.replace("@BINDIR@", str(to.prefix / "bin")))
    for name, text in manuals.pages().items():
        to.write(to.prefix / f"share/man/man{name[-1]}/{name}", text)
    for path, text in manuals.completions().items():
        to.write(to.prefix / "share" / path, text)


def libraries(to: Installation) -> None:
    """The library for C programs, and what else is compiled and not Python's."""
    built = installed.prefix()
    inside = to.private / "lib"
    library = to.libdir / "libmsharefs.so.1"
    to.copy(built / "lib" / library.name, library)
    to.link(to.libdir / "libmsharefs.so", library)
    for name in ("libmsharefs.so.1", "libmsharefs.so"):
        to.link(inside / name, to.libdir / name)
    to.copy(built / "lib/libmsharefs-preload.so.1", inside / "libmsharefs-preload.so.1")
    for name in ("mshare-agent", "mshare-charger", "mshare-walk", "mshare-worker"):
        to.copy(built / "libexec" / name, to.private / "libexec" / name, 0o755)
    to.copy(built / "include/msharefs.h", to.prefix / "include/msharefs.h")
    to.link(to.private / "include", to.prefix / "include")
    to.write(to.libdir / "pkgconfig/msharefs.pc", pkg_config(to))
    to.link(inside / "pkgconfig/msharefs.pc", to.libdir / "pkgconfig/msharefs.pc")


def pkg_config(to: Installation) -> str:
    """The .pc file: of a fixed place, and with an rpath only where the linker does not look."""
    text = (installed.libdir() / "pkgconfig/msharefs.pc").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^prefix=.*", f"prefix={to.prefix}", text, flags=re.MULTILINE)
    text = re.sub(r"^libdir=.*", f"libdir={to.libdir}", text, flags=re.MULTILINE)
    if str(to.prefix) in LINKED:
        text = text.replace(" -Wl,-rpath,${libdir}", "")
    return text


def environment(to: Installation) -> None:
    """The Python environment, as venv makes it, without what only its user needs."""
    home = to.python.parent
    version = ".".join(map(str, sys.version_info[:3]))
    to.write(
        to.private / "pyvenv.cfg",
        f"home = {home}\ninclude-system-site-packages = true\nversion = {version}\n",
    )
    to.link(to.private / "bin/python3", to.python)
    for found in needed("msharefs", to.without):
        for source, path in files(found):
            to.copy(source, to.packages / path)
    package = ROOT / "msharefs"
    for source in (*package.rglob("*.py"), package / "py.typed"):
        to.copy(source, to.modules / source.relative_to(ROOT))
    for source in installed.prefix().parent.glob("*.so"):
        to.copy(source, to.modules / "msharefs" / source.name)
    to.link(to.modules / "msharefs/_c", to.private)


def needed(name: str, without: set[str]) -> list[Distribution]:
    """The Python packages that a package needs, and those that they need, but for `without`."""
    found: dict[str, Distribution] = {}
    waiting = [name]
    while waiting:
        for line in distribution(waiting.pop()).requires or []:
            requirement = Requirement(line)
            key = requirement.name.lower()
            if key not in found | dict.fromkeys(without) and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ):
                found[key] = distribution(key)
                waiting.append(key)
    return [found[key] for key in sorted(found)]


def files(package: Distribution) -> Iterator[tuple[Path, str]]:
    """The files of a Python package, and their places in an environment."""
    for path in package.files or []:
        name = str(path)
        if not name.startswith("..") and "__pycache__" not in name:
            yield Path(str(path.locate())), name


def project() -> dict[str, dict[str, str]]:
    """What pyproject.toml says of the project."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        read: dict[str, dict[str, str]] = tomllib.load(file)["project"]
        return read


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    parser.add_argument("--destdir", type=Path, default=Path("/"))
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    parser.add_argument("--libdir", type=Path)
    parser.add_argument("--sbindir", type=Path, default=Path("/sbin"))
    parser.add_argument("--unitdir", type=Path)
    parser.add_argument("--modules", type=Path, help="where msharefs itself goes, for any Python")
    parser.add_argument("--python", type=Path, default=base)
    parser.add_argument("--without", metavar="NAME[,NAME...]", default="")
    return parser.parse_args()


def main() -> None:
    """Installs; the linker's cache follows, if it is this system's."""
    given = arguments()
    to = Installation(given)
    install(to)
    if given.destdir == Path("/") and os.geteuid() == 0 and shutil.which("ldconfig"):
        subprocess.run(["ldconfig"], check=True)
    print(f"installed: {to.prefix / 'bin/msharefs'}, {to.sbindir / 'mount.msharefs'}")


if __name__ == "__main__":
    main()
