"""Somebody else's config.json, read: what is taken, and what is refused by name."""

from typing import Any

import pytest

from reconciler.linux import mount, namespace
from reconciler.shim import oci_config
from reconciler.shim.fields import ConfigError
from tests.kernel.runtime import default_config


def read(**change: Any) -> oci_config.Bundle:
    config = default_config()
    config["process"]["args"] = ["true"]
    for key, value in change.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key in config else value
    return oci_config.read(config, "/bundle", -1)


def test_what_the_engine_refuses_is_taken_here_and_only_here() -> None:
    kinds = [{"type": kind} for kind in ("pid", "mount", "user", "time", "uts")]
    ids = [{"containerID": 0, "hostID": 1000, "size": 10}]
    bundle = read(
        linux={
            "namespaces": kinds,
            "uidMappings": ids,
            "gidMappings": ids,
            "timeOffsets": {"boottime": {"secs": 5}},
            "rootfsPropagation": "rshared",
            "personality": {"domain": "LINUX32"},
        },
        process={"scheduler": {"policy": "SCHED_FIFO", "priority": 3}, "execCPUAffinity": {"final": "0-2,5"}},
        hooks={"poststop": [{"path": "/bin/x", "args": ["x", "y"], "timeout": 3}]},
    )
    assert bundle.prepared.clone_flags & namespace.CLONE_NEWUSER
    assert (bundle.uid_map, bundle.new_time, bundle.time_offsets) == (
        ((0, 1000, 10),),
        True,
        (("boottime", 5, 0),),
    )
    assert bundle.propagation == (mount.MS_SHARED, True)
    assert bundle.prepared.root_propagation == mount.MS_SLAVE, "until the root is one's own"
    assert bundle.confinement.final_cpus == (0, 1, 2, 5)
    assert bundle.confinement.scheduler is not None
    assert (bundle.confinement.scheduler.policy, bundle.confinement.scheduler.priority) == (1, 3)
    assert [hook.timeout for hook in bundle.hooks["poststop"]] == [3]


def test_ids_of_the_host() -> None:
    ids = ((0, 1000, 10), (20, 5, 1))
    assert [oci_config.host_id(ids, inside) for inside in (0, 9, 10, 20, 21)] == [1000, 1009, None, 5, None]


def test_devices_outside_of_dev_are_made_and_work() -> None:
    bundle = read(linux={"devices": [{"path": "/x/null", "type": "c", "major": 1, "minor": 3}]})
    assert bundle.prepared.devices[-1][0] == "/x/null"
    assert not bundle.prepared.powerless
    assert read().prepared.powerless


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"process": {"scheduler": {"policy": "x"}}}, "process.scheduler.policy: x: no such policy"),
        ({"process": {"ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 8}}}, "expected 0 to 7"),
        ({"process": {"execCPUAffinity": {"final": "3-1"}}}, "expected numbers and ranges"),
        ({"linux": {"uidMappings": [{"containerID": -1, "hostID": 0, "size": 1}]}}, "out of range"),
        ({"linux": {"uidMappings": [{"containerID": 0, "hostID": 0, "size": 2**32}]}}, "out of range"),
        ({"linux": {"personality": {"domain": "LINUX", "flags": ["x"]}}}, "flags: not supported"),
        ({"hooks": {"midlife": [{"path": "/x"}]}}, "no such point in a container's life"),
        ({"hooks": {"prestart": [{"path": "/x", "timeout": 0}]}}, "expected more than 0 seconds"),
        (
            {"mounts": [{"destination": "/x", "type": "bind", "source": "/x", "options": ["idmap"]}]},
            "needs uidMapp",
        ),
        ({"ociVersion": ""}, "ociVersion: missing"),
        ({"root": {"path": ""}}, "root.path: missing"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(**change)
