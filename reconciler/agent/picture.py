"""One container as the last turn saw it: what is wanted, what is there, and which ports are free for it.

What the verbs of single containers go by before they ask for anything. Reads values of a turn; changes nothing.
"""

import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from reconciler.agent.turn import Turn
from reconciler.engine.network.networks import Networks
from reconciler.engine.observe import listeners_on
from reconciler.errors import BlockedError, NotFoundError, ReconcilerError, UsageError
from reconciler.plan.byhand import rests
from reconciler.plan.ports import Claims
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.modes import JOINS
from reconciler.state.desired import Container as Wanted
from reconciler.state.desired import Port, called, lane_of
from reconciler.state.observed import Container, Created, Failure, Published, Running

# Docker's forms that leave the port of the device open: `80`, `80/udp`, `127.0.0.1::80`, `[2001:db8::5]::80`.
_OPEN: Final = re.compile(r"(?:([0-9.]+|\[[0-9a-fA-F:.]+\])::)?(\d{1,5})(/(?:tcp|udp))?", re.ASCII)
_TRIES: Final = 50


@dataclass(frozen=True, slots=True)
class Picture:
    """A container in a turn. `wanted` is None where nothing wants it, `have` where there is none."""

    turn: Turn
    app: str
    name: str

    @property
    def full_name(self) -> str:
        return f"{self.app}/{self.name}"

    @property
    def called(self) -> str:
        """What people call it."""
        return called(self.app, self.name)

    @property
    def lane(self) -> str:
        return lane_of(self.app, self.name)

    @property
    def is_adhoc(self) -> bool:
        return self.app == ADHOC

    @property
    def wanted(self) -> Wanted | None:
        app = self.turn.intent.desired.apps.get(self.lane)
        return app.containers.get(self.name) if app is not None else None

    @property
    def is_declared(self) -> bool:
        """Whether a spec has it, resolved or not."""
        app = self.turn.intent.desired.apps.get(self.app)
        return app is not None and (
            self.name in app.containers or any(item.container == self.name for item in app.unresolved)
        )

    @property
    def have(self) -> Container | None:
        """The one that people mean: of several the one that runs, else the newest."""
        same = self.turn.observed.containers.get(self.full_name, ())
        running = [container for container in same if isinstance(container.phase, Running)]
        found = running or list(same)
        return found[-1] if found else None

    @property
    def runs(self) -> bool:
        return self.have is not None and isinstance(self.have.phase, Running)

    @property
    def is_created(self) -> bool:
        return self.have is not None and isinstance(self.have.phase, Created)

    @property
    def spec(self) -> str:
        """Where it is declared: file:line:col, as far as that is known."""
        loaded = self.turn.intent.apps.get(self.app)
        return str(loaded.marks.mark("containers", self.name)) if loaded is not None else "its spec"

    @property
    def settled(self) -> bool:
        """Nothing is being done, or left to do, in its lane."""
        return self.lane not in self.turn.busy and all(
            step.lane != self.lane for step in self.turn.plan.steps
        )

    def longest(self, grace: float | None) -> float:
        """Seconds that its end may take; `grace` where somebody said so."""
        if grace is not None:
            return grace
        return self.have.settings.stop_grace if self.have is not None else 0.0

    @property
    def what_follows(self) -> str:
        """What the loop does once it has ended."""
        policy = self.have.settings.restart.policy if self.have is not None else "no"
        if policy == "no":
            return f"if {self.called} ends by that, it stays ended: its restart policy is no"
        return f"if {self.called} ends by that, the loop starts it again: its restart policy is {policy}"

    def demand(self) -> None:
        """Raise what the last try failed at, or what holds it up."""
        app = self.turn.intent.desired.apps.get(self.lane)
        failure: Failure | None = self.turn.observed.failures.get(self.lane)
        if (
            failure is not None
            and app is not None
            and failure.digest == app.version
            and (self.is_adhoc or self.full_name in failure.step)
        ):
            error = ReconcilerError(f"{self.called}: {failure.error}", hint=failure.hint)
            error.exit_code = failure.code
            raise error
        for item in self.turn.plan.blocked:
            if item.lane == self.lane and item.container in ("", self.name) and item.until is None:
                raise BlockedError(f"{self.called}: {item.reason}")


