"""What a person calls an image, and what is meant: names of a registry, of a bundle, and digests."""

import json
from pathlib import Path

import pytest

from reconciler.agent.pinning import Pinned, pinned
from reconciler.errors import NotFoundError, ReconcilerError, UsageError
from reconciler.spec.reference import Digest, Reference

DIGEST = Digest("sha256", "1" * 64)
OTHER = Digest("sha256", "2" * 64)


class Away(ReconcilerError):
    transient = True


def answers(reference: Reference) -> Digest:
    assert reference.digest is None
    return DIGEST


def asks_nobody(reference: Reference) -> Digest:
    raise AssertionError(f"{reference}: asked for")


def away(reference: Reference) -> Digest:
    raise Away(f"{reference}: no route to host")


def layout(place: Path, *names: str) -> str:
    place.mkdir()
    manifests = [
        {"digest": str(DIGEST), "annotations": {"org.opencontainers.image.ref.name": name}} for name in names
    ]
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))
    return str(place)


def test_a_digest_is_taken_as_it_is_and_gives_no_name() -> None:
    text = f"r.example/web:1@{OTHER}"
    assert pinned(text, asks_nobody) == Pinned(Reference.parse(text))


def test_a_tag_is_what_its_registry_says_now() -> None:
    assert pinned("r.example/web:1", answers) == Pinned(
        Reference.parse(f"r.example/web:1@{DIGEST}"), "r.example/web:1"
    )


def test_without_a_tag_the_latest_is_meant() -> None:
    assert pinned("r.example/web", answers).name == "r.example/web:latest"


def test_a_tag_is_what_it_was_only_while_its_registry_is_away() -> None:
    last = pinned("r.example/web:1", away, last_known=lambda _: OTHER)
    assert last.reference.digest == OTHER
    assert pinned("r.example/web:1", answers, last_known=lambda _: OTHER).reference.digest == DIGEST
    with pytest.raises(Away):
        pinned("r.example/web:1", away)

    def denied(reference: Reference) -> Digest:
        raise NotFoundError(f"{reference}: there is none")

    with pytest.raises(NotFoundError):
        pinned("r.example/web:1", denied, last_known=lambda _: OTHER)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("r.example/web:1", "r.example/web:1"),
        ("web:1", "localhost/web:1"),
        ("shop/web", "localhost/shop/web:latest"),
        ("1.5", "localhost/stick:1.5"),
        ("Web:1", ""),
        ("any thing", ""),
    ],
)
def test_a_bundles_own_name_is_meant_where_the_bundle_is_named(tmp_path: Path, text: str, name: str) -> None:
    found = pinned(text, asks_nobody, bundle=layout(tmp_path / "Stick", text))
    assert found == Pinned(Reference.parse(f"{name or 'localhost/bundle'}@{DIGEST}"), name)


def test_a_tag_in_a_directory_whose_name_is_none_for_an_image(tmp_path: Path) -> None:
    found = pinned("1.5", asks_nobody, bundle=layout(tmp_path / "my stick", "1.5"))
    assert found.name == "localhost/bundle:1.5"


def test_a_bundle_does_not_answer_for_a_digest_or_for_another_name(tmp_path: Path) -> None:
    bundle = layout(tmp_path / "stick", "1.5", "1.6")
    text = f"r.example/web@{OTHER}"
    assert pinned(text, asks_nobody, bundle=bundle) == Pinned(Reference.parse(text))
    with pytest.raises(NotFoundError, match="nothing there is called 2") as caught:
        pinned("2", asks_nobody, bundle=bundle)
    assert caught.value.hint == "there are: 1.5, 1.6"


def test_what_is_no_reference_is_refused_with_a_hint() -> None:
    with pytest.raises(UsageError) as caught:
        pinned("web", asks_nobody)
    assert caught.value.hint
