"""What a program finds when it starts: seen from inside a real container, compared with what the bundle says."""

import ctypes
import errno
import os
import re
import signal
from pathlib import Path

import pytest

from reconciler.engine.bundle import MASKED_PATHS, READONLY_PATHS
from tests.kernel.box import Bundle, make_bundle, run, shell

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("leak_check")]

_DEFAULT = 0x405FB  # the ten capabilities of the spec reference


@pytest.fixture
def bundle(tmp_path: Path, busybox: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", [busybox], "/bin/sh")


def status(bundle: Bundle) -> dict[str, str]:
    lines = shell(bundle, "exec cat /proc/self/status")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_every_namespace_is_its_own_and_the_program_is_pid_1(bundle: Bundle) -> None:
    lines = shell(bundle, "echo $$; for n in /proc/1/ns/*; do readlink $n; done; hostname")
    assert lines[0] == "1"
    inside = {line.split(":")[0]: line for line in lines[1:-1]}
    for kind in ("pid", "net", "mnt", "uts", "ipc", "cgroup"):
        assert inside[kind] != os.readlink(f"/proc/self/ns/{kind}")
    assert inside["user"] == os.readlink("/proc/self/ns/user")
    assert lines[-1] == "box"


def test_s5_the_devices_are_the_default_ones_and_the_links_point_where_the_specification_says(
    bundle: Bundle,
) -> None:
    lines = shell(bundle, "cd /dev; ls; for l in fd stdin stdout stderr ptmx; do readlink $l; done")
    names, links = lines[:-5], lines[-5:]
    assert set(names) == {
        *("fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm"),
        *("stderr", "stdin", "stdout", "tty", "urandom", "zero"),
    }
    assert links == [
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
    ]
    numbers = shell(bundle, "cd /dev; stat -c '%n %t %T %a' null zero full random urandom tty")
    assert numbers == [
        "null 1 3 666",
        "zero 1 5 666",
        "full 1 7 666",
        "random 1 8 666",
        "urandom 1 9 666",
        "tty 5 0 666",
    ]


def test_s5_a_device_node_in_the_root_has_no_power(bundle: Bundle) -> None:
    capabilities = bundle.config["process"]["capabilities"]
    for name in ("bounding", "permitted", "effective"):
        capabilities[name] = [*capabilities[name], "CAP_MKNOD"]
    lines = shell(bundle, "mknod /zero c 1 5 && head -c 1 /zero || echo refused")
    assert "refused" in lines


def test_the_devices_of_the_bundle_are_there_too(bundle: Bundle) -> None:
    bundle.config["linux"]["devices"] = [
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o640, "gid": 7}
    ]
    assert shell(bundle, "stat -c '%t %T %a %u %g' /dev/net/tun") == ["a c8 640 0 7"]


def test_where_mknod_is_forbidden_the_hosts_nodes_are_bound_and_cannot_be_changed(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    before = os.stat("/dev/null")
    script = "stat -c '%t %T' /dev/null; echo x >/dev/null; head -c 3 /dev/zero | wc -c; chmod 600 /dev/null 2>&1; true"
    lines = shell(bundle, script)
    assert lines[:2] == ["1 3", "3"]
    assert "Read-only" in lines[2]
    assert os.stat("/dev/null").st_mode == before.st_mode


def test_p13_masked_paths_are_empty_and_cannot_be_used_to_reach_the_hosts_null_device(bundle: Bundle) -> None:
    before = os.stat("/dev/null")
    script = "; ".join(
        f"if test -d {path}; then ls -A {path} | wc -l; elif test -e {path}; then wc -c <{path}; fi;"
        f"chmod 777 {path} 2>/dev/null && echo changed; chown 1:1 {path} 2>/dev/null && echo changed; true"
        for path in MASKED_PATHS
    )
    lines = shell(bundle, script)
    assert len(lines) >= 3
    assert set(lines) == {"0"}
    after = os.stat("/dev/null")
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)


def test_p13_what_controls_the_host_cannot_be_written(bundle: Bundle) -> None:
    paths = (
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/mm/ksm/run",
    )
    script = "; ".join(f"(: >>{path}) 2>/dev/null && echo {path}" for path in paths)
    assert shell(bundle, f"{script}; true") == []


def test_read_only_paths_and_a_read_only_root_are_read_only(bundle: Bundle) -> None:
    bundle.config["root"]["readonly"] = True
    mounts = shell(bundle, "touch /x 2>&1; cat /proc/self/mountinfo")
    assert mounts.pop(0).endswith("Read-only file system")
    options = {line.split()[4]: line.split()[5].split(",") for line in mounts}
    assert "ro" in options["/"]
    assert "rw" in options["/dev"]
    for path in READONLY_PATHS:
        if path in options:
            assert "ro" in options[path]
    assert {"/proc/sys", "/proc/bus"} <= options.keys()


