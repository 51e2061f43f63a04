"""What `reconciler oci` prints that has to do with no container: features and spec."""

import argparse

from reconciler.linux import capability
from reconciler.linux.seccomp import compile
from reconciler.shim import oci_hooks, oci_options, options
from reconciler.shim.oci_tell import show

_NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts")


def features(args: argparse.Namespace) -> int:
    """Print what this runtime can do, as JSON (runtime-spec, features.md)."""
    show(
        {
            "ociVersionMin": "1.0.0",
            "ociVersionMax": oci_options.SPEC_VERSION,
            "hooks": list(oci_hooks.KINDS),
            "mountOptions": sorted((*options.NAMES, "idmap", "ridmap")),
            "linux": {
                "namespaces": list(_NAMESPACES),
                "capabilities": list(capability.NAMES),
                "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": False, "rdma": False},
                "seccomp": {"enabled": True, **compile.features()},
                "apparmor": {"enabled": True},
                "selinux": {"enabled": True},
                "intelRdt": {"enabled": False},
                "mountExtensions": {"idmap": {"enabled": True}},
            },
            "annotations": {},
        }
    )
    return 0


def spec(args: argparse.Namespace) -> int:
    """Print a config.json to begin with: a shell on a terminal, confined."""
    few = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    plain = ["nosuid", "noexec", "nodev"]
    mounts: list[tuple[str, str, list[str]]] = [
        ("/proc", "proc", []),
        ("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", [*plain, "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", plain),
        ("/sys", "sysfs", [*plain, "ro"]),
        ("/sys/fs/cgroup", "cgroup", [*plain, "relatime", "ro"]),
    ]
    show(
        {
            "ociVersion": oci_options.SPEC_VERSION,
            "process": {
                "terminal": True,
                "user": {"uid": 0, "gid": 0},
                "args": ["sh"],
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
                "cwd": "/",
                "capabilities": {kind: few for kind in ("bounding", "effective", "permitted")},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
                "noNewPrivileges": True,
            },
            "root": {"path": "rootfs", "readonly": True},
            "hostname": "reconciler",
            "mounts": [
                {"destination": where, "type": kind, "source": kind, "options": chosen}
                for where, kind, chosen in mounts
            ],
            "linux": {
                "resources": {"devices": [{"allow": False, "access": "rwm"}]},
                "namespaces": [
                    {"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")
                ],
                "maskedPaths": [
                    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
                    *(
                        "/proc/timer_list",
                        "/proc/timer_stats",
                        "/proc/sched_debug",
                        "/sys/firmware",
                        "/proc/scsi",
                    ),
                ],
                "readonlyPaths": [
                    *("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"),
                ],
            },
        }
    )
    return 0
