"""Values for tests of the planner: images, containers, whole worlds, and the ways from one world to the next."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

from reconciler.plan.diff import plan
from reconciler.plan.simulate import simulate
from reconciler.plan.steps import Plan, PullImage, Step
from reconciler.spec.reference import Digest
from reconciler.state.desired import App, Container, Desired, Identity, Mount, Settings
from reconciler.state.generation import AppliedApp, Generation
from reconciler.state.image import Image, Layer
from reconciler.state.network import Attachment
from reconciler.state.observed import Container as Found
from reconciler.state.observed import Exited, Lost, Networks, Now, Observed, Phase, Published, Running, Store
from reconciler.state.process import ExitRecord

BOOT = "boot-1"
NOW = Now(boottime=10_000.0, wall=1_800_000_000.0)


# --- values -------------------------------------------------------------------------------------------------------


def digest(text: str) -> Digest:
    """A digest that depends on `text` alone."""
    return Digest("sha256", hashlib.sha256(text.encode()).hexdigest())


def layer(name: str) -> Layer:
    """A layer of that name, 1 MiB packed."""
    media_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    return Layer(digest(f"blob {name}"), 1 << 20, media_type, digest(f"diff {name}"), digest(name))


def image(name: str, *layers: str) -> Image:
    """An image of that name; without `layers` it has a base that all share, and one of its own."""
    return Image(
        index=digest(f"index {name}"),
        manifest=digest(f"manifest {name}"),
        config=digest(f"config {name}"),
        layers=tuple(layer(part) for part in layers or ("base", name)),
        platform="linux/amd64",
        command=("/bin/serve",),
    )


IMAGES = tuple(image(name) for name in ("one", "two", "three"))


def chain_ids(images: tuple[Image, ...] = IMAGES) -> frozenset[str]:
    """The names of all layers of `images` in the store."""
    return frozenset(layer.chain_id.hex for image in images for layer in image.layers)


def container(
    app: str,
    name: str,
    *,
    image: Image = IMAGES[0],
    arguments: tuple[str, ...] = ("/bin/serve",),
    mounts: tuple[Mount, ...] = (),
    settings: Settings | None = None,
    network_mode: str = "bridge",
    networks: tuple[Attachment, ...] = (),
) -> Container:
    """A container that should run."""
    return Container(
        app=app,
        name=name,
        identity=Identity(
            image=str(image.config), arguments=arguments, mounts=mounts, network_mode=network_mode
        ),
        settings=settings or Settings(),
        image=image,
        reference=f"registry.example/{app}/{name}@{image.index}",
    )


def app(name: str, *containers: Container, digest: str = "spec-1", volumes: tuple[str, ...] = ()) -> App:
    """An app that should run."""
    return App(name, f"{name}.yaml", digest, {c.name: c for c in containers}, volumes)


def desired(*apps: App) -> Desired:
    """These apps, and nothing held."""
    return Desired({app.name: app for app in apps})


def found(want: Container, phase: Phase | None = None, **changes: object) -> Found:
    """A container as `want` would have made it; it runs unless a phase is given."""
    phase = phase or Running(4711, NOW.boottime - 5000.0, NOW.wall - 5000.0)
    have = Found(
        id=hashlib.sha256(f"id of {want.full_name}".encode()).hexdigest(),
        app=want.app,
        name=want.name,
        fingerprint=want.fingerprint,
        settings=want.settings,
        phase=phase,
        image=want.identity.image,
        layers=tuple(layer.chain_id.hex for layer in want.image.layers),
        limits=want.settings.limits if isinstance(phase, Running) else None,
        created=NOW.wall - 5000.0,
        networks=want.networks,
        joins=want.joins,
    )
    return replace(have, **changes)  # type: ignore[arg-type]


def record(
    code: int | None = 1,
    *,
    signal: int | None = None,
    oom: bool = False,
    ran: float | None = 5.0,
    ago: float = 0.0,
    boot: str = BOOT,
) -> ExitRecord:
    """A program that ran for `ran` seconds (None: was never started) and ended `ago` seconds before NOW."""
    ended, wall = NOW.boottime - ago, NOW.wall - ago
    return ExitRecord(
        code=None if signal is not None else code,
        signal=signal,
        oom=oom,
        started_boot=None if ran is None else ended - ran,
        started_wall=None if ran is None else wall - ran,
        finished_boot=ended,
        finished_wall=wall,
        boot=boot,
    )


def world(*containers: Found, images: tuple[Image, ...] = IMAGES, **changes: object) -> Observed:
    """A world in which these containers are all there is, with healthy networks and the ports that they publish."""
    by_name: dict[str, tuple[Found, ...]] = {}
    for one in containers:
        by_name[one.full_name] = (*by_name.get(one.full_name, ()), one)
    ports = {Published(c.app, c.name, port) for c in containers for port in c.settings.ports}
    observed = Observed(
        boot=BOOT,
        containers=dict(sorted(by_name.items())),
        network=Networks(
            frozenset({key for c in containers for key in c.networks} | {c.app for c in containers}),
            tuple(sorted(ports)),
        ),
        store=Store(layers=chain_ids(images)),
    )
    return replace(observed, **changes)  # type: ignore[arg-type]


def later(seconds: float, now: Now = NOW) -> Now:
    """The time after that many seconds."""
    return Now(now.boottime + seconds, now.wall + seconds)


# --- histories ----------------------------------------------------------------------------------------------------


def turn(want: Desired, have: Observed, now: Now = NOW, *, survived: int | None = None) -> Observed:
    """Plan and perform, all of it or only the first `survived` steps."""
    for step in plan(want, have, now).steps[:survived]:
        have = simulate(step, have, now)
    return have


def settle(want: Desired, have: Observed, now: Now = NOW, *, turns: int = 12) -> Observed:
    """Perform turns until one has nothing to do."""
    for _ in range(turns):
        if not plan(want, have, now).steps:
            return have
        have = turn(want, have, now)
    raise AssertionError(f"still something to do: {[str(step) for step in plan(want, have, now).steps]}")


def turn_without_pulls(want: Desired, have: Observed, now: Now = NOW) -> Observed:
    """Perform a plan while every registry is down: each lane ends at its first pull."""
    failed: set[str] = set()
    for step in plan(want, have, now).steps:
        if isinstance(step, PullImage):
            failed.add(step.lane)
        elif step.lane not in failed:
            have = simulate(step, have, now)
    return have


def change(have: Observed, one: Callable[[Found], Found]) -> Observed:
    """Change every container."""
    containers = {name: tuple(one(c) for c in same) for name, same in have.containers.items()}
    return replace(have, containers=containers)


def ended(have: Observed, how: Callable[[Found, Running], Phase]) -> Observed:
    """Let every running container end."""

    def end(c: Found) -> Found:
        if not isinstance(c.phase, Running):
            return c
        return replace(c, phase=how(c, c.phase), limits=None)

    return change(have, end)


def reboot(have: Observed, boot: str = "boot-2") -> Observed:
    """A reboot: the run directory, the network and every process are gone; settled exit records stay."""

    def lose(c: Found) -> Found:
        if isinstance(c.phase, Exited) and c.settled:
            return c
        return replace(c, phase=Lost("the device was restarted"), limits=None, attached=True, stopped=False)

    return replace(change(have, lose), boot=boot, network=Networks(), failures={})


def steps_of(made: Plan, lane: str) -> list[Step]:
    """The lane of one app, or of one ad-hoc container."""
    return [step for step in made.steps if step.lane == lane]


def generation(number: int, *applied: App) -> Generation:
    """A generation in which these apps were applied."""
    return Generation(
        number,
        f"commit-{number}",
        NOW.wall - 1000.0,
        tuple(
            AppliedApp(
                one.name,
                one.path,
                one.digest,
                tuple(
                    (c.reference, str(c.image.manifest), str(c.image.config)) for c in one.containers.values()
                ),
                tuple(
                    sorted({layer.chain_id.hex for c in one.containers.values() for layer in c.image.layers})
                ),
                tuple(str(c.image.config) for c in one.containers.values()),
            )
            for one in applied
        ),
    )
