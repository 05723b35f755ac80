"""Values of -o."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from msharefs.home import default_state
from msharefs.native import lib
from msharefs.server.option_texts import SHORT, TEXTS
from msharefs.server.options import (
    BUDGET_MIN,
    CHANGEABLE,
    KEYS,
    VMAS_MAX,
    BadOptionError,
    is_known,
    parse,
    remounted,
)

MNT = Path("/mnt/m")


def test_defaults() -> None:
    options = parse([], MNT)
    assert (options.quantum, options.owner, options.quirks) == (512 << 30, "file", "")
    assert options.state == default_state(MNT)
    assert not options.foreground
    assert options.faults == "linux"
    assert parse(["charge=owner"], MNT).faults == "watched"


def test_faults() -> None:
    assert parse(["faults=linux"], MNT).faults == "linux"
    with pytest.raises(BadOptionError, match="must be one of linux, watched"):
        parse(["faults=ours"], MNT)


def test_the_default_state_tells_mount_points_and_users_apart() -> None:
    assert default_state(MNT) != default_state(MNT.parent)
    assert f"{os.geteuid()}-" in default_state(MNT).name
    assert default_state(MNT) == default_state(Path("/mnt/m"))


@pytest.mark.parametrize(
    ("given", "quantum"), [("512G", 1 << 39), ("1G", 1 << 30), ("2M", 1 << 21)]
)
def test_quantum(given: str, quantum: int) -> None:
    assert parse([f"quantum={given}"], MNT).quantum == quantum


def test_lists_and_repeats(tmp_path: Path) -> None:
    options = parse(["quantum=1G,,owner=process", f"state={tmp_path},", "quantum=2M"], MNT)
    assert (options.quantum, options.owner, options.state) == (2 << 20, "process", tmp_path)


@pytest.mark.parametrize(("given", "budget"), [("128K", 128 << 10), ("4M", 4 << 20), ("0", 0)])
def test_budget(given: str, budget: int) -> None:
    assert parse([f"budget={given}"], MNT).budget == budget
    assert parse([], MNT).budget == 0


def test_the_least_budget_is_that_of_the_core() -> None:
    assert BUDGET_MIN == lib.BUDGET_MIN_BYTES


def test_quirks_mean_the_owner_of_the_series() -> None:
    assert parse(["quirks=v3"], MNT).owner == "thread"
    assert parse(["quirks=v3,owner=file"], MNT).owner == "file"


def test_state_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(["state=here"], MNT).state == tmp_path / "here"


@pytest.mark.parametrize(
    "given",
    ["quantum=512g", "quantum=", "owner=", "owner=File", "quirks=", "quirks=v4", "window=own",
     "state=", "state=/mnt/m", "state=/mnt/m/deep/er", "budget=", "budget=127K", "budget=4MB", "=",
     "x", "Quantum=2M", "ro=1", "allow_other=yes", "remount", "bind", "allow_root", "sizes=1G",
         "size=", "size=x", "huge=", "huge=deny"],
)  # fmt: skip
def test_wrong(given: str) -> None:
    with pytest.raises(BadOptionError, match=r"^-o "):
        parse([given], MNT)


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ("defaults", ""), ("ro", "ro"), ("ro,rw", ""), ("rw,ro", "ro"),
        ("noatime,nodev,nosuid,noexec", "noatime nodev noexec nosuid"),
        ("noexec,nosuid,exec", "nosuid"),
        ("_netdev,nofail,noauto,user,x-systemd.automount,comment=mine,relatime", ""),
        ("allow_other,default_permissions", ""),
        ("owner,group,user=me,_rnetdev,X-mount.mkdir", ""),
        ("iversion,noiversion,mand,nomand,symfollow,nosymfollow,lazytime,silent", ""),
    ],
)  # fmt: skip
def test_options_of_any_mount(given: str, flags: str) -> None:
    options = parse([given, "quantum=2M"], MNT)
    assert sorted(options.flags) == flags.split()
    assert options.quantum == 2 << 20
    assert options.allow_other is ("allow_other" in given)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(BadOptionError, match=r"^-o colour=red: there is no such option"):
        parse(["ro,colour=red,noexec"], MNT)


def test_limits() -> None:
    options = parse(["regions=7,vmas=65530,clients=1,connections=4,memory=6M"], MNT)
    assert (options.regions, options.vmas, options.clients) == (7, 65530, 1)
    assert (options.connections, options.memory) == (4, 6 << 20)
    assert VMAS_MAX == lib.MM_VMAS


@pytest.mark.parametrize(
    "given",
    [
        "regions=0",
        "regions=",
        "vmas=65531",
        "clients=-1",
        "connections=x",
        "memory=much",
        "nice=1",
        "nice=-21",
        "nice=",
        "nice=-",
    ],
)
def test_limits_that_are_none(given: str) -> None:
    with pytest.raises(BadOptionError, match=given.split("=", maxsplit=1)[0]):
        parse([given], MNT)


def test_each_option_has_a_text() -> None:
    assert set(SHORT) == set(TEXTS) == set(KEYS)
    assert set(CHANGEABLE) <= set(KEYS)


def test_a_remount_changes_limits_and_keeps_the_rest(tmp_path: Path) -> None:
    now = parse([f"quantum=2M,state={tmp_path},regions=5"], MNT)
    then = remounted(now, ["regions=7,quantum=2M,ro,x-systemd.automount", f"state={tmp_path}"])
    assert (then.regions, then.quantum, then.state) == (7, 2 << 20, tmp_path)
    for given in (
        "quantum=1G",
        "owner=process",
        "state=/dev/shm/x",
        "budget=4M",
        "regions=1,faults=watched",
    ):
        key = given.split(",")[-1].partition("=")[0]
        with pytest.raises(BadOptionError, match=f"^-o {key}: cannot change while it is mounted"):
            remounted(now, [given])
    with pytest.raises(BadOptionError, match="there is no such option"):
        remounted(now, ["colour=red"])


def test_known_names() -> None:
    assert all(map(is_known, ("quantum=x", "ro", "x-y", "X-y=1", "user=me", "owner", "comment=a")))
    assert not any(map(is_known, ("colour=red", "remount", "bind")))
