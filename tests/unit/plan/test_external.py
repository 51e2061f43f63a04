"""An external volume is somebody's own: it is waited for, never made, and never removed."""

from dataclasses import replace

from reconciler.plan.diff import plan
from reconciler.plan.steps import Blocked, CreateVolume
from reconciler.state.desired import VolumeMount
from tests import values
from tests.values import NOW


def test_a_container_waits_for_its_external_volume_and_the_app_makes_its_own() -> None:
    using = values.container("web", "x", mounts=(VolumeMount("theirs", "/data"),))
    other = values.container("web", "y", mounts=(VolumeMount("ours", "/data"),))
    app = replace(
        values.app("web", using, other, volumes=("ours", "theirs")), external=frozenset(("theirs",))
    )
    want = values.desired(app)
    made = plan(want, values.world(), NOW)
    assert made.blocked == (Blocked("web", "x", "waiting for the external volume web/theirs", degraded=True),)
    assert [step.volume for step in made.steps if isinstance(step, CreateVolume)] == ["ours"]
    assert any("start web/y" in str(step) for step in made.steps)
    there = values.world(volumes={"web": frozenset(("theirs",))})
    made = plan(want, there, NOW)
    assert made.blocked == ()
    assert [step.volume for step in made.steps if isinstance(step, CreateVolume)] == ["ours"]
    assert any("start web/x" in str(step) for step in made.steps)
