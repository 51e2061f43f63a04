"""A container in the network of another one: read from inside, and from the inodes that the kernel has."""

import os
import signal
from dataclasses import replace

import pytest

from reconciler.errors import ReconcilerError
from reconciler.state.desired import App
from reconciler.state.observed import Created
from tests.kernel.trial import Trial, Trials, image, runs, trials

pytestmark = [pytest.mark.kernel, pytest.mark.network]
__all__ = ["image", "trials"]


def up(trials: Trials, app: App, name: str) -> Trial:
    """Make and start one container of the app."""
    engine, want = trials.parts.engine, app.containers[name]
    engine.create_container(want, attempt=0, restarts=0)
    engine.start_container(app.name, name)
    return Trial(trials, app.name, trials.observe().containers[want.full_name][-1].id)


def inode(trial: Trial) -> int:
    return os.stat(f"/proc/{trial.pid}/ns/net").st_ino


def test_it_shares_the_network_and_nothing_else_and_goes_with_it(trials: Trials) -> None:
    guest = {"network_mode": "container:c", "sysctls": {"kernel.sem": "7 8 9 10"}}
    serve = ["httpd", "-f", "-p", "127.0.0.1:7000", "-h", "/etc"]
    owner = {"extra_hosts": ["printer:192.0.2.7"], "entrypoint": serve, "init": True}
    app = trials.app("t", {"c": owner, "log": guest})
    first = Trial(trials, "t", trials.create(app))
    with pytest.raises(ReconcilerError, match=r"t/log: t/c, whose network it joins, does not run") as failed:
        trials.parts.engine.create_container(app.containers["log"], attempt=0, restarts=0)
    assert failed.value.transient
    assert "t/log" not in trials.observe().containers
    trials.parts.engine.start_container("t", "c")
    log = up(trials, app, "log")

    assert inode(log) == inode(first)
    for kind in ("pid", "mnt", "uts", "ipc", "cgroup"):
        assert os.stat(f"/proc/{log.pid}/ns/{kind}").st_ino != os.stat(f"/proc/{first.pid}/ns/{kind}").st_ino
    assert log.run("ip", "-o", "address") == first.run("ip", "-o", "address")
    for name in ("hosts", "resolv.conf", "hostname"):
        assert log.run("cat", f"/etc/{name}") == first.run("cat", f"/etc/{name}")
    assert log.run("hostname") == first.run("hostname") == "t-c"
    assert "192.0.2.7\tprinter" in log.run("cat", "/etc/hosts")
    until = "i=0; until {}; do i=$((i+1)); [ $i -lt 300 ] || exit 1; sleep 0.1; done"
    assert log.shell(until.format("wget -qO- http://127.0.0.1:7000/hostname")) == "t-c"
    assert trials.steps(app) == []
    # A name that comes is in the one file that both have
    trials.parts.networks.lease("t", "other")
    trials.parts.containers.tell(["t"])
    assert "other" in log.run("cat", "/etc/hosts")

    # The owner's process ends: what the other one is in is nobody's network any more
    os.kill(first.pid, signal.SIGKILL)
    first.output()
    again = trials.observe().containers["t/log"][-1]
    assert runs(again)
    assert not again.attached
    assert trials.steps(app) == ["record exit of t/c", "stop t/log"]
    trials.parts.engine.remove_container(first.id, keep_previous=True)
    second = up(trials, app, "c")
    assert inode(second) != inode(log)
    assert trials.steps(app)[0] == "stop t/log"
    trials.parts.engine.remove_container(log.id, keep_previous=True)
    log = up(trials, app, "log")
    assert inode(log) == inode(second)
    assert trials.steps(app) == []


def test_what_was_made_before_the_owner_ended_is_not_started_in_what_is_left(trials: Trials) -> None:
    app = trials.app("t", {"c": {"network_mode": "none"}, "log": {"network_mode": "container:c"}})
    first = Trial(trials, "t", trials.create(app))
    trials.parts.engine.start_container("t", "c")
    trials.parts.engine.create_container(app.containers["log"], attempt=0, restarts=0)
    (made,) = trials.observe().containers["t/log"]
    assert made.attached
    trials.parts.engine.remove_container(first.id, keep_previous=True)
    up(trials, app, "c")
    with pytest.raises(ReconcilerError, match="the container whose network it joined has another one now"):
        trials.parts.engine.start_container("t", "log")
    (made,) = trials.observe().containers["t/log"]
    assert isinstance(made.phase, Created)
    assert not made.attached
    assert trials.steps(app)[:2] == ["stop t/log", f"remove t/log ({made.id[:12]})"]
    # And the other way round: a record that names nobody
    gone = replace(app.containers["log"].identity, network_mode="container:adhoc/0123456789abcdef")
    with pytest.raises(ReconcilerError, match="0123456789ab, whose network it joins, does not run"):
        trials.parts.engine.create_container(
            replace(app.containers["log"], identity=gone), attempt=0, restarts=0
        )
