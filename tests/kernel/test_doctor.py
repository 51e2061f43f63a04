"""doctor on a real kernel: what works is said to work, each gap has a remedy, and a look leaves nothing behind."""

import json
import subprocess
import sys
import time
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from reconciler.engine.doctor import checks
from reconciler.engine.layout import Layout
from reconciler.engine.network.leases import NetworkLease, encode
from tests.kernel.leaks import LeakCheck

pytestmark = pytest.mark.kernel

_PROGRAM = """
import json, sys
from pathlib import Path
from reconciler.engine.doctor import checks
from reconciler.engine.layout import Layout
found = checks(Layout(Path(sys.argv[1]), Path(sys.argv[2])))
print(json.dumps({check.name: [check.ok, check.detail, check.remedy] for check in found}))
"""


def elsewhere(tmp_path: Path, *command: str) -> dict[str, tuple[bool | None, str, str]]:
    """Run the checks in another process, behind `command`."""
    done = subprocess.run(
        [*command, sys.executable, "-c", _PROGRAM, str(tmp_path / "state"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return {name: (ok, detail, remedy) for name, (ok, detail, remedy) in json.loads(done.stdout).items()}


def test_here_nothing_required_is_missing_and_nothing_is_left_behind(
    tmp_path: Path, leak_check: LeakCheck
) -> None:
    leak_check.own("doctor")
    state = tmp_path / "state"
    state.mkdir()
    began = time.monotonic()
    found = {check.name: check for check in checks(Layout(state, tmp_path / "run"))}
    assert time.monotonic() - began < 5  # 40 ms on a quiet machine
    missing = {name: check.detail for name, check in found.items() if check.ok is False}
    assert missing == {}
    assert {
        "kernel",
        "root",
        "capabilities",
        "namespaces",
        "overlay",
        "cgroup",
        "network",
        "ids",
        "seccomp",
        "git",
        "disk",
    } <= found.keys()
    assert "errno" in found["seccomp"].detail
    assert all(check.remedy for check in found.values() if check.ok is not True)
    assert list(state.iterdir()) == []
    assert not (tmp_path / "run").exists()


def test_quick_looks_at_what_is_required_only(tmp_path: Path) -> None:
    names = [check.name for check in checks(Layout(tmp_path, tmp_path), quick=True)]
    assert "git" not in names
    assert "network" in names


def test_without_root_one_check_says_so(tmp_path: Path) -> None:
    # Another id in a user namespace: the same user to the file system, so that it can read this checkout.
    found = elsewhere(tmp_path, "unshare", "--user", "--map-user=65534", "--map-group=65534")
    assert found["root"] == (False, "running as uid 65534", "run it as root, for example with sudo")


def test_missing_capabilities_are_named(tmp_path: Path) -> None:
    found = elsewhere(
        tmp_path, "setpriv", "--bounding-set=-sys_admin,-net_admin", "--inh-caps=-sys_admin,-net_admin"
    )
    ok, detail, remedy = found["capabilities"]
    assert ok is False
    assert "NET_ADMIN" in detail
    assert "SYS_ADMIN" in detail
    assert remedy
    assert found["namespaces"][0] is False
    assert found["overlay"][0] is False
    assert found["network"][0] is False


def test_ipv6_that_is_off_is_a_gap_where_a_network_needs_it(tmp_path: Path) -> None:
    off = ("unshare", "--net", "sh", "-c", 'sysctl -q net.ipv6.conf.all.disable_ipv6=1; exec "$0" "$@"')
    reason = "this device has IPv6 switched off: net.ipv6.conf.all.disable_ipv6 is 1"
    assert elsewhere(tmp_path, *off)["ipv6"] == (True, f"{reason}; no network here has ipv6", "")
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.network.mkdir(parents=True)
    lease = NetworkLease(IPv4Network("10.0.0.0/24"), subnet6=IPv6Network("fd12::/64"))
    layout.leases.write_text(json.dumps(encode({"web": lease})))
    ok, detail, remedy = elsewhere(tmp_path, *off)["ipv6"]
    assert (ok, detail) == (None, f"{reason}; containers in networks with ipv6 wait")
    assert "sysctl net.ipv6.conf.all.disable_ipv6=0" in remedy
    assert elsewhere(tmp_path, "unshare", "--net")["ipv6"][0] is True


def test_a_state_directory_that_cannot_hold_writable_layers_is_found(tmp_path: Path) -> None:
    program = """
set -e
mount -t tmpfs none "$0"
mkdir "$0/lower" "$0/upper" "$0/work" "$0/state"
mount -t overlay none -o lowerdir="$0/lower",upperdir="$0/upper",workdir="$0/work" "$0/state"
exec "$@"
"""
    target = tmp_path / "mnt"
    target.mkdir()
    found = elsewhere(target, "unshare", "--mount", "sh", "-c", program, str(target))
    ok, detail, remedy = found["overlay"]
    assert ok is None
    assert "itself on overlay" in detail
    assert "another file system" in remedy
    ok, detail, remedy = found["ids"]
    assert ok is None
    assert detail == (
        "root in a container is root on this device: the overlay file system of "
        f"{target}/state has no id-mapped mounts"
    )
    assert remedy == "put it on ext4, xfs or btrfs"


def test_usual_capabilities_that_the_agent_lacks_are_said(tmp_path: Path) -> None:
    few = ("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    ok, detail, _ = elsewhere(tmp_path, *few)["capabilities"]
    assert (ok, detail) == (None, "containers run without NET_BIND_SERVICE, which the agent lacks")


def test_a_read_only_state_directory_is_found(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    script = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    found = elsewhere(tmp_path, "unshare", "--mount", "sh", "-c", script, str(state))
    ok, detail, _ = found["overlay"]
    assert ok is False
    assert "Read-only" in detail
