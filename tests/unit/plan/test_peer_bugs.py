"""Faults that users of comparable systems reported, as far as a plan can have them; the issue is in each docstring."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.plan.diff import DEVICE, plan
from reconciler.plan.steps import Blocked, ConfigureNetwork, PullImage
from reconciler.state.desired import App, Desired, Identity, Port, Settings, UnresolvedImage
from reconciler.state.image import Unresolved
from reconciler.state.observed import Exited, Failure, Listener, Observed, Running
from tests import strategies, values
from tests.values import IMAGES, NOW, later, settle, steps_of, turn, turn_without_pulls

SITE = values.container("web", "site", settings=Settings(ports=(Port("0.0.0.0", 80, 8000),)))
NEWER = replace(SITE, identity=replace(SITE.identity, image=str(IMAGES[1].config)), image=IMAGES[1])
WEB = values.desired(values.app("web", SITE))
UPDATED = values.desired(values.app("web", NEWER, digest="spec-2"))


def running(have: Observed, full_name: str) -> Running:
    (one,) = have.containers[full_name]
    assert isinstance(one.phase, Running)
    return one.phase


def test_second_plan_after_apply_is_empty_also_after_the_agent_restarts() -> None:
    """compose#13998, compose#14011, argo-cd#15898: planning has no memory, so a restart changes nothing."""
    have = turn(WEB, values.world())
    for seconds in (0.0, 1.0, 86_400.0 * 365):
        assert plan(WEB, have, later(seconds)).steps == ()


def test_pull_fails_mid_update_and_the_old_container_keeps_its_pid_and_start_time() -> None:
    """watchtower#1385, portainer#13248."""
    have = values.world(values.found(SITE), images=IMAGES[:1])
    before = running(have, "web/site")
    after = turn_without_pulls(UPDATED, have)
    assert running(after, "web/site") == before
    assert after.network == have.network
    failure = Failure("pull it", "404 manifest unknown", "", False, 1, NOW.boottime, "spec-2")
    waiting = plan(UPDATED, replace(after, failures={"web": failure}), NOW)
    assert waiting.steps == ()
    assert "404 manifest unknown" in waiting.blocked[0].reason


@given(st.data(), st.sampled_from(["git remote unreachable", "credentials bad", "branch deleted", "empty"]))
def test_a_source_that_is_unreachable_or_empty_stops_nothing_and_says_so(
    data: st.DataObject, why: str
) -> None:
    """portainer#13248, flux#738."""
    before = data.draw(strategies.desires(unresolved=False, held=False, hand=False))
    have = settle(before, values.world())
    made = plan(Desired({}, hold_all=why), have, NOW)
    assert made.steps == ()
    assert {item.reason for item in made.blocked} <= {why}
    assert {item.app for item in made.blocked} == {name.partition("/")[0] for name in have.containers}


def test_typo_key_in_one_file_leaves_that_app_unchanged_and_others_are_applied() -> None:
    """podman#18778."""
    other = values.container("shop", "api", image=IMAGES[1])
    have = values.world(values.found(SITE), images=IMAGES)
    want = Desired({"shop": values.app("shop", other)}, held={"web": "web.yaml:14:5: unknown key 'port'"})
    made = plan(want, have, NOW)
    assert steps_of(made, "web") == []
    assert [str(step).split()[0] for step in steps_of(made, "shop")] == ["create", "start"]
    assert made.blocked == (Blocked("web", "", "web.yaml:14:5: unknown key 'port'"),)


@pytest.mark.parametrize("survived", range(10))
def test_kill_9_of_the_agent_at_each_step_converges_with_no_orphan_created_container(survived: int) -> None:
    """ankaios#226, ankaios#725, ankaios#192."""
    have = values.world(values.found(SITE), images=IMAGES[:1])
    have = settle(UPDATED, turn(UPDATED, have, survived=survived))
    (one,) = have.containers["web/site"]
    assert isinstance(one.phase, Running)
    assert one.fingerprint == NEWER.fingerprint


def test_pinned_digest_is_gone_upstream_but_present_locally_and_still_starts() -> None:
    """otaru#3003: what is complete on local disk asks no registry."""
    made = plan(WEB, values.world(), NOW)
    assert not any(isinstance(step, PullImage) for step in made.steps)
    assert [str(step) for step in made.steps][-1] == "start web/site"


