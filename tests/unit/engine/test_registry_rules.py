"""The rules of the registry client that need no network: challenges, realms, addresses, messages."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.registry.auth import Challenge, bearer_challenge, parse_token, token_url
from reconciler.engine.registry.dial import kind_of
from reconciler.engine.registry.errors import (
    RefusedError,
    RegistryError,
    UnreachableRegistryError,
    address,
    plain,
)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Bearer realm="https://a/t",service="s",scope="x"'], Challenge("https://a/t", "s")),
        (["bearer realm=https://a/t"], Challenge("https://a/t", "")),
        (['Bearer  realm = "https://a/t" , service = "s"'], Challenge("https://a/t", "s")),
        (['Bearer realm="a\\"b"'], Challenge('a"b', "")),
        (['Basic realm="x"', 'Bearer realm="y"'], Challenge("y", "")),
        (['Bearer realm="first",realm="second"'], Challenge("first", "")),
        (['Bearer error="invalid_token",realm="y"'], Challenge("y", "")),
        ([], None),
        (["Basic"], None),
        (['Bearer realm=""'], None),
        (['Bearer service="s"'], None),
        (['Bearer realm="unclosed'], None),
        (['Bearer realm="x" junk"'], None),
        (["Bearer " + "a" * 10_000], None),
        (["Digest x"] * 20 + ['Bearer realm="late"'], None),
    ],
)
def test_the_first_usable_bearer_challenge_is_found(headers: list[str], expected: Challenge | None) -> None:
    assert bearer_challenge(headers) == expected


@given(st.lists(st.text(max_size=200), max_size=3))
def test_any_header_is_a_challenge_or_none(headers: list[str]) -> None:
    found = bearer_challenge([f"Bearer {text}" for text in headers])
    assert found is None or found.realm


def test_the_scope_is_ours_whatever_the_challenge_says() -> None:
    url = token_url(Challenge("https://auth.example/token?x=1", "a b&c"), "lib/app", secure=True, request="r")
    assert url == "https://auth.example/token?x=1&service=a+b%26c&scope=repository%3Alib%2Fapp%3Apull"
    assert token_url(Challenge("http://a/t", ""), "x", secure=False, request="r").startswith("http://a/t?")


@pytest.mark.parametrize(
    "realm",
    ["http://a/t", "ftp://a/t", "/t", "https://", "https://u:p@a/t", "https://a@b/t", "https://a/t#f", "https://a/ t",
     "https://a:99999/", "https://[::1/", "https://a/\n", "javascript:x", ""],
)  # fmt: skip
def test_a_realm_that_is_no_https_address_is_refused(realm: str) -> None:
    with pytest.raises(RefusedError):
        token_url(Challenge(realm, "s"), "x", secure=True, request="r")


def test_a_token_answer_is_read_strictly() -> None:
    assert parse_token(b'{"token":"abc","expires_in":100}', now=1000, request="r").text == "abc"
    assert parse_token(b'{"access_token":"abc"}', now=1000, request="r").expires == 1048
    assert parse_token(b'{"token":"a","expires_in":999999999}', now=0, request="r").expires == 2880
    assert parse_token(b'{"token":"a","expires_in":-5}', now=0, request="r").expires == 8
    for bad in (
        b"",
        b"[]",
        b"{}",
        b'{"token":1}',
        b'{"token":"a b"}',
        b'{"token":"a\\n"}',
        b'{"token":"\xc3\xa9"}',
    ):
        with pytest.raises(RefusedError):
            parse_token(bad, now=0, request="r")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("8.8.8.8", "public"),
        ("2606:4700::1111", "public"),
        ("127.0.0.1", "loopback"),
        ("127.8.9.1", "loopback"),
        ("::1", "loopback"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("0.0.0.0", "never"),
        ("::", "never"),
        ("224.0.0.1", "never"),
        ("ff02::1", "never"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::", "loopback"),
    ],
)
def test_addresses_are_sorted_by_where_they_lead(text: str, kind: str) -> None:
    assert kind_of(ipaddress.ip_address(text)) == kind


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@r.example:5000/v2/x?token=abc#f", "https://r.example:5000/v2/x"),
        ("http://h/" + "a" * 500, "http://h/..."),
        ("http://[::1", "an unreadable address"),
        ("http://h:99999/", "an unreadable address"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert address(url) == shown


@given(st.text(max_size=500))
def test_what_a_stranger_says_fits_on_one_line(text: str) -> None:
    found = plain(text)
    assert len(found) <= 300
    assert "\n" not in found
    assert "\x1b" not in found


def test_tokens_and_queries_are_taken_out_and_digests_are_not() -> None:
    digest = "sha256:" + "0123456789abcdef" * 4
    assert plain(f"blob {digest} unknown") == f"blob {digest} unknown"
    assert "secret" not in plain("see https://h/x?token=secret and https://secret:x@h/")
    assert "eyJ" not in plain("Bearer eyJhbGciOi.eyJzdWIi.c2ln")
    assert "QUJD" not in plain("key " + "QUJDREVGR0hJSktMTU5PUFFSU1RVVg==")


def test_errors_say_whether_waiting_may_help() -> None:
    for status, transient in (
        (400, False),
        (401, False),
        (404, False),
        (408, True),
        (425, True),
        (429, True),
        (500, True),
        (503, True),
    ):
        assert RegistryError("r: GET /x", status, "said").transient is transient
    assert RegistryError("r: GET /x", 404, "gone").exit_code == 8
    assert str(UnreachableRegistryError("r: GET /x", "broken off")) == "r: GET /x: broken off"
    assert UnreachableRegistryError("r", "x").transient
    assert not RefusedError("r", "x").transient
