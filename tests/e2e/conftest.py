"""Devices and images for end-to-end tests. A device that leaves anything on the machine fails its test."""

import secrets
from collections.abc import Iterator

import pytest

from tests.e2e.device import Device
from tests.e2e.killed import make_root
from tests.images import Built, busybox
from tests.kernel.leaks import LeakCheck


@pytest.fixture
def device(patience: float) -> Iterator[Device]:
    """A fresh device on a tmpfs, with no agent running yet."""
    name = secrets.token_hex(4)
    check = LeakCheck(name)
    root = make_root(name)
    made = Device(root, name)
    try:
        yield made
        if (made.state / "instance").exists():
            check.own(made.instance[:8])
    finally:
        made.close()
    assert check.leaks(3.0 * patience) == []


@pytest.fixture
def neighbour(device: Device, patience: float) -> Iterator[Device]:
    """Another device, with directories of its own, in the network namespace of `device`."""
    name = secrets.token_hex(4)
    check = LeakCheck(name)
    root = make_root(name)
    made = Device(root, name, namespace=device.namespace)
    try:
        yield made
        if (made.state / "instance").exists():
            check.own(made.instance[:8])
    finally:
        made.close()
    # The device that it is a neighbour of still runs, and has processes and helpers
    assert check.leaks(3.0 * patience, without=("processes", "descriptors")) == []


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
