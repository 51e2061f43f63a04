"""Mounts of a spec in their long form: what is seen inside, what is made on the device, which later mounts pass."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reconciler.errors import ReconcilerError
from reconciler.linux import mount
from tests.images import Built, directory, file, layer
from tests.images import busybox as busybox_image
from tests.kernel.leaks import LeakCheck
from tests.kernel.netns import private_network
from tests.kernel.trial import Trial, Trials, private_mounts
from tests.kernel.workshop import remove, scratch

pytestmark = [pytest.mark.kernel, pytest.mark.network]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    content = layer([directory("./srv"), directory("./srv/data"), file("./srv/data/first", "of the image")])
    return busybox_image(tmp_path_factory.mktemp("box") / "layout", more=[content])


@pytest.fixture
def trials(image: Built, patience: float) -> Iterator[Trials]:
    path = scratch("trial")
    host = path / "host"
    check = LeakCheck(str(path))
    try:
        with private_network(), private_mounts():
            mount.mount("host", make(host), "tmpfs")
            mount.mount("", str(host), "", mount.MS_SHARED)
            made = Trials(path, image, patience, f"allowed_binds: [{host}]\n")
            check.own(made.parts.instance)
            try:
                yield made
            finally:
                made.close()
    finally:
        remove(path)
    assert check.leaks() == []


def make(path: Path) -> str:
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def host(trials: Trials) -> Path:
    return trials.layout.state.parent / "host"


def data(trial: Trial, volume: str) -> Path:
    return trial.trials.layout.volume_data(trial.app, volume)


def volume(**fields: Any) -> dict[str, Any]:
    return {"type": "volume", "source": "data", "target": "/srv/data", **fields}


VOLUMES: dict[str, Any] = {"data": {}}


def test_a_new_volume_is_filled_from_the_image_unless_nocopy_says_no(trials: Trials) -> None:
    filled = trials.start({"volumes": [volume()]}, volumes=VOLUMES)
    assert filled.run("cat", "/srv/data/first") == "of the image"
    for mounts in ([volume(nocopy=True)], ["data:/srv/data:nocopy"]):
        empty = trials.start({"volumes": mounts}, volumes=VOLUMES)
        assert empty.run("ls", "-A", "/srv/data") == ""
        empty.shell("echo new >/srv/data/second")
        assert (data(empty, "data") / "second").read_text() == "new\n"


def test_a_subpath_is_a_directory_of_the_volume_made_where_it_is_missing(trials: Trials) -> None:
    trial = trials.start({"volumes": [volume(subpath="a/b"), volume(target="/all")]}, volumes=VOLUMES)
    trial.shell("echo inner >/srv/data/x; test ! -e /srv/data/../b/x")
    made = data(trial, "data") / "a" / "b"
    assert (made / "x").read_text() == "inner\n"
    assert made.stat().st_mode & 0o777 == 0o755
    assert trial.run("cat", "/all/a/b/x") == "inner"
    sealed = trials.start({"volumes": [volume(subpath="only", read_only=True)]}, volumes=VOLUMES)
    assert "Read-only" in sealed.run_code("touch", "/srv/data/x")[1]


@pytest.mark.parametrize("subpath", ["link", "link/deeper", "a/link"])
def test_y7_a_subpath_follows_no_link_that_a_container_has_put_into_the_volume(
    trials: Trials, subpath: str
) -> None:
    app = trials.desire("links", {"volumes": [volume(subpath=subpath)]}, volumes=VOLUMES)
    trials.parts.engine.create_volume("links", "data")
    inside = trials.layout.volume_data("links", "data")
    (inside / "a").mkdir()
    for place in (inside / "link", inside / "a" / "link"):
        place.symlink_to(host(trials))
    with pytest.raises(ReconcilerError, match="symbolic link"):
        trials.create(app)
    assert list(host(trials).iterdir()) == []


def test_a_path_of_the_device_is_made_where_the_spec_says_so_and_only_then(trials: Trials) -> None:
    bind = {"type": "bind", "source": str(host(trials) / "new" / "deep"), "target": "/in"}
    with pytest.raises(ReconcilerError, match=r"bind source .*deep"):
        trials.start({"volumes": [bind]})
    trial = trials.start({"volumes": [{**bind, "create_host_path": True}]})
    trial.shell("echo x >/in/file")
    made = host(trials) / "new" / "deep"
    assert (made / "file").read_text() == "x\n"
    assert made.stat().st_mode & 0o777 == 0o755


def test_y7_a_path_is_made_through_no_link(trials: Trials) -> None:
    outside = host(trials).parent / "outside"
    outside.mkdir()
    (host(trials) / "link").symlink_to(outside)
    bind = {
        "type": "bind",
        "source": str(host(trials) / "link" / "x"),
        "target": "/in",
        "create_host_path": True,
    }
    with pytest.raises(ReconcilerError, match="can't be made: a part of it is a link"):
        trials.start({"volumes": [bind]})
    assert list(outside.iterdir()) == []


def bound(trials: Trials, propagation: str) -> Trial:
    source = host(trials) / propagation
    source.mkdir()
    (source / "sub").mkdir()
    return trials.start({"volumes": [f"{source}:/in:{propagation}"]})


def mounted(path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "late", str(path)], check=True)
    (path / "late").touch()


def test_later_mounts_of_the_device_pass_only_where_the_spec_lets_them(trials: Trials) -> None:
    expected = {"rprivate": "", "rslave": "late", "rshared": "late"}
    running = {kind: bound(trials, kind) for kind in expected}
    for kind, trial in running.items():
        mounted(host(trials) / kind / "sub")
        assert trial.run("ls", "/in/sub") == expected[kind], kind


def test_mounts_of_a_container_pass_only_with_rshared(trials: Trials, image: Built, patience: float) -> None:
    state = trials.layout.state.parent
    other = Trials(state / "o", image, patience, f"allowed_binds: [{host(trials)}]\nallowed_caps: [ALL]\n")
    try:
        for kind, seen in (("rslave", []), ("rshared", ["inner"])):
            source = host(trials) / kind
            (source / "sub").mkdir(parents=True)
            trial = other.start({"cap_add": ["SYS_ADMIN"], "volumes": [f"{source}:/in:{kind}"]})
            trial.shell("mount -t tmpfs inner /in/sub && touch /in/sub/inner")
            assert os.listdir(source / "sub") == seen, kind
            subprocess.run(["umount", str(source / "sub")], check=False, capture_output=True)
    finally:
        other.close()


def test_propagation_through_a_mount_that_is_not_shared_is_a_failed_step(trials: Trials) -> None:
    plain = host(trials) / "plain"
    plain.mkdir()
    mount.mount("plain", str(plain), "tmpfs")
    mount.mount("", str(plain), "", mount.MS_PRIVATE)
    for kind in ("rslave", "rshared"):
        with pytest.raises(ReconcilerError, match=rf"propagation {kind}: {plain} is not a shared mount"):
            trials.start({"volumes": [f"{plain}:/in:{kind}"]})
    subprocess.run(["umount", str(plain)], check=True)


def test_an_external_volume_is_never_made_and_what_is_there_is_used(trials: Trials) -> None:
    spec: dict[str, Any] = {"volumes": ["data:/srv/data"]}
    app = trials.desire("outer", spec, volumes={"data": {"external": True}})
    assert app.external == {"data"}
    assert [step for step in trials.steps(app) if "volume" in step] == []
    assert trials.layout.volume("outer", "data").exists() is False
    trials.parts.engine.create_volume("outer", "data")
    (trials.layout.volume_data("outer", "data") / "mine").write_text("here")
    assert any("create outer/c" in step for step in trials.steps(app))
    made = trials.create(app)
    trials.parts.engine.start_container("outer", "c")
    assert Trial(trials, "outer", made).run("cat", "/srv/data/mine") == "here"
