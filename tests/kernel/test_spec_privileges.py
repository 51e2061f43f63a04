"""Capabilities, devices and `privileged` of a spec: what its program can do, read from inside a real container."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.engine import cgroup, cgroup_devices
from reconciler.engine.devices import DEFAULT, Rule
from reconciler.engine.hierarchies import Hierarchies
from reconciler.errors import BlockedError, UnsupportedError
from reconciler.linux import capability
from reconciler.state.desired import Limits
from tests.images import Built
from tests.images import busybox as busybox_image
from tests.kernel.box import make_bundle, run
from tests.kernel.leaks import LeakCheck
from tests.kernel.trial import Trial, Trials, on_trial

# Those marked cgroup run once more on version 2, in an emulated machine: as few as show what differs there.
pytestmark = [pytest.mark.kernel, pytest.mark.network]

SETTINGS = (
    'allowed_devices: ["/dev/fuse", "/dev/k*", "/dev/net"]\nallowed_caps: [ALL]\nallow_privileged: true\n'
    "allowed_seccomp: [profiles, unconfined]\n"
)
TEN = 0x405FB
NET_RAW, MKNOD = 1 << 13, 1 << 27


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return busybox_image(tmp_path_factory.mktemp("box") / "layout")


@pytest.fixture
def trials(image: Built, patience: float) -> Iterator[Trials]:
    with on_trial(image, patience, SETTINGS) as made:
        yield made


def capabilities(trial: Trial) -> dict[str, int]:
    lines = (line.partition(":\t") for line in trial.run("cat", "/proc/self/status").splitlines())
    return {key: int(value, 16) for key, _, value in lines if key.startswith("Cap")}


def same(bits: int) -> dict[str, int]:
    return {"CapInh": 0, "CapPrm": bits, "CapEff": bits, "CapBnd": bits, "CapAmb": 0}


def test_s1_capabilities_are_the_ten_and_what_the_spec_adds_and_drops(trials: Trials) -> None:
    assert capabilities(trials.start({})) == same(TEN)
    assert capabilities(trials.start({"cap_add": ["NET_RAW"], "cap_drop": ["CHOWN"]})) == same(
        TEN & ~1 | NET_RAW
    )
    only = trials.start({"cap_add": ["CAP_NET_BIND_SERVICE"], "cap_drop": ["ALL"]})
    assert capabilities(only) == same(1 << 10)
    held = capability.capget()[1]
    assert capabilities(trials.start({"cap_add": ["ALL"], "cap_drop": ["NET_RAW"]})) == same(held & ~NET_RAW)


def test_s3_set_uid_programs_give_something_only_where_the_spec_says_so(trials: Trials) -> None:
    status = "grep NoNewPrivs /proc/self/status"
    assert trials.start({}).shell(status) == "NoNewPrivs:\t1"
    assert trials.start({"no_new_privileges": False}).shell(status) == "NoNewPrivs:\t0"


def test_s4_a_spec_says_which_calls_its_container_may_make(trials: Trials) -> None:
    mode = "grep Seccomp: /proc/self/status"
    plain = trials.start({})
    assert plain.shell(mode) == "Seccomp:\t2"
    assert plain.run_code("busybox", "unshare", "-u", "true")[0] == 1
    for fields in ({"seccomp": "unconfined"}, {"privileged": True}):
        assert trials.start(fields).shell(mode) == "Seccomp:\t0"
    able = trials.start({"cap_add": ["SYS_ADMIN"]})
    assert able.shell(mode) == "Seccomp:\t2"
    assert able.run_code("busybox", "unshare", "-u", "true")[0] == 0
    rules = [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EIO},
        {"names": ["symlink"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_NET_RAW"]}},
    ]
    own = trials.start(
        {"seccomp": {"content": json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules})}}
    )
    assert "Input/output error" in own.run_code("mkdir", "/tmp/x")[1]
    assert own.run_code("ln", "-s", "a", "/tmp/b")[0] == 0
    assert own.shell(mode) == "Seccomp:\t2"


@pytest.mark.cgroup
def test_s5_a_container_opens_no_device_but_its_own_whatever_nodes_it_makes(trials: Trials) -> None:
    trial = trials.start({"cap_add": ["MKNOD"]})
    trial.shell(
        "mknod /dev/n c 1 3; mknod /dev/k c 1 11; mknod /dev/f c 10 229; mknod /dev/l b 7 0; mknod /dev/m c 1 1"
    )
    assert trial.run_code("dd", "if=/dev/n", "count=1")[0] == 0
    for name in ("k", "f", "l", "m"):
        code, said = trial.run_code("dd", f"if=/dev/{name}", "count=1", "bs=1")
        assert (code, "Operation not permitted" in said) == (1, True), name
        code, said = trial.run_code("sh", "-c", f": >>/dev/{name}")
        assert (code, "Operation not permitted" in said) == (1, True), name
    for name in ("null", "zero", "full", "random", "urandom"):
        assert trial.run_code("dd", f"if=/dev/{name}", "count=1", "bs=1")[0] == 0, name
    trial.shell("echo x >/dev/null; test -c /dev/pts/ptmx")


def test_a_device_is_there_as_the_host_has_it_and_only_as_it_was_asked_for(trials: Trials) -> None:
    host = os.stat("/dev/kmsg")
    trial = trials.start({"cap_add": ["SYSLOG"], "devices": ["/dev/kmsg:/dev/messages:r", "/dev/fuse"]})
    wanted = (
        f"{os.major(host.st_rdev):x} {os.minor(host.st_rdev):x} {stat.S_IMODE(host.st_mode):o} {host.st_uid}"
    )
    assert trial.run("stat", "-c", "%t %T %a %u", "/dev/messages") == wanted
    assert trial.shell("test -r /dev/messages && exec 3</dev/messages && echo open") == "open"
    code, said = trial.run_code("sh", "-c", "echo x >/dev/messages")
    assert (code, "Operation not permitted" in said) == (1, True)
    assert trial.shell("exec 3<>/dev/fuse && echo open") == "open"
    assert "/dev/kmsg" not in trial.run("ls", "-d", "/dev/fuse", "/dev/messages")


def test_a_directory_stands_for_the_devices_in_it(trials: Trials) -> None:
    trial = trials.start({"devices": ["/dev/net"]})
    assert trial.run("stat", "-c", "%F %t %T", "/dev/net/tun") == "character special file a c8"


def test_a_device_that_is_absent_is_waited_for_unless_it_is_optional(trials: Trials) -> None:
    app = trials.desire("waits", {"devices": ["/dev/k-none"]})
    with pytest.raises(BlockedError, match="waiting for /dev/k-none"):
        trials.create(app)
    assert trials.observe().containers == {}
    trial = trials.start({"devices": [{"source": "/dev/k-none", "optional": True}]})
    assert trial.run_code("ls", "/dev/k-none")[0] != 0


@pytest.mark.cgroup
def test_a_privileged_container_has_what_the_device_has(trials: Trials) -> None:
    # looked for before the start: a first loop device may appear at any time
    there = {name for name in ("/dev/kmsg", "/dev/fuse", "/dev/loop0") if Path(name).exists()}
    trial = trials.start({"privileged": True})
    assert capabilities(trial) == same(capability.capget()[1])
    inside = set(trial.shell("find /dev -type c -o -type b").split())
    assert "/dev/kmsg" in there
    assert there <= inside
    assert trial.shell("exec 3</dev/kmsg && echo open") == "open"
    points = {line.split()[4]: line.split()[5].split(",") for line in trial.proc("mountinfo").splitlines()}
    assert "rw" in points["/sys"]
    assert any(point.startswith("/sys/fs/cgroup") and "rw" in options for point, options in points.items())
    assert not {"/proc/kcore", "/proc/sys", "/sys/firmware"} & points.keys()
    assert trial.shell("test -w /proc/sys/kernel/domainname && echo writable") == "writable"


@pytest.mark.cgroup
def test_the_program_of_version_2_allows_exactly_its_rules(
    tmp_path: Path, busybox: Path, leak_check: LeakCheck
) -> None:
    found = Hierarchies.detect()
    if found.v2 is None:
        pytest.skip("this kernel lacks cgroup v2")
    parent = leak_check.own(f"reconciler-bpf-{os.getpid()}")
    rules = (*DEFAULT, Rule("c", 1, 11, "r"), Rule("c", 10, None, "rw"))
    bare = Hierarchies(v2=found.v2, v1={}, v2_controllers=frozenset())
    group = cgroup.create(bare, parent, "box", Limits(pids=None), devices=rules, devices_needed=True)
    script = (
        "cd /dev; mknod k c 1 11; mknod m c 1 1; mknod f c 10 229; mknod l b 7 0;"
        "for n in null zero k f m l; do for m in r w; do"
        " if test $m = r; then (exec 3<$n) 2>/dev/null; else (exec 3>>$n) 2>/dev/null; fi"
        " && echo $m:$n; done; done; true"
    )
    bundle = make_bundle(tmp_path / "bundle", [busybox], "/bin/sh", "-c", script)
    for kind in ("bounding", "permitted", "effective"):
        bundle.config["process"]["capabilities"][kind] += ["CAP_MKNOD", "CAP_SYSLOG"]
    bundle.annotate("cgroup", group.annotation())
    try:
        assert run(bundle).lines() == ["r:null", "w:null", "r:zero", "w:zero", "r:k", "r:f", "w:f"]
    finally:
        assert cgroup.wait_empty(group, 10)
        cgroup.remove(group)


def test_rules_that_nothing_can_enforce_are_refused_only_where_they_matter() -> None:
    nowhere = cgroup.Cgroup("/x", None, {})
    cgroup_devices.restrict(nowhere, DEFAULT, needed=False)
    with pytest.raises(UnsupportedError, match="devices: the cgroup controller devices is in no hierarchy"):
        cgroup_devices.restrict(nowhere, DEFAULT, needed=True)
