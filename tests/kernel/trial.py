"""From a spec to a running container and back: what a field does is read from inside it, or from the kernel.

A trial is a device in directories and a network namespace of its own. Everything between is the real thing: the loader,
the image, the bundle, the shim, the program.
"""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from reconciler.agent.parts import Parts, open_parts
from reconciler.config import Device, load_device
from reconciler.engine import logs
from reconciler.engine.idmapping import possible
from reconciler.engine.layout import Layout
from reconciler.engine.process import Command, Control, read_shim
from reconciler.linux import mount
from reconciler.linux.namespace import CLONE_NEWNS, setns, unshare
from reconciler.plan.diff import plan
from reconciler.spec.load import load
from reconciler.state.desire import desire, references
from reconciler.state.desired import App, Desired
from reconciler.state.observed import Container, Now, Observed, Running
from tests.images import Built
from tests.images import busybox as busybox_image
from tests.kernel.leaks import LeakCheck
from tests.kernel.netns import private_network
from tests.kernel.shims import wait
from tests.kernel.workshop import remove, scratch


@dataclass(frozen=True)
class Trial:
    """A running container: `run` a program in it, or look at it from outside."""

    trials: "Trials"
    app: str
    id: str

    def run(self, *arguments: str, user: str | None = None) -> str:
        """Run a program inside and give what it prints; it must succeed."""
        code, text = self.run_code(*arguments, user=user)
        assert code == 0, text
        return text.strip()

    def shell(self, script: str) -> str:
        """Run a script inside and give what it prints, errors too; it must succeed."""
        return self.run("/bin/sh", "-c", script)

    def run_code(self, *arguments: str, user: str | None = None) -> tuple[int, str]:
        reader, writer = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            with Control.connect(self.trials.layout.control_socket(self.id)) as control:
                try:
                    running = control.execute(Command(arguments, (), user, None), (null, writer, writer))
                finally:
                    os.close(writer)
                chunks = []
                while chunk := os.read(reader, 65536):
                    chunks.append(chunk)
                return running.wait(20 * self.trials.patience), b"".join(chunks).decode(errors="replace")
        finally:
            os.close(reader)
            os.close(null)

    def output(self) -> str:
        """What the program itself printed, once it has ended."""
        record = read_shim(self.trials.layout.shim_record(self.id))
        if record is not None and Path(f"/proc/{record.shim.pid}").exists():
            pidfd = os.pidfd_open(record.shim.pid)
            try:
                assert wait(pidfd, 20 * self.trials.patience)
            finally:
                os.close(pidfd)
        return b"".join(line.data for line in logs.read(self.trials.layout.log(self.id))).decode()

    @property
    def pid(self) -> int:
        record = read_shim(self.trials.layout.shim_record(self.id))
        assert record is not None
        return record.init.pid

    def proc(self, name: str) -> str:
        """A file of /proc of its first process, from outside."""
        return Path(f"/proc/{self.pid}/{name}").read_text()

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        found: dict[str, Any] = json.loads(self.trials.layout.config(self.id).read_bytes())
        return found

    def found(self) -> Container:
        """It, as the agent sees it."""
        return next(c for same in self.trials.observe().containers.values() for c in same if c.id == self.id)