def demand_networks(picture: Picture, want: Wanted) -> None:
    """Raise NotFoundError for a network that no app shares: a container by hand alone in one would be a typo."""
    turn = picture.turn
    shared = {key for app in turn.intent.desired.declared.values() for key in app.networks}
    for key in want.networks:
        if key != ADHOC and key not in shared | turn.observed.network.known:
            hint = f"declare it in the spec of an app: networks: {{{key[1:]}: {{external: true}}}}"
            raise NotFoundError(f"network {key[1:]}: no app shares one of that name", hint=hint)


def joined_network(network: str, find: Callable[[Mapping[str, Any]], Picture]) -> str:
    """The same network, where it is `container:NAME` with what that means: by its id, an ad-hoc one, as it may get
    another name. BlockedError and UsageError where that can't be joined: it does not run, or has no network of its own.
    """
    if not network.startswith(JOINS):
        return network
    other = find({"name": network.removeprefix(JOINS)})
    if other.have is None or not other.runs:
        hint = f"run: reconciler start {other.called}"
        raise BlockedError(f"{other.called}: does not run, so that there is no network to join", hint=hint)
    if other.wanted is not None and other.wanted.joins:
        said = "join the same one as that does"
        raise UsageError(
            f"--network: {other.called} has no network of its own: it joined another's", hint=said
        )
    if other.wanted is not None and other.wanted.identity.network_mode == "host":
        said = "use --network host"
        raise UsageError(
            f"--network: {other.called} has no network of its own: it shares the device's", hint=said
        )
    return f"{JOINS}{other.have.joined_as}"


def guests(picture: Picture) -> list[str]:
    """The names of the ad-hoc containers that join the network of this one, running or not."""
    if picture.have is None:
        return []
    meant = picture.have.joined_as
    joining = (
        want.name
        for app in picture.turn.intent.desired.apps.values()
        if app.only
        for want in app.containers.values()
        if want.joins == meant
    )
    return sorted(joining)


def has_ipv6(picture: Picture, network: str) -> bool:
    """Whether the network that apps share by this name has IPv6, or is to have it."""
    key = f"/{network.removeprefix('/')}"
    declared = picture.turn.intent.desired.declared.values()
    return picture.turn.observed.network.as_found(key).ipv6 or any(
        app.networks[key].ipv6 for app in declared if key in app.networks
    )


def check_ports(picture: Picture, ports: Iterable[Port], networks: Networks) -> None:
    """Raise BlockedError, naming who has it, where another container or a stranger's socket holds one of the ports."""
    wanted = list(ports)
    if not wanted:
        return
    claims = _claims(picture, wanted, networks)
    for port in wanted:
        reason = claims.claim(Published(picture.app, picture.name, port))
        if reason:
            raise BlockedError(
                f"{picture.called}: {reason.replace(f' {ADHOC}/', ' ')}",
                hint="publish another port of the device",
            )


def _claims(picture: Picture, ports: list[Port], networks: Networks) -> Claims:
    turn = picture.turn
    listeners = listeners_on(ports, networks.ports_of_others())
    claims = Claims.start(turn.observed.network.published, listeners)
    for app in turn.intent.desired.apps.values():
        for other in app.containers.values():
            same = turn.observed.containers.get(other.full_name, ())
            if other.full_name != picture.full_name and not rests(other, same, turn.observed.boot):
                for port in other.settings.ports:
                    claims.keep(Published(other.app, other.name, port))
    return claims


def with_free_port(text: str, picture: Picture, networks: Networks) -> str:
    """Give a port of the device to one that `text` leaves open; any other text comes back as it is."""
    match = _OPEN.fullmatch(text)
    if match is None:
        return text
    address, target, protocol = (match[1] or "0.0.0.0").strip("[]"), match[2], match[3] or "/tcp"
    for _ in range(_TRIES):
        number = _free(address, protocol[1:])
        port = Port(address, number, int(target), protocol[1:])
        if not _claims(picture, [port], networks).claim(Published(picture.app, picture.name, port)):
            return f"{f'{match[1]}:' if match[1] else ''}{number}:{target}{protocol}"
    raise BlockedError(f"-p {text}: no free port was found", hint="name one: -p PORT:{target}")


def _free(address: str, protocol: str) -> int:
    """A port that nobody listens on now, as the kernel chooses them."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise BlockedError(f"address {address}: {error.strerror or error}") from error
        return int(probe.getsockname()[1])
