"""From a spec and its resolved images to what should run: Docker's rules for what a container inherits from its image.

Every default is applied before or here, so that one spelled out and one left out give the same value, and so the same
fingerprint. Two of the rules are ours. A path that the image declares as a VOLUME and the spec does not mount is an
ordinary directory of the container's writable layer: an anonymous volume, as Docker makes, would outlive its container
with nobody to miss it. And a container without anything to run holds up its app with a sentence, as an image does that
can't be had or is for another platform, instead of failing when it starts. Pure.
"""

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from reconciler.spec import model
from reconciler.spec.attachment import DEFAULT, first_usable
from reconciler.spec.capabilities import DEFAULT_CAPABILITIES
from reconciler.spec.defaults import BUILT_IN, Defaults, with_defaults
from reconciler.spec.environment import variables
from reconciler.spec.joining import joined
from reconciler.spec.load import LoadedApp
from reconciler.spec.modes import JOINS
from reconciler.spec.networking import has_ipv6, host_ips
from reconciler.spec.reference import Reference
from reconciler.spec.seccomp import DEFAULT as DEFAULT_PROFILE
from reconciler.spec.seccomp import UNCONFINED
from reconciler.spec.userns import userns
from reconciler.state.desired import (
    App,
    BindMount,
    ConfigMount,
    Container,
    Device,
    Identity,
    Io,
    Limits,
    Mount,
    Port,
    RestartPolicy,
    Rotation,
    Settings,
    TmpfsMount,
    UnresolvedImage,
    VolumeMount,
    replica_name,
)
from reconciler.state.image import Image, Unresolved
from reconciler.state.network import Attachment, Network

# moby, oci/defaults.go and daemon/oci_linux.go: what a process gets where neither image nor user sets PATH.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BLOCK = 4096  # the kernel limits a volume in blocks: what is wanted must be what can be found


def references(loaded: LoadedApp) -> tuple[Reference, ...]:
    """Return the images that the app needs, each once, sorted."""
    wanted = (container for container in loaded.app.containers.values() if container.replicas)
    return tuple(sorted({container.image for container in wanted}, key=str))


