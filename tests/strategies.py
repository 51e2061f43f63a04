"""Random desires and worlds for property tests.

Worlds are put together freely, not only by histories, so that also what no history leads to is survived.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from reconciler.plan.diff import plan
from reconciler.plan.steps import Step
from reconciler.spec.adhoc import ADHOC
from reconciler.state.desired import (
    App,
    ConfigMount,
    Container,
    Desired,
    Limits,
    Mount,
    Port,
    RestartPolicy,
    Settings,
    TmpfsMount,
    UnresolvedImage,
    VolumeMount,
)
from reconciler.state.image import Unresolved
from reconciler.state.network import Attachment
from reconciler.state.network import Network as NetworkOf
from reconciler.state.observed import Container as Found
from reconciler.state.observed import (
    Created,
    Exited,
    Failure,
    Listener,
    Lost,
    Networks,
    Observed,
    Phase,
    Previous,
    Published,
    Running,
    Store,
    StoredObject,
)
from reconciler.state.wish import Goal, Wish
from tests.values import BOOT, IMAGES, NOW, chain_ids, container, found, record, steps_of

APPS = ("ant", "bee", "cat")
BY_HAND = ("p", "q")
NAMES = ("x", "x.2", "y")  # a container, its replica, and another
VOLUMES = ("data", "logs")

policies = st.builds(
    RestartPolicy,
    policy=st.sampled_from(["no", "on-failure", "always", "always"]),
    max_attempts=st.sampled_from([0, 0, 2]),
    delay=st.sampled_from([0.5, 1.0, 10.0]),
)
limits = st.sampled_from([Limits(), Limits(memory=64 << 20), Limits(cpus=500, pids=100)])


@st.composite
def settings(draw: st.DrawFn, name: str, port_base: int, dependencies: tuple[str, ...]) -> Settings:
    """Settings whose ports are from a range of the app's own."""
    numbers = draw(st.lists(st.sampled_from([port_base, port_base + 1]), unique=True, max_size=1))
    ports = [Port("0.0.0.0", n + 2 * NAMES.index(name), draw(st.sampled_from([80, 81]))) for n in numbers]
    if name in NAMES[:2] and draw(st.booleans()):  # replicas may share one
        ports.append(
            Port("0.0.0.0", port_base + 2 * len(NAMES), draw(st.sampled_from([80, 81])), balance=True)
        )
    return Settings(
        limits=draw(limits),
        restart=draw(policies),
        ports=tuple(ports),
        depends_on=tuple(sorted(draw(st.sets(st.sampled_from(dependencies), max_size=2)))) if dependencies else (),
        labels=draw(st.sampled_from([(), (("tier", "web"),)])),
    )  # fmt: skip


mounts: st.SearchStrategy[tuple[Mount, ...]] = st.sampled_from(
    [
        (),
        (VolumeMount("data", "/data"),),
        (VolumeMount("logs", "/logs", read_only=True), TmpfsMount("/tmp", 64 << 20)),
        (ConfigMount("conf", "/conf", "00" * 32),),
    ]
)


@st.composite
def containers(
    draw: st.DrawFn, app: str, name: str, foreign: bool, siblings: Sequence[str] = NAMES
) -> Container:
    """A container that depends on others of its app, in cycles too, and perhaps on those of other apps."""
    own = tuple(f"{app}/{other}" for other in siblings if other != name)
    others = tuple(f"{other}/{c}" for other in APPS if other != app for c in NAMES) if foreign else ()
    mode = draw(st.sampled_from(["bridge"] * 5 + ["host", "none"]))
    set_up = draw(settings(name, 1000 * (APPS.index(app) + 1), own + others))
    return container(
        app,
        name,
        image=draw(st.sampled_from(IMAGES)),
        arguments=draw(st.sampled_from([("/bin/serve",), ("/bin/serve", "--fast")])),
        mounts=draw(mounts),
        settings=set_up if mode == "bridge" else replace(set_up, ports=()),
        network_mode=mode,
        networks=draw(places(app)) if mode == "bridge" else (),
    )


SHARED = "/lan"
_FORMS: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"subnet": "10.77.0.0/24"},
    {"subnet": "10.78.0.0/24"},
    {"internal": True},
    {"ipv6": True},
    {"ipv6": True, "subnet6": "fd12:3456:789a::/64"},
)


def declared(key: str) -> st.SearchStrategy[NetworkOf]:
    """A network in one of the forms that it may be declared in; of one that apps share nothing but IPv6 is said."""
    forms = _FORMS if key != SHARED else ({}, {"ipv6": True})
    return st.sampled_from(forms).map(lambda form: NetworkOf(key, **form))


