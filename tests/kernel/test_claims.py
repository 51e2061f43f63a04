"""What a plan relies on may be removed before its container is made: by people, or by the collector beside it."""

from dataclasses import replace

import pytest

from reconciler.engine import volumes
from reconciler.errors import ReconcilerError
from reconciler.spec.reference import Reference
from reconciler.state.desired import VolumeMount
from reconciler.state.network import Network
from tests.kernel.test_engine_contract import LocalSubject, image, subject

pytestmark = [pytest.mark.kernel, pytest.mark.network]

__all__ = ["image", "subject"]


def test_a_container_is_not_made_on_a_layer_or_a_volume_that_has_gone(subject: LocalSubject) -> None:
    engine, layout = subject.engine, subject.layout
    desired = subject.wanted("web", "page")
    engine.pull(desired.reference, desired.image)
    engine.configure_network([Network("web")], [])
    layer = desired.image.layers[-1].chain_id
    assert engine.collect("layer", layer.hex)
    with pytest.raises(ReconcilerError, match="removed") as caught:
        engine.create_container(desired, attempt=0, restarts=0)
    assert caught.value.transient
    subject.parts.images.pull(desired.image, Reference.parse(desired.reference))
    mounted = replace(desired, identity=replace(desired.identity, mounts=(VolumeMount("data", "/data"),)))
    with pytest.raises(ReconcilerError, match="volume data has just been removed"):
        engine.create_container(mounted, attempt=0, restarts=0)
    assert list(layout.containers.iterdir()) == []
    assert list(layout.run_containers.iterdir()) == []
    volumes.create(layout, "web", "data")
    engine.create_container(mounted, attempt=0, restarts=0)
    assert not engine.collect("layer", layer.hex)  # it has come into use