class Trials:
    """A device. `settings` is the text of its device.yaml."""

    def __init__(self, path: Path, image: Built, patience: float, settings: str = "") -> None:
        self.layout = Layout(path / "state", path / "run")
        self.patience = patience
        self._image = image
        self.device: Device = load_device(
            "/etc/reconciler/device.yaml", f"bundles: [{image.layout}]\n{settings}".encode()
        )
        self.parts: Parts = open_parts(self.layout, self.device, lambda _: None)
        self._count = 0

    def desire(self, app: str, container: Mapping[str, Any], **top: Any) -> App:
        """What should run, of a spec with one container `c`; it must be without an error."""
        return self.app(app, {"c": container}, **top)

    def app(self, app: str, containers: Mapping[str, Mapping[str, Any]], **top: Any) -> App:
        """What should run, of a spec with these containers; it must be without an error."""
        common = {
            "image": f"box.example/box:1@{self._image.digest}",
            "entrypoint": ["/bin/sleep", "100000"],
            "limits": {"memory": "64Mi"},
            "restart": "no",
            "stop_grace_period": "0s",
        }
        spec = {
            "apiVersion": "reconciler/v1",
            "kind": "App",
            "name": app,
            "containers": {name: {**common, **fields} for name, fields in containers.items()},
            **top,
        }
        loaded = load({f"{app}.yaml": json.dumps(spec).encode()}, lambda _: b"", terms=self.device.terms)
        assert not loaded.failed, "\n".join(map(str, loaded.problems))
        images = {str(ref): self.parts.images.resolve(ref) for ref in references(loaded.apps[app])}
        return desire(loaded.apps[app], images, defaults=possible(self.device, self.layout).defaults)

    def create(self, app: App) -> str:
        """Make the container of the app and give its id."""
        want = app.containers["c"]
        engine = self.parts.engine
        engine.pull(want.reference, want.image)
        if app.networks:
            engine.configure_network(tuple(app.networks.values()), ())
        for volume in app.volumes:
            engine.create_volume(app.name, volume, app.volume_limits.get(volume))
        engine.create_container(want, attempt=0, restarts=0)
        return next(c.id for c in self.observe().containers[want.full_name])

    def start(self, container: Mapping[str, Any], **top: Any) -> Trial:
        """Have a container run, in an app of its own."""
        self._count += 1
        app = self.desire(f"t{self._count}", container, **top)
        made = self.create(app)
        self.parts.engine.start_container(app.name, "c")
        return Trial(self, app.name, made)

    def steps(self, app: App) -> list[str]:
        """What the planner would do to have `app`, and no other, as it should be."""
        found = self.observe()
        only = {name: same for name, same in found.containers.items() if name.startswith(f"{app.name}/")}
        world = Observed(**{**{f: getattr(found, f) for f in found.__dataclass_fields__}, "containers": only})
        made = plan(Desired({app.name: app}), world, Now(0.0, 0.0))
        return [str(step) for step in made.steps if step.app == app.name]

    def update(self, trial: Trial, container: Mapping[str, Any], **top: Any) -> list[str]:
        """Change the settings of a running container in place, and give the steps that the planner has for it."""
        app = self.desire(trial.app, container, **top)
        steps = self.steps(app)
        self.parts.engine.update_container(trial.id, app.containers["c"].settings, reattach=False)
        return steps

    def observe(self) -> Observed:
        return self.parts.observer.observe(failures={})

    def close(self) -> None:
        for same in self.observe().containers.values():
            for container in same:
                self.parts.engine.remove_container(container.id, keep_previous=False)
        self.parts.networks.clean()
        self.parts.close()


def runs(container: Container) -> bool:
    return isinstance(container.phase, Running)


@contextmanager
def on_trial(image: Built, patience: float, settings: str = "") -> Iterator[Trials]:
    """A device in a network of its own, which leaves nothing behind."""
    path = scratch("trial")
    check = LeakCheck(str(path))
    try:
        with private_network():
            made = Trials(path, image, patience, settings)
            check.own(made.parts.instance)
            try:
                yield made
            finally:
                made.close()
    finally:
        remove(path)
    assert check.leaks() == []


class private_mounts:
    """Have this thread, and what it starts, mount things that nobody else sees."""

    def __enter__(self) -> None:
        self._before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        unshare_files()
        unshare(CLONE_NEWNS)
        mount.mount("", "/", "", mount.MS_REC | mount.MS_PRIVATE)

    def __exit__(self, *_: object) -> None:
        setns(self._before, CLONE_NEWNS)
        os.close(self._before)


def unshare_files() -> None:
    """A thread that shares its root and working directory with others can't enter a mount namespace (setns(2))."""
    unshare(0x00000200)  # CLONE_FS


@contextmanager
def on_trial_disk(
    image: Built, patience: float, *, mib: int, make: Sequence[str] = (), options: str = ""
) -> Iterator[Trials]:
    """The same with the state directory on a disk of its own: an ext4 of `mib` MiB on a loop device.

    `make` and `options` are what mkfs.ext4 and mount are told besides.
    """
    path = scratch("trial")
    check = LeakCheck(str(path))
    disk, state = path / "disk", path / "state"
    state.mkdir()
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    try:
        with private_network(), private_mounts():
            with disk.open("wb") as opened:
                opened.truncate(mib << 20)
            subprocess.run(("mkfs.ext4", "-q", *make, str(disk)), check=True, env=environment)
            how = ",".join(filter(None, ("loop", options)))
            subprocess.run(("mount", "-o", how, str(disk), str(state)), check=True)
            try:
                made = Trials(path, image, patience)
                check.own(made.parts.instance)
                try:
                    yield made
                finally:
                    made.close()
            finally:
                subprocess.run(("umount", str(state)), check=True)
    finally:
        remove(path)
    assert check.leaks() == []


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The image of a trial, for modules that need no other."""
    return busybox_image(tmp_path_factory.mktemp("box") / "layout")


@pytest.fixture
def trials(image: Built, patience: float) -> Iterator[Trials]:
    """A device for one test."""
    with on_trial(image, patience) as made:
        yield made
