"""User namespaces, id-mapped mounts, and namespaces by path, with the OCI command line."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.kernel.runtime import Runtime, Sample, runtime

__all__ = ["runtime"]

pytestmark = pytest.mark.kernel

FIRST = 100000


def owned(box: Sample) -> Sample:
    """Have the root file system be the mapped root's, as who makes bundles for user namespaces does."""
    subprocess.run(["chown", "-R", f"{FIRST}:{FIRST}", str(box.rootfs)], check=True)
    return box


def test_root_inside_is_nobody_outside(runtime: Runtime) -> None:
    box = owned(
        runtime.shell(
            "id -u; cat /proc/self/uid_map; touch /made; stat -c %u /proc/1; exec sleep 1000"
        ).users()
    )
    box.process["capabilities"] = {
        kind: ["CAP_SYS_ADMIN", "CAP_CHOWN", "CAP_NET_ADMIN"]
        for kind in ("bounding", "effective", "permitted")
    }
    box.up()
    assert f"Uid:\t{FIRST}\t{FIRST}\t{FIRST}\t{FIRST}\n" in box.proc("status")
    assert "Groups:\t \n" in box.proc("status")
    out = runtime(
        "exec",
        box.id,
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map; ls -ln /dev/null; mount -t tmpfs x /tmp && echo mounted",
    ).out.splitlines()
    assert out[0] == "0"
    assert out[1].split() == ["0", str(FIRST), "65536"]
    assert out[2].startswith("crw-rw-rw-")
    assert out[3:] == ["mounted"]
    assert (box.rootfs / "made").stat().st_uid == FIRST
    assert not box.execute("sh", "-c", "echo 1 >/proc/sys/kernel/core_pattern || true")


def test_another_user_of_it_and_its_pipes(runtime: Runtime) -> None:
    box = owned(
        runtime.shell(
            "id -u; id -G; echo opened >/dev/stdout; echo $HOME",
            user={"uid": 1000, "gid": 1001, "additionalGids": [44]},
        ).users()
    )
    box.write()
    command = [runtime.program, "--root", str(runtime.root), "run", "--bundle", str(box.directory), box.id]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["1000", "1001 44", "opened", "/home/web"]


def test_a_terminal_in_a_user_namespace(runtime: Runtime) -> None:
    box = owned(runtime.shell("tty; id -u", terminal=True).users()).write()
    command = f"{runtime.program} --root {runtime.root} run --bundle {box.directory} {box.id}"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True,
        text=True,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.replace("^@", "").split() == ["/dev/pts/0", "0"]


def test_binds_that_only_the_caller_reaches_and_limits_hold(runtime: Runtime) -> None:
    closed = runtime.path / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner/file").write_text("content")
    closed.chmod(0o700)
    box = owned(runtime.shell("cat /in/file; cat /proc/self/cgroup").users())
    box.mount("/in", "bind", closed / "inner", "rbind", "ro", "nosuid")
    box.linux["resources"] = {"pids": {"limit": 50}}
    lines = box.output()
    assert lines[0].startswith("content")


def test_what_can_not_be_mapped_is_an_error(runtime: Runtime) -> None:
    box = runtime.sample("true").namespace("user")
    assert "needs uidMappings" in box.refused()
    box = runtime.sample("true")
    box.linux["uidMappings"] = [{"containerID": 0, "hostID": 1, "size": 1}]
    assert "needs a user namespace" in box.refused()
    box = runtime.sample("true").users()
    box.linux["uidMappings"] = [{"containerID": 5, "hostID": FIRST, "size": 10}]
    assert "user: 0: setresuid" in box.refused()


# --- id-mapped mounts -------------------------------------------------------------------------------------------------


