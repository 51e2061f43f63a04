"""Files of credentials and the answers of helpers, as values; what is done with them is in the hostile tests."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.registry.credentials import (
    ConfigFile,
    IdentityToken,
    Password,
    RegistryToken,
    document_of,
    host_of,
    key_of,
    parse_answer,
    parse_file,
    server_of,
)
from reconciler.engine.registry.errors import KeyringError


def parsed(document: object) -> ConfigFile:
    return parse_file(json.dumps(document).encode(), "file")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("r.example", "r.example"),
        ("R.Example:5000", "r.example:5000"),
        ("https://r.example", "r.example"),
        ("https://r.example/v2/", "r.example"),
        ("http://r.example/some/path", "r.example"),  # Docker's: with a scheme only the host counts
        ("https://index.docker.io/v1/", "docker.io"),
        ("index.docker.io/v1/", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("docker.io/library", "docker.io/library"),
        ("r.example/team/", "r.example/team"),
        ("[::1]:5000/x", "[::1]:5000/x"),
    ],
)
def test_a_key_is_a_host_or_the_start_of_a_repository(name: str, key: str) -> None:
    assert key_of(name) == key
    assert key_of(key) == key


def test_the_longest_name_counts_and_ends_between_slashes() -> None:
    keys = ("r.example", "r.example/team", "r.example/team/app", "https://index.docker.io/v1/")
    file = parsed({"auths": {key: {"username": key, "password": "x"} for key in keys}})

    def user(registry: str, repository: str) -> str | None:
        found = file.find(registry, repository)
        return found.user if isinstance(found, Password) else None

    assert user("r.example", "team/app") == "r.example/team/app"
    assert user("r.example", "team/app/x") == "r.example/team/app"
    assert user("r.example", "team/application") == "r.example/team"
    assert user("R.example", "teams") == "r.example"
    assert user("r.example", "") == "r.example"
    assert user("docker.io", "library/x") == "https://index.docker.io/v1/"
    assert user("other.example", "team/app") is None
    assert user("example", "r") is None


def test_every_form_of_an_entry() -> None:
    file = parsed(
        {
            "auths": {
                "a": {"auth": "dTpwOnE="},  # a password may hold a colon
                "b": {"auth": "dTpw", "identitytoken": "tok"},
                "c": {"registrytoken": "tok"},
                "d": {"username": "u", "password": "p", "email": "x@y"},
                "e": {},
                "f": {"auth": "PHRva2VuPjp0b2s="},
                "g": None,
            },
            "credHelpers": {"h": "ecr-login", "https://i/v1/": "pass"},
            "credsStore": "secretservice",
        }
    )
    assert file.auths == {
        "a": Password("u", "p:q"),
        "b": IdentityToken("tok"),
        "c": RegistryToken("tok"),
        "d": Password("u", "p"),
        "f": IdentityToken("tok"),
    }
    assert [file.helper(name) for name in ("h", "i", "j")] == ["ecr-login", "pass", "secretservice"]


def test_dockers_registry_has_one_name_here_and_dockers_at_helpers() -> None:
    assert {host_of(name) for name in ("docker.io", "index.docker.io", "REGISTRY-1.docker.io")} == {
        "docker.io"
    }
    assert server_of("docker.io") == "https://index.docker.io/v1/"
    assert server_of("R.example:5000") == "r.example:5000"


def test_an_answer_of_a_helper() -> None:
    assert parse_answer(b'{"ServerURL":"x","Username":"u","Secret":"s"}\n', "p") == Password("u", "s")
    assert parse_answer(b'{"Username":"<token>","Secret":"t"}', "p") == IdentityToken("t")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_file_and_an_answer_or_an_error_that_says_where(data: bytes) -> None:
    for parse in (parse_file, parse_answer):
        said = "where: "
        try:
            parse(data, "where")
        except KeyringError as error:
            said = str(error)
        assert said.startswith("where: ")


@given(st.dictionaries(st.sampled_from(["a", "b/c", "docker.io"]), st.tuples(st.text(min_size=1), st.text())))
def test_what_is_written_is_read_again(accounts: dict[str, tuple[str, str]]) -> None:
    auths = {
        key: Password(user.replace(":", "x"), secret.rstrip("\0"))
        for key, (user, secret) in accounts.items()
        if user != "<token>" and (user + secret).isprintable()
    }
    assert parsed(document_of(auths)).auths == auths
