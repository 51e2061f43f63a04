"""Devices and images for end-to-end tests. A device that leaves anything on the machine fails its test."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.e2e.device import Device
from tests.e2e.killed import make_root
from tests.images import Built, busybox
from tests.kernel.leaks import LeakCheck


@contextmanager
def fresh(patience: float, *, namespace: str = "", without: Sequence[str] = ()) -> Iterator[Device]:
    """A device in a network namespace of its own, or in `namespace`; leaks of the kinds in `without` pass."""
    name = secrets.token_hex(4)
    check = LeakCheck(name)
    made = Device(make_root(name), name, namespace=namespace)
    try:
        yield made
        if (made.state / "instance").exists():
            check.own(made.instance[:8])
    finally:
        made.close()
    assert check.leaks(3.0 * patience, without=without) == []


@pytest.fixture
def device(patience: float) -> Iterator[Device]:
    """A fresh device on a tmpfs, with no agent running yet."""
    with fresh(patience) as made:
        yield made


@pytest.fixture
def neighbour(device: Device, patience: float) -> Iterator[Device]:
    """Another device, with directories of its own, in the network namespace of `device`."""
    # The one that it is a neighbour of still runs, and has processes and helpers
    without = ("processes", "descriptors")
    with fresh(patience, namespace=device.namespace, without=without) as made:
        yield made


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A busybox image in an OCI layout, to be given as a bundle."""
    return busybox(tmp_path_factory.mktemp("box") / "layout")


@pytest.fixture(scope="session")
def box2(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Another version of the same image: same layers, another config."""
    return busybox(
        tmp_path_factory.mktemp("box2") / "layout", config={"Env": ["PATH=/bin:/usr/bin", "VERSION=2"]}
    )


def reference(built: Built, name: str = "box.example/box") -> str:
    """The pinned reference by which specs ask for a bundle's image."""
    return f"{name}:1@{built.digest}"
