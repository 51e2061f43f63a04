"""The keys that detach: found however the input is cut up, and nothing that is typed gets lost on the way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.cli.detaching import DEFAULT, Keys, parse_keys
from reconciler.errors import UsageError


@pytest.mark.parametrize(
    ("text", "keys"),
    [(DEFAULT, b"\x10\x11"), ("a", b"a"), ("ctrl-@,Z", b"\0Z"), ("ctrl-A,ctrl-[,ctrl-_", b"\x01\x1b\x1f")],
)
def test_keys_are_written_as_for_docker(text: str, keys: bytes) -> None:
    assert parse_keys(text) == keys


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-1", "ctrl-ab", "ab", "a,,b", "\x10", "é"])
def test_what_is_no_key_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="--detach-keys"):
        parse_keys(text)


@given(
    st.lists(st.binary(max_size=6).map(lambda data: bytes(b"abx"[number % 3] for number in data))),
    st.sampled_from([b"ab", b"aab", b"a", b"abab"]),
)
def test_what_comes_before_the_keys_goes_on_and_nothing_is_lost(parts: list[bytes], keys: bytes) -> None:
    typed, passed, left = b"".join(parts), b"", False
    found = Keys(keys)
    for part in parts:
        more, left = found.take(part)
        passed += more
        if left:
            break
    where = typed.find(keys)
    assert left is (where >= 0)
    if left:
        assert passed == typed[:where]
    else:
        held = typed[len(passed) :]
        assert typed.startswith(passed)
        assert held != keys
        assert keys.startswith(held)