@st.composite
def places(draw: st.DrawFn, app: str) -> tuple[Attachment, ...]:
    """Mostly the app's own network; now and then another one, a shared one, or several."""
    keys = draw(st.sampled_from([(app,)] * 4 + [(f"{app}/back",), (app, f"{app}/back"), (SHARED, app)]))
    found = [Attachment(draw(declared(key))) for key in keys]
    if found[0].network.subnet and draw(st.booleans()):
        found[0] = replace(found[0], address=found[0].network.subnet.replace("0/24", "9"))
    return () if found == [Attachment(NetworkOf(app))] else tuple(found)


def agreed(made: Mapping[str, Container]) -> dict[str, Container]:
    """The same containers, in networks that they say the same of: one spec declares each of them once."""
    known: dict[str, NetworkOf] = {}
    result = {}
    for name, one in made.items():
        own = []
        for place in one.places:
            taken = any(
                place.network.overlaps(other) for other in known.values() if other.key != place.network.key
            )
            new = (
                NetworkOf(place.network.key) if taken else place.network
            )  # no spec declares one subnet twice
            own.append(known.setdefault(place.network.key, new))
        same = tuple(
            Attachment(n, p.address if n == p.network else "") for n, p in zip(own, one.places, strict=True)
        )
        plain = same in ((), (Attachment(NetworkOf(one.app)),))
        # What is published on every address is so by IPv6 too, where the container is reached by that
        ipv6 = any(place.network.key == one.app and place.network.ipv6 for place in same)
        ports = tuple(port for port in one.settings.ports if port.host_ip != "::")
        ports += tuple(replace(port, host_ip="::") for port in ports if ipv6)
        result[name] = replace(
            one,
            identity=replace(one.identity, networks=() if plain else same),
            settings=replace(one.settings, ports=ports),
        )
    return result


@st.composite
def joined(draw: st.DrawFn, app: str, made: dict[str, Container]) -> dict[str, Container]:
    """The same containers; now and then one of them is in the network of another, which waits for none of its app."""
    able = sorted(name for name, one in made.items() if one.identity.network_mode != "host")
    if len(able) < 2 or draw(st.integers(0, 2)):
        return made
    owner, guest = draw(st.permutations(able))[:2]
    own = made[owner].settings
    free = tuple(name for name in own.depends_on if not name.startswith(f"{app}/"))
    one = made[guest]
    awaited = tuple(sorted({*one.settings.depends_on, f"{app}/{owner}"}))
    mode = f"container:{app}/{owner}"
    return {
        **made,
        owner: replace(made[owner], settings=replace(own, depends_on=free)),
        guest: replace(
            one,
            identity=replace(one.identity, network_mode=mode, networks=()),
            settings=replace(one.settings, ports=(), depends_on=awaited),
        ),
    }


def in_place(have: Mapping[str, tuple[Found, ...]]) -> dict[str, tuple[Found, ...]]:
    """The same containers; none is in the network of one that does not run."""
    meant = {
        f"{one.app}/{one.id if one.app == ADHOC else one.name}"
        for same in have.values()
        for one in same
        if isinstance(one.phase, Running)
    }
    alive = Running | Created
    return {
        name: tuple(
            replace(one, attached=False)
            if one.joins and one.joins not in meant and isinstance(one.phase, alive)
            else one
            for one in same
        )
        for name, same in have.items()
    }


sizes = st.sampled_from([1 << 20, 1 << 30])


