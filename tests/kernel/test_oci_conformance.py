"""What the validation suite of the OCI's runtime-tools asks of a runtime, as far as it is not in the other tests; and
the same config.json in runc's hands, and crun's, where it must look the same from inside.

The suite itself is a set of Go programs that Debian does not have; the names in brackets are those of its files.
"""

import difflib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reconciler.linux import capability
from tests.kernel.runtime import Runtime, Sample, runtime

__all__ = ["runtime"]

pytestmark = pytest.mark.kernel


def test_delete_takes_away_only_what_create_has_made(runtime: Runtime) -> None:
    """[delete_only_create_resources]"""
    box = runtime.sample("sleep", "1000")
    there = [point / runtime.name / "1" for point in hierarchies()]
    for directory in there[:1]:
        directory.mkdir(parents=True)
    box.up()
    made = [directory for directory in there[1:] if directory.is_dir()]
    box.kill()
    box.delete()
    assert there[0].is_dir()
    assert not any(directory.exists() for directory in made)
    there[0].rmdir()


def hierarchies() -> list[Path]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        Path(line.split()[4])
        for line in lines
        if line.partition(" - ")[2].split()[0] in ("cgroup", "cgroup2")
    ]


def test_a_created_container_can_not_be_deleted_and_can_be_killed(runtime: Runtime) -> None:
    """[delete, kill, killsig]"""
    box = runtime.sample("sleep", "1000").create()
    assert f'cannot delete container "{box.id}" that is not stopped: created' in runtime.fails(
        "delete", box.id
    )
    assert box.status == "created"
    box.kill()
    assert box.status == "stopped"


def test_a_relative_cgroup_is_below_our_own_and_goes_with_the_container(runtime: Runtime) -> None:
    """[linux_cgroups_relative_*]"""
    box = runtime.sample("sleep", "1000")
    box.linux["cgroupsPath"] = f"{runtime.name}-relative"
    box.up()
    lines = box.proc("cgroup").splitlines()
    assert any(line.endswith(f":/reconciler-oci/{runtime.name}-relative") for line in lines)
    box.kill()
    box.delete()
    assert not [
        point for point in hierarchies() if (point / "reconciler-oci" / f"{runtime.name}-relative").exists()
    ]


def test_what_is_unknown_in_a_config_is_ignored(runtime: Runtime) -> None:
    """[misc_props]"""
    box = runtime.sample("true")
    box.config["unknown"] = {"a": 1}
    box.linux["unknown"] = "x"
    box.process["unknown"] = []
    box.run()


def test_capabilities_that_can_not_be_given_are_a_warning(runtime: Runtime) -> None:
    """[process_capabilities_fail]; config.md since 1.0.2: logged as a warning, no failure."""
    names = ["CAP_CHOWN", "CAP_TO_FLY", *capability.names(~capability.capget()[1] & (1 << 41) - 1)]
    box = runtime.shell("grep -E '^Cap(Eff|Bnd)' /proc/self/status")
    box.process["capabilities"] = {kind: names for kind in ("bounding", "effective", "permitted")}
    done = box.run()
    assert [line.split()[1] for line in done.out.splitlines()] == ["0000000000000001"] * 2
    assert done.err.startswith("reconciler-oci: warning: capabilities that can't be given are left out: CAP_")
    assert "CAP_TO_FLY" in done.err
    few = runtime.sample("sleep", "1000").up()
    assert "CAP_TO_FLY" in runtime("exec", "--cap", "CAP_TO_FLY", few.id, "true").err


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        (
            "process",
            {"rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}] * 2},
            "RLIMIT_CORE is there twice",
        ),
        ("linux", {"maskedPaths": ["relative"]}, "linux.maskedPaths: 'relative': expected an absolute path"),
        (
            "linux",
            {"readonlyPaths": ["relative"]},
            "linux.readonlyPaths: 'relative': expected an absolute path",
        ),
        ("linux", {"rootfsPropagation": "sideways"}, "linux.rootfsPropagation: sideways"),
        ("annotations", {"": "x"}, "annotations: '': expected a name and a string"),
        ("annotations", {"x": 1}, "annotations: 'x': expected a name and a string"),
    ],
)
def test_what_the_specification_forbids_is_an_error(
    runtime: Runtime, section: str, change: dict[str, Any], said: str
) -> None:
    """[process_rlimits_fail, linux_masked_paths, linux_readonly_paths]"""
    box = runtime.sample("true")
    box.config.setdefault(section, {}).update(change)
    assert said in box.refused()


def test_a_namespace_path_must_be_one_of_its_type(runtime: Runtime) -> None:
    """[linux_ns_path_type]"""
    said = runtime.sample("true").namespace("ipc", "/proc/self/ns/uts").refused()
    assert "namespace: /proc/self/ns/uts: setns: invalid argument" in said
    assert "expected an absolute path" in runtime.sample("true").namespace("ipc", "relative").refused()


