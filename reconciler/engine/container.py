"""The life of a container: create, start, stop, remove, update. Each verb is idempotent and works without the others.

Nothing here remembers anything: what exists is what the disk and the kernel show. `create` writes the
identity record before the first process, so that a crash at any point leaves either a directory without a
record, which `sweep` clears away, or a container that the next turn sees as lost.
"""

import os
import resource
import secrets
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path

from reconciler.engine import (
    bundle,
    cgroup,
    cgroup_limits,
    devices,
    etc,
    hostpath,
    joining,
    previous,
    record,
    rootfslimit,
    trash,
)
from reconciler.engine.connect import Connections
from reconciler.engine.control import Control
from reconciler.engine.durable import replace_bytes, replace_json
from reconciler.engine.hierarchies import Hierarchies
from reconciler.engine.idrange import IdRanges
from reconciler.engine.layout import Layout
from reconciler.engine.network.networks import Networks
from reconciler.engine.parting import drop_volumes
from reconciler.engine.process import end, open_pidfd, read_shim, stop_signal
from reconciler.engine.seccomp import filter
from reconciler.engine.serving import sharing, until_served
from reconciler.engine.snapshot import Uppers, held
from reconciler.engine.store import Store
from reconciler.engine.zygote import Zygote
from reconciler.errors import NotFoundError, ReconcilerError, TimedOutError
from reconciler.failpoint import failpoint
from reconciler.linux import capability
from reconciler.state.desired import Container, Settings, VolumeMount

_KILL_TIMEOUT = 10.0
_CREATE_TIMEOUT = 120.0