def test_nothing_of_the_hosts_mounts_is_left(bundle: Bundle) -> None:
    points = shell(bundle, "cut -d' ' -f5 /proc/self/mountinfo")
    roots = ("/proc", "/dev", "/sys", "/")
    assert [p for p in points if not p.startswith(roots)] == []
    assert points.count("/") == 1


def test_s1_capabilities_are_exactly_the_bundles(bundle: Bundle) -> None:
    found = status(bundle)
    for name in ("CapEff", "CapPrm", "CapBnd"):
        assert int(found[name], 16) == _DEFAULT
    assert int(found["CapInh"], 16) == 0
    assert int(found["CapAmb"], 16) == 0


def test_s1_a_user_other_than_root_keeps_only_the_bounding_set(bundle: Bundle) -> None:
    bundle.annotate("user", "1000:1001")
    found = status(bundle)
    assert int(found["CapBnd"], 16) == _DEFAULT
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(found[name], 16) == 0


def test_s1_ambient_capabilities_reach_a_user_other_than_root(bundle: Bundle) -> None:
    capabilities = bundle.config["process"]["capabilities"]
    for name in ("ambient", "inheritable"):
        capabilities[name] = ["CAP_NET_BIND_SERVICE"]
    bundle.annotate("user", "1000")
    found = status(bundle)
    for name in ("CapEff", "CapPrm", "CapAmb", "CapInh"):
        assert int(found[name], 16) == 1 << 10


def test_s2_no_group_of_the_agents_is_inherited(bundle: Bundle) -> None:
    before = os.getgroups()
    os.setgroups([4, 20, 27])
    try:
        assert status(bundle)["Groups"] == ""
        bundle.config["process"]["user"] = {"uid": 1000, "gid": 5, "additionalGids": [7, 8]}
        found = status(bundle)
        assert (found["Uid"].split()[0], found["Gid"].split()[0], found["Groups"]) == ("1000", "5", "7 8")
    finally:
        os.setgroups(before)


def test_s3_no_new_privileges_is_as_the_bundle_says(bundle: Bundle) -> None:
    assert status(bundle)["NoNewPrivs"] == "1"
    bundle.config["process"]["noNewPrivileges"] = False
    assert status(bundle)["NoNewPrivs"] == "0"


def test_s3_a_set_uid_program_gains_nothing(tmp_path: Path, busybox: Path) -> None:
    layer = tmp_path / "layer"
    (layer / "bin").mkdir(parents=True)
    (layer / "bin/grep").write_bytes((busybox / "bin/busybox").read_bytes())
    (layer / "bin/grep").chmod(0o4755)
    bundle = make_bundle(tmp_path / "bundle", [layer, busybox], "/bin/sh").annotate("user", "1000")
    bundle.config["process"]["args"] = ["/bin/grep", "^Uid", "/proc/self/status"]
    assert run(bundle).output.split() == ["Uid:", "1000", "1000", "1000", "1000"]


def test_p3_no_descriptor_from_3_on_is_inherited(bundle: Bundle) -> None:
    read, write = os.pipe()
    directory = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    for fd in (read, write, directory):
        os.set_inheritable(fd, True)
    try:
        # the shell's own descriptor for the listing is the only one: ls runs in its place
        lines = shell(bundle, "exec ls /proc/self/fd")
        assert lines == ["0", "1", "2", "3"]
    finally:
        for fd in (read, write, directory):
            os.close(fd)


def set_action(number: int, action: bytes) -> bytes:
    """Set the kernel's struct sigaction of a signal, also one that libc keeps for itself; give the one before."""
    before = ctypes.create_string_buffer(32)
    call = {"x86_64": 13, "aarch64": 134}[os.uname().machine]
    assert ctypes.CDLL(None).syscall(call, number, action, before, 8) == 0
    return before.raw


def ignore_as_make_does(number: int) -> bytes:
    """What runs under GNU make has both signals of glibc ignored: its posix_spawn(3) leaves them so."""
    return set_action(number, (1).to_bytes(8, "little") + bytes(24))


def test_signals_are_at_their_defaults_and_the_umask_is_set(bundle: Bundle) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    hidden = [ignore_as_make_does(number) for number in (32, 33)]
    try:
        found = status(bundle)
    finally:
        signal.signal(signal.SIGUSR1, before)
        for number, action in zip((32, 33), hidden, strict=True):
            set_action(number, action)
    for name in ("SigIgn", "SigBlk", "SigPnd", "ShdPnd"):
        assert int(found[name], 16) == 0, name
    assert found["Umask"] == "0022"


def test_the_working_directory_is_made_and_entered(bundle: Bundle) -> None:
    bundle.config["process"]["cwd"] = "/srv/app/../data"
    assert shell(bundle, "pwd; ls /srv") == ["/srv/data", "data"]


