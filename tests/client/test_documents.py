"""The types of what the look methods of a Region return are those of what comes."""

from __future__ import annotations

import types
import typing
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import documents

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")


def assert_is(value: object, declared: object) -> None:
    """A value of JSON has a declared type: as a type checker would have it, and no key more."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if typing.is_typeddict(declared):
        assert isinstance(value, dict)
        hints = typing.get_type_hints(declared)
        # Not __required_keys__, which do not know of NotRequired where annotations are strings.
        extras = typing.get_type_hints(declared, include_extras=True)
        optional = {
            key for key, hint in extras.items() if typing.get_origin(hint) is typing.NotRequired
        }
        assert hints.keys() - optional <= value.keys() <= hints.keys()
        for key, each in value.items():
            assert_is(each, hints[key])
    elif origin is list:
        assert isinstance(value, list)
        for each in value:
            assert_is(each, arguments[0])
    elif origin is dict:
        assert isinstance(value, dict)
        for key, each in value.items():
            assert_is(key, arguments[0])
            assert_is(each, arguments[1])
    elif origin is types.UnionType:
        assert type(value) in arguments, (value, declared)
    else:
        assert type(value) is declared, (value, declared)


def test_of_an_attached_region(make_region: Callable[..., msharefs.Region]) -> None:
    region = make_region()
    region.attach()[0] = 1
    region.lock(0, 4096)
    (client,) = region.clients()
    assert client["faults"] == 1
    assert region.maps()[0]["flags"] == ["locked"]
    assert "shootdowns" in region.stat()
    assert_is(region.stat(), documents.Stat)
    assert_is(region.maps(), list[documents.VMA])
    assert_is(region.clients(), list[documents.Client])


def test_without_a_size(shared_mount: Mount) -> None:
    path = shared_mount.path / "unsized"
    path.touch()
    with msharefs.open(path) as region:
        assert_is(region.stat(), documents.Stat)
    path.unlink()