def test_a_mount_shows_ids_as_they_are_mapped(runtime: Runtime) -> None:
    source = runtime.path / "source"
    source.mkdir()
    (source / "file").touch()
    os.chown(source / "file", 5, 6)
    maps = {key: [{"containerID": 0, "hostID": 7000, "size": 100}] for key in ("uidMappings", "gidMappings")}
    box = runtime.shell("stat -c %u:%g /plain/file /mapped/file")
    box.mount("/plain", "bind", source, "rbind")
    box.mount("/mapped", "bind", source, "rbind", "idmap", **maps)
    assert box.output() == ["5:6", "7005:7006"]
    inside = owned(runtime.shell("stat -c %u:%g /mapped/file; touch /mapped/new").users())
    source.chmod(0o777)
    inside.mount("/mapped", "bind", source, "rbind", "ridmap")
    assert inside.output() == ["5:6"]
    assert (source / "new").stat().st_uid == 0
    refused = runtime.sample("true").mount("/x", "tmpfs", "tmpfs", **maps)
    assert "only bind mounts can be id-mapped" in refused.refused()


# --- namespaces by path, and of time ----------------------------------------------------------------------------------


@pytest.fixture
def other(runtime: Runtime) -> Sample:
    """A container whose namespaces others join."""
    return runtime.sample("sleep", "1000").up()


@pytest.mark.parametrize("kind", ["network", "ipc", "uts", "pid", "cgroup"])
def test_a_namespace_of_another_is_joined(runtime: Runtime, other: Sample, kind: str) -> None:
    short = {"network": "net"}.get(kind, kind)
    path = f"/proc/{other.pid}/ns/{short}"
    box = runtime.sample("sleep", "1000").namespace(kind, path)
    box.config.pop("hostname")
    box.up()
    assert os.readlink(f"/proc/{box.pid}/ns/{short}") == os.readlink(path)
    if kind == "pid":
        assert len(other.execute("ps").splitlines()) == 4, "both, ps and its heading"
        box.kill()
        assert other.status == "running"


def test_a_user_namespace_of_another_is_joined(runtime: Runtime) -> None:
    first = owned(runtime.sample("sleep", "1000").users()).up()
    box = owned(runtime.shell("id -u; readlink /proc/self/ns/user; exec sleep 1000"))
    for kind in ("user", "network", "ipc"):
        short = {"network": "net"}.get(kind, kind)
        box.namespace(kind, f"/proc/{first.pid}/ns/{short}")
    box.up()
    for short in ("user", "net", "ipc"):
        assert os.readlink(f"/proc/{box.pid}/ns/{short}") == os.readlink(f"/proc/{first.pid}/ns/{short}")
    assert f"Uid:\t{FIRST}\t" in box.proc("status")
    assert box.execute("id", "-u") == "0"


def test_a_new_user_namespace_may_join_the_network_of_the_hosts(runtime: Runtime, other: Sample) -> None:
    box = owned(runtime.sample("sleep", "1000").users()).namespace("network", f"/proc/{other.pid}/ns/net")
    box.config["mounts"] = [entry for entry in box.config["mounts"] if entry["type"] != "sysfs"]
    box.up()
    assert os.readlink(f"/proc/{box.pid}/ns/net") == os.readlink(f"/proc/{other.pid}/ns/net")


def test_time_has_an_offset(runtime: Runtime) -> None:
    box = runtime.sample("sleep", "1000").namespace("time")
    box.linux["timeOffsets"] = {"boottime": {"secs": 1000000}, "monotonic": {"secs": 5, "nanosecs": 7}}
    box.up()
    assert float(box.execute("cat", "/proc/uptime").split()[0]) > 1000000
    assert box.proc("timens_offsets").split() == ["monotonic", "5", "7", "boottime", "1000000", "0"]
    assert os.readlink("/proc/self/ns/time") != os.readlink(f"/proc/{box.pid}/ns/time")
    wrong = runtime.sample("true")
    wrong.linux["timeOffsets"] = {"boottime": {"secs": 1}}
    assert "needs a new time namespace" in wrong.refused()


def test_the_hosts_own_namespace_by_path_changes_nothing_of_the_host(runtime: Runtime) -> None:
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    box = runtime.sample("true").namespace("network", "/proc/self/ns/net")
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    assert "the net namespace is the host's own" in box.refused()
    box = runtime.sample("true").namespace("uts", "/proc/self/ns/uts")
    assert "hostname: the uts namespace is the host's own" in box.refused()
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before
    assert "a new mount namespace is needed" in runtime.sample("true").without("mount").refused()
    assert (
        "joining a mount namespace"
        in runtime.sample("true").namespace("mount", "/proc/self/ns/mnt").refused()
    )
