"""A container with ids of its own: what its root owns and may do, what is on the disk, and what stays out of reach."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine.control import CommandError
from reconciler.shim import rootfs
from reconciler.shim.child import ConfigError, prepare
from tests.kernel.box import Box, Bundle, make_bundle, make_layer, run, shell
from tests.kernel.shims import Host

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("leak_check")]

FIRST = 0x70000000 + (5 << 16)
COUNT = 65536


def give_ids(bundle: Bundle, first: int = FIRST) -> Bundle:
    """Give it a user namespace, as the engine does."""
    linux = bundle.config["linux"]
    linux["namespaces"].append({"type": "user"})
    linux["uidMappings"] = linux["gidMappings"] = mappings(first)
    for entry in bundle.config["mounts"]:
        if entry["type"] == "bind":
            entry["uidMappings"] = entry["gidMappings"] = mappings(first)
    return bundle


def mappings(first: int) -> list[dict[str, int]]:
    return [{"containerID": 0, "hostID": first, "size": COUNT}]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    layer = make_layer(tmp_path / "image")
    (layer / "data").mkdir()
    (layer / "data/of-web").write_text("from the image")
    os.chown(layer / "data/of-web", 1000, 1001)
    return layer


@pytest.fixture
def bundle(tmp_path: Path, image: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", [image], "/bin/sh")


def owner(path: Path) -> tuple[int, int]:
    info = path.lstat()
    return info.st_uid, info.st_gid


def test_root_inside_is_nobody_outside_and_no_tree_changes_its_owner(bundle: Bundle, image: Path) -> None:
    give_ids(bundle)
    script = """
        cat /proc/self/uid_map /proc/self/gid_map; readlink /proc/self/ns/user
        stat -c '%n %u:%g' / /etc/passwd /data/of-web /tmp /dev /dev/null /dev/pts /dev/shm /proc/self/fd
        echo mine >/new; mkdir /dir; chown 1000:1001 /new; echo more >>/etc/passwd; rm /data/of-web; ln -s x /link
        stat -c '%n %u:%g' /new /dir
        cat /proc/1/status | grep -E '^(Uid|Gid)'
    """
    lines = [line.split() for line in shell(bundle, script)]
    assert lines[:2] == [["0", str(FIRST), str(COUNT)]] * 2
    assert lines[2] != [os.readlink("/proc/self/ns/user")]
    owners = {name: ids for name, ids in lines[3:14]}
    assert owners == {
        **dict.fromkeys(
            ("/", "/etc/passwd", "/tmp", "/dev", "/dev/null", "/dev/shm", "/proc/self/fd"), "0:0"
        ),
        "/dev/pts": owners["/dev/pts"],
        "/data/of-web": "1000:1001",
        "/new": "1000:1001",
        "/dir": "0:0",
    }
    assert lines[14:] == [["Uid:", "0", "0", "0", "0"], ["Gid:", "0", "0", "0", "0"]]
    assert owner(bundle.upper / "new") == (1000, 1001)
    assert owner(bundle.upper / "dir") == owner(bundle.upper / "etc/passwd") == (0, 0)
    assert owner(image / "data/of-web") == (1000, 1001)
    assert (image / "etc/passwd").read_text().count("more") == 0
    # The namespace has been left: another range shows the same
    bundle.config["linux"]["uidMappings"] = bundle.config["linux"]["gidMappings"] = mappings(1 << 30)
    assert shell(bundle, "stat -c %u:%g /new; cat /new") == ["1000:1001", "mine"]


def test_the_overlay_of_old_kernels_shows_the_same_owners(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfs, "_overlay_by_descriptor", lambda directories: None)
    give_ids(bundle)
    script = "touch /new; stat -c %u:%g /data/of-web /new; rm /data/of-web; ls /data"
    assert shell(bundle, script) == ["1000:1001", "0:0"]
    assert owner(bundle.upper / "new") == (0, 0)


def test_the_kernel_sees_ids_of_the_range(tmp_path: Path, image: Path) -> None:
    bundle = give_ids(make_bundle(tmp_path / "bundle", [image], "/bin/sleep", "100000"))
    bundle.annotate("user", "web")
    with Box(bundle) as box:
        assert box.create() is None
        assert box.start() is None
        lines = Path(f"/proc/{box.pid}/status").read_text().splitlines()
        found = {line.split()[0]: line.split()[1:] for line in lines}
        assert found["Uid:"] == [str(FIRST + 1000)] * 4
        assert found["Gid:"] == [str(FIRST + 1001)] * 4
        assert found["Groups:"] == [str(FIRST + 44), str(FIRST + 45), str(FIRST + 1001)]
        assert found["CapBnd:"] == ["00000000000405fb"]


def test_root_has_power_over_its_own_and_over_nothing_else(bundle: Bundle) -> None:
    everything = [*bundle.config["process"]["capabilities"]["bounding"], "CAP_SYS_ADMIN", "CAP_NET_ADMIN"]
    for kind in ("bounding", "effective", "permitted"):
        bundle.config["process"]["capabilities"][kind] = everything
    give_ids(bundle)
    script = """
        try() { name=$1; shift; "$@" >/dev/null 2>&1 && echo $name yes || echo $name no; }
        try chown chown 5:5 /tmp; try kill kill -0 1; try chroot chroot / true; try su su -s /bin/sh nobody -c true
        try mount mount -t tmpfs x /tmp; try bind mount --bind /etc /tmp; try umount umount /dev/shm
        try remount mount -o remount,rw /sys; try hostname hostname other; try address ip addr add 10.9.9.9/24 dev lo
        try sysctl sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'; try mknod mknod /tmp/null c 1 3
        try unmapped chown 65536:0 /tmp; try nice nice -n -5 true; try device cat /dev/vda
        try release sh -c 'echo x >/sys/fs/cgroup/release_agent'; try swap swapon /tmp
    """
    found = dict(line.split() for line in shell(bundle, script))
    assert {name for name, can in found.items() if can == "yes"} == {"chown", "kill", "chroot", "su"}


def test_ports_below_1024_and_sysctls_of_the_bundle(bundle: Bundle) -> None:
    give_ids(bundle)
    bundle.config["linux"]["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "0"}
    script = "ip link set lo up 2>/dev/null; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; httpd -p 80 && echo yes"
    assert shell(bundle, script) == ["0", "yes"]


def test_an_id_beyond_the_range_is_named(bundle: Bundle) -> None:
    give_ids(bundle).annotate("user", "70000")
    result = run(bundle)
    assert result.error is not None
    assert result.error["step"] == "user"
    assert result.error["message"] == "user: 70000: not among the 65536 ids of the container's user namespace"


def test_volumes_and_binds_keep_the_ids_that_are_on_disk(bundle: Bundle, tmp_path: Path) -> None:
    volume, host = tmp_path / "volume", tmp_path / "host"
    (volume / "data").mkdir(parents=True)
    (volume / "pending").touch()
    host.mkdir()
    os.chown(host, 1000, 1001)
    bundle.mount("/data", "bind", str(volume / "data"), "bind", "rprivate", "nodev", "nosuid")
    bundle.mount("/host", "bind", str(host), "rbind", "rslave")
    (bundle.directory / "hosts").write_text("mine\n")
    bundle.mount("/etc/hosts", "bind", str(bundle.directory / "hosts"), "bind", "rprivate")
    bundle.mount("/data/part", "bind", str(volume / "data/part"), "bind", "rprivate")
    bundle.annotate(
        "volumes",
        [
            {"destination": "/data", "root": str(volume)},
            {"destination": "/data/part", "root": str(volume), "subpath": "part"},
        ],
    )
    give_ids(bundle)
    script = """
        stat -c '%n %u:%g' /data/of-web /host /data/part /etc/hosts; cat /data/of-web; echo; echo x >/host/new
        echo y >/data/new; chown 7:8 /data/new
    """
    assert shell(bundle, script) == [
        *("/data/of-web 1000:1001", "/host 1000:1001", "/data/part 0:0", "/etc/hosts 0:0", "from the image"),
    ]
    assert owner(volume / "data/of-web") == (1000, 1001)
    assert owner(volume / "data/new") == (7, 8)
    assert owner(volume / "data/part") == owner(host / "new") == (0, 0)
    assert not (volume / "pending").exists()


def test_a_file_system_that_cannot_show_other_ids_is_named(bundle: Bundle) -> None:
    bundle.mount("/host", "bind", "/proc/self/fdinfo", "bind", "rprivate")
    bundle.config["mounts"][-1]["source"] = "/sys/kernel"
    give_ids(bundle)
    result = run(bundle)
    assert result.error is not None
    assert result.error["step"] == "mount"
    said = "/sys/kernel: its file system can't show other ids (id-mapped mounts): write userns: host"
    assert said in result.error["message"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"uidMappings": []}, "linux.uidMappings: goes with a new user namespace"),
        ({"gidMappings": mappings(5)}, "linux.gidMappings: expected the range of linux.uidMappings"),
        ({"uidMappings": mappings(5) + mappings(9)}, "linux.uidMappings: expected one range, from 0 on"),
        ({"uidMappings": mappings(2**32 - 9)}, "size: 4295032822: expected 0 to 4294967294"),
    ],
)
def test_a_mapping_that_is_none_is_refused(bundle: Bundle, change: dict[str, Any], said: str) -> None:
    give_ids(bundle)
    bundle.config["linux"].update(change)
    with pytest.raises(ConfigError) as refused:
        prepare(json.loads(json.dumps(bundle.config)), str(bundle.directory))
    assert said in str(refused.value)


def test_an_exec_is_in_the_same_user_namespace_with_no_more(host: Host) -> None:
    case = host.case("/bin/sleep", "100000")
    give_ids(case.bundle)
    case.start()
    status = "grep -E '^(Cap|Uid|Gid|Groups|NoNew)' /proc/self/status"
    mine = f"cat /proc/self/uid_map /proc/self/gid_map; readlink /proc/self/ns/user; {status}"
    inside = case.exec("sh", "-c", mine).splitlines()
    init = case.exec("sh", "-c", mine.replace("self", "1")).splitlines()
    assert inside == init
    assert inside[0].split() == ["0", str(FIRST), str(COUNT)]
    assert case.exec("id", "-u", user="web") == "1000\n"
    assert case.exec("sh", "-c", "echo x >/by-exec; stat -c %u:%g /by-exec") == "0:0\n"
    with pytest.raises(CommandError, match="70000: not among the 65536 ids"):
        case.exec_code("id", user="70000")
