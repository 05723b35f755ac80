"""The wheel: built, installed somewhere else, and used from C and from Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from support import cc

ROOT = Path(__file__).parents[2]
HEADER = "native/include/msharefs.h"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that neither the work tree nor its build directory counts."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("msharefs", "native"):
        ignore = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with the wheel's files, moved after the install: no file may know its place."""
    target = tmp_path_factory.mktemp("target") / "first"
    pip("install", "--no-deps", "--no-index", "--target", target, wheel)
    return target.rename(target.with_name("moved"))


def pip(*arguments: str | Path) -> None:
    """Run pip with the build's tools, which live beside this Python."""
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments],
        env={"PATH": f"{sysconfig.get_path('scripts')}:/usr/bin:/bin"}, check=True, timeout=100,
    )  # fmt: skip


def exported(library: Path) -> set[str]:
    """Names of the dynamic symbols that an ELF file defines, without their versions."""
    table = subprocess.check_output(["nm", "-D", "--defined-only", library], text=True)
    symbols = [line.split()[-2:] for line in table.splitlines()]
    return {name.partition("@")[0] for kind, name in symbols if kind != "A"}


def test_tag_is_the_stable_abi(wheel: Path) -> None:
    assert re.fullmatch(r"msharefs-[\d.]+-cp311-abi3-linux_\w+\.whl", wheel.name)


def test_holds_all_python_and_the_compiled_parts_and_no_more(installed: Path) -> None:
    package = installed / "msharefs"
    found = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    source = {
        str(path.relative_to(ROOT / "msharefs")) for path in (ROOT / "msharefs").rglob("*.py")
    }
    assert {name for name in found if "__pycache__" not in name} == source | {
        "py.typed",
        "_native.abi3.so",
        "_fuse_hook.abi3.so",
        "_c/lib/libmsharefs.so.1",
        "_c/lib/libmsharefs-preload.so.1",
        "_c/lib/libmsharefs.so",
        "_c/lib/pkgconfig/msharefs.pc",
        "_c/include/msharefs.h",
        "_c/libexec/mshare-agent",
        "_c/libexec/mshare-charger",
        "_c/libexec/mshare-walk",
        "_c/libexec/mshare-worker",
    }


def test_library_exports_what_the_header_declares(installed: Path) -> None:
    declared = set(re.findall(r"^MSHARE_API .*?(\w+)\(", (ROOT / HEADER).read_text(), re.MULTILINE))
    assert "mshare_attach" in declared
    assert exported(installed / "msharefs/_c/lib/libmsharefs.so.1") == declared


def test_the_preload_library_has_only_names_of_the_c_library(installed: Path) -> None:
    names = exported(installed / "msharefs/_c/lib/libmsharefs-preload.so.1")
    libc = subprocess.check_output(["cc", "-print-file-name=libc.so.6"], text=True).strip()
    c_library = exported(Path(libc))
    assert {"mmap", "munmap", "close"} <= names
    assert names - c_library <= {"mseal"}  # newer C libraries have it


def test_extension_keeps_its_copy_of_the_core_to_itself(installed: Path) -> None:
    assert exported(installed / "msharefs/_native.abi3.so") == {"PyInit__native"}


def test_header_is_plain_c11() -> None:
    subprocess.run(
        ["cc", "-std=c11", "-D_DEFAULT_SOURCE", "-pedantic", "-Wall", "-Wextra", "-Werror",
         "-fsyntax-only", ROOT / HEADER],
        check=True,
    )  # fmt: skip


def test_c_program_compiles_links_and_calls(installed: Path, tmp_path: Path) -> None:
    source = Path(__file__).with_name("wheel_user.c")
    program = cc.build(source, tmp_path / "user", prefix=installed / "msharefs/_c")
    linked = subprocess.check_output(["ldd", program], text=True)
    found = re.search(r"libmsharefs\.so\.1 => (\S+)", linked)
    assert found
    assert Path(found[1]).resolve() == installed / "msharefs/_c/lib/libmsharefs.so.1"
    result = subprocess.run([program], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stdout


def test_worker_finds_its_library(installed: Path) -> None:
    worker = installed / "msharefs/_c/libexec/mshare-worker"
    assert worker.stat().st_mode & 0o111 == 0o111
    # Through libexec/../lib, wherever that is.
    linked = subprocess.check_output(["ldd", worker], text=True)
    found = re.search(r"libmsharefs\.so\.1 => (\S+)", linked)
    assert found
    assert Path(found[1]).resolve() == installed / "msharefs/_c/lib/libmsharefs.so.1"


def test_python_finds_the_wheels_parts(installed: Path) -> None:
    """-I -S: without the work tree, which an editable install would put first."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
import msharefs._native, msharefs._fuse_hook
from msharefs import installed
print(installed.libdir())
"""
    found = subprocess.check_output(
        [sys.executable, "-I", "-S", "-c", code, installed, sysconfig.get_path("purelib")],
        text=True, timeout=60,
    )  # fmt: skip
    assert Path(found.strip()) == installed / "msharefs/_c/lib"
