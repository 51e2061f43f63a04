"""Garbage is collected while images come in: two pulls that share a layer, and a collector that never rests."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.device import PROGRAM, REPOSITORY, Device
from tests.e2e.world import Registry, upon
from tests.images import Built, busybox, file

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def version(path: Path, number: int) -> Built:
    """An image with a layer that both have, one large enough to be under way for a while, and its number."""
    base = busybox(path / f"base{number}" / "layout", tag=str(number))
    filling = upon(
        base,
        path / f"filled{number}" / "layout",
        [file("./etc/filling", os.urandom(12 << 20))],
        tag=str(number),
    )
    return upon(
        filling, path / f"made{number}" / "layout", [file("./etc/version", f"{number}\n")], tag=str(number)
    )


def test_two_pulls_beside_a_collector_that_never_rests(device: Device, tmp_path: Path) -> None:
    registry = Registry(device, tmp_path / "registry")
    garbage = registry.push(
        busybox(tmp_path / "garbage" / "layout", config={"Env": ["GARBAGE=1"]}), "garbage"
    )
    names = []
    for number in (1, 2):
        registry.push(version(tmp_path, number), "box")
        names.append(f"{registry.name}/box:{number}")
    device.configure(registries={"insecure": [registry.name]}, gc={"min_age": "0s", "keep_generations": 0})
    device.start()
    device.logged("metrics: ")
    collected = 0
    for _ in range(2):
        device.reconciler("pull", garbage)  # by digest: no name, and nobody wants it
        pulls = [
            subprocess.Popen(
                [
                    "nsenter",
                    f"--net=/run/netns/{device.namespace}",
                    "--",
                    *PROGRAM,
                    "pull",
                    *device.places,
                    name,
                ],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in names
        ]
        while any(pull.poll() is None for pull in pulls):
            done = device.reconciler("gc", check=False)
            assert done.returncode == 0 or "images are being added" in done.stderr, done.stderr
            collected += 1
        for pull in pulls:
            said, trouble = pull.communicate()
            assert pull.returncode == 0, said + trouble
        device.reconciler("gc")
        assert "garbage" not in device.reconciler("images", "-a").stdout
        for number, name in enumerate(names, 1):
            found = device.reconciler("run", "--rm", "--pull", "never", name, "cat", "/etc/version").stdout
            assert found == f"{number}\n"
        for name in names:
            device.reconciler("image", "rm", name)
    assert collected >= 2
    assert device.reconciler("fsck").returncode == 0
    assert list((device.state / "partial").iterdir()) == []