def test_namespaces_that_are_not_listed_are_the_callers(runtime: Runtime) -> None:
    """[linux_ns_itype]"""
    box = runtime.sample("sleep", "1000")
    for kind in ("network", "ipc", "uts", "cgroup", "pid"):
        box.without(kind)
    box.config.pop("hostname")
    box.config["mounts"] = [
        entry for entry in box.config["mounts"] if entry["type"] not in ("sysfs", "mqueue")
    ]
    box.up()
    for short in ("net", "ipc", "uts", "cgroup", "pid", "user"):
        assert os.readlink(f"/proc/{box.pid}/ns/{short}") == os.readlink(f"/proc/self/ns/{short}")


def test_default_links_devices_and_file_systems(runtime: Runtime) -> None:
    """[linux_devices, default]"""
    script = (
        "for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; "
        "for d in null zero full random urandom tty; do stat -c %t:%T:%a /dev/$d; done; "
        "stat -f -c %T /proc /sys /dev/pts /dev/shm"
    )
    assert runtime.shell(script).output() == [
        *("/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"),
        *("1:3:666", "1:5:666", "1:7:666", "1:8:666", "1:9:666", "5:0:666"),
        *("proc", "sysfs", "devpts", "tmpfs"),
    ]


# --- the same in other hands -----------------------------------------------------------------------------------------

_LOOK = (
    "id; umask; pwd; env | sort; hostname; cat /proc/sys/kernel/domainname; ulimit -n; ulimit -c; uname -m; "
    "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Cpus_allowed_list)' /proc/self/status; "
    "cat /proc/self/oom_score_adj; ls -l /dev | awk '{print $1,$3,$5,$6}' | sort; "
    "awk '{print $5, $6}' /proc/self/mountinfo | "
    "grep -v -e cgroup -e '^/proc/' -e '^/sys/f' -e '^/dev/[fnrtuz]' | sort; "
    "cat /proc/timer_list /proc/keys | wc -c; touch /proc/sys/kernel/x 2>&1; ls /proc/acpi; "
    "ls /proc/self/fd | wc -l; cat /data/file; stat -c %u:%g:%a /data; touch /ro/x 2>&1; "
    "cut -d' ' -f19,41 /proc/self/stat"
)


def compared(box: Sample, source: Path) -> Sample:
    """A bundle with something of everything that both runtimes can do."""
    source.mkdir(exist_ok=True)
    (source / "file").write_text("content\n")
    box.mount("/data", "bind", source, "rbind", "rw", "nosuid", "nodev")
    box.mount("/ro", "bind", source, "bind", "ro", "noexec")
    box.mount("/t", "tmpfs", "tmpfs", "size=1m", "mode=1777", "noexec")
    box.config["ociVersion"] = "1.0.2"  # as far as what Debian has knows
    box.process.update(
        user={"uid": 1000, "gid": 1000, "umask": 0o027, "additionalGids": [44]},
        env=["PATH=/bin:/usr/bin", "WORD=one", "HOME=/home/web", "TERM=x"],
        rlimits=[
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
        oomScoreAdj=100,
        cwd="/tmp",
    )
    kinds = ("bounding", "effective", "permitted", "inheritable", "ambient")
    box.process["capabilities"] = {kind: ["CAP_NET_BIND_SERVICE", "CAP_CHOWN"] for kind in kinds}
    box.linux.update(
        maskedPaths=["/proc/acpi", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        readonlyPaths=["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        sysctl={"net.ipv4.ip_forward": "1"},
        seccomp={
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}],
        },
    )
    return box


@pytest.mark.parametrize("other", ["runc", "crun"])
@pytest.mark.parametrize("users", [False, True], ids=["host", "user namespace"])
def test_it_looks_the_same_from_inside_as_with_another_runtime(
    runtime: Runtime, other: str, users: bool
) -> None:
    program = shutil.which(other) or pytest.skip(f"this machine has no {other}")
    box = compared(runtime.shell(_LOOK), runtime.path / "data")
    if users:
        box.users()
        subprocess.run(
            ["chown", "-R", "100000:100000", str(box.rootfs), str(runtime.path / "data")], check=True
        )
    ours = box.output()
    command = [program, "--root", str(runtime.path / other), "run", "--bundle", str(box.directory), box.id]
    # Not the null device: crun gives its caller's descriptors to the container's user, whatever they are
    done = subprocess.run(command, capture_output=True, text=True, input="", check=False)
    if other == "crun" and "cgroup" in done.stderr and done.returncode:
        pytest.skip(f"this kernel lacks what crun needs: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    # Ours is stricter: device nodes of the image itself have no power
    ours = ["/ rw,relatime" if line == "/ rw,nodev,relatime" else line for line in ours]
    differences = list(difflib.unified_diff(done.stdout.splitlines(), ours, other, "ours", lineterm="", n=0))
    assert not differences, "\n".join(differences)
