"""From request to first instruction, warm: the runtime alone, and the whole way with a bridge and a published port.

The runtime alone: ours (cgroup, zygote, shim, start) beside runc and crun on the same config.json. What differs: ours
mounts an overlay, which the others find prepared as a directory; all three make their cgroup and a network namespace.
"""

import json
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from bench.measure import BenchError, Round, Sample, boottime, interleave, walls
from bench.report import Row
from bench.session import Session
from bench.subject import Instance, app
from reconciler.agent.intent import Reader
from reconciler.agent.parts import Parts
from reconciler.agent.resolver import Resolver
from reconciler.agent.wanted import wanted_ports
from reconciler.engine import bundle, cgroup
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.idrange import FIRST
from reconciler.engine.process import Control
from reconciler.engine.seccomp import filter
from reconciler.engine.snapshot import Uppers
from reconciler.linux import mount, namespace
from reconciler.linux.capability import NAMES
from reconciler.source.directory import DirectorySource
from reconciler.state.desired import App, Container, Desired
from reconciler.state.network import Network

_PORT = 20000
_OWN = "ours, with ids of its own"
# Seconds. Writing cgroup.procs takes 10 ms more after 20 ms without (RCU): containers are seldom started in a row.
_QUIET = 0.05


def run(session: Session) -> list[Row]:
    """The runtime alone."""
    with ExitStack() as stack:
        instance = stack.enter_context(session.instance())
        parts = stack.enter_context(instance.parts())
        container = _container(_desired(instance, parts, session))
        maker = _Maker(instance, parts, container)
        maker.round()
        contestants: dict[str, Round] = {"ours": maker.round, _OWN: partial(maker.round, ids=FIRST)}
        notes = []
        for program in ("runc", "crun"):
            label = session.peers.runtime(program)
            if label is None:
                continue
            runtime = _Runtime(session, program, maker.config)
            try:
                runtime.round()
            except BenchError as error:
                reason = str(error).strip().splitlines()[-1][-120:]
                runtime.spawn = stack.enter_context(_without_version_2())
                runtime.round()
                notes.append(f"{label} refuses ({reason}); it does not see cgroup version 2 here")
                label += " (cgroup v1)"
            contestants[label] = runtime.round
        samples = interleave(session.rounds(24), contestants, quiet=_QUIET)
    figures = {name: walls(found, 1e3) for name, found in samples.items()}
    ours, own = figures.pop("ours"), figures.pop(_OWN)
    return [
        Row(
            "start/runtime",
            "bundle to first instruction",
            "ms",
            ours,
            figures,
            notes=notes,
        ),
        Row("start/ids", "the same, with ids of its own", "ms", own, {"host (the device's ids)": ours}),
    ]


def path(session: Session) -> list[Row]:
    """The whole way: names, address, bridge, port table, cgroup, container."""
    with session.instance() as instance, instance.parts() as parts:
        desired = _desired(instance, parts, session)
        contestants: dict[str, Round] = {"ours": lambda: _whole(instance, parts, desired)}
        for peer in session.peers.engines:
            peer.pull(session.pushed)
            options = ["--publish", f"{_PORT + 1}:80", "--volume", f"{session.moments.directory}:/out"]
            options += ["--memory", "16m", "--pids-limit", "16"]
            command = peer.run(session.pushed, "--rm", *options, arguments=["path"])
            contestants[peer.label] = _Foreground(session, command, "path").round
        for contestant in contestants.values():
            contestant()
        samples = interleave(session.rounds(10), contestants, quiet=_QUIET)
    figures = {name: walls(found, 1e3) for name, found in samples.items()}
    ours = figures.pop("ours")
    return [Row("start/path", "request to first instruction, bridge and port", "ms", ours, figures)]


# --- ours ------------------------------------------------------------------------------------------------------------


def _desired(instance: Instance, parts: Parts, session: Session) -> App:
    instance.spec(
        "path",
        app("path", str(session.image.digest), instance.moments.directory, command=["path"], port=_PORT),
    )
    resolver = Resolver(parts.images, parts.store, lambda: None, background=False)
    try:
        intent = Reader(
            parts.layout, parts.device, DirectorySource(instance.specs), resolver, keep=False
        ).read()
    finally:
        resolver.close()
    if "path" not in intent.desired.apps:
        raise BenchError(f"our own spec is refused: {'; '.join(map(str, intent.problems))}")
    return intent.desired.apps["path"]


def _container(desired: App) -> Container:
    (container,) = desired.containers.values()
    return container


