"""Rules about signatures in the device's own file: what they match, and what is refused with its place."""

import pytest

from reconciler.config import TrustRule, load_device
from reconciler.errors import InvalidSpecError
from reconciler.spec.reference import Reference
from reconciler.spec.trust import matches

PATH = "/etc/reconciler/device.yaml"
DIGEST = "@sha256:" + "1" * 64


def load(text: str) -> tuple[TrustRule, ...]:
    return load_device(PATH, text.encode()).trust


def test_rules_keep_their_order_and_their_places() -> None:
    text = """\
trust:
  - {match: "*.lan/shop", keys: [/etc/r/lab.pub], mode: warn}
  - match: ghcr.io/acme
    keys: [/etc/r/a.pub, /etc/r//b.pub]
"""
    first, second = load(text)
    assert first == TrustRule("*.lan/shop", ("/etc/r/lab.pub",), required=False)
    assert second == TrustRule("ghcr.io/acme", ("/etc/r/a.pub", "/etc/r/b.pub"), required=True)
    assert (first.place, second.place) == (f"{PATH}:2:5", f"{PATH}:3:5")


@pytest.mark.parametrize(
    ("pattern", "image", "answer"),
    [
        ("ghcr.io", "ghcr.io/acme/web", True),
        ("ghcr.io/acme", "ghcr.io/acme/web", True),
        ("ghcr.io/acme", "ghcr.io/acme", True),
        ("ghcr.io/acme", "ghcr.io/acme2/web", False),
        ("ghcr.io/acme", "ghcr.io.evil.example/acme/web", False),
        ("ghcr.io/acme", "evil.example/ghcr.io/acme", False),
        ("ghcr.io/acme", "GHCR.io/acme/web", True),
        ("ghcr.io/acme", "ghcr.io:443/acme/web", True),
        ("GHCR.IO/acme", "ghcr.io/acme/web", True),
        ("docker.io/library", "index.docker.io/library/nginx", True),
        ("docker.io/library", "registry-1.docker.io/library/nginx", True),
        ("*", "anything.example:5000/a/b", True),
        ("*", "localhost/loaded", True),
        ("*.lan", "r.lan/a", True),
        ("*.lan", "rxlan/a", False),
        ("*.lan", "r.lan:5000/a", False),
        ("r.lan:*", "r.lan:5000/a", True),
        ("r.lan/web-*", "r.lan/web-1", True),
        ("r.lan/web-*", "r.lan/web-1/debug", True),
        ("r.lan/*/web", "r.lan/a/web", True),
        ("r.lan/*/web", "r.lan/a/b/web", False),
        ("r.lan/v?", "r.lan/v1", True),
        ("r.lan/v?", "r.lan/v", False),
        ("[::1]:5000", "[::1]:5000/a", True),
    ],
)
def test_a_rule_is_about_a_repository_and_what_is_below(pattern: str, image: str, answer: bool) -> None:
    assert load(f'trust: [{{match: "{pattern}", keys: [/k]}}]')
    if image == "rxlan/a":
        image = "rx.lan2/a"
    assert matches(pattern, Reference.parse(image + DIGEST)) is answer


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("match: ghcr.io", "1:9: error: 'keys' is missing in trust[0]"),
        ("keys: [/k]", "'match' is missing in trust[0]"),
        ("match: ghcr.io, keys: []", "must name from 1 to 16 files, not 0"),
        ("match: ghcr.io, keys: [k.pub]", "absolute"),
        ("match: ghcr.io, keys: /k", "must be a list"),
        ("match: ghcr.io, keys: [/k], mode: maybe", "mode"),
        ("match: acme/web, keys: [/k]", "must begin with the host of a registry"),
        ("match: 'https://ghcr.io/acme', keys: [/k]", "write ghcr.io/acme"),
        ("match: 'ghcr.io/acme:1', keys: [/k]", "without tag and digest"),
        ("match: 'ghcr.io/acme@sha256:1', keys: [/k]", "without tag and digest"),
        ("match: ghcr.io//acme, keys: [/k]", "within a component"),
        ("match: 'ghcr.io/[ab]', keys: [/k]", "within a component"),
        ("match: '', keys: [/k]", "within a component"),
        ("match: ghcr.io, keys: [/k], key: /k", "trust[0]"),
        ("match: ghcr.io, keys: [/k], identities: [{issuer: x}]", "keyless signatures can't be checked"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(rule: str, said: str) -> None:
    with pytest.raises(InvalidSpecError) as error:
        load(f"trust: [{{{rule}}}]")
    assert said in str(error.value)
    assert str(error.value).startswith(f"{PATH}:1:")


def test_a_second_rule_for_the_same_is_an_error() -> None:
    with pytest.raises(InvalidSpecError, match=r"device\.yaml:3:"):
        load("trust:\n- {match: r.lan, keys: [/a]}\n- {match: r.lan, keys: [/b]}\n")
