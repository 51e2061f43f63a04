"""What a volume may hold: project quotas of a real ext4, seen from inside a container and from the kernel."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine import doctor, trash, volumelimit, volumes
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError, UnsupportedError
from reconciler.linux import quota
from tests.images import Built, directory, file, layer
from tests.images import busybox as busybox_image
from tests.kernel.trial import Trial, Trials, on_trial_disk, private_mounts

pytestmark = [pytest.mark.kernel, pytest.mark.network]

MIB = 1 << 20
MOUNT: dict[str, Any] = {"volumes": ["data:/srv/data"]}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    content = layer([directory("./srv"), directory("./srv/data"), file("./srv/data/first", "x" * 200_000)])
    return busybox_image(tmp_path_factory.mktemp("box") / "layout", more=[content])


@pytest.fixture
def trials(image: Built, patience: float) -> Iterator[Trials]:
    """A device whose state directory is on an ext4 with project quotas."""
    quotas = ("-O", "quota,project", "-E", "quotatype=prjquota")
    with on_trial_disk(image, patience, mib=96, make=quotas, options="prjquota") as made:
        yield made


def limited(size: str) -> dict[str, Any]:
    return {"volumes": {"data": {"size_limit": size}}}


def fill(trial: Trial, name: str, mib: int) -> str:
    """Write so many MiB, as root inside, and give what dd has to say."""
    return trial.shell(f"dd if=/dev/zero of=/srv/data/{name} bs=1048576 count={mib} conv=fsync 2>&1 || true")


def used(trials: Trials, app: str) -> tuple[int, int]:
    found = volumes.limit_and_use(trials.layout, app, "data")
    assert found is not None
    return found


def limit(trials: Trials, trial: Trial, **top: Any) -> list[str]:
    """Change what the volume may hold, with the planner's steps, and give these."""
    app = trials.desire(trial.app, MOUNT, **top)
    steps = trials.steps(app)
    trials.parts.engine.limit_volume(trial.app, "data", app.volume_limits.get("data"))
    assert trials.steps(app) == []
    return steps


@pytest.mark.quota
def test_a_volume_holds_what_its_limit_says_and_a_change_restarts_nothing(trials: Trials) -> None:
    trial = trials.start(MOUNT, **limited("4Mi"))
    pid = trial.pid
    assert "quota exceeded" in fill(trial, "big", 8)
    allowed, taken = used(trials, trial.app)
    assert allowed == 4 * MIB
    assert 3 * MIB < taken <= 4 * MIB
    shown = os.statvfs(trials.layout.volume_data(trial.app, "data"))
    assert shown.f_blocks * shown.f_frsize == 4 * MIB  # as the size of the file system: what `df` says inside

    assert limit(trials, trial, **limited("12Mi")) == [f"limit volume {trial.app}/data (at most 12288 KiB)"]
    assert "quota" not in fill(trial, "big", 8)
    limit(trials, trial, **limited("1Mi"))  # less than there is: what is there stays, nothing is added
    assert "quota exceeded" in fill(trial, "more", 1)
    assert trial.shell("wc -c </srv/data/big") == str(8 * MIB)
    assert limit(trials, trial, volumes={"data": {}}) == [f"limit volume {trial.app}/data (no limit)"]
    assert "quota" not in fill(trial, "more", 4)
    assert trial.pid == pid

    # Drift, of the limit and of the mark: seen, and mended by the same step.
    limit(trials, trial, **limited("2Mi"))
    root = os.open(trials.layout.volume(trial.app, "data"), os.O_RDONLY)
    inner = os.open("data", os.O_RDONLY, dir_fd=root)
    try:
        project, _ = quota.get_project(root)
        quota.set_limit(root, project, 0)
        assert len(limit(trials, trial, **limited("2Mi"))) == 1
        quota.set_project(inner, 0, inherit=False)
        assert len(limit(trials, trial, **limited("2Mi"))) == 1
        assert quota.get_project(inner) == (project, True)
    finally:
        os.close(inner)
        os.close(root)


