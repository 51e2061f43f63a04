"""The verbs of single containers: run, start, stop, restart, kill, rm, pause, update, rename.

Each checks what it asks for against the last turn, writes it down durably, wakes the loop and waits until that has come
to it; the loop does the work as for any other container. So a verb is over at once where things are as asked already,
and survives the agent's death in between. Declared containers get the sane half: held, restarted, but never changed.
Called from several threads.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from reconciler.agent import fetching, nameless
from reconciler.agent.asked import flag_of, grace_of, map_of, reference_of, signal_of, stdin_of, text_of
from reconciler.agent.hand import adhoc_app
from reconciler.agent.loop import Agent
from reconciler.agent.names import new_name
from reconciler.agent.parts import Parts
from reconciler.agent.picture import (
    Picture,
    check_ports,
    demand_networks,
    guests,
    has_ipv6,
    joined_network,
    with_free_port,
)
from reconciler.agent.turn import Turn
from reconciler.engine import renaming
from reconciler.engine.byhand import Adhoc
from reconciler.engine.control import Control
from reconciler.engine.named import named
from reconciler.engine.progress import Listener
from reconciler.errors import BlockedError, ReconcilerError, TimedOutError, UsageError
from reconciler.linux.process import signal_number
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.commandline import Options, changed_text, load_text, spec_text
from reconciler.state.desired import lane_of
from reconciler.state.wish import Goal, Wish

_PATIENCE: Final = 120.0  # seconds that the loop may take for what it is asked for, beside graces

Answer = dict[str, Any]
Verb = Callable[[Mapping[str, Any]], Answer]


class Verbs:
    """The verbs over one agent's loop. `progress` hears of pulls that they ask for."""

    def __init__(self, agent: Agent, parts: Parts, progress: Listener) -> None:
        self._agent = agent
        self._parts = parts
        self._layout = parts.layout
        self._progress = progress

    def by_name(self) -> dict[str, Verb]:
        """Verb -> function of a request's body."""
        return {
            "fetch": self.fetch,
            "create": self.create,
            "start": self.start,
            "stop": self.stop,
            "restart": self.restart,
            "kill": self.kill,
            "remove": self.remove,
            "pause": self.pause,
            "unpause": self.unpause,
            "update": self.update,
            "rename": self.rename,
        }

    # --- images ------------------------------------------------------------------------------------------------------

    def fetch(self, body: Mapping[str, Any]) -> Answer:
        """See `fetching.fetch`."""
        return fetching.fetch(self._parts, body, self._progress)

    # --- create ------------------------------------------------------------------------------------------------------

    def create(self, body: Mapping[str, Any]) -> Answer:
        """Make an ad-hoc container of an image that is here, and start it unless `start` is false.

        Where that does not work nothing is left of it, but for a container that could be made and not started.
        """
        turn = self._turn()
        name, identity = new_name(self._layout, text_of(body, "name")), secrets.token_hex(16)
        picture = Picture(turn, ADHOC, name)
        reference = reference_of(text_of(body, "image"))
        if reference.digest is None:
            raise UsageError(f"{reference}: not pinned by digest")
        image = self._parts.images.resolve(reference)
        options = Options.parse(map_of(body, "options"))
        ports = [*options.ports, *(image.exposed_ports if flag_of(body, "publish_all") else ())]
        networks = self._parts.networks
        options = replace(
            options,
            network=joined_network(options.network, self._find),
            ports=tuple(with_free_port(port, picture, networks) for port in ports),
            ipv6=has_ipv6(picture, options.network),
        )
        text, said = spec_text(options, str(reference), identity=identity)
        loaded = load_text(text, self._parts.device.defaults, said)
        goal = Goal.RUNNING if flag_of(body, "start", True) else Goal.CREATED
        wish = Wish(goal, auto_remove=flag_of(body, "rm"))
        record = Adhoc(name, identity, time.time(), text, wish, flag_of(body, "tty"), stdin_of(body))
        app = adhoc_app(record, loaded, image, self._parts.device)
        for waiting in app.unresolved:
            raise UsageError(waiting.unresolved.reason.replace("spec says", "command line says"))
        want = app.containers[name]
        demand_networks(picture, want)
        if wish.auto_remove and want.settings.restart.policy != "no":
            raise UsageError("--rm and --restart exclude each other")
        if goal is Goal.RUNNING:
            check_ports(picture, want.settings.ports, networks)
        nameless.make(self._parts, want)
        try:
            self._parts.byhand.add(record)
            done = self._settle(picture, _PATIENCE)
            done.demand()
        except ReconcilerError as error:
            self._take_back(name, error)
            nameless.take_back(self._parts, want)
            raise
        return {"name": name, "id": identity, "ports": [str(port) for port in want.settings.ports]}

    def _take_back(self, name: str, error: ReconcilerError) -> None:
        """After a start that failed: it is not tried again, as for a spec; nothing stays that could not be made."""
        picture = Picture(self._turn(), ADHOC, name)
        try:
            record = self._parts.byhand.read(name)
            if picture.have is None or record.wish.auto_remove:
                self._parts.byhand.forget(name)
            else:
                self._parts.byhand.change(name, lambda r: replace(r, wish=replace(r.wish, goal=Goal.STOPPED)))
            self._settle(picture, _PATIENCE)
        except ReconcilerError:
            pass  # the error that is being reported is the one that matters

    # --- start and stop ----------------------------------------------------------------------------------------------

    def start(self, body: Mapping[str, Any]) -> Answer:
        """Start a container that does not run; let go of one that is held. One that runs is left alone."""
        picture = self._find(body)
        return self._start_adhoc(picture) if picture.is_adhoc else self._start_declared(picture)

    def _start_adhoc(self, picture: Picture) -> Answer:
        if picture.have is not None and picture.have.paused:
            raise BlockedError(
                f"{picture.called}: is paused", hint=f"run: reconciler unpause {picture.called}"
            )
        if picture.wanted is not None:
            check_ports(picture, picture.wanted.settings.ports, self._parts.networks)

        def change(record: Adhoc) -> Adhoc:
            if picture.runs and record.wish.goal is Goal.RUNNING:
                return record
            turn = record.wish.turn if picture.is_created else self._next_turn(picture, record.wish)
            return replace(
                record,
                wish=replace(record.wish, goal=Goal.RUNNING, turn=turn, force=False, grace=None, reason=""),
            )

        self._parts.byhand.change(picture.name, change)
        try:
            self._settle(picture, _PATIENCE).demand()
        except ReconcilerError:
            self._give_up(picture.name)
            raise
        return _done(picture)

    def _give_up(self, name: str) -> None:
        """A start that failed is not tried again: somebody has been told."""
        try:
            self._parts.byhand.change(name, lambda r: replace(r, wish=replace(r.wish, goal=Goal.STOPPED)))
        except ReconcilerError:
            return
        self._agent.nudge()

    def _start_declared(self, picture: Picture) -> Answer:
        wish = self._parts.byhand.wish(picture.app, picture.name)
        held = wish is not None and wish.goal is Goal.STOPPED
        if picture.runs and not held:
            return _done(picture, f"{picture.called} runs already")
        turn = self._next_turn(picture, wish)
        self._parts.byhand.put(picture.app, picture.name, Wish(turn=turn))
        self._settle(picture, _PATIENCE).demand()
        return _done(picture, f"{picture.called} is no longer held" if held else "")

    def stop(self, body: Mapping[str, Any]) -> Answer:
        """Stop a container, and keep it so: a declared one is held until somebody lets go of it."""
        picture, grace = self._find(body), grace_of(body)
        if picture.is_adhoc:
            self._stop_adhoc(picture, grace)
            return _done(picture)
        before = self._parts.byhand.wish(picture.app, picture.name)
        if before is None or before.goal is not Goal.STOPPED:
            since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            said = text_of(body, "reason")
            why = f" ({said})" if said else ""
            reason = f"held stopped by hand since {since}{why}; reconciler start {picture.called} lets it go"
            turn = before.turn if before is not None else 0
            self._parts.byhand.put(
                picture.app, picture.name, Wish(Goal.STOPPED, turn, grace=grace, reason=reason)
            )
        self._settle(picture, _PATIENCE + picture.longest(grace))
        return _done(
            picture,
            f"{picture.called} is held stopped: the loop leaves it alone until: reconciler start {picture.called}",
        )

    def _stop_adhoc(self, picture: Picture, grace: float | None) -> None:
        def change(record: Adhoc) -> Adhoc:
            if record.wish.goal is Goal.CREATED:
                return record  # it has not been started
            return replace(record, wish=replace(record.wish, goal=Goal.STOPPED, grace=grace))

        self._parts.byhand.change(picture.name, change)
        self._settle(picture, _PATIENCE + picture.longest(grace))

    def restart(self, body: Mapping[str, Any]) -> Answer:
        """Stop a container and start it again: an ad-hoc one with its files, a declared one made anew by its spec."""
        picture, grace = self._find(body), grace_of(body)
        wish = Wish(grace=grace, force=True)
        if picture.is_adhoc:
            if not picture.runs and picture.wanted is not None:
                check_ports(picture, picture.wanted.settings.ports, self._parts.networks)
            self._parts.byhand.change(
                picture.name,
                lambda r: replace(
                    r,
                    wish=replace(wish, turn=self._next_turn(picture, r.wish), auto_remove=r.wish.auto_remove),
                ),
            )
        else:
            self._restart_declared(picture, wish)
        try:
            self._settle(picture, _PATIENCE + picture.longest(grace)).demand()
        except ReconcilerError:
            if picture.is_adhoc:
                self._give_up(picture.name)
            raise
        return _done(picture, "" if picture.is_adhoc else f"{picture.called} was made anew, as its spec says")

    def _restart_declared(self, picture: Picture, wish: Wish) -> None:
        before = self._parts.byhand.wish(picture.app, picture.name)
        self._parts.byhand.put(
            picture.app, picture.name, replace(wish, turn=self._next_turn(picture, before))
        )

    def kill(self, body: Mapping[str, Any]) -> Answer:
        """Send a signal to a container's first process. SIGKILL ends an ad-hoc one for good."""
        picture, number = self._find(body), signal_of(text_of(body, "signal") or "KILL")
        if picture.have is None or not picture.runs:
            raise BlockedError(f"{picture.called}: does not run", hint="run: reconciler ps -a")
        if number == signal_number("SIGKILL") and picture.is_adhoc:
            self._stop_adhoc(picture, 0.0)
            return _done(picture)
        with Control.connect(self._layout.control_socket(picture.have.id)) as control:
            control.kill(number)
        self._agent.nudge()
        return _done(picture, "" if picture.is_adhoc else picture.what_follows)

    def pause(self, body: Mapping[str, Any]) -> Answer:
        """Freeze everything that runs in a container."""
        return self._freeze(body, True)

    def unpause(self, body: Mapping[str, Any]) -> Answer:
        """Let a paused container go on."""
        return self._freeze(body, False)

    def _freeze(self, body: Mapping[str, Any], frozen: bool) -> Answer:
        picture = self._find(body)
        if picture.have is None or not picture.runs:
            raise BlockedError(f"{picture.called}: does not run", hint="run: reconciler ps -a")
        if picture.have.paused == frozen:
            raise BlockedError(f"{picture.called}: is {'paused already' if frozen else 'not paused'}")
        self._parts.containers.freeze(picture.have.id, frozen)
        self._wait(picture, lambda _: True, _PATIENCE)
        declared = frozen and not picture.is_adhoc
        return _done(picture, f"{picture.called} is paused; a newer spec replaces it" if declared else "")

    # --- remove, update ----------------------------------------------------------------------------------------------

    def remove(self, body: Mapping[str, Any]) -> Answer:
        """Remove an ad-hoc container with all that it wrote; with `force` also one that runs.

        A declared one is not removed by hand: with `force` it is replaced.
        """
        picture, force = self._find(body), flag_of(body, "force")
        if not picture.is_adhoc:
            if not force:
                raise BlockedError(
                    f"{picture.called}: is declared at {picture.spec}, and would come back",
                    hint=f"remove it from there, or run: reconciler stop {picture.called}",
                )
            self._restart_declared(picture, Wish(grace=0.0, force=True))
            self._settle(picture, _PATIENCE).demand()
            return _done(picture, f"{picture.called} was replaced: it is declared at {picture.spec}")
        if picture.runs and not force:
            state = "paused" if picture.have is not None and picture.have.paused else "running"
            raise BlockedError(
                f"{picture.called}: is {state}",
                hint=f"run: reconciler stop {picture.called}, or: reconciler rm -f {picture.called}",
            )
        if not force and (joined := guests(picture)):
            raise BlockedError(
                f"{picture.called}: {', '.join(joined)} joined its network, and could not start without it",
                hint=f"remove that first, or run: reconciler rm -f {picture.called}",
            )
        if picture.have is not None and flag_of(body, "volumes"):
            nameless.let_go(self._parts, picture.have.id)
        self._parts.byhand.forget(picture.name)
        done = self._wait(picture, lambda p: p.settled and p.have is None, _PATIENCE)
        if done is None:
            failure = self._turn().observed.failures.get(picture.lane)
            raise ReconcilerError(
                f"{picture.called}: {failure.error if failure is not None else 'is still being removed'}",
                hint="run: reconciler status adhoc",
            )
        return _done(picture)

    def update(self, body: Mapping[str, Any]) -> Answer:
        """Change limits and restart policy of an ad-hoc container in place."""
        picture, options = self._find(body), Options.parse(map_of(body, "options"))
        if not picture.is_adhoc:
            raise BlockedError(
                f"{picture.called}: is declared at {picture.spec}",
                hint="edit it there: nothing restarts for it",
            )

        def change(record: Adhoc) -> Adhoc:
            text, said = changed_text(record.spec, options)
            loaded = load_text(text, self._parts.device.defaults, said)
            restart = next(iter(loaded.app.containers.values())).restart
            if record.wish.auto_remove and restart.policy != "no":
                raise UsageError("--rm and --restart exclude each other")
            return replace(record, spec=text)

        self._parts.byhand.change(picture.name, change)
        self._settle(picture, _PATIENCE).demand()
        return _done(picture)

    def rename(self, body: Mapping[str, Any]) -> Answer:
        """Call an ad-hoc container by another name; what runs in it goes on."""
        picture, wanted = self._find(body), text_of(body, "new").removeprefix(f"{ADHOC}/")
        if not picture.is_adhoc:
            raise BlockedError(
                f"{picture.called}: is declared at {picture.spec}",
                hint="it is called what its spec calls it: change that, and it is made anew",
            )

        def act() -> None:
            new = new_name(self._layout, wanted, option="NEW", given=True)
            renaming.rename(self._parts.naming, picture.name, new)

        self._agent.between_turns({picture.lane, lane_of(ADHOC, wanted)}, act, _PATIENCE)
        self._agent.noted("renamed", ADHOC, f"rename {picture.called} to {wanted}")
        self._settle(replace(picture, name=wanted), _PATIENCE)
        return {"name": wanted, "message": ""}

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _turn(self) -> Turn:
        turn = self._agent.last or self._agent.wait_for(lambda _: True, _PATIENCE)
        if turn is None:
            raise TimedOutError("agent: has not had its first turn yet")
        return turn

    def _find(self, body: Mapping[str, Any]) -> Picture:
        """The container that is meant, as it is now: one that exists, has a record, or is declared."""
        name = text_of(body, "name")
        before = self._agent.nudge()  # whoever just saw its end must not hear that it runs
        turn = (
            self._agent.wait_for(lambda turn: turn.number > before, _PATIENCE, after=before) or self._turn()
        )
        app, _, container = name.partition("/")
        picture = Picture(turn, app, container)
        if container and picture.is_declared:
            return picture
        return Picture(turn, *named(self._layout, name))

    def _wait(self, picture: Picture, done: Callable[[Picture], bool], timeout: float) -> Picture | None:
        before = self._agent.nudge()
        turn = self._agent.wait_for(
            lambda turn: turn.number > before and done(replace(picture, turn=turn)), timeout, after=before
        )
        return None if turn is None else replace(picture, turn=turn)

    def _settle(self, picture: Picture, timeout: float) -> Picture:
        """Wait until a turn that knows what was asked has nothing to do for the container any more."""
        found = self._wait(picture, lambda picture: picture.settled, timeout)
        if found is None:
            raise TimedOutError(
                f"{picture.called}: not done after {timeout:g} s; it goes on", hint="run: reconciler status"
            )
        return found

    @staticmethod
    def _next_turn(picture: Picture, wish: Wish | None) -> int:
        have = picture.have.turn if picture.have is not None else 0
        return max(have, wish.turn if wish is not None else 0) + 1


def _done(picture: Picture, message: str = "") -> Answer:
    return {"name": picture.called, "message": message}
