"""Words that reach the git program: what is a URL, a branch, a path, and what is an attack."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import UsageError
from reconciler.source.address import check_branch, check_path, hide_credentials, protocol


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://git.example/acme/specs.git", "https"),
        ("https://user:token@git.example:8443/specs", "https"),
        ("https://[2001:db8::1]:8443/specs", "https"),
        ("ssh://git@git.example/specs", "ssh"),
        ("git@git.example:acme/specs.git", "ssh"),
        ("git.example:specs", "ssh"),
        ("git.example:/srv/specs", "ssh"),
        ("file:///srv/specs.git", "file"),
        ("/srv/specs.git", "file"),
    ],
)
def test_urls_that_git_may_use(url: str, expected: str) -> None:
    assert protocol(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "-u./payload",
        "--upload-pack=touch /tmp/x",
        "ext::sh -c touch% /tmp/x",
        "ext::sh",
        "fd::7",
        "transport::https://x/y",
        "http://git.example/x",
        "git://git.example/x",
        "ftp://git.example/x",
        "ssh://-oProxyCommand=touch/x",
        "-oProxyCommand=x:path",
        "host:-path",
        "user@-host:path",
        "https://git.example/x\ny",
        "https://git.example/x y",
        "https://git.example/x\x1b",
        "https:///x",
        "https://a@b@c/x",
        "file://host/x",
        "relative/path",
        "./here",
    ],
)
def test_t2_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        protocol(url)


@pytest.mark.parametrize("branch", ["main", "release/1.5", "a", "ünï", "feature_x", "1.0", "a@b"])
def test_branches(branch: str) -> None:
    assert check_branch(branch) == branch


@pytest.mark.parametrize(
    "branch",
    [
        *(
            "",
            "--upload-pack=x",
            "-x",
            "a..b",
            "a b",
            "a\nb",
            "a:b",
            "a~1",
            "a^",
            "a*",
            "/a",
            "a/",
            "a//b",
            "a.lock",
        ),
        *("@", "a@{1}", "a/.b", ".a", "a\\b", "x" * 201, "a.lock/b", "a?", "a[b", "a\x7f"),
    ],
)
def test_t2_branches_that_are_refused(branch: str) -> None:
    with pytest.raises(UsageError):
        check_branch(branch)


def test_paths_stay_inside() -> None:
    assert check_path("") == check_path(".") == check_path("./") == ""
    assert check_path("devices/kiosk/") == "devices/kiosk"
    for path in ("/abs", "..", "a/../b", "a\nb"):
        with pytest.raises(UsageError):
            check_path(path)


def test_g12_credentials_are_in_no_text() -> None:
    text = "fatal: unable to access 'https://user:secret@git.example/x/': no"
    assert hide_credentials(text) == "fatal: unable to access 'https://git.example/x/': no"
    with pytest.raises(UsageError) as refusal:
        protocol("http://user:secret@h/x")
    assert "secret" not in str(refusal.value)


@given(st.text(max_size=60))
def test_whatever_the_words_they_are_taken_or_refused_and_never_options(text: str) -> None:
    for check in (protocol, check_branch):
        try:
            check(text)
        except UsageError as error:
            said = str(error)
        else:
            assert not text.startswith("-")
            said = text
        assert said.isprintable()