@pytest.mark.quota
def test_a_volume_that_is_in_use_gets_a_limit_with_all_that_is_in_it(trials: Trials) -> None:
    trial = trials.start(MOUNT, volumes={"data": {}})
    trial.shell(
        "cd /srv/data && mkdir -p deep/er && dd if=/dev/zero of=deep/er/file bs=1048576 count=3 2>/dev/null"
        " && ln -s /etc/passwd link && mkfifo fifo"
    )
    assert volumes.limit_and_use(trials.layout, trial.app, "data") is None
    limit(trials, trial, **limited("4Mi"))
    assert used(trials, trial.app)[1] > 3 * MIB
    assert "quota exceeded" in fill(trial, "deep/more", 4)
    assert trial.shell("cd /srv/data && mv deep/er/file moved && ls") == "deep\nfifo\nfirst\nlink\nmoved"

    # Interrupted while it was marked: not in force until it is done again, with the same project.
    record = trials.layout.volume_record(trial.app, "data")
    before = json.loads(record.read_text())
    record.write_text(json.dumps({**before, "project": {**before["project"], "marked": False}}))
    assert volumes.size_limit(trials.layout, trial.app, "data") is None
    assert len(limit(trials, trial, **limited("4Mi"))) == 1
    assert json.loads(record.read_text()) == before

    # Two volumes never share a project, and one that lies in the trash keeps its own.
    first = volumelimit.read_project(str(trials.layout.volume_record(trial.app, "data")))
    trials.parts.engine.remove_container(trial.id, keep_previous=False)
    volumes.remove(trials.layout, trial.app, "data", users=())
    trials.parts.engine.create_volume(trial.app, "data", MIB)
    second = volumelimit.read_project(str(trials.layout.volume_record(trial.app, "data")))
    assert first is not None
    assert second is not None
    assert first.id != second.id
    trash.empty(trials.layout.trash)


@pytest.mark.quota
def test_an_image_that_does_not_fit_is_an_error_that_says_so_and_leaves_nothing(trials: Trials) -> None:
    with pytest.raises(ReconcilerError, match="does not fit into the volume's size_limit"):
        trials.start(MOUNT, **limited("100Ki"))
    root = trials.layout.volume("t1", "data")
    assert sorted(entry.name for entry in root.iterdir()) == ["data", "pending", "volume.json"]
    assert list((root / "data").iterdir()) == []
    app = trials.desire("t1", MOUNT, **limited("1Mi"))
    trials.parts.engine.limit_volume("t1", "data", app.volume_limits["data"])
    trials.create(app)  # and with room for it, it is copied
    assert (root / "data/first").stat().st_size == 200_000


def test_without_project_quotas_nothing_is_made_and_the_error_names_the_file_system(tmp_path: Path) -> None:
    with private_mounts():
        subprocess.run(("mount", "-t", "tmpfs", "plain", str(tmp_path)), check=True)
        try:
            layout = Layout(tmp_path, tmp_path / "run")
            with pytest.raises(
                UnsupportedError, match=f"the tmpfs file system of {tmp_path} has no"
            ) as caught:
                volumes.create(layout, "web", "data", size_limit=MIB)
            assert "ext4 or xfs" in caught.value.hint
            assert os.listdir(tmp_path) == []
            volumes.create(layout, "web", "data")
            with pytest.raises(UnsupportedError, match="size_limit can't be enforced"):
                volumelimit.apply(layout, "web", "data", MIB)
            assert volumes.size_limit(layout, "web", "data") is None
            said = next(check for check in doctor.checks(layout) if check.name == "quota")
            assert said.ok is None
            assert "tmpfs" in said.detail
            assert said.remedy
        finally:
            subprocess.run(("umount", str(tmp_path)), check=True)
