"""A device that is absent is waited for: a state with a name, never a crash loop, and nobody stops for it."""

from dataclasses import replace

from reconciler.plan.diff import plan
from reconciler.plan.steps import Blocked
from reconciler.state.desired import Container, Device
from tests import values

USB = Device("/dev/ttyUSB0", "/dev/modem")
SPARE = Device("/dev/ttyUSB1", "/dev/spare", optional=True)


def wanting(arguments: tuple[str, ...] = ("/bin/serve",)) -> Container:
    made = values.container("web", "x", arguments=arguments)
    return replace(made, identity=replace(made.identity, devices=(USB, SPARE)))


def test_a_container_waits_for_its_device_and_starts_when_it_appears() -> None:
    want = values.desired(values.app("web", wanting(), values.container("web", "y")))
    empty = values.world(devices=frozenset())
    made = plan(want, empty, values.NOW)
    assert made.blocked == (Blocked("web", "x", "waiting for /dev/ttyUSB0", degraded=True),)
    assert [str(step) for step in made.steps if "web/x" in str(step)] == []
    assert any("start web/y" in str(step) for step in made.steps)
    there = plan(want, replace(empty, devices=frozenset(("/dev/ttyUSB0",))), values.NOW)
    assert there.blocked == ()
    assert any("start web/x" in str(step) for step in there.steps)


def test_a_running_container_is_left_alone_when_its_device_goes() -> None:
    have = values.world(values.found(wanting()))
    made = plan(values.desired(values.app("web", wanting())), have, values.NOW)
    assert (made.steps, made.blocked) == ((), ())


def test_a_new_version_that_would_have_to_wait_does_not_stop_the_old_one() -> None:
    have = values.world(values.found(wanting()))
    made = plan(values.desired(values.app("web", wanting(("/bin/new",)))), have, values.NOW)
    assert made.steps == ()
    assert made.blocked == (Blocked("web", "x", "waiting for /dev/ttyUSB0", degraded=True),)
