"""The engine of this device keeps the contract of engines: real shims, cgroups, namespaces and layers."""

import os
import select
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.agent.parts import Parts, open_parts
from reconciler.config import Device
from reconciler.engine import cgroup
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.layout import Layout
from reconciler.engine.process import ProcessId, open_pidfd, read_shim
from reconciler.execute.engine import Engine
from reconciler.spec.reference import Reference
from reconciler.state.desired import Container as Wanted
from reconciler.state.desired import Identity, Limits, Settings
from reconciler.state.observed import Container, Observed
from tests.contract import EngineContract, Subject
from tests.images import Built
from tests.images import busybox as busybox_image
from tests.kernel.leaks import LeakCheck
from tests.kernel.netns import private_network
from tests.kernel.workshop import remove, scratch

pytestmark = [pytest.mark.kernel, pytest.mark.network]

_FOREVER = ("sleep", "100000")
_ENDS = ("sh", "-c", "exit 3")
_DEAF = ("sh", "-c", "trap '' TERM; while true; do sleep 1; done")


class LocalSubject:
    """A device in directories and a network namespace of its own."""

    def __init__(self, path: Path, image: Built) -> None:
        self.layout = Layout(path / "state", path / "run")
        self._image = image
        device = Device(name="contract", bundles=(str(image.layout),))
        self.parts: Parts = open_parts(self.layout, device, lambda _: None)

    @property
    def engine(self) -> Engine:
        return self.parts.engine

    def observe(self) -> Observed:
        return self.parts.observer.observe(failures={})

    def wanted(self, app: str, name: str, *, ends: bool = False, stubborn: bool = False) -> Wanted:
        reference = f"box.example/box:1@{self._image.digest}"
        image = self.parts.images.resolve(Reference.parse(reference))
        identity = Identity(
            image=str(image.config),
            arguments=_ENDS if ends else _DEAF if stubborn else _FOREVER,
            environment=("PATH=/bin:/usr/bin",),
            hostname=name,
            init=not stubborn,
        )
        settings = Settings(limits=Limits(memory=32 << 20, pids=40), stop_grace=0.5)
        return Wanted(app, name, identity, settings, image, reference)

    def damage(self, container: Container, kind: str) -> None:
        record = read_shim(self.layout.shim_record(container.id))
        assert record is not None
        match kind:
            case "shim":
                os.kill(record.shim.pid, signal.SIGKILL)
                wait_for(record.shim)
                wait_for(record.init)  # it dies with its shim, by PDEATHSIG
            case "cgroup":
                group = cgroup.open_existing(Hierarchies.detect(), self.parts.cgroup_parent, container.id)
                assert group is not None
                cgroup.kill(group)
                assert cgroup.wait_empty(group, 10)
                cgroup.remove(group)
                wait_for(record.shim)
            case "run":
                shutil.rmtree(self.layout.run_container(container.id))
            case "state":
                self.layout.config(container.id).unlink()
                shutil.rmtree(self.layout.log(container.id))
                shutil.rmtree(self.layout.rootfs(container.id), ignore_errors=True)

    def wait_for_exit(self, container_id: str) -> None:
        record = read_shim(self.layout.shim_record(container_id))
        if record is not None:
            wait_for(record.shim)

    def close(self) -> None:
        for same in self.observe().containers.values():
            for container in same:
                self.engine.remove_container(container.id, keep_previous=False)
        self.parts.networks.clean()
        self.parts.close()


def wait_for(process: ProcessId) -> None:
    """Return once that process has ended."""
    fd = open_pidfd(process)
    if fd is not None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        ended = poll.poll(10_000)
        os.close(fd)
        assert ended, f"process {process.pid} does not end"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return busybox_image(tmp_path_factory.mktemp("box") / "layout")


@pytest.fixture
def subject(image: Built) -> Iterator[Subject]:
    path = scratch("con")
    check = LeakCheck(str(path))
    try:
        with private_network():
            made = LocalSubject(path, image)
            check.own(made.parts.instance)
            try:
                yield made
            finally:
                made.close()
    finally:
        remove(path)
    assert check.leaks() == []


class TestLocalEngine(EngineContract):
    """See `EngineContract`."""
