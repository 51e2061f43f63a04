"""Run the tests marked `cgroup` once more where cgroup version 2 is all there is, and the service under a real systemd.

The host of a developer or of CI may have version 1, or both side by side; devices have version 2, and systemd. It
is emulated where the hardware does not help, so it gets only these tests, and ten times the patience.
"""

import re
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
RUNNER = CLONE / "tests" / "vm" / "run-in-vm.sh"
LIMIT = 1000  # seconds; the whole of `make test` has 20 minutes

PYTEST = (
    ".venv/bin/python",
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "--require-kernel",
    "--junitxml=/out/report.xml",
)

pytestmark = pytest.mark.vm


def run(*command: str, out: Path, init: str = "fast") -> subprocess.CompletedProcess[str]:
    """Run `command` in the guest; what it leaves in /out comes back in `out`."""
    return subprocess.run(
        [RUNNER, "-t", str(LIMIT), "-o", out, "-i", init, "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT + 300,  # the first run also makes kernel and root image
        check=False,
    )


def results(report: Path) -> tuple[str, list[str]]:
    """Read a JUnit report: a line of counts, and the tests that failed with the end of what they said."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    bad = [
        f"{case.get('classname')}::{case.get('name')}\n{(fault.text or fault.get('message') or '')[-3000:]}"
        for case in suite.iter("testcase")
        for fault in (*case.iter("failure"), *case.iter("error"))
    ]
    line = (
        f"{total - skipped - len(bad)} passed, {len(bad)} failed, {skipped} skipped in {suite.get('time')} s"
    )
    return line, bad


def marked(*marks: str) -> list[str]:
    """The modules that have a test with one of these marks: to import all of them takes the guest half a minute."""
    mark = re.compile(rf"\bmark\.({'|'.join(marks)})\b")
    modules = sorted((CLONE / "tests").glob("*/test_*.py"))
    return [str(module.relative_to(CLONE)) for module in modules if mark.search(module.read_text())]


def test_limits_hold_on_cgroup_version_2(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    done = run(*PYTEST, "-n", "2", "-m", "cgroup or quota", *marked("cgroup", "quota"), out=tmp_path)
    passed(done, tmp_path / "report.xml", "cgroup version 2", record_property)


def test_containers_outlive_the_service_under_systemd(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    done = run(
        *PYTEST, "tests/vm/systemd_guest.py", "tests/vm/systemd_oci_guest.py", out=tmp_path, init="systemd"
    )
    passed(done, tmp_path / "report.xml", "systemd", record_property)


def passed(
    done: subprocess.CompletedProcess[str],
    report: Path,
    what: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Fail with what the guest said unless it ran tests and all of them passed."""
    assert report.exists(), f"the guest ended with {done.returncode}:\n{done.stdout[-6000:]}"
    line, bad = results(report)
    record_property("virtual machine", f"{what}: {line}")
    assert not line.startswith("0 passed"), done.stdout[-3000:]
    assert not bad, f"{line}\n\n" + "\n\n".join(bad)
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}"
