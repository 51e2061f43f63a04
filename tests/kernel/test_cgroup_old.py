"""Ending all that runs in a cgroup on kernels without cgroup.kill: by the freezer of version 1.

Not marked `cgroup`: where version 2 is all there is, nothing of this is there, nor needed.
"""

import secrets
import signal
from pathlib import Path

import pytest

from reconciler.engine import cgroup
from reconciler.state.desired import Limits
from tests.kernel.box import make_bundle, running
from tests.kernel.leaks import LeakCheck

pytestmark = pytest.mark.kernel


def test_kill_without_cgroup_kill_is_as_thorough(
    tmp_path: Path, busybox: Path, leak_check: LeakCheck
) -> None:
    hierarchies = cgroup.Hierarchies.detect()
    parent = leak_check.own(f"reconciler-{secrets.token_hex(8)}")
    if "freezer" not in hierarchies.v1:
        pytest.skip("this kernel lacks a version 1 freezer; here the containers are killed by cgroup.kill")
    old = cgroup.Hierarchies(v2=None, v1=hierarchies.v1)
    group = cgroup.create(old, parent, "box", Limits(pids=100))
    # the first process only waits: a shell that meets the limit ends by itself
    bomb = "(while :; do sleep 100 & done) 2>/dev/null & exec sleep 1000"
    bundle = make_bundle(tmp_path / "bundle", [busybox], "/bin/sh", "-c", bomb)
    bundle.annotate("cgroup", group.annotation())
    with running(bundle) as box:
        cgroup.kill(group)
        assert cgroup.wait_empty(group, 10)
        assert box.wait().code == -signal.SIGKILL
    cgroup.remove(group)
