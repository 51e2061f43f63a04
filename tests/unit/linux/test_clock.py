"""The kernel's clock, as the kernel itself says."""

import shutil
import subprocess

import pytest

from reconciler.engine.clock import synchronized
from reconciler.linux import clock


def test_the_clocks_status_is_read_without_a_privilege_and_without_setting_it() -> None:
    before = clock.status()
    assert 0 <= before < 1 << 16
    assert clock.status() == before
    assert synchronized() is (not before & clock.STA_UNSYNC)


@pytest.mark.skipif(shutil.which("adjtimex") is None, reason="adjtimex is not installed")
def test_another_program_reads_the_same() -> None:
    said = subprocess.run(["adjtimex", "--print"], capture_output=True, text=True, check=True).stdout
    (status,) = [int(line.split(":")[1]) for line in said.splitlines() if line.strip().startswith("status:")]
    assert clock.status() == status
