"""Durations, sizes, CPUs and percentages: exact both ways, and a hint for what was probably meant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.spec.fault import Fault
from reconciler.spec.quantity import (
    format_bytes,
    format_cpus,
    format_duration,
    parse_bytes,
    parse_cpus,
    parse_duration,
    parse_percent,
)


@given(st.integers(min_value=0, max_value=3650 * 86_400_000))
def test_a_duration_is_read_back_as_it_was_written(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == milliseconds / 1000


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_a_size_is_read_back_as_it_was_written(size: int) -> None:
    assert parse_bytes(format_bytes(size)) == size


@given(st.integers(min_value=0, max_value=10**8))
def test_cpus_are_read_back_as_they_were_written(millicores: int) -> None:
    assert parse_cpus(format_cpus(millicores)) == millicores


@given(st.text())
def test_any_text_is_a_quantity_or_a_fault(text: str) -> None:
    parsers: list[Any] = [parse_duration, parse_bytes, parse_cpus, parse_percent]
    for parse in parsers:
        try:
            found = parse(text)
        except Fault:
            continue
        assert found >= 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1d2h3m4s5ms", 93784.005),
        ("90m", 5400),
        ("1m", 60),
        ("1ms", 0.001),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10", "write 10s"),
        ("1.5s", "write 1s500ms"),
        ("30s1m", "units are"),
        ("1s1s", "units are"),
        ("-1s", "units are"),
        ("1S", "units are"),
        ("", "units are"),
        ("1 s", "units are"),
        ("٣s", "units are"),
        ("1w", "units are"),
    ],
)
def test_what_is_no_duration_gets_a_hint(text: str, hint: str) -> None:
    with pytest.raises(Fault) as caught:
        parse_duration(text)
    assert caught.value.hint.startswith(hint)


def test_a_duration_has_an_upper_bound() -> None:
    with pytest.raises(Fault, match="at most 3650d"):
        parse_duration("999999999d")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1Ki", 1024),
        ("64Mi", 64 << 20),
        ("2Gi", 2 << 30),
        ("1k", 1000),
        ("1M", 10**6),
        ("1G", 10**9),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("64m", "write 64Mi (1024) or 64M (1000)"),
        ("1g", "write 1Gi (1024) or 1G (1000)"),
        ("64mb", "write 64Mi (1024) or 64M (1000)"),
        ("64MB", "write 64Mi (1024) or 64M (1000)"),
        ("64MiB", "write 64Mi (1024) or 64M (1000)"),
        ("1K", "write 1Ki (1024) or 1k (1000)"),
        ("2T", "write 2000G or 2048Gi"),
        ("100b", "write 100"),
        ("1.5Gi", "a whole number"),
        ("-1", "a whole number"),
        ("x", "a whole number"),
        ("", "a whole number"),
    ],
)
def test_what_is_no_size_gets_a_hint(text: str, hint: str) -> None:
    with pytest.raises(Fault) as caught:
        parse_bytes(text)
    assert caught.value.hint.startswith(hint)


def test_a_size_fits_the_kernel() -> None:
    assert parse_bytes(str(2**63 - 1)) == 2**63 - 1
    for text in (str(2**63), "9999999999999999999Gi"):
        with pytest.raises(Fault, match=r"less than 2\^63"):
            parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "millicores"),
    [("1", 1000), ("0.5", 500), ("1.25", 1250), ("500m", 500), ("0.100", 100), ("2.0", 2000)],
)
def test_cpus(text: str, millicores: int) -> None:
    assert parse_cpus(text) == millicores


@pytest.mark.parametrize("text", ["", "x", "-1", ".5", "1e3", "0.0001", "1.m", "500M", "1,5"])
def test_what_is_no_number_of_cpus(text: str) -> None:
    with pytest.raises(Fault):
        parse_cpus(text)


def test_percentages() -> None:
    assert [parse_percent(text) for text in ("0%", "85%", "85 %", "100%")] == [0, 85, 85, 100]
    for text in ("101%", "85", "-1%", "1.5%", "%", ""):
        with pytest.raises(Fault):
            parse_percent(text)
