"""What a container may write to its own file system: kept by the kernel on a real ext4, measured everywhere else."""

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

from reconciler.agent.overfull import OverfullWatch
from reconciler.engine import doctor, rootfslimit, trash
from reconciler.engine.projectquota import read_project
from reconciler.engine.snapshot import Uppers
from reconciler.errors import BlockedError
from reconciler.linux import quota
from reconciler.plan.restart import ending
from reconciler.state.observed import Exited
from tests.images import Built, directory, file, layer
from tests.images import busybox as busybox_image
from tests.kernel.shims import eventually
from tests.kernel.trial import Trial, Trials, on_trial, on_trial_disk, runs

pytestmark = [pytest.mark.kernel, pytest.mark.network]

MIB = 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    content = layer([directory("./srv"), file("./srv/first", "x" * 200_000), file("./srv/second", "y")])
    return busybox_image(tmp_path_factory.mktemp("box") / "layout", more=[content])


def limited(size: str | None, **fields: Any) -> dict[str, Any]:
    return {"limits": {"memory": "64Mi", **({"rootfs": size} if size else {})}, **fields}


def fill(trial: Trial, path: str, mib: int) -> str:
    """Write so many MiB, as root inside, and give what dd has to say."""
    return trial.shell(f"dd if=/dev/zero of={path} bs=1048576 count={mib} conv=fsync 2>&1 || true")


# --- measured --------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(image: Built, patience: float) -> Iterator[Trials]:
    with on_trial(image, patience) as made:
        if rootfslimit.counts(made.layout, Uppers(made.layout)):
            pytest.skip("the file system of the tests has project quotas")
        yield made


def why(trials: Trials, trial: Trial, limit: int) -> str:
    return rootfslimit.check(trials.layout, Uppers(trials.layout), trial.id, limit)


def test_s13_who_writes_more_than_the_limit_is_ended_with_the_reason_and_nobody_else(plain: Trials) -> None:
    told: list[tuple[str, str]] = []
    full, modest = plain.start(limited("2Mi")), plain.start(limited(None))
    fill(full, "/srv/big", 1)
    assert why(plain, full, 2 * MIB) == ""
    watch = OverfullWatch(plain.layout, lambda *said: told.append(said), every=0.02)
    try:
        watch.watch([full.found(), modest.found()])
        fill(modest, "/srv/more", 3)
        # What fills it may be ended with it before it can say that it is done
        full.run_code("/bin/dd", "if=/dev/zero", "of=/srv/more", "bs=1048576", "count=3")
        eventually(lambda: not runs(full.found()), 20 * plain.patience)
        phase = full.found().phase
        assert isinstance(phase, Exited)
        # Between the limit and all that it wanted to write: how far it came before it was measured is its luck
        measured = re.fullmatch(r"rootfs limit of 2 MiB exceeded: ([\d.]+) MiB", phase.record.reason)
        assert measured is not None, phase.record.reason
        assert 2 < float(measured[1]) <= 4.1
        assert ending(phase.record) == f"exit 137 ({phase.record.reason})"  # its grace is no seconds
        assert told == [("t1", f"end t1/c: {phase.record.reason}")]
        watch.watch([])
        assert runs(modest.found())
    finally:
        watch.close()
    # The reason outlives the run directory, as the record does; a restart policy counts it as any other end.
    plain.parts.engine.record_exit(full.id)
    plain.layout.overfull(full.id).unlink()
    plain.layout.exit_record(full.id).unlink()
    kept = full.found().phase
    assert isinstance(kept, Exited)
    assert kept.record == phase.record


def test_a_limit_that_is_measured_changes_in_place_and_is_no_drift(plain: Trials) -> None:
    trial = plain.start(limited("2Mi"))
    pid = trial.pid
    assert plain.steps(plain.desire(trial.app, limited("2Mi"))) == []
    fill(trial, "/srv/big", 3)
    assert why(plain, trial, 2 * MIB).startswith("rootfs limit of 2 MiB exceeded: 3")
    assert plain.update(trial, limited("16Mi")) == [f"update {trial.app}/c (limits)"]
    assert trial.found().settings.limits.rootfs == 16 * MIB
    assert why(plain, trial, 16 * MIB) == ""
    assert plain.steps(plain.desire(trial.app, limited("16Mi"))) == []
    assert trial.pid == pid
    assert not plain.layout.quota(trial.id).exists()
    said = next(check for check in doctor.checks(plain.layout) if check.name == "quota")
    assert said.ok is None
    assert "limits.rootfs is measured every few seconds" in said.detail


def test_a_layer_that_is_kept_and_full_does_not_start(plain: Trials) -> None:
    trial = plain.start(limited("2Mi"))
    fill(trial, "/srv/big", 3)
    want = plain.desire(trial.app, limited("2Mi")).containers["c"]
    with pytest.raises(BlockedError, match=r"^container t1/c: rootfs limit of 2 MiB exceeded: 3") as caught:
        rootfslimit.prepare(plain.layout, Uppers(plain.layout), trial.id, want)
    assert "--storage-opt" in caught.value.hint
    more = plain.desire(trial.app, limited("16Mi")).containers["c"]
    rootfslimit.prepare(plain.layout, Uppers(plain.layout), trial.id, more)


