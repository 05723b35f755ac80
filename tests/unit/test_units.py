"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msharefs import units


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0), ("4096", 4096), ("1K", 1024), ("256M", 256 << 20), ("256m", 256 << 20),
        ("512G", 512 << 30), ("3T", 3 << 40), ("1P", 1 << 50), ("1GiB", 1 << 30), (" 2M ", 2 << 20),
    ],
)  # fmt: skip
def test_parse_size(text: str, count: int) -> None:
    assert units.parse_size(text) == count


@pytest.mark.parametrize(
    "text", ["", "M", "-1M", "1.5G", "1MB", "1B", "0x10", "1 M", "1MM", "1iB", "٣M", "1_000"]
)
def test_what_is_no_size_is_named_in_the_error(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size") as caught:
        units.parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.integers(0, 1023), st.sampled_from(["", "K", "M", "G", "T", "P"]))
def test_what_size_writes_parse_size_reads(number: int, unit: str) -> None:
    count = units.parse_size(f"{number}{unit}")
    written = units.size(count).replace(" ", "")
    assert units.parse_size(written if "i" in written else written.removesuffix("B")) == count


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"), (4096, "4 KiB"), (536576, "524 KiB"), (3 << 19, "1.5 MiB"),
        (512 << 30, "512 GiB"), (1 << 62, "4 EiB"), (1023, "1023 B"), (1536.5, "1.5 KiB"),
    ],
)  # fmt: skip
def test_size(count: float, text: str) -> None:
    assert units.size(count) == text