class Containers:
    """The containers of one state directory.

    Thread-safe as long as one name is worked on by one thread at a time.
    """

    def __init__(
        self,
        layout: Layout,
        instance: str,
        store: Store,
        networks: Networks,
        zygote: Zygote,
        hierarchies: Callable[[], Hierarchies],
    ) -> None:
        self._layout = layout
        self._instance = instance
        self._store = store
        self._networks = networks
        self._connections = Connections(layout, networks)
        self._zygote = zygote
        self._hierarchies = hierarchies
        self._uppers = Uppers(layout)
        self._ranges = IdRanges(layout)
        # A shortcut to the newest container of a name, never the truth
        self._made: dict[tuple[str, str], str] = {}

    # --- create ----------------------------------------------------------------------------------------------------

    def create(self, desired: Container, *, attempt: int = 0, restarts: int = 0) -> str:
        """Make the container up to its first instruction and return its id; or leave nothing and raise.

        One that keeps its id is made again where it is, around what it wrote; a failure leaves that.
        """
        self._demand(desired)
        layout = self._layout
        container_id = desired.id or secrets.token_hex(16)
        again = bool(desired.id) and layout.identity(container_id).exists()
        with ExitStack() as undo, ExitStack() as claim:
            undo.callback(self._clear if again else self._discard, container_id)
            if again:
                self._make_again(desired)
            else:
                self._make_directories(container_id, desired)
            hostpath.prepare(desired.identity)
            claim.enter_context(held(layout.container(container_id), desired.full_name))
            failpoint("create.directories")
            address = self._connections.lease(desired)
            failpoint("create.leased")
            joined = joining.find(layout, desired.full_name, desired.joins) if desired.joins else None
            if joined is None:
                neighbours = self._connections.neighbours(desired.app, desired.name, desired.networks)
                etc.write(layout, container_id, desired, neighbours)
            nodes = devices.nodes(desired.identity)
            rules = devices.rules(desired.identity, nodes)
            group = cgroup.create(
                self._hierarchies(),
                self._parent,
                container_id,
                desired.settings.limits,
                where=layout.state,
                devices=rules,
                devices_needed=devices.needed(desired.identity),
            )
            rootfslimit.prepare(layout, self._uppers, container_id, desired)
            failpoint("create.limited")
            ids = claim.enter_context(self._ranges.of(desired, container_id))
            layers = tuple(layer.chain_id for layer in desired.image.layers)
            capabilities = capability.names(capability.capget()[1])
            upper, work = self._uppers.paths(container_id)
            config = bundle.render(
                desired,
                id=container_id,
                layout=layout,
                layers=[layout.layer(chain_id) for chain_id in reversed(layers)],
                upper=upper,
                work=work,
                cgroup=group.annotation(),
                cgroups_path=group.path,
                nofile_hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
                held=capabilities,
                nodes=nodes,
                rules=rules,
                joined=joined,
                seccomp=filter.write(layout.filter(container_id), desired, capabilities),
                ids=ids,
            )
            replace_json(layout.config(container_id), config, durable=False)
            failpoint("create.configured")
            with self._store.claims:
                self._demand(desired)  # once more: from here on the record keeps them
                record.write(
                    layout,
                    record.Record(
                        id=container_id,
                        app=desired.app,
                        name=desired.name,
                        fingerprint=desired.fingerprint,
                        settings=desired.settings,
                        image=str(desired.image.config),
                        manifest=str(desired.image.manifest),
                        reference=desired.reference,
                        layers=tuple(chain_id.hex for chain_id in layers),
                        volumes=tuple(sorted(_volumes(desired))),
                        address=address,
                        created=time.time(),
                        attempt=attempt,
                        restarts=restarts,
                        turn=desired.wish.turn if desired.wish is not None else 0,
                        networks=desired.networks,
                        joins=desired.joins,
                        ids=ids,
                    ),
                    durable=bool(desired.id) and not again,
                )
            failpoint("create.recorded")
            created = self._zygote.create(
                layout.container(container_id), layout.run_container(container_id), timeout=_CREATE_TIMEOUT
            )
            inside = os.fstat(created.netns_fd).st_ino
            created.close()
            failpoint("create.made")
            if joined is not None and inside != joined.inode:  # the pid was another process's by then
                raise ReconcilerError(
                    f"{desired.full_name}: the container whose network it joins has just ended",
                    transient=True,
                )
            undo.pop_all()
        self._made[desired.app, desired.name] = container_id
        return container_id

    def _demand(self, desired: Container) -> None:
        """Raise where a layer or a volume has gone since the plan was made."""
        gone = [
            f"layer {layer.chain_id.short}"
            for layer in desired.image.layers
            if not self._store.has_layer(layer.chain_id)
        ]
        gone += [
            f"volume {volume}"
            for volume in sorted(_volumes(desired))
            if not self._layout.volume_data(desired.app, volume).is_dir()
        ]
        if gone:
            raise ReconcilerError(f"{desired.full_name}: {gone[0]} has just been removed", transient=True)

    @property
    def _parent(self) -> str:
        return f"reconciler-{self._instance}"

    def _make_directories(self, container_id: str, desired: Container) -> None:
        layout = self._layout
        for directory in (
            layout.container(container_id),
            layout.log(container_id),
            layout.configs(container_id),
            layout.rootfs(container_id),
            layout.run_container(container_id),
        ):
            directory.mkdir(mode=0o700)
        self._make_upper(desired, container_id)
        etc.write_configs(layout, container_id, desired)

    def _make_again(self, desired: Container) -> None:
        """Take away what the last run left, but for the files and the log; what is missing of those is made anew."""
        layout, container_id = self._layout, desired.id
        self._clear(container_id)
        layout.settled_exit(container_id).unlink(missing_ok=True)  # or it would count as ended while it runs
        failpoint("create.cleared")
        for directory in (
            layout.log(container_id),
            layout.configs(container_id),
            layout.rootfs(container_id),
            layout.run_container(container_id),
        ):
            directory.mkdir(mode=0o700, exist_ok=True)
        upper, work = self._uppers.paths(container_id)
        if upper.is_dir():
            work.mkdir(mode=0o700, exist_ok=True)
        else:  # it was in a run directory that is gone
            trash.delete(work)
            self._make_upper(desired, container_id)

    def _make_upper(self, desired: Container, container_id: str) -> None:
        layers = desired.image.layers
        self._uppers.make(container_id, self._layout.layer(layers[-1].chain_id) if layers else None)

    def _clear(self, container_id: str) -> None:
        """Take away processes, cgroup and run directory; what the container wrote stays."""
        self._end_all(container_id)
        run = self._layout.run_container(container_id)
        for name in _names(run):
            if run / name not in self._uppers.paths(container_id):
                trash.delete(run / name)
        failpoint("create.unrun")

    # --- start -----------------------------------------------------------------------------------------------------

    def start(self, app: str, name: str) -> None:
        """Attach the network and let the program run; succeeds if it runs already."""
        found = self._find(app, name)
        shim = read_shim(self._layout.shim_record(found.id))
        if shim is None:
            raise ReconcilerError(f"{app}/{name}: it has no shim any more", transient=True)
        if shim.started_boot is not None:
            return
        self._connections.connect(found)
        with Control.connect(self._layout.control_socket(found.id)) as control:
            control.start()
        failpoint("start.started")
        if until_served(self._layout, found):
            self._networks.share(app, name)

    def _find(self, app: str, name: str) -> record.Record:
        """The newest container of that name; looks through all of them only where this process did not make it."""
        path = self._layout.identity(self._made.get((app, name), "none"))
        try:
            return record.parse(path.read_bytes(), f"container {app}/{name}")
        except (OSError, record.CorruptRecordError):
            return record.find(self._layout, app, name)

    def attach(self, found: record.Record) -> None:
        """Connect the container's network namespace to its networks; succeeds if it is connected."""
        self._connections.attach(found)

    def tell(self, networks: Iterable[str]) -> None:
        """Have everybody in these networks know everybody else there."""
        self._connections.tell(networks)

    # --- stop ------------------------------------------------------------------------------------------------------

    def begin_stop(self, container_id: str, signal_name: str) -> int | None:
        """Send the stop signal; return a pidfd of the shim to wait on, or None where no program runs."""
        shim = read_shim(self._layout.shim_record(container_id))
        if shim is None or shim.started_boot is None:
            return None
        init = open_pidfd(shim.init)
        if init is None:
            return None
        self._layout.stopping(container_id).touch(mode=0o600)
        failpoint("stop.marked")
        if found := sharing(self._layout, container_id):
            self._networks.share(found.app, found.name)  # it gets no new connections from here on
        try:
            signal.pidfd_send_signal(init, stop_signal(signal_name))
        except ProcessLookupError:
            os.close(init)
            return None
        failpoint("stop.signalled")
        self.freeze(container_id, False)  # or it would never hear of the signal
        waited = open_pidfd(shim.shim)
        if waited is None:
            return init
        os.close(init)
        return waited

    def freeze(self, container_id: str, frozen: bool) -> None:
        """Freeze all that runs in the container, or let it go on; succeeds where that is so, or nothing is there.

        While it is frozen it is given no new connections to a port that it shares.
        """
        group = cgroup.open_existing(self._hierarchies(), self._parent, container_id)
        if group is not None:
            cgroup.freeze(group, frozen)
            if found := sharing(self._layout, container_id):
                self._networks.share(found.app, found.name)

    def finish_stop(self, container_id: str) -> None:
        """Kill what is left of the container, and return once nothing of it runs."""
        group = cgroup.open_existing(self._hierarchies(), self._parent, container_id)
        deadline = time.monotonic() + _KILL_TIMEOUT
        if group is not None:
            cgroup.kill(group)
            failpoint("stop.killed")
            if not cgroup.wait_empty(group, timeout=_KILL_TIMEOUT):
                raise TimedOutError(
                    f"container {container_id[:12]}: its processes do not end although they were killed "
                    "(uninterruptible sleep: hanging storage or network mounts?)"
                )
        shim = read_shim(self._layout.shim_record(container_id))
        if shim is None:
            return
        init = open_pidfd(shim.init)
        if init is not None:  # not in its cgroup: somebody moved it, or removed the directory
            end(init, 0.0)
        pidfd = open_pidfd(shim.shim)
        if pidfd is not None:
            end(pidfd, max(0.5, deadline - time.monotonic()))

    # --- remove ----------------------------------------------------------------------------------------------------

    def remove(self, container_id: str, *, keep_previous: bool) -> None:
        """Remove everything of the container, whatever is left of it, with or without its shim's help."""
        layout = self._layout
        self.finish_stop(container_id)
        failpoint("remove.stopped")
        try:
            found = record.parse(layout.identity(container_id).read_bytes(), container_id)
        except (OSError, record.CorruptRecordError):
            found = None
        if found is not None:
            self._touch(found)
            if keep_previous:
                previous.keep(layout, self._store, found)
                failpoint("remove.kept")
            else:
                previous.forget(layout, self._store, found)
                drop_volumes(layout, self._store, found)
                self._connections.release(found)
        self._discard(container_id)

    def _touch(self, found: record.Record) -> None:
        """Note that the image was in use until now: garbage goes by age."""
        for image in self._store.images():
            if str(image.manifest) == found.manifest:
                self._store.touch(image)

    def _discard(self, container_id: str) -> None:
        """Take away cgroup, run directory and state directory; each succeeds if it is gone.

        Not synced, as its record was not: after a power cut it is a container that is lost, or a directory without one.
        """
        self._end_all(container_id)
        rootfslimit.release(self._layout, container_id)
        trash.delete(self._layout.run_container(container_id))  # the upper may be in it, however deep
        failpoint("remove.unrun")
        self._store.discard(self._layout.container(container_id), durable=False)
        failpoint("remove.discarded")

    def _end_all(self, container_id: str) -> None:
        """Take away every process and the cgroup."""
        self.finish_stop(container_id)
        group = cgroup.open_existing(self._hierarchies(), self._parent, container_id)
        if group is not None:
            cgroup.remove(group)
        failpoint("remove.ungrouped")

    def sweep(self) -> None:
        """Clear away directories that a crash left without a record, and run directories of nothing."""
        known = {found.id for found in record.records(self._layout)}
        for root in (self._layout.containers, self._layout.run_containers):
            for name in _names(root):
                if name not in known:
                    self._discard(name)

    # --- update ----------------------------------------------------------------------------------------------------

    def update(self, container_id: str, settings: Settings, *, reattach: bool) -> None:
        """Change limits, rotation and recorded settings of a container; nothing of it restarts."""
        layout = self._layout
        found = record.parse(layout.identity(container_id).read_bytes(), container_id)
        group = cgroup.open_existing(self._hierarchies(), self._parent, container_id)
        if group is None:
            raise NotFoundError(f"{found.full_name}: its cgroup is gone")
        cgroup_limits.update(group, settings.limits, layout.state)
        rootfslimit.apply(layout, self._uppers, container_id, found.full_name, settings.limits.rootfs)
        failpoint("update.limited")
        if settings.rotation != found.settings.rotation and layout.control_socket(container_id).exists():
            rotation = settings.rotation
            with Control.connect(layout.control_socket(container_id)) as control:
                control.update_logging(
                    max_size=rotation.max_size, max_files=rotation.max_files, compress=rotation.compress
                )
        failpoint("update.logging")
        if settings.aliases != found.settings.aliases:
            self._connections.rename(found, settings.aliases)
        record.write(layout, found.with_settings(settings))
        failpoint("update.recorded")
        if reattach:
            self._connections.attach(found)

    def record_exit(self, container_id: str) -> None:
        """Copy the exit record to where it survives a reboot, durably, with the reason of the end if there is one."""
        data = rootfslimit.explained(self._layout, container_id)
        replace_bytes(self._layout.settled_exit(container_id), data)
        failpoint("exit.settled")


def _volumes(desired: Container) -> Iterable[str]:
    return {mount.volume for mount in desired.identity.mounts if isinstance(mount, VolumeMount)}


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except FileNotFoundError:
        return []
