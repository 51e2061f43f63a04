"""The contract of `execute.engine.Engine`, as tests over any engine: the one of the device and the one in memory.

Each verb is idempotent, is complete or leaves what a later call can finish, and works on what is left of a thing as
well as on the thing. A module that runs it has a fixture `subject` and a class that inherits from `EngineContract`.
"""

import os
import select
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

import pytest

from reconciler.errors import ReconcilerError
from reconciler.execute.engine import Engine
from reconciler.state.desired import Container as Wanted
from reconciler.state.desired import Limits, Port, Rotation, Settings
from reconciler.state.image import Image
from reconciler.state.network import Network
from reconciler.state.observed import Container, Created, Exited, Lost, Observed, Published, Running

DAMAGE = ("shim", "cgroup", "run", "state")


class Subject(Protocol):
    """An engine to test, eyes to see what it did, and hands to break things behind its back."""

    @property
    def engine(self) -> Engine:
        """The engine."""

    def observe(self) -> Observed:
        """What is there now."""

    def wanted(self, app: str, name: str, *, ends: bool = False, stubborn: bool = False) -> Wanted:
        """A container of an image that `pull` can bring; it runs for ever, or `ends`, or is deaf to SIGTERM."""

    def damage(self, container: Container, kind: str) -> None:
        """Take away the shim, the cgroup, the run directory or half of the state directory."""

    def wait_for_exit(self, container_id: str) -> None:
        """Return once the program has ended by itself."""


def containers(subject: Subject) -> list[Container]:
    return [c for same in subject.observe().containers.values() for c in same]


def only(subject: Subject) -> Container:
    """The one container there is."""
    (found,) = containers(subject)
    return found


def ready(subject: Subject, want: Wanted) -> Wanted:
    """Everything that the container needs before it can be created."""
    subject.engine.pull(want.reference, want.image)
    subject.engine.configure_network((Network(want.app),), ())
    return want


def created(subject: Subject, want: Wanted, *, attempt: int = 0, restarts: int = 0) -> Container:
    ready(subject, want)
    before = {c.id for c in containers(subject)}
    subject.engine.create_container(want, attempt=attempt, restarts=restarts)
    (found,) = [c for c in containers(subject) if c.id not in before]
    return found


def started(subject: Subject, want: Wanted) -> Container:
    made = created(subject, want)
    subject.engine.start_container(want.app, want.name)
    return find(subject, made.id)


def find(subject: Subject, container_id: str) -> Container:
    return next(c for c in containers(subject) if c.id == container_id)


def pid(container: Container) -> int:
    assert isinstance(container.phase, Running), container.phase
    return container.phase.pid


def readable(fd: int) -> bool:
    """Wait for the descriptor to be readable, for at most ten seconds; close it."""
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(10_000))
    finally:
        os.close(fd)


def stored(subject: Subject, kind: str) -> set[str]:
    return {item.name for item in subject.observe().store.objects if item.kind == kind}


def chain_ids(image: Image) -> Iterable[str]:
    return {layer.chain_id.hex for layer in image.layers}


