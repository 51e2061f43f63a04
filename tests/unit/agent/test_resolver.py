"""Images are looked up per registry and per reading: one that hangs, fails or is forgotten is nobody else's delay."""

import threading
from pathlib import Path
from typing import cast

import pytest

from reconciler.agent.resolver import Resolver
from reconciler.engine.layout import Layout
from reconciler.engine.pull import Images
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.store import Store
from reconciler.engine.trust.gate import Trust
from reconciler.engine.trust.record import Records
from reconciler.spec.reference import Digest, Reference
from reconciler.state.image import Image, Unresolved

DIGEST = "sha256:" + "1" * 64


class Registries:
    """Images of a world in which registries by some names hang or fail."""

    def __init__(self, layout: Layout) -> None:
        self.release = threading.Event()
        self.asked: list[str] = []
        self.trust = Trust((), Records(layout))

    def resolve(self, reference: Reference) -> Image:
        self.asked.append(str(reference))
        if reference.registry.startswith("slow"):
            self.release.wait(20)
        if reference.registry.startswith(("slow", "bad")):
            raise RegistryError(f"{reference.registry}: GET", 500, "on fire")
        digest = cast(Digest, reference.digest)
        return Image(index=digest, manifest=digest, config=digest, platform="linux/amd64", layers=())


class Looking:
    """A resolver, and a way to wait for the look-ups it began."""

    def __init__(self, tmp_path: Path) -> None:
        layout = Layout(tmp_path / "state", tmp_path / "run")
        self.registries = Registries(layout)
        self.woken = threading.Event()
        store = Store(layout)
        self.resolver = Resolver(cast(Images, self.registries), store, self.woken.set)

    def read(self, *texts: str) -> list[Image | Unresolved]:
        self.resolver.begin()
        return [self.resolver.resolve(Reference.parse(text)) for text in texts]

    def wait(self) -> None:
        assert self.woken.wait(20)
        self.woken.clear()


@pytest.fixture
def looking(tmp_path: Path) -> Looking:
    return Looking(tmp_path)


def test_a_registry_that_hangs_holds_up_no_other_one(looking: Looking) -> None:
    slow = [f"slow.example/app{n}@sha256:{str(n) * 64}" for n in range(2, 6)]
    try:
        first = looking.read(*slow, f"good.example/app@{DIGEST}")
        assert all(isinstance(found, Unresolved) for found in first)
        looking.wait()
        assert isinstance(looking.read(*slow, f"good.example/app@{DIGEST}")[-1], Image)
    finally:
        looking.registries.release.set()
        looking.resolver.close()


def test_what_one_registry_says_of_a_digest_is_not_held_against_another(looking: Looking) -> None:
    looking.read(f"bad.example/app@{DIGEST}")
    looking.wait()
    found = looking.read(f"bad.example/app@{DIGEST}", f"good.example/app@{DIGEST}")
    assert [getattr(item, "reason", "") for item in found] == [
        "bad.example: GET: 500 on fire",
        "looking it up",
    ]
    looking.wait()
    found = looking.read(f"bad.example/app@{DIGEST}", f"good.example/app@{DIGEST}")
    assert all(isinstance(image, Image) for image in found)  # once it is known, it does not matter where from
    looking.resolver.close()


def test_an_image_that_nobody_wants_any_more_is_not_waited_for(looking: Looking) -> None:
    looking.read(f"bad.example/app@{DIGEST}")
    looking.wait()
    looking.read(f"bad.example/app@{DIGEST}")
    assert looking.resolver.retry_at is not None
    looking.read()
    looking.read()
    assert not looking.resolver.retry_at
    assert looking.registries.asked == [f"bad.example/app@{DIGEST}"]
    looking.resolver.close()