class _Maker:
    """Containers from prepared bundles, by what the engine itself is made of."""

    def __init__(self, instance: Instance, parts: Parts, container: Container) -> None:
        self._instance = instance
        self._parts = parts
        self._container = container
        self._hierarchies = Hierarchies.detect()
        self._uppers = Uppers(parts.layout)
        self._count = 0
        self.config: Mapping[str, Any] = {}
        parts.zygote.start()
        # The parent goes with the last of its containers: a device has others.
        cgroup.create(self._hierarchies, parts.cgroup_parent, "other", container.settings.limits)

    def round(self, ids: int = 0) -> Sample:
        parts, layout, desired = self._parts, self._parts.layout, self._container
        self._count += 1
        id = f"{self._count:032x}"
        self._prepare(id, ids)
        began = boottime()
        group = cgroup.create(self._hierarchies, parts.cgroup_parent, id, desired.settings.limits)
        created = parts.zygote.create(layout.container(id), layout.run_container(id), timeout=30)
        with Control.connect(layout.control_socket(id)) as control:
            control.start()
        sample = self._instance.moments.after(began, "path")
        cgroup.kill(group)
        select.select([created.shim_pidfd], [], [], 10)  # it writes into the run directory until its end
        created.close()
        cgroup.wait_empty(group, timeout=10)
        cgroup.remove(group)
        shutil.rmtree(layout.run_container(id))
        parts.store.discard(layout.container(id))
        return sample

    def _prepare(self, id: str, ids: int) -> None:
        layout, desired = self._parts.layout, self._container
        for directory in (
            layout.container(id),
            layout.log(id),
            layout.configs(id),
            layout.rootfs(id),
            layout.run_container(id),
        ):
            directory.mkdir(mode=0o700)
        self._uppers.make(id, None)
        for file in (layout.hosts(id), layout.resolv_conf(id), layout.hostname(id)):
            file.touch()
        upper, work = self._uppers.paths(id)
        located = cgroup.create(self._hierarchies, self._parts.cgroup_parent, id, desired.settings.limits)
        cgroup.remove(located)
        config = bundle.render(
            desired,
            id=id,
            layout=layout,
            layers=[layout.layer(layer.chain_id) for layer in reversed(desired.image.layers)],
            upper=upper,
            work=work,
            cgroup=located.annotation(),
            cgroups_path=located.path,
            nofile_hard=1024,
            seccomp=filter.write(layout.filter(id), desired, NAMES),
            ids=ids,
        )
        layout.config(id).write_text(json.dumps(config))
        self.config = self.config or config


def _whole(instance: Instance, parts: Parts, desired: App) -> Sample:
    """One container of an app through the engine's verbs, in the planner's order, and away again."""
    engine, container = parts.engine, _container(desired)
    ports = wanted_ports(Desired(apps={desired.name: desired}))
    began = boottime()
    engine.configure_network([Network(desired.name)], ports)
    engine.create_container(container, attempt=0, restarts=0)
    engine.start_container(desired.name, container.name)
    sample = instance.moments.after(began, "path")
    for id in list(instance.shims()):
        engine.remove_container(id, keep_previous=False)
    engine.configure_network([Network(desired.name)], [])
    return sample


# --- others ----------------------------------------------------------------------------------------------------------

Spawn = Callable[[list[str], IO[bytes]], subprocess.Popen[bytes]]


def _spawn(command: list[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)


@contextmanager
def _without_version_2() -> Iterator[Spawn]:
    """Give a way to start programs that see no cgroup version 2, at no cost to them.

    crun refuses a machine that has both. The programs come from a thread with a mount namespace of its own.
    """

    def hide() -> None:
        namespace.unshare(namespace.CLONE_NEWNS)
        for line in Path("/proc/thread-self/mounts").read_text().splitlines():
            _, target, kind, *_ = line.split()
            if kind == "cgroup2":
                mount.umount(target)

    with ThreadPoolExecutor(1, initializer=hide) as thread:
        yield lambda command, said: thread.submit(_spawn, command, said).result()


class _Foreground:
    """A command that runs the container in the foreground and removes it."""

    def __init__(self, session: Session, command: list[str], name: str) -> None:
        self._session = session
        self._command = command
        self._name = name
        self.spawn: Spawn = _spawn

    def round(self) -> Sample:
        log = self._session.place.root / "foreground.log"
        with log.open("w+b") as said:
            began = boottime()
            process = self.spawn(self._command, said)
            if process.wait(60) != 0:
                raise BenchError(f"{self._command[0]}: exit {process.returncode}: {log.read_text()[-1000:]}")
        return self._session.moments.after(began, self._name)


class _Runtime(_Foreground):
    """An OCI runtime on our config.json: a plain root file system, its own cgroup, the files of /etc as they are."""

    def __init__(self, session: Session, program: str, config: Mapping[str, Any]) -> None:
        place = session.place
        bundle_ = place.disk / f"bundle-{program}"
        for name in ("proc", "dev", "sys", "etc", "out"):
            (bundle_ / "rootfs" / name).mkdir(parents=True)
        shutil.copy(session.binary, bundle_ / "rootfs" / "first")
        own = {key: value for key, value in config.items() if key != "annotations"}
        own["root"] = {"path": "rootfs", "readonly": False}
        own["linux"] = {**config["linux"], "cgroupsPath": f"/{place.cgroup}/{program}"}
        own["mounts"] = [item for item in config["mounts"] if not item["destination"].startswith("/etc/")]
        (bundle_ / "config.json").write_text(json.dumps(own))
        state = ("--root", str(place.root / f"{program}-state"))
        command = [program, *state, "run", "--bundle", str(bundle_), f"bench-{program}"]
        super().__init__(session, command, "path")