def test_one_that_has_ended_or_has_gone_is_not_ended_again(plain: Trials) -> None:
    trial = plain.start(limited("2Mi"))
    plain.parts.engine.finish_stop(trial.id)
    assert not rootfslimit.finish(plain.layout, trial.id, "SIGTERM", 0.0, "because")
    assert not rootfslimit.finish(plain.layout, "f" * 32, "SIGTERM", 0.0, "because")
    assert not plain.layout.overfull(trial.id).exists()


# --- kept by the kernel ----------------------------------------------------------------------------------------------


@pytest.fixture
def disk(image: Built, patience: float) -> Iterator[Trials]:
    """A device whose state directory is on an ext4 with project quotas."""
    quotas = ("-O", "quota,project", "-E", "quotatype=prjquota")
    with on_trial_disk(image, patience, mib=96, make=quotas, options="prjquota") as made:
        yield made


@pytest.mark.quota
def test_s13_a_container_holds_what_its_limit_says_and_a_change_restarts_nothing(disk: Trials) -> None:
    trial = disk.start(limited("4Mi"))
    pid = trial.pid
    # By root of the container too, which has no CAP_SYS_RESOURCE where the overlay was mounted.
    assert "quota exceeded" in fill(trial, "/srv/big", 8)
    used = rootfslimit.use(disk.layout, Uppers(disk.layout), trial.id)
    assert used.counted
    assert 3 * MIB < used.used <= 4 * MIB
    assert why(disk, trial, 4 * MIB) == ""  # nobody has to measure
    assert trial.shell("df -k / | tail -n 1 | awk '{print $2}'") == str(4 << 10)
    # What comes from the image is copied up, renamed and removed as ever.
    trial.shell(
        "rm /srv/big; mkdir -p /new/deep; echo more >>/srv/first; mv /srv/second /new/deep/; rm -r /srv"
    )
    assert "quota exceeded" in fill(trial, "/new/deep/big", 8)

    assert disk.update(trial, limited("12Mi")) == [f"update {trial.app}/c (limits)"]
    assert disk.steps(disk.desire(trial.app, limited("12Mi"))) == []
    assert "quota" not in fill(trial, "/new/deep/big", 8)
    disk.update(trial, limited("1Mi"))  # less than there is: what is there stays, nothing is added
    assert "quota exceeded" in fill(trial, "/more", 1)
    disk.update(trial, limited(None))
    assert "quota" not in fill(trial, "/more", 4)
    assert disk.steps(disk.desire(trial.app, limited(None))) == []
    assert trial.pid == pid

    # Drift, of the limit and of the mark: seen, and mended by the same step.
    disk.update(trial, limited("16Mi"))
    project = read_project(str(disk.layout.quota(trial.id)))
    assert project is not None
    upper = os.open(disk.layout.upper(trial.id), os.O_RDONLY)
    try:
        quota.set_limit(upper, project.id, 0)
        assert disk.update(trial, limited("16Mi")) == [f"update {trial.app}/c (limits)"]
        quota.set_project(upper, 0, inherit=False)
        assert disk.update(trial, limited("16Mi")) == [f"update {trial.app}/c (limits)"]
        assert disk.steps(disk.desire(trial.app, limited("16Mi"))) == []
        assert quota.get_project(upper) == (project.id, True)
    finally:
        os.close(upper)

    # It is freed with the container: no limit is left behind, and the number is free once the files have gone.
    disk.parts.engine.remove_container(trial.id, keep_previous=False)
    trash.empty(disk.layout.trash)
    root = os.open(disk.layout.state, os.O_RDONLY)
    try:
        # The kernel takes the mounts of a dead container apart after its end
        eventually(lambda: quota.get_limit(root, project.id) == (0, 0, 0), 20 * disk.patience)
    finally:
        os.close(root)


@pytest.mark.quota
def test_one_that_runs_gets_a_limit_with_all_that_it_has_written_and_no_two_share_one(disk: Trials) -> None:
    first, second = disk.start(limited(None)), disk.start(limited("4Mi"))
    first.shell(
        "mkdir -p /deep/er && dd if=/dev/zero of=/deep/er/file bs=1048576 count=3 2>/dev/null; ln -s x /deep/link"
    )
    assert not rootfslimit.use(disk.layout, Uppers(disk.layout), first.id).counted
    disk.update(first, limited("4Mi"))
    used = rootfslimit.use(disk.layout, Uppers(disk.layout), first.id)
    assert used.counted
    assert used.used > 3 * MIB
    assert "quota exceeded" in fill(first, "/deep/more", 4)
    assert "quota" not in fill(second, "/own", 3)
    projects = {read_project(str(disk.layout.quota(one.id))) for one in (first, second)}
    assert len(projects) == 2
    # Interrupted while it was marked: not in force until it is done again, with the same project.
    path = disk.layout.quota(first.id)
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "project": {**before["project"], "marked": False}}))
    assert disk.update(first, limited("4Mi")) == [f"update {first.app}/c (limits)"]
    assert json.loads(path.read_text()) == before
    said = next(check for check in doctor.checks(disk.layout) if check.name == "quota")
    assert said.ok
    assert "limits.rootfs and size_limit are kept by project quotas" in said.detail
