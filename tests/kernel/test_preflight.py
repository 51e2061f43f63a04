"""deploy/preflight.sh, before anything is installed: a line per gap and its remedy, in doctor's words; status 1."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.engine import doctor
from reconciler.linux import capability
from tests.kernel.leaks import LeakCheck

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("leak_check")]

CLONE = Path(__file__).parents[2]
SCRIPT = CLONE / "deploy" / "preflight.sh"
ELSEWHERE = "run it on the host, or in a container with --privileged"
# Closed-off places as containers are: what is taken away, and the line that says so.
NO_MOUNTS = ["setpriv", "--bounding-set=-sys_admin,-mknod", "--inh-caps=-sys_admin,-mknod"]
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
READ_ONLY_SYSCTL = (
    "mount -t proc proc /proc; mount -o bind /proc/sys /proc/sys; mount -o remount,ro,bind /proc/sys; "
)
NO_CGROUPS = "mount -t tmpfs -o size=64k,mode=0755 none /sys/fs/cgroup; "


def preflight(*under: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*under, "sh", str(SCRIPT)], capture_output=True, text=True, check=False)


def apart(script: str) -> list[str]:
    """Run what follows in mount and network namespaces of its own, after `script`."""
    return ["unshare", "--mount", "--net", "sh", "-ec", f'{script} exec "$@"', "sh"]


def test_where_containers_can_run_it_says_nothing() -> None:
    done = preflight("unshare", "--mount", "--net")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("under", "line"),
    [
        (NOBODY, "root: running as uid 65534; run it as root, for example with sudo"),
        (NO_MOUNTS, f"capabilities: missing: MKNOD, SYS_ADMIN; {ELSEWHERE}"),
        (
            apart(READ_ONLY_SYSCTL),
            "ip_forward: off, and /proc/sys/net/ipv4/ip_forward can't be written; set net.ipv4.ip_forward=1 from",
        ),
        (apart(NO_CGROUPS), "cgroup: no cgroup hierarchy is mounted at /sys/fs/cgroup; "),
    ],
    ids=["nobody", "capabilities", "sysctl", "cgroups"],
)
def test_each_gap_is_a_line_with_its_remedy_and_doctor_finds_it_too(
    under: list[str], line: str, leak_check: LeakCheck
) -> None:
    done = preflight(*under)
    assert done.returncode == 1
    assert done.stderr == ""
    assert line in done.stdout
    for said in done.stdout.splitlines():
        assert re.fullmatch(r"[a-z_]+: [^;]+; [^;]+", said), said
    leak_check.own("doctor")
    where = ["--state", "/nonexistent/state", "--run", "/nonexistent/run"]
    told = subprocess.run(
        [*under, sys.executable, "-m", "reconciler", "doctor", "--quick", *where],
        cwd=CLONE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    name = line.partition(":")[0]
    assert any(said.startswith(f"{name}: ") for said in told.stdout.splitlines()), told.stdout + told.stderr


def test_the_capabilities_are_those_that_doctor_asks_for() -> None:
    loop = SCRIPT.read_text().partition("for capability in")[2].partition("do\n")[0]
    asked = dict(re.findall(r"\b([A-Z_]+)=(\d+)\b", loop))
    assert asked == {name: str(capability.NUMBERS[f"CAP_{name}"]) for name in doctor._NEEDED}
