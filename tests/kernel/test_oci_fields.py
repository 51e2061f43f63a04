"""The fields of a config.json, each seen from inside the container that the OCI command line makes of it."""

import json
import os
import resource
import socket
from pathlib import Path

import pytest

from tests.kernel.runtime import Runtime, runtime

__all__ = ["runtime"]

pytestmark = pytest.mark.kernel


def status(lines: list[str]) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def test_the_process_is_as_it_is_described(runtime: Runtime) -> None:
    script = (
        "id -u; id -g; id -G; umask; pwd; echo $WORD; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj; "
        "grep -E '^(Cap|NoNew)' /proc/self/status"
    )
    hard = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    few = ["CAP_NET_BIND_SERVICE", "CAP_CHOWN"]
    box = runtime.shell(
        script,
        user={"uid": 1000, "gid": 1001, "umask": 0o027, "additionalGids": [44, 45]},
        cwd="/tmp",
        env=["PATH=/bin", "WORD=hello"],
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 256, "hard": hard}],
        oomScoreAdj=321,
        noNewPrivileges=False,
        capabilities={
            "bounding": [*few, "CAP_KILL"],
            "permitted": few,
            "effective": few,
            "inheritable": few,
            "ambient": ["CAP_NET_BIND_SERVICE"],
        },
    )
    lines = box.output()
    assert lines[:9] == ["1000", "1001", "1001 44 45", "0027", "/tmp", "hello", "256", str(hard), "321"]
    said = status(lines)
    bind, chown, kill = 1 << 10, 1 << 0, 1 << 5
    assert int(said["CapInh"], 16) == bind | chown
    assert int(said["CapPrm"], 16) == int(said["CapEff"], 16) == int(said["CapAmb"], 16) == bind
    assert int(said["CapBnd"], 16) == bind | chown | kill
    assert said["NoNewPrivs"] == "0"


def test_names_sysctls_and_personality_are_the_containers_own(runtime: Runtime) -> None:
    box = runtime.shell(
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; uname -m"
    )
    box.config |= {"hostname": "one", "domainname": "example"}
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000"}
    box.linux["personality"] = {"domain": "LINUX32"}
    machine = {"x86_64": "i686", "aarch64": "armv8l"}[os.uname().machine]
    assert box.output() == ["one", "example", "1", "9000", machine]


def test_the_scheduler_and_its_like(runtime: Runtime) -> None:
    script = "cut -d' ' -f19,41 /proc/self/stat; ionice; grep Cpus_allowed_list /proc/self/status"
    box = runtime.shell(
        script,
        scheduler={"policy": "SCHED_BATCH", "nice": 5},
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 6},
    )
    nice, priority, _ = box.output()
    assert nice == "5 3", "nice 5, SCHED_BATCH"
    assert "best-effort: prio 6" in priority
    held = runtime.sample("sleep", "1000", execCPUAffinity={"initial": "0", "final": "0"}).up()
    assert held.execute("grep", "Cpus_allowed_list", "/proc/self/status").split()[1] == "0"


def test_mounts_have_their_options(runtime: Runtime) -> None:
    source = runtime.path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "file").write_text("content")
    box = runtime.shell("cat /proc/self/mountinfo; cat /link/file; touch /ro/x || echo sealed; ls /up")
    (box.rootfs / "up").mkdir()
    (box.rootfs / "up/was").touch()
    (runtime.path / "pointer").symlink_to(source)
    box.mount("/ro", "bind", source, "bind", "ro", "nosuid", "noexec", "noatime")
    box.mount("/rec", "none", source, "rbind", "rro", "rnosuid")
    box.mount("/link", "bind", runtime.path / "pointer", "rbind")
    box.mount("/up", "tmpfs", "tmpfs", "tmpcopyup", "size=1m", "mode=700")
    box.mount("/file", "bind", source / "file", "bind", "nosymfollow")
    lines = box.output()
    found = {line.split()[4]: line.split()[5] for line in lines if line[:1].isdigit()}
    assert set(found["/ro"].split(",")) == {"ro", "nosuid", "noexec", "noatime"}
    assert {"ro", "nosuid"} <= set(found["/rec"].split(","))
    assert "nosymfollow" in found["/file"]
    assert lines[-3:] == ["contentsealed", "was"] or lines[-2:] == ["contentsealed", "was"]


def test_a_read_only_root_and_paths_that_are_hidden(runtime: Runtime) -> None:
    script = "touch /x 2>&1; cat /secret; ls /hidden; touch /seen/x 2>&1; stat -c %F:%t:%T /secret"
    box = runtime.shell(script)
    (box.rootfs / "secret").write_text("secret")
    for name in ("hidden", "seen"):
        (box.rootfs / name).mkdir()
        (box.rootfs / name / "a").touch()
    box.config["root"]["readonly"] = True
    box.linux["maskedPaths"] = ["/secret", "/hidden", "/nowhere"]
    box.linux["readonlyPaths"] = ["/seen"]
    first, second, last = box.output()
    assert "Read-only file system" in first
    assert "Read-only file system" in second
    assert last == "character special file:1:3"