def desire(
    loaded: LoadedApp,
    images: Mapping[str, Image | Unresolved],
    *,
    defaults: Defaults = BUILT_IN,
    stale: str = "",
) -> App:
    """Return the app that should run. `images` holds, by `str` of each of `references`, what is known of it.

    A container whose image is not known or can't be run is not in `containers` but in `unresolved`.
    """
    app = with_defaults(loaded.app, defaults)
    containers: dict[str, Container] = {}
    unresolved: list[UnresolvedImage] = []
    for name in sorted(app.containers):
        spec = app.containers[name]
        if not spec.replicas:
            continue
        image = images.get(str(spec.image), Unresolved("not looked up yet"))
        made = image if isinstance(image, Unresolved) else _container(loaded, app, name, image, defaults)
        if isinstance(made, Unresolved):
            numbers = range(1, spec.replicas + 1)
            unresolved += (UnresolvedImage(replica_name(name, n), str(spec.image), made) for n in numbers)
        else:
            containers |= {one.name: one for one in _replicated(made, spec, app)}
    return App(
        name=app.name,
        path=loaded.path,
        digest=loaded.digest,
        containers=containers,
        volumes=tuple(sorted(app.volumes)),
        unresolved=tuple(unresolved),
        stale=stale,
        external=frozenset(name for name, volume in app.volumes.items() if volume.external),
        volume_limits={
            name: -(-volume.size_limit // _BLOCK) * _BLOCK
            for name, volume in app.volumes.items()
            if volume.size_limit is not None
        },
        replicas={name: container.replicas for name, container in sorted(app.containers.items())},
        network_labels={
            _key(app, name): tuple(sorted(network.labels.items()))
            for name, network in app.networks.items()
            if network.labels
        },
    )


def _replicated(first: Container, spec: model.Container, app: model.App) -> Iterator[Container]:
    """Each of the replicas: they differ in their names only, and in whose network they join."""
    for number in range(1, spec.replicas + 1):
        if number == 1:
            yield first
            continue
        identity, settings = first.identity, first.settings
        if first.joins:
            other = replica_name(first.joins, number)
            identity = replace(identity, network_mode=f"{JOINS}{other}")
            settings = replace(settings, depends_on=_awaited(spec.depends_on, app, other))
        elif not spec.hostname:
            identity = replace(identity, hostname=_hostname(first.app, first.name, f"-{number}"))
        yield replace(first, name=replica_name(first.name, number), identity=identity, settings=settings)


def _hostname(app: str, name: str, suffix: str = "") -> str:
    """APP-CONTAINER[-NUMBER], in the 64 bytes that the kernel has for it (uts_namespaces(7))."""
    return f"{app}-{name}"[: 64 - len(suffix)].rstrip("-") + suffix


def _container(
    loaded: LoadedApp, app: model.App, name: str, image: Image, defaults: Defaults
) -> Container | Unresolved:
    spec = app.containers[name]
    arguments = _arguments(spec, image)
    if not arguments:
        return Unresolved("neither the image nor the spec says what to run: set `command`", transient=False)
    identity = Identity(
        image=str(image.config),
        arguments=arguments,
        environment=_environment(loaded, spec, image),
        working_dir=spec.working_dir or image.working_dir or "/",
        user=image.user if spec.user is None else spec.user,
        hostname="" if joined(spec) else spec.hostname or _hostname(app.name, name),
        mounts=_mounts(loaded, spec),
        init=spec.init,
        read_only=spec.read_only,
        log_driver=spec.logging.driver,
        groups=spec.group_add,
        ulimits=tuple(sorted((name, limit.soft, limit.hard) for name, limit in spec.ulimits.items())),
        oom_score_adj=spec.oom_score_adj,
        shm_size=spec.shm_size,
        sysctls=tuple(sorted(spec.sysctls.items())),
        network_mode=_network_mode(app, spec),
        networks=_places(app, spec),
        dns=spec.dns,
        dns_search=spec.dns_search,
        dns_opt=spec.dns_opt,
        extra_hosts=spec.extra_hosts,
        cap_add=_effective(spec.cap_add, () if "ALL" in spec.cap_drop else DEFAULT_CAPABILITIES),
        cap_drop=_dropped(spec),
        privileged=spec.privileged,
        no_new_privileges=spec.no_new_privileges,
        seccomp=_seccomp(loaded, spec, name),
        userns=userns(spec, image.user, defaults.userns),
        devices=tuple(
            sorted(
                (
                    Device(one.source, one.target or one.source, one.permissions, one.optional)
                    for one in spec.devices
                ),
                key=lambda device: device.target,
            )
        ),
    )
    return Container(
        app=app.name,
        name=name,
        identity=identity,
        settings=_settings(app, spec, image),
        image=image,
        reference=str(spec.image),
        mark=str(loaded.marks.mark("containers", name, "image")),
        configs={mount.source: loaded.config_files[mount.source] for mount in spec.configs},
        seccomp=loaded.profiles.get(name, b""),
    )


def _key(app: model.App, name: str) -> str:
    """The key of a network that the app calls `name`."""
    if name == DEFAULT:
        return app.name
    return f"/{name}" if name in app.networks and app.networks[name].external else f"{app.name}/{name}"


def _network_mode(app: model.App, spec: model.Container) -> str:
    """The mode, with the full name of a container that is joined; by hand it is there already."""
    other = joined(spec)
    return f"{JOINS}{app.name}/{other}" if other and "/" not in other else spec.network_mode


def _places(app: model.App, spec: model.Container) -> tuple[Attachment, ...]:
    """The container's places; none for the app's own network with nothing declared, as it is left out."""
    if spec.network_mode != "bridge":
        return ()
    found = []
    for name, place in spec.networks.items():
        said = app.networks.get(name, model.Network())
        network = Network(
            _key(app, name),
            said.subnet4,
            _gateway(said.subnet4, said.gateway4),
            said.internal,
            ipv6=said.ipv6,
            subnet6=said.subnet6,
            gateway6=_gateway(said.subnet6, said.gateway6),
        )
        found.append(Attachment(network, place.ipv4_address or "", place.ipv6_address or ""))
    return () if found == [Attachment(Network(app.name))] else tuple(found)


def _gateway(subnet: str, said: str) -> str:
    """The device's own address as it is declared, "" where that is the one that it has anyway."""
    return "" if subnet and said == str(first_usable(ipaddress.ip_network(subnet))) else said


def _outward(app: model.App, spec: model.Container, *, ipv6: bool = False) -> str:
    """The network by which the container is reached from outside, as `Port` has it; with `ipv6` by that."""
    for name in spec.networks:
        network = app.networks.get(name, model.Network())
        if not network.internal and (network.ipv6 or not ipv6):
            return "" if name == DEFAULT else _key(app, name)
    return ""


def _seccomp(loaded: LoadedApp, spec: model.Container, name: str) -> str:
    """What of its profile makes it this container: nothing for the default, which may be another in each release."""
    if spec.privileged or spec.seccomp == DEFAULT_PROFILE:
        return ""
    if spec.seccomp == UNCONFINED:
        return UNCONFINED
    return f"sha256:{hashlib.sha256(loaded.profiles[name]).hexdigest()}"


def _effective(added: tuple[str, ...], there: tuple[str, ...]) -> tuple[str, ...]:
    """What `cap_add` changes: ALL is all of it, and what is there anyway is nothing."""
    return ("ALL",) if "ALL" in added else tuple(name for name in added if name not in there)


def _dropped(spec: model.Container) -> tuple[str, ...]:
    """What `cap_drop` changes: ALL is all of it, and what is not there anyway is nothing."""
    if "ALL" in spec.cap_drop:
        return ("ALL",)
    everything = spec.privileged or "ALL" in spec.cap_add
    return tuple(name for name in spec.cap_drop if everything or name in DEFAULT_CAPABILITIES)


def _arguments(spec: model.Container, image: Image) -> tuple[str, ...]:
    """Docker's rule: `entrypoint` replaces the image's and clears its CMD, `command` replaces its CMD."""
    if spec.entrypoint is not None:
        return spec.entrypoint + (spec.command or ())
    command = image.command if spec.command is None else spec.command
    return (image.entrypoint or ()) + (command or ())


def _environment(loaded: LoadedApp, spec: model.Container, image: Image) -> tuple[str, ...]:
    """The image's variables overlaid by the spec's; an entry of the image without `=` sets nothing."""
    found = {"PATH": DEFAULT_PATH}
    found |= dict(entry.split("=", 1) for entry in image.environment if "=" in entry)
    found |= variables(spec, loaded.config_files, loaded.labels)
    return tuple(f"{name}={found[name]}" for name in sorted(found))


def _mounts(loaded: LoadedApp, spec: model.Container) -> tuple[Mount, ...]:
    mounts = [_mount(mount) for mount in (*spec.volumes, *spec.tmpfs)]
    mounts += (
        ConfigMount(
            config=mount.source,
            target=mount.target,
            digest=hashlib.sha256(loaded.config_files[mount.source]).hexdigest(),
            uid=mount.uid,
            gid=mount.gid,
            mode=mount.mode,
        )
        for mount in spec.configs
    )
    return tuple(sorted(mounts, key=lambda mount: mount.target))


def _mount(mount: model.Mount) -> Mount:
    match mount:
        case model.VolumeMount():
            return VolumeMount(mount.source, mount.target, mount.read_only, mount.subpath or "", mount.nocopy)
        case model.BindMount():
            return BindMount(
                mount.source, mount.target, mount.read_only, mount.create_host_path, mount.propagation
            )
        case model.TmpfsMount():
            return TmpfsMount(mount.target, mount.size, mount.mode)


def _limits(spec: model.Container) -> Limits:
    limits, io = spec.limits, spec.limits.io
    return Limits(
        cpus=limits.cpus,
        memory=limits.memory,
        swap=limits.swap,
        pids=limits.pids,
        io=Io(io.device or "", io.read_bps, io.write_bps, io.read_iops, io.write_iops)
        if io is not None
        else None,
        io_weight=limits.io_weight,
        cpuset=spec.cpuset or "",
        reserve_cpus=spec.reserve.cpus or 0,
        reserve_memory=spec.reserve.memory or 0,
        rootfs=limits.rootfs,
        hugepages=tuple(sorted(limits.hugepages.items())),
    )


def _all_of(app: model.App, name: str) -> list[str]:
    """The full names of a container and its replicas; of one of another app the first, which stands for all."""
    if "/" in name:
        return [name]
    count = app.containers[name].replicas if name in app.containers else 1
    return [f"{app.name}/{replica_name(name, number)}" for number in range(1, count + 1)]


def _awaited(names: Iterable[str], app: model.App, other: str = "") -> tuple[str, ...]:
    """The full names of what must have started before: what `names` say, and `other`, which is one already."""
    return tuple(
        sorted({full for name in names for full in _all_of(app, name)} | ({other} if other else set()))
    )


def _settings(app: model.App, spec: model.Container, image: Image) -> Settings:
    # One that is joined by hand is waited for by the plan itself: it is of no lane that this one could follow.
    other = f"{app.name}/{joined(spec)}" if joined(spec) and "/" not in joined(spec) else ""
    restart, logging, ipv6 = spec.restart, spec.logging, has_ipv6(app, spec)
    outward = {6: _outward(app, spec, ipv6=True), 4: _outward(app, spec)}
    return Settings(
        limits=_limits(spec),
        restart=RestartPolicy(
            policy=restart.policy,
            max_attempts=restart.max_attempts,
            delay=restart.delay,
            max_delay=restart.max_delay,
            factor=restart.factor,
            jitter=restart.jitter,
            reset_after=restart.reset_after,
        ),
        stop_signal=spec.stop_signal or image.stop_signal or "SIGTERM",
        stop_grace=spec.stop_grace_period,
        ports=tuple(
            sorted(
                {
                    Port(
                        host_ip,
                        port.published.first + step,
                        port.target.first + step,
                        port.protocol,
                        port.balance,
                        outward[6 if ":" in host_ip else 4],
                    )
                    for port in spec.ports
                    for host_ip in host_ips(port, ipv6=ipv6)
                    for step in range(port.published.count)
                }
            )
        ),
        depends_on=_awaited(spec.depends_on, app, other),
        labels=tuple(sorted({**app.labels, **spec.labels}.items())),
        rotation=Rotation(logging.max_size, logging.max_files, logging.compress),
        annotations=tuple(sorted(spec.annotations.items())),
        aliases=tuple(
            sorted(
                (_key(app, name), alias) for name, place in spec.networks.items() for alias in place.aliases
            )
        ),
    )