def test_pinned_arm64_manifest_on_amd64_is_a_plan_error_naming_both() -> None:
    """compose#14011."""
    why = Unresolved("this device is linux/amd64, the image is for linux/arm64", transient=False)
    waiting = App("web", "web.yaml", "spec-2", {}, unresolved=(UnresolvedImage("site", SITE.reference, why),))
    made = plan(Desired({"web": waiting}), values.world(values.found(SITE)), NOW)
    assert made.steps == ()
    assert made.blocked == (Blocked("web", "site", f"{SITE.reference}: {why.reason}"),)


def test_disk_too_small_refuses_before_stop_and_recovers_by_itself() -> None:
    """balena#674, meta-balena#2130: a pull without room fails before the stop, and is tried again in time."""
    have = values.world(values.found(SITE), images=IMAGES[:1])
    pull = next(step for step in plan(UPDATED, have, NOW).steps if isinstance(step, PullImage))
    failure = Failure(str(pull), "needs 640 MiB, 100 MiB free", "", True, 4, NOW.boottime, "spec-2")
    have = replace(turn_without_pulls(UPDATED, have), failures={"web": failure})
    assert isinstance(have.containers["web/site"][0].phase, Running)
    wake_at = plan(UPDATED, have, NOW).wake_at
    assert wake_at is not None
    assert pull in plan(UPDATED, have, later(wake_at - NOW.boottime)).steps


def test_port_in_use_by_a_foreign_process_is_a_plan_error_and_fixed_later_recovers() -> None:
    """ankaios#226."""
    nginx = Listener("tcp", "0.0.0.0", 80, "nginx (pid 612)")
    taken = values.world(listeners=(nginx,))
    made = plan(WEB, taken, NOW)
    assert made.blocked == (Blocked("web", "site", "port 0.0.0.0:80/tcp already used by nginx (pid 612)"),)
    have = turn(WEB, taken)
    assert "web/site" not in have.containers
    have = settle(WEB, replace(have, listeners=()))
    assert isinstance(have.containers["web/site"][0].phase, Running)
    assert have.network.published is not None
    assert len(have.network.published) == 1


def test_edit_only_a_config_file_and_exactly_one_container_is_recreated() -> None:
    """compose#11900, doco-cd#488."""
    db = values.container("web", "db")
    have = values.world(values.found(SITE), values.found(db))
    edited = replace(SITE, identity=Identity(SITE.identity.image, ("/bin/serve",), environment=("CONF=2",)))
    made = plan(values.desired(values.app("web", edited, db, digest="spec-2")), have, NOW)
    assert [str(step).split(" (")[0] for step in made.steps] == [
        "stop web/site",
        "remove web/site",
        "create web/site",
        "start web/site",
    ]


def test_a_human_who_stops_a_managed_container_sees_it_repaired() -> None:
    """portainer#10552, portainer#10986."""
    have = values.world(values.found(SITE))
    have = values.ended(have, lambda one, phase: Exited(values.record(signal=9)))
    made = plan(WEB, have, NOW)
    assert "1st restart" in made.blocked[0].reason
    have = settle(WEB, have, later(2.0))
    assert isinstance(have.containers["web/site"][0].phase, Running)


def test_a_step_of_the_device_that_failed_waits_and_lanes_go_on() -> None:
    """No public issue: a port table that the kernel refuses must not become a busy loop, nor hold up repairs."""
    have = values.world(
        values.found(SITE, Exited(values.record(1, ago=100.0))), network=values.world().network
    )
    step = plan(WEB, have, NOW).steps[0]
    assert isinstance(step, ConfigureNetwork)
    failure = Failure(str(step), "netlink: no buffer space", "", True, 2, NOW.boottime, "")
    made = plan(WEB, replace(have, failures={DEVICE: failure}), NOW)
    assert not any(isinstance(step, ConfigureNetwork) for step in made.steps)
    assert made.blocked[0].app == DEVICE
    assert made.wake_at == made.blocked[0].until
    assert len(steps_of(made, "web")) == 3