@pytest.mark.cgroup
def test_devices_are_made_and_only_they_can_be_used(runtime: Runtime) -> None:
    script = (
        "stat -c %a:%u:%g:%t:%T /dev/special; head -c1 /dev/special | wc -c; "
        "mknod /dev/disk b 7 0; dd if=/dev/disk bs=1 count=1 2>&1 | grep -v records; ls -l /pipe | cut -c1"
    )
    box = runtime.shell(script)
    box.process["capabilities"] = {
        kind: ["CAP_MKNOD", "CAP_DAC_OVERRIDE"] for kind in ("bounding", "effective", "permitted")
    }
    box.linux["devices"] = [
        {"path": "/dev/special", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/pipe", "type": "p", "fileMode": 0o666},
    ]
    box.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    lines = box.output()
    assert lines[:2] == ["640:3:4:1:5", "1"]
    assert "Operation not permitted" in lines[2]
    assert lines[3] == "p"
    free = runtime.shell("mknod /dev/loop c 10 237; cat /dev/loop 2>&1 | head -1")
    free.process["capabilities"] = box.process["capabilities"]
    free.linux["resources"] = {"devices": [{"allow": True, "access": "rwm"}]}
    assert "not permitted" not in "".join(free.output())


@pytest.mark.cgroup
def test_limits_are_in_force_before_the_program(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000")
    box.linux["resources"] = {
        "memory": {"limit": 64 << 20, "swap": 64 << 20, "reservation": 32 << 20}
        if swap_is_counted()
        else {"limit": 64 << 20},
        "cpu": {"shares": 512, "quota": 20000, "period": 50000, "cpus": "0", "mems": "0"},
        "pids": {"limit": 77},
    }
    box.create()
    v2 = not Path("/sys/fs/cgroup/memory").is_dir()
    names = (
        ("memory", "memory.max" if v2 else "memory.limit_in_bytes", str(64 << 20)),
        ("cpu", "cpu.max" if v2 else "cpu.cfs_quota_us", "20000 50000" if v2 else "20000"),
        ("cpu", "cpu.weight" if v2 else "cpu.shares", "20" if v2 else "512"),
        ("pids", "pids.max", "77"),
        ("cpuset", "cpuset.cpus", "0"),
    )
    for controller, file, value in names:
        assert (box.cgroup(controller) / file).read_text().strip() == value
        assert str(box.pid) in (box.cgroup(controller) / "cgroup.procs").read_text().split()


def swap_is_counted() -> bool:
    v1 = Path("/sys/fs/cgroup/memory")
    return (v1 / "memory.memsw.limit_in_bytes").exists() or not v1.is_dir()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"linux": {"intelRdt": {"closID": "x"}}}, "linux.intelRdt: Intel RDT is not supported"),
        ({"linux": {"mountLabel": "x"}}, "linux.mountLabel: SELinux labels of mounts are not supported"),
        ({"linux": {"resources": {"rdma": {"mlx5": {"hcaHandles": 1}}}}}, "resources.rdma: not supported"),
        ({"linux": {"resources": {"network": {"classID": 1}}}}, "resources.network: not supported"),
        (
            {"linux": {"resources": {"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}}},
            "hugepageLimits[0]: ",
        ),
        ({"linux": {"resources": {"unified": {"../x.y": "1"}}}}, "expected a file of a controller"),
        ({"linux": {"cgroupsPath": "system.slice:x:y"}}, "--cgroup-manager cgroupfs"),
        ({"linux": {"cgroupsPath": "/"}}, "the root of the hierarchy"),
        ({"linux": {"personality": {"domain": "HURD"}}}, "linux.personality.domain: HURD"),
        ({"linux": {"sysctl": {"vm.swappiness": "1"}}}, "linux.sysctl.vm.swappiness: not in a namespace"),
        ({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_NONSENSE"}}}, "linux.seccomp"),
        ({"process": {"apparmorProfile": "x"}}, "process.apparmorProfile: this kernel has no AppArmor"),
        ({"process": {"selinuxLabel": "x"}}, "process.selinuxLabel: this kernel has no SELinux"),
        ({"process": {"scheduler": {"policy": "SCHED_NONE"}}}, "process.scheduler.policy: SCHED_NONE"),
        (
            {"process": {"rlimits": [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]}},
            "RLIMIT_NONE: no such limit",
        ),
        ({"process": {"cwd": "relative"}}, "expected an absolute path"),
        ({"process": {"cwd": "/nowhere/at/all", "args": []}}, "process.args: expected a program"),
        ({"root": {"path": "nowhere"}}, "no such file or directory"),
        ({"ociVersion": "2.0.0"}, "ociVersion: 2.0.0: expected 1.x"),
        ({"hooks": {"createRuntime": [{"path": "relative"}]}}, "hooks.createRuntime[0].path"),
        ({"windows": {"layerFolders": ["x"]}}, "windows: this is Linux"),
        ({"mounts": [{"destination": "/", "type": "tmpfs", "source": "x"}]}, "a mount on / would hide"),
        (
            {"mounts": [{"destination": "/x", "type": "bind", "source": "/no/where"}]},
            "bind source /no/where: no such file",
        ),
        (
            {"mounts": [{"destination": "/x", "type": "tmpfs", "source": "x", "options": ["nonsense=1"]}]},
            "mount: /x:",
        ),
    ],
)
def test_what_can_not_be_honoured_is_an_error_and_leaves_nothing(
    runtime: Runtime, change: dict[str, dict[str, object]], said: str
) -> None:
    if "AppArmor" in said and Path("/sys/module/apparmor/parameters/enabled").exists():
        pytest.skip("this kernel lacks nothing: it has AppArmor")
    box = runtime.sample("true")
    for key, value in change.items():
        box.config[key] = (
            {**box.config[key], **value} if isinstance(value, dict) and key in box.config else value
        )
    assert said in box.refused()


def test_annotations_of_this_programs_own_mean_nothing_here(runtime: Runtime) -> None:
    """Who may annotate a container must not thereby mount directories of the host."""
    box = runtime.shell("ls /; id -u")
    prefix = "dev.reconciler."
    box.config["annotations"] = {
        f"{prefix}layers": json.dumps(["/etc"]),
        f"{prefix}upper": "/etc",
        f"{prefix}work": "/etc",
        f"{prefix}user": "7",
        f"{prefix}name": "a/b",
        f"{prefix}volumes": json.dumps([{"destination": "/etc", "root": "/etc"}]),
    }
    lines = box.output()
    assert "passwd" not in lines
    assert lines[-1] == "0"


# --- seccomp ----------------------------------------------------------------------------------------------------------


def profile(action: str, *names: str, **more: object) -> dict[str, object]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": list(names), "action": action}], **more}


@pytest.mark.parametrize("confined", [True, False])
def test_calls_are_filtered_in_the_container_and_in_exec(runtime: Runtime, confined: bool) -> None:
    box = runtime.sample("sleep", "1000", noNewPrivileges=confined)
    box.linux["seccomp"] = profile("SCMP_ACT_ERRNO", "mkdir", "mkdirat", flags=["SECCOMP_FILTER_FLAG_LOG"])
    box.up()
    assert "Seccomp:\t2\n" in box.proc("status")
    assert box.execute("grep", "Seccomp:", "/proc/self/status") == "Seccomp:\t2"
    done = runtime("exec", box.id, "mkdir", "/x", check=False)
    assert (done.code, done.err) == (1, "mkdir: can't create directory '/x': Operation not permitted\n")


def test_a_supervisor_gets_the_listener_and_is_told_whose(runtime: Runtime) -> None:
    path = runtime.path / "supervisor"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)
    box = runtime.sample("sleep", "1000")
    box.linux["seccomp"] = profile(
        "SCMP_ACT_NOTIFY", "mkdir", "mkdirat", listenerPath=str(path), listenerMetadata="word"
    )
    box.up()
    connection, _ = listener.accept()
    data, fds, _, _ = socket.recv_fds(connection, 65536, 1)
    told = json.loads(data)
    assert (told["fds"], told["metadata"], told["pid"]) == (["seccompFd"], "word", box.pid)
    assert (told["state"]["id"], told["state"]["status"]) == (box.id, "creating")
    assert os.readlink(f"/proc/self/fd/{fds[0]}") == "anon_inode:seccomp notify"
    for fd in (fds[0], connection.detach(), listener.detach()):
        os.close(fd)
    other = runtime.sample("true")
    other.linux["seccomp"] = profile("SCMP_ACT_NOTIFY", "mkdir")
    assert "SCMP_ACT_NOTIFY needs a listenerPath" in other.refused()


# --- propagation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "word"),
    [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("slave", ""),
        ("private", ""),
        ("unbindable", "unbindable"),
    ],
)
def test_the_root_has_the_propagation_that_is_asked_for(runtime: Runtime, wanted: str, word: str) -> None:
    box = runtime.shell("awk '$5 == \"/\"' /proc/self/mountinfo")
    box.linux["rootfsPropagation"] = wanted
    line = box.output()[0]
    optional = line.partition(" - ")[0].split()[6:]
    assert (
        any(field.startswith(word) for field in optional)
        if word
        else not any("shared" in f for f in optional)
    )