class EngineContract:
    """Inherit from it, and it is collected."""

    # --- images, volumes, networks ---------------------------------------------------------------------------------

    def test_a_pull_brings_every_layer_and_may_be_repeated(self, subject: Subject) -> None:
        want = subject.wanted("web", "page")
        for _ in range(2):
            subject.engine.pull(want.reference, want.image)
            assert subject.observe().store.layers.issuperset(chain_ids(want.image))

    def test_a_volume_is_made_once(self, subject: Subject) -> None:
        for _ in range(2):
            subject.engine.create_volume("web", "data")
            assert subject.observe().volumes["web"] == {"data"}

    def test_a_volume_without_a_limit_may_be_told_so_again(self, subject: Subject) -> None:
        subject.engine.create_volume("web", "data")
        for _ in range(2):
            subject.engine.limit_volume("web", "data", None)
            assert subject.observe().volume_limits == {}

    def test_networks_and_ports_are_as_asked_and_may_be_asked_for_again(self, subject: Subject) -> None:
        ports = (Published("web", "page", Port("0.0.0.0", 8080, 80)),)
        for _ in range(2):
            subject.engine.configure_network((Network("db"), Network("web")), ports)
            network = subject.observe().network
            assert network.apps == {"db", "web"}
            assert network.published == ports
        subject.engine.configure_network((Network("web"),), ())
        assert subject.observe().network.published == ()

    def test_a_network_goes_once_and_takes_its_ports_along(self, subject: Subject) -> None:
        subject.engine.configure_network((Network("db"), Network("web")), ())
        for _ in range(2):
            subject.engine.remove_network("web")
            assert subject.observe().network.apps == {"db"}

    def test_a_network_changes_once_nothing_is_in_it(self, subject: Subject) -> None:
        plain, other = Network("web/back"), Network("web/back", "10.77.0.0/24", "10.77.0.9", True)
        subject.engine.configure_network((plain,), ())
        assert subject.observe().network.declared == ()
        for _ in range(2):
            subject.engine.change_network(other)
            network = subject.observe().network
            assert network.apps == {"web/back"}
            assert network.declared == (other,)
        subject.engine.change_network(plain)
        assert subject.observe().network.declared == ()

    # --- create and start --------------------------------------------------------------------------------------------

    def test_create_goes_up_to_the_first_instruction(self, subject: Subject) -> None:
        want = subject.wanted("web", "page")
        made = created(subject, want, attempt=2, restarts=5)
        assert isinstance(made.phase, Created)
        assert (made.full_name, made.fingerprint) == ("web/page", want.fingerprint)
        assert (made.attempt, made.restarts) == (2, 5)
        assert made.settings == want.settings
        assert made.limits == want.settings.limits
        assert set(made.layers) == chain_ids(want.image)

    def test_create_leaves_nothing_where_it_fails(self, subject: Subject) -> None:
        want = subject.wanted("web", "page")
        subject.engine.configure_network((Network("web"),), ())
        with pytest.raises((ReconcilerError, OSError)):  # nobody has pulled its image
            subject.engine.create_container(want, attempt=0, restarts=0)
        assert containers(subject) == []

    def test_start_runs_the_program_and_succeeds_where_it_runs(self, subject: Subject) -> None:
        running = started(subject, subject.wanted("web", "page"))
        assert running.attached
        subject.engine.start_container("web", "page")
        assert pid(only(subject)) == pid(running)

    def test_start_fails_where_there_is_nothing_to_start(self, subject: Subject) -> None:
        subject.engine.configure_network((Network("web"),), ())
        with pytest.raises(ReconcilerError):
            subject.engine.start_container("web", "page")

    def test_start_starts_the_newest_of_one_name(self, subject: Subject) -> None:
        want = subject.wanted("web", "page", ends=True)
        old = started(subject, want)
        subject.wait_for_exit(old.id)
        new = created(subject, want)
        subject.engine.start_container("web", "page")
        assert isinstance(find(subject, old.id).phase, Exited)
        assert not isinstance(find(subject, new.id).phase, Created)

    def test_a_program_that_ends_leaves_its_record(self, subject: Subject) -> None:
        made = started(subject, subject.wanted("web", "page", ends=True))
        subject.wait_for_exit(made.id)
        found = only(subject)
        assert isinstance(found.phase, Exited)
        assert found.phase.record.code == 3
        assert not found.stopped
        for _ in range(2):
            subject.engine.record_exit(made.id)
            assert only(subject).settled

    # --- stop --------------------------------------------------------------------------------------------------------

    def test_a_stop_ends_the_program_and_says_that_it_was_asked_for(self, subject: Subject) -> None:
        running = started(subject, subject.wanted("web", "page"))
        fd = subject.engine.begin_stop(running.id, "SIGTERM")
        assert fd is not None
        assert readable(fd)
        for _ in range(2):
            subject.engine.finish_stop(running.id)
            stopped = only(subject)
            assert isinstance(stopped.phase, Exited)
            assert stopped.stopped
        assert subject.engine.begin_stop(running.id, "SIGTERM") is None

    def test_a_stop_does_not_ask_twice_where_nothing_listens(self, subject: Subject) -> None:
        running = started(subject, subject.wanted("web", "page", stubborn=True))
        fd = subject.engine.begin_stop(running.id, "SIGTERM")
        assert fd is not None
        os.close(fd)
        subject.engine.finish_stop(running.id)
        assert isinstance(only(subject).phase, Exited)

    def test_nothing_has_to_be_stopped_that_does_not_run(self, subject: Subject) -> None:
        assert subject.engine.begin_stop("0" * 32, "SIGTERM") is None
        subject.engine.finish_stop("0" * 32)
        made = created(subject, subject.wanted("web", "page"))
        assert subject.engine.begin_stop(made.id, "SIGTERM") is None
        subject.engine.finish_stop(made.id)
        assert not isinstance(only(subject).phase, Created | Running)

    # --- remove ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("phase", ["created", "running", "exited"])
    @pytest.mark.parametrize("keep", [True, False], ids=["keeping", "forgetting"])
    def test_remove_takes_everything_in_any_phase(self, subject: Subject, phase: str, keep: bool) -> None:
        want = subject.wanted("web", "page", ends=phase == "exited")
        made = created(subject, want, attempt=1, restarts=4)
        if phase != "created":
            subject.engine.start_container("web", "page")
        if phase == "exited":
            subject.wait_for_exit(made.id)
        for _ in range(2):
            subject.engine.remove_container(made.id, keep_previous=keep)
            assert containers(subject) == []
        previous = subject.observe().previous
        assert set(previous) == ({"web/page"} if keep else set())
        if keep:
            kept = previous["web/page"]
            assert (kept.fingerprint, kept.attempt, kept.restarts) == (want.fingerprint, 1, 4)
            assert (kept.record is not None and kept.record.code == 3) == (phase == "exited")

    @pytest.mark.parametrize("kind", DAMAGE)
    def test_remove_works_whatever_is_missing(self, subject: Subject, kind: str) -> None:
        running = started(subject, subject.wanted("web", "page"))
        subject.damage(running, kind)
        for _ in range(2):
            subject.engine.remove_container(running.id, keep_previous=False)
            assert containers(subject) == []
        subject.engine.create_container(subject.wanted("web", "page"), attempt=0, restarts=0)
        subject.engine.start_container("web", "page")
        assert pid(only(subject)) != pid(running)

    @pytest.mark.parametrize("kind", DAMAGE)
    def test_what_is_damaged_is_seen_and_never_an_exception(self, subject: Subject, kind: str) -> None:
        running = started(subject, subject.wanted("web", "page"))
        subject.damage(running, kind)
        found = containers(subject)
        assert not found or not found[0].intact or isinstance(found[0].phase, Lost | Exited)
        subject.engine.finish_stop(running.id)
        assert not any(isinstance(c.phase, Running) for c in containers(subject))

    def test_remove_of_a_stranger_does_nothing(self, subject: Subject) -> None:
        running = started(subject, subject.wanted("web", "page"))
        subject.engine.remove_container("f" * 32, keep_previous=True)
        assert pid(only(subject)) == pid(running)

    def test_a_new_life_forgets_what_an_old_one_left_only_when_told(self, subject: Subject) -> None:
        want = subject.wanted("web", "page")
        first = created(subject, want, restarts=1)
        subject.engine.remove_container(first.id, keep_previous=True)
        second = created(subject, want, restarts=2)
        subject.engine.remove_container(second.id, keep_previous=True)
        assert subject.observe().previous["web/page"].restarts == 2
        third = created(subject, want)
        subject.engine.remove_container(third.id, keep_previous=False)
        assert subject.observe().previous == {}

    # --- update ------------------------------------------------------------------------------------------------------

    def test_an_update_changes_limits_and_settings_under_the_running_program(self, subject: Subject) -> None:
        want = subject.wanted("web", "page")
        running = started(subject, want)
        limits = replace(want.settings.limits, memory=48 << 20, pids=77)
        settings = replace(
            want.settings, limits=limits, labels=(("tier", "web"),), rotation=Rotation(max_size=1 << 20)
        )
        for reattach in (False, False, True):
            subject.engine.update_container(running.id, settings, reattach=reattach)
            now = only(subject)
            assert pid(now) == pid(running)
            assert now.settings == settings
            assert now.limits == limits
            assert now.fingerprint == running.fingerprint
            assert now.attached

    def test_an_update_can_take_limits_away(self, subject: Subject) -> None:
        want = subject.wanted("web", "page")
        running = started(subject, want)
        settings = Settings(limits=Limits(cpus=None, memory=None, pids=None))
        subject.engine.update_container(running.id, settings, reattach=False)
        assert only(subject).limits == settings.limits

    def test_an_update_of_what_is_gone_fails(self, subject: Subject) -> None:
        with pytest.raises((ReconcilerError, OSError)):
            subject.engine.update_container("0" * 32, Settings(), reattach=False)

    # --- garbage -----------------------------------------------------------------------------------------------------

    def test_what_is_in_use_is_not_collected(self, subject: Subject) -> None:
        want = subject.wanted("web", "page")
        made = created(subject, want)
        for name in made.layers:
            assert subject.engine.collect("layer", name) is False
        assert subject.observe().store.layers.issuperset(made.layers)

    def test_what_nothing_uses_goes_once(self, subject: Subject) -> None:
        want = subject.wanted("web", "page")
        made = created(subject, want)
        subject.engine.remove_container(made.id, keep_previous=True)
        for _ in range(2):
            for kind in ("layer", "blob", "image"):
                for name in sorted(stored(subject, kind)):
                    assert subject.engine.collect(kind, name) is True
            assert subject.engine.collect("previous", "web/page") is True
            assert subject.observe().store.layers == frozenset()
            assert subject.observe().previous == {}
            assert subject.engine.collect("layer", made.layers[0]) is True
        ready(subject, want)
        assert subject.observe().store.layers.issuperset(made.layers)

    def test_an_unknown_kind_of_garbage_is_refused(self, subject: Subject) -> None:
        with pytest.raises(ValueError, match="unknown kind"):
            subject.engine.collect("volume", "web/data")
