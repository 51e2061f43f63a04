"""The scope that systemd delegates: made once, held by a process in a leaf, used by the cgroups of containers.

Where systemd is not the init (most containers and the first form of the virtual machine) the same test shows that this
is noticed, and said.
"""

import os
import secrets
import signal
from pathlib import Path

import pytest

from reconciler.engine import cgroup, scope
from reconciler.errors import ReconcilerError
from reconciler.state.desired import Limits
from tests.kernel.leaks import LeakCheck

pytestmark = [pytest.mark.kernel, pytest.mark.cgroup]


def test_a_scope_of_our_own_holds_limits_where_systemd_rules(leak_check: LeakCheck) -> None:
    hierarchies = cgroup.Hierarchies.detect()
    name = leak_check.own(f"reconciler-{secrets.token_hex(8)}")
    if not scope.needed(hierarchies):
        with pytest.raises(ReconcilerError):
            scope.ensure_scope(name, hierarchies)
        return
    directory = scope.ensure_scope(name, hierarchies)
    holder = int((directory / "holder/cgroup.procs").read_text())
    try:
        assert scope.ensure_scope(name, hierarchies) == directory
        limits = Limits(cpus=500, memory=64 << 20, pids=9)
        group = cgroup.create(hierarchies, name, "box", limits)
        assert group.v2 == directory / "box"
        assert cgroup.read_limits(group, limits) == limits
        # the holder is of a session of its own, in the scope's leaf, and not in the way of the controllers
        assert os.getsid(holder) != os.getsid(0)
        cgroup.remove(group)
        assert directory.is_dir()
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(-1, 0)
        _wait_until_gone(directory)


def _wait_until_gone(directory: Path) -> None:
    for _ in range(500):
        if not directory.exists():
            return
        signal.sigtimedwait([], 0.02)
    pytest.fail(f"{directory} is still there")