def test_rlimits_are_set_and_the_ones_nobody_asked_for_are_clamped(bundle: Bundle) -> None:
    bundle.config["process"]["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 300, "hard": 2**30},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]
    lines = shell(bundle, "cat /proc/self/limits")
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines}
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"][0] == "300"
    assert int(limits["Max open files"][1]) >= 300


def test_an_rlimit_asked_for_by_name_that_cannot_be_had_is_an_error(bundle: Bundle) -> None:
    bundle.config["process"]["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 300, "hard": 2**40}]
    bundle.annotate("rlimits-requested", ["RLIMIT_NOFILE"])
    error = run(bundle).error
    assert error is not None
    assert error["step"] == "rlimit"
    assert "hard limit" in error["message"]


def test_environment_is_exactly_the_bundles_with_home_from_passwd(bundle: Bundle) -> None:
    bundle.config["process"]["env"] = ["A=1", "PATH=/bin", "A=2"]
    bundle.config["process"]["args"] = ["/bin/env"]
    assert sorted(run(bundle).lines()) == ["A=2", "HOME=/root", "PATH=/bin"]
    bundle.config["process"]["env"] = ["HOME=/elsewhere"]
    assert run(bundle).lines() == ["HOME=/elsewhere"]


def test_sysctls_of_the_containers_own_namespaces_are_set(bundle: Bundle) -> None:
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "4096"}
    before = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    paths = "/proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax"
    assert shell(bundle, f"cat {paths}") == ["80", "4096"]
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text() == before


def test_oom_score_is_adjusted(bundle: Bundle) -> None:
    bundle.config["process"]["oomScoreAdj"] = 321
    assert shell(bundle, "cat /proc/self/oom_score_adj") == ["321"]


def test_s6_the_session_keyring_is_the_containers_own(bundle: Bundle) -> None:
    bundle.config["linux"]["maskedPaths"] = []
    bundle.config["process"]["args"] = ["/bin/cat", "/proc/keys"]
    mine = [line for line in Path("/proc/keys").read_text().splitlines() if " _ses" in line]
    inside = [line for line in run(bundle).lines() if " _ses" in line]
    # /proc/keys also shows other keyrings of the same uid; seccomp will take keyctl away, this its possession
    assert {line.split()[0] for line in inside} - {line.split()[0] for line in mine}


def test_p15_other_processes_are_not_seen(bundle: Bundle) -> None:
    lines = shell(bundle, "ls /proc")
    assert len([name for name in lines if re.fullmatch(r"\d+", name)]) <= 2


def test_p14_a_second_proc_cannot_be_mounted_without_the_capability(bundle: Bundle) -> None:
    lines = shell(bundle, "mkdir /p; mount -t proc proc /p 2>&1; unshare -Urm true 2>&1 || echo refused")
    assert "permission denied" in lines[0].lower()


def test_p12_cgroups_are_read_only_and_nothing_of_the_root_is_seen(bundle: Bundle) -> None:
    script = "find /sys/fs/cgroup -name release_agent; touch /sys/fs/cgroup/x 2>&1; true"
    lines = shell(bundle, script)
    assert len(lines) == 1
    assert "Read-only" in lines[0]


def test_hundreds_of_layers_with_separators_in_their_paths_are_one_root(
    tmp_path: Path, busybox: Path
) -> None:
    layers = []
    for number in range(120):
        layer = tmp_path / f"a:b,c d\\e{number}" / ("x" * 60)
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text(str(number))
        (layer / "top").write_text(str(number))
        layers.append(layer)
    bundle = make_bundle(tmp_path / "bun:dle", [*layers, busybox], "/bin/sh")
    lines = shell(
        bundle,
        "ls / | grep -c ^file; cat /top; echo; cat /file119; echo; touch /new; rm /file3; ls /file3 2>&1; true",
    )
    assert lines[:3] == ["120", "0", "119"]
    assert (bundle.upper / "new").exists()
    assert (bundle.upper / "file3").is_char_device()


def test_the_overlay_of_old_kernels_gives_the_same_root(
    tmp_path: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reconciler.shim import rootfs

    monkeypatch.setattr(rootfs, "_overlay_by_descriptor", lambda directories: None)
    layer = tmp_path / "a:b,c"
    layer.mkdir()
    (layer / "file").write_text("x")
    bundle = make_bundle(tmp_path / "bundle:,", [layer, busybox], "/bin/sh")
    assert shell(bundle, "cat /file; touch /new; pwd") == ["x/"]
    assert (bundle.upper / "new").exists()


def test_a_plain_root_directory_works_without_layers(tmp_path: Path, busybox: Path) -> None:
    bundle = make_bundle(tmp_path, [], "/bin/sh")
    bundle.config["root"]["path"] = str(busybox)
    bundle.config["root"]["readonly"] = True
    for path in ("proc", "sys", "dev"):
        (busybox / path).mkdir(exist_ok=True)
    assert shell(bundle, "echo ok; touch /x 2>/dev/null || echo ro") == ["ok", "ro"]