@st.composite
def apps(draw: st.DrawFn, name: str, foreign: bool = False, unresolved: bool = True) -> App:
    """An app; now and then one of its images is not resolved."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    made = draw(joined(name, agreed({n: draw(containers(name, n, foreign, names)) for n in names})))
    waiting: tuple[UnresolvedImage, ...] = ()
    if unresolved and made and draw(st.integers(0, 4)) == 0:
        gone = draw(st.sampled_from(sorted(made)))
        waiting = (UnresolvedImage(gone, made.pop(gone).reference, Unresolved("registry is down")),)
    digest = draw(st.sampled_from(["spec-1", "spec-2"]))
    limits = draw(st.dictionaries(st.sampled_from(VOLUMES), sizes, max_size=2))
    return App(name, f"{name}.yaml", digest, made, VOLUMES, waiting, volume_limits=limits)


wishes = st.builds(
    Wish,
    goal=st.sampled_from([Goal.RUNNING, Goal.RUNNING, Goal.STOPPED]),
    turn=st.integers(0, 2),
    force=st.booleans(),
    grace=st.sampled_from([None, 0.0, 3.0]),
    reason=st.just("held by hand"),
)


@st.composite
def adhoc(draw: st.DrawFn, name: str, unresolved: bool = True) -> App:
    """An ad-hoc container, which has ports of its own and perhaps one that its namesakes in apps have too."""
    wish = replace(
        draw(wishes),
        goal=draw(st.sampled_from([Goal.RUNNING, Goal.RUNNING, Goal.STOPPED, Goal.CREATED])),
        auto_remove=draw(st.booleans()),
    )
    port = draw(st.sampled_from([1000, 5000])) + BY_HAND.index(name)
    made = container(
        ADHOC,
        name,
        image=draw(st.sampled_from(IMAGES)),
        mounts=draw(st.sampled_from([(), (VolumeMount("data", "/data"),)])),
        settings=Settings(draw(limits), draw(policies), ports=(Port("0.0.0.0", port, 80),)[: draw(st.integers(0, 1))]),
    )  # fmt: skip
    made = replace(made, wish=wish, id=hashlib.sha256(f"adhoc {name}".encode()).hexdigest())
    volumes = ("data",) if made.identity.mounts else ()
    if unresolved and draw(st.integers(0, 4)) == 0:
        waiting = UnresolvedImage(name, made.reference, Unresolved("registry is down"))
        return App(ADHOC, "", "record-1", {}, volumes, (waiting,), only=name)
    return App(ADHOC, "", draw(st.sampled_from(["record-1", "record-2"])), {name: made}, volumes, only=name)


@st.composite
def by_hand(draw: st.DrawFn, wanted: dict[str, App], unresolved: bool) -> dict[str, App]:
    """The same apps, with wishes about some containers, and with some ad-hoc ones beside them."""
    result: dict[str, App] = {}
    for name, app in wanted.items():
        made = {
            key: replace(one, wish=draw(wishes)) if draw(st.integers(0, 3)) == 0 else one
            for key, one in app.containers.items()
        }
        result[name] = replace(app, containers=made)
    for name in draw(st.lists(st.sampled_from(BY_HAND), unique=True)):
        app = draw(adhoc(name, unresolved))
        result[app.lane] = app
    return result


@st.composite
def desires(
    draw: st.DrawFn,
    *,
    foreign: bool = False,
    unresolved: bool = True,
    held: bool = True,
    hand: bool = True,
) -> Desired:
    """What should run: up to three apps, now and then with some held; with `hand` also what people want by hand."""
    names = draw(st.lists(st.sampled_from(APPS), unique=True))
    wanted = {name: draw(apps(name, foreign, unresolved)) for name in names}
    if hand and draw(st.booleans()):
        wanted = draw(by_hand(wanted, unresolved))
    if not held:
        return Desired(wanted)
    held_names = draw(st.sets(st.sampled_from(APPS), max_size=1)) if draw(st.booleans()) else set()
    return Desired(
        {name: app for name, app in wanted.items() if name not in held_names},
        {name: "its file can't be read" for name in held_names},
        draw(st.sampled_from(["", "", "", "the directory is empty"])),
    )


records = st.builds(
    record,
    st.sampled_from([0, 1, 137]),
    oom=st.booleans(),
    ran=st.sampled_from([None, 0.1, 5.0, 700.0]),
    ago=st.sampled_from([0.0, 0.7, 30.0, 5000.0]),
    boot=st.sampled_from([BOOT, "boot-0"]),
)
phases: st.SearchStrategy[Phase] = st.one_of(
    st.just(Created()),
    st.just(Running(4711, NOW.boottime - 50.0, NOW.wall - 50.0)),
    st.just(Running(4711, NOW.boottime - 50.0, NOW.wall - 50.0)),
    st.builds(Exited, records),
    st.just(Lost("its shim is gone")),
)


@st.composite
def existing(draw: st.DrawFn, app: str, name: str, wanted: Mapping[str, Container]) -> tuple[Found, ...]:
    """Up to two containers of one name, of which at most one runs, often made from what is wanted now."""
    result: list[Found] = []
    for number in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        want = wanted.get(f"{app}/{name}")
        if app == ADHOC:
            if want is None or draw(st.integers(0, 2)) == 0:
                want = next(iter(draw(adhoc(name, False)).containers.values()))
        elif want is None or draw(st.integers(0, 2)) == 0:
            want = draw(containers(app, name, False))
        phase = draw(phases)
        if isinstance(phase, Running) and any(isinstance(other.phase, Running) for other in result):
            phase = Created()
        have = found(
            want,
            phase,
            id=want.id
            if want.id and not result
            else hashlib.sha256(f"{app}/{name} {number}".encode()).hexdigest(),
            settled=isinstance(phase, Exited) and draw(st.booleans()),
            stopped=isinstance(phase, Exited) and draw(st.integers(0, 3)) == 0,
            attempt=draw(st.integers(0, 3)),
            restarts=draw(st.integers(0, 5)),
            turn=draw(st.integers(0, 2)),
            watched=app == ADHOC and draw(st.integers(0, 3)) == 0,
        )
        if isinstance(phase, Running):
            have = replace(
                have,
                attached=not (want.networked or want.joins) or draw(st.sampled_from([True, True, False])),
                intact=draw(st.sampled_from([True, True, False])),
                limits=draw(st.sampled_from([have.limits, have.limits, Limits(pids=7)])),
                paused=draw(st.integers(0, 4)) == 0,
            )
        result.append(have)
    return tuple(result)


@st.composite
def worlds(draw: st.DrawFn, want: Desired, *, local: bool = False, listeners: bool = False) -> Observed:
    """Anything that may be found on a device that should run `want`. With `local` all images are complete."""
    wanted = {c.full_name: c for app in want.apps.values() for c in app.containers.values()}
    have: dict[str, tuple[Found, ...]] = {}
    recorded = sorted(app.only for app in want.apps.values() if app.only)
    places = [(app, name) for app in APPS for name in NAMES]
    if recorded or draw(st.integers(0, 3)) == 0:
        places += [(ADHOC, name) for name in BY_HAND]
    for app, name in places:
        same = draw(existing(app, name, wanted))
        if same:
            have[f"{app}/{name}"] = same
    have = in_place(have)
    layers = chain_ids() if local else frozenset(draw(st.sets(st.sampled_from(sorted(chain_ids())))))
    previous = {
        name: Previous(
            want.fingerprint, draw(st.none() | records), draw(st.integers(0, 3)), draw(st.integers(0, 3))
        )
        for name, want in wanted.items()
        if name not in have and not want.id and draw(st.booleans())
    }
    rows = sorted(
        {Published(c.app, c.name, port) for same in have.values() for c in same for port in c.settings.ports}
    )
    objects = [StoredObject("layer", name, 1 << 20, NOW.wall - draw(ages)) for name in sorted(layers)]
    volumes = {app: frozenset(draw(st.sets(st.sampled_from(VOLUMES)))) for app in APPS}
    limited = [f"{app}/{volume}" for app, names in volumes.items() for volume in sorted(names)]
    keys = [*APPS, *(f"{app}/back" for app in APPS), ADHOC, SHARED]
    healthy = frozenset(draw(st.sets(st.sampled_from(keys))))
    traces = frozenset(draw(st.sets(st.sampled_from(keys[:-2]), max_size=2)))
    forms = [draw(declared(key)) for key in sorted(healthy | traces) if key != ADHOC]
    return Observed(
        boot=BOOT,
        containers=have,
        previous=previous,
        volumes=volumes,
        volume_limits=draw(st.dictionaries(st.sampled_from(limited), sizes)) if limited else {},
        network=Networks(
            healthy,
            draw(st.sampled_from([None, (), tuple(rows)])),
            traces,
            tuple(sorted(form for form in forms if form != NetworkOf(form.key))),
        ),
        adhoc=frozenset(name for name in recorded if draw(st.integers(0, 4)) > 0),
        listeners=tuple(draw(st.lists(strangers, max_size=2))) if listeners else (),
        store=Store(layers, tuple(objects)),
    )


ages = st.sampled_from([0.0, 100.0, 4000.0, 90_000.0])
strangers = st.builds(
    Listener,
    st.just("tcp"),
    st.sampled_from(["0.0.0.0", "127.0.0.1", "::"]),
    st.sampled_from([1000, 1001, 2002, 3004]),
    st.just("nginx (pid 612)"),
)


@st.composite
def failures(draw: st.DrawFn, want: Desired, have: Observed) -> Observed:
    """The same world, in which the last lanes of some apps stopped at one of their steps."""
    made = plan(want, have, NOW)
    result: dict[str, Failure] = {}
    for app in (*APPS, *(f"{ADHOC}/{name}" for name in BY_HAND)):
        lane = steps_of(made, app)
        if not lane or draw(st.booleans()):
            continue
        step: Step = draw(st.sampled_from(lane))
        spec = want.apps[app].version if app in want.apps else ""
        result[app] = Failure(
            str(step),
            "no space left on device",
            "",
            True,
            draw(st.integers(1, 12)),
            NOW.boottime - draw(st.sampled_from([0.0, 1.5, 200.0])),
            draw(st.sampled_from([spec, spec, "another"])),
        )
    return replace(have, failures=result)


@st.composite
def situations(
    draw: st.DrawFn, *, foreign: bool = False, unresolved: bool = True, hand: bool = True
) -> tuple[Desired, Observed]:
    """A desire, a world, and perhaps failures."""
    want = draw(desires(foreign=foreign, unresolved=unresolved, hand=hand))
    have = draw(worlds(want, listeners=draw(st.booleans())))
    if draw(st.booleans()):
        have = draw(failures(want, have))
    return want, have
