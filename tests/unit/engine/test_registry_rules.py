"""The rules of the registry client that need no network: challenges, realms, addresses, messages."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.registry.auth import (
    Basic,
    Challenge,
    TokenRequest,
    challenge_of,
    parse_token,
    token_request,
)
from reconciler.engine.registry.credentials import Credential, IdentityToken, Password
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
        (["Basic"], Basic()),
        (['basic realm="x"'], Basic()),
        (["Basically realm=x"], None),
        (['Bearer realm=""'], None),
        (['Bearer service="s"'], None),
        (['Bearer realm="unclosed'], None),
        (['Bearer realm="x" junk"'], None),
        (["Bearer " + "a" * 10_000], None),
        (["Digest x"] * 20 + ['Bearer realm="late"'], None),
    ],
)
def test_the_first_usable_bearer_challenge_is_found(
    headers: list[str], expected: Challenge | Basic | None
) -> None:
    assert challenge_of(headers) == expected


@given(st.lists(st.text(max_size=200), max_size=3))
def test_any_header_is_a_challenge_or_none(headers: list[str]) -> None:
    found = challenge_of([f"Bearer {text}" for text in headers])
    assert found is None or (isinstance(found, Challenge) and found.realm)


def wanted(
    realm: str,
    credential: Credential | None = None,
    *,
    base: str = "https://r.example",
    repository: str = "lib/app",
    realms: tuple[str, ...] = (),
    insecure: tuple[str, ...] = (),
) -> TokenRequest:
    challenge = Challenge(realm, "a b&c")
    registry = base.partition("://")[2]
    return token_request(
        challenge,
        repository,
        credential,
        registry=registry,
        base=base,
        realms=realms,
        insecure=insecure,
        request="r",
    )


def test_the_scope_is_ours_whatever_the_challenge_says() -> None:
    found = wanted("https://auth.example/token?x=1")
    query = "x=1&service=a+b%26c&scope=repository%3Alib%2Fapp%3Apull"
    assert found == TokenRequest(f"https://auth.example/token?{query}")
    assert wanted("http://a/t", base="http://r.example").url.startswith("http://a/t?")
    assert "scope" not in wanted("https://auth.example/token", repository="").url


@pytest.mark.parametrize(
    "realm",
    ["http://a/t", "ftp://a/t", "/t", "https://", "https://u:p@a/t", "https://a@b/t", "https://a/t#f", "https://a/ t",
     "https://a:99999/", "https://[::1/", "https://a/\n", "javascript:x", ""],
)  # fmt: skip
def test_a_realm_that_is_no_https_address_is_refused(realm: str) -> None:
    with pytest.raises(RefusedError):
        wanted(realm)


SECRETS = (Password("me", "s3cret"), IdentityToken("s3cret"))


@pytest.mark.parametrize("credential", SECRETS)
@pytest.mark.parametrize(
    ("base", "realm", "realms", "insecure"),
    [
        ("https://r.example", "https://other.example/t", (), ()),  # another host
        ("https://r.example", "https://r.example:444/t", (), ()),  # another port
        ("https://r.example", "https://r.example.evil/t", ("r.example",), ()),
        ("https://r.example", "https://evilr.example/t", ("r.example",), ()),
        ("https://r.example", "https://auth.docker.io/token", (), ()),  # known, but for another registry
        ("http://r.example", "https://r.example/t", (), ("r.example",)),  # another scheme is another server
        (
            "http://r.example",
            "http://auth.example/t",
            ("auth.example",),
            ("r.example",),
        ),  # plain, and not named
        ("http://r.example", "http://other.example/t", (), ("r.example",)),
    ],
)
def test_g4_credentials_go_to_no_realm_but_the_registrys(
    credential: Credential, base: str, realm: str, realms: tuple[str, ...], insecure: tuple[str, ...]
) -> None:
    """CVE-2020-15157, go-containerregistry 2193."""
    with pytest.raises(RefusedError, match="not sent credentials") as caught:
        wanted(realm, credential, base=base, realms=realms, insecure=insecure)
    assert "s3cret" not in f"{caught.value} {caught.value.hint}"
    assert wanted(realm, None, base=base, realms=realms, insecure=insecure).authorization == ""


@pytest.mark.parametrize(
    ("base", "realm", "realms", "insecure"),
    [
        ("https://r.example", "https://r.example/t", (), ()),
        ("https://r.example:5000", "https://R.example:5000/t", (), ()),
        ("https://r.example", "https://auth.example:8443/t", ("auth.example:8443",), ()),
        ("https://docker.io", "https://auth.docker.io/token", (), ()),
        ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", (), ()),
        ("http://r.example", "http://r.example/t", (), ("r.example",)),
        ("http://r.example", "http://auth.lan/t", ("auth.lan",), ("r.example", "auth.lan")),
    ],
)
def test_g4_a_realm_of_the_registrys_gets_them(
    base: str, realm: str, realms: tuple[str, ...], insecure: tuple[str, ...]
) -> None:
    basic = wanted(realm, SECRETS[0], base=base, realms=realms, insecure=insecure)
    assert basic.authorization == "Basic bWU6czNjcmV0"
    assert "account=me" in basic.url
    assert basic.form == b""
    posted = wanted(realm, SECRETS[1], base=base, realms=realms, insecure=insecure)
    assert posted.authorization == ""
    assert b"grant_type=refresh_token&client_id=reconciler&refresh_token=s3cret" in posted.form
    assert b"scope=repository%3Alib%2Fapp%3Apull" in posted.form
    assert "?" not in posted.url


def test_g12_no_secret_has_a_repr() -> None:
    for item in (
        *SECRETS,
        wanted("https://r.example/t", SECRETS[0]),
        wanted("https://r.example/t", SECRETS[1]),
    ):
        assert "s3cret" not in repr(item)
        assert "bWU6" not in repr(item)


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
