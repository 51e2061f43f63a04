"""`inspect`: Docker's keys are there whatever state a container is in, and nothing of a damaged one is a traceback."""

import json
from typing import Any

import pytest

from reconciler.engine.bundle import CAPABILITIES
from reconciler.engine.record import Record
from reconciler.report.inspection import NEVER, Found, container
from reconciler.state.desired import Limits, Port, Settings
from reconciler.state.observed import Created, Exited, Lost, Phase, Running
from reconciler.state.process import ExitRecord

RECORD = Record(
    id="a" * 32,
    app="web",
    name="page",
    fingerprint="f",
    settings=Settings(
        limits=Limits(cpus=1500, memory=1 << 20, swap=4096, cpuset="0-1", reserve_memory=512),
        ports=(Port("127.0.0.1", 80, 8080),),
    ),
    image="sha256:" + "b" * 64,
    manifest="sha256:" + "c" * 64,
    reference="r.example/page:1",
    layers=(),
    volumes=("data",),
    address="10.0.0.2",
    created=1_800_000_000.0,
)
KEYS = set(
    "Status Running Paused Restarting OOMKilled Dead Pid ExitCode Error StartedAt FinishedAt".split()  # noqa: SIM905
)


def ended(code: int | None, signal: int | None = None, *, oom: bool = False) -> Exited:
    return Exited(ExitRecord(code, signal, oom, 1.0, 1_800_000_001.5, 2.0, 1_800_000_002.0, "boot"))


def seen(phase: Phase, config: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    found = container(Found(RECORD, config or {}, phase, "/log", **more))
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("phase", "more", "status", "facts"),
    [
        (Created(), {}, "created", {"Running": False, "StartedAt": NEVER}),
        (Running(7, 1.0, 1_800_000_001.5), {}, "running", {"Running": True, "Pid": 7, "Paused": False}),
        (
            Running(7, 1.0, 0.0),
            {"frozen": True},
            "paused",
            {"Running": True, "Paused": True, "StartedAt": NEVER},
        ),
        (ended(3), {}, "exited", {"ExitCode": 3, "StartedAt": "2027-01-15T08:00:01.500000Z"}),
        (ended(None, 9, oom=True), {}, "exited", {"ExitCode": 137, "OOMKilled": True}),
        (ended(1), {"status": {"state": "backoff"}}, "restarting", {"Restarting": True}),
        (Lost("it has no shim"), {}, "dead", {"Dead": True, "Error": "it has no shim"}),
    ],
)
def test_every_state_has_dockers_keys(phase: Phase, more: Any, status: str, facts: dict[str, Any]) -> None:
    state = seen(phase, **more)["State"]
    assert set(state) == KEYS
    assert state["Status"] == status
    assert {key: state[key] for key in facts} == facts


def test_a_container_without_its_config_is_shown_as_far_as_it_is_known() -> None:
    found = seen(Created())
    assert (found["Path"], found["Args"], found["Mounts"]) == ("", [], [])
    host = found["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (
        1 << 20,
        (1 << 20) + 4096,
        1_500_000_000,
    )
    assert (host["CpusetCpus"], host["MemoryReservation"]) == ("0-1", 512)
    assert found["NetworkSettings"]["Ports"] == {}  # published only while it runs


def test_mounts_are_told_apart_and_a_secrets_place_is_not_told() -> None:
    run, state = "/run/r/containers/x/", f"/var/lib/r/containers/{RECORD.id}/"

    def mount(target: str, source: str, kind: str = "bind", *options: str) -> dict[str, Any]:
        return {
            "destination": target,
            "source": source,
            "type": kind,
            "options": ["rbind", "rprivate", *options],
        }

    config = {
        "process": {
            "args": ["a"],
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1}],
            "capabilities": {"bounding": [*CAPABILITIES[1:], "CAP_NET_ADMIN"]},
        },
        "mounts": [
            mount("/proc", "proc", "proc"),
            mount("/dev", "tmpfs", "tmpfs"),
            mount("/dev/shm", "shm", "tmpfs", "size=4096"),
            mount("/etc/hostname", run + "hostname"),
            mount("/etc/hosts", "/srv/hosts", "bind", "ro"),
            mount("/data", "/elsewhere/web/data/data", "bind", "rw"),
            mount("/c", state + "configs/c"),
            mount("/run/secrets/s", run + "secrets/s"),
            mount("/t", "tmpfs", "tmpfs", "size=1"),
        ],
        "linux": {
            "maskedPaths": [],
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
            "resources": {
                "devices": [{"type": "c", "major": 10, "minor": 229, "access": "rw", "allow": True}]
            },
        },
        "annotations": {
            "dev.reconciler.groups": '["20","audio"]',
            "dev.reconciler.volumes": '[{"destination":"/data","root":"/elsewhere/web/data"}]',
            "dev.reconciler.user": "1000",
        },
    }
    found = seen(Running(1, 1.0, 1.0), config)
    assert [(one["Type"], one["Destination"], one["Source"], one["RW"]) for one in found["Mounts"]] == [
        ("bind", "/etc/hosts", "/srv/hosts", False),
        ("volume", "/data", "/elsewhere/web/data/data", True),
        ("config", "/c", state + "configs/c", True),
        ("secret", "/run/secrets/s", "", True),
        ("tmpfs", "/t", "", True),
    ]
    assert found["HostConfig"]["Binds"] == ["/srv/hosts:/etc/hosts:ro", "web/data:/data"]
    assert (found["HostConfig"]["CapAdd"], found["HostConfig"]["CapDrop"]) == (
        ["CAP_NET_ADMIN"],
        ["CAP_CHOWN"],
    )
    assert found["Config"]["User"] == "1000"
    host = found["HostConfig"]
    assert host["Devices"] == [{"PathInContainer": "/dev/fuse", "CgroupPermissions": "rw"}]
    assert host["SecurityOpt"] == ["seccomp=unconfined"]
    assert (host["GroupAdd"], host["ShmSize"], host["Privileged"]) == (["20", "audio"], 4096, True)
    assert host["Ulimits"] == [{"Name": "core", "Soft": 0, "Hard": -1}]
    assert found["NetworkSettings"]["Ports"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "80"}]}
