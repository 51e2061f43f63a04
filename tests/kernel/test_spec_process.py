"""Fields of a spec about the process. Each effect is read from inside, or from /proc."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.errors import ReconcilerError
from tests.images import Built
from tests.images import busybox as busybox_image
from tests.kernel.trial import Trials, on_trial

pytestmark = [pytest.mark.kernel, pytest.mark.network]

SETTINGS = "labels: {site: lab 3}\n"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return busybox_image(tmp_path_factory.mktemp("box") / "layout")


@pytest.fixture
def trials(image: Built, patience: float) -> Iterator[Trials]:
    with on_trial(image, patience, SETTINGS) as made:
        yield made


def test_groups_are_those_of_the_user_and_those_that_are_added(trials: Trials) -> None:
    trial = trials.start({"user": "app", "group_add": [44, "nogroup", "app"]})
    assert set(trial.run("id", "-G").split()) == {"1000", "1001", "44", "65534"}
    assert set(trial.run("id", "-G", user="0").split()) == {"0", "44", "65534", "1000"}
    status = trials.start({"group_add": [44], "userns": "host"}).proc("status")
    assert status.split("Groups:\t")[1].split("\n")[0].split() == ["0", "44"]


def test_a_group_that_the_image_does_not_have_is_a_failed_step(trials: Trials) -> None:
    with pytest.raises(ReconcilerError, match=r"kvm: not in the image's /etc/group"):
        trials.start({"group_add": ["kvm"]})
    assert trials.observe().containers == {}


def test_limits_of_a_process_are_the_specs_and_the_default_of_open_files(trials: Trials) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    plain = trials.start({})
    assert plain.shell("ulimit -Sn; ulimit -Hn").split() == [str(min(65536, hard)), str(min(1048576, hard))]
    ulimits = {"nofile": {"soft": 100, "hard": 200}, "core": 0, "nproc": 50, "fsize": "unlimited"}
    trial = trials.start({"ulimits": ulimits})
    lines = {line[:26].strip(): line[26:].split()[:2] for line in trial.proc("limits").splitlines()}
    assert lines["Max open files"] == ["100", "200"]
    assert lines["Max core file size"] == ["0", "0"]
    assert lines["Max processes"] == ["50", "50"]
    assert lines["Max file size"] == ["unlimited", "unlimited"]
    assert trial.shell("ulimit -Sn; ulimit -Hn").split() == ["100", "200"]


def test_a_limit_that_was_asked_for_by_name_and_can_not_be_had_is_a_failed_step(trials: Trials) -> None:
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    with pytest.raises(
        ReconcilerError, match=rf"RLIMIT_NOFILE.*{most + 1}:{most + 1} is above the hard limit"
    ):
        trials.start({"ulimits": {"nofile": most + 1}})
    assert trials.observe().containers == {}


def test_oom_score_adj_is_the_specs_for_all_that_runs_in_it(trials: Trials) -> None:
    trial = trials.start({"oom_score_adj": 321})
    assert trial.proc("oom_score_adj") == "321\n"
    assert trial.run("cat", "/proc/self/oom_score_adj") == "321"
    assert trials.start({}).proc("oom_score_adj") == "0\n"


def test_shm_is_as_large_as_the_spec_says_and_no_larger(trials: Trials) -> None:
    trial = trials.start({"shm_size": "1Mi", "limits": {"memory": "64Mi"}})
    size = "set -- $(stat -f -c '%b %S' /dev/shm); echo $(($1 * $2))"
    assert trial.shell(size) == str(1 << 20)
    code, said = trial.run_code("dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=2")
    assert code != 0
    assert "No space left" in said
    assert trials.start({}).shell(size) == str(64 << 20)


def test_sysctls_are_set_in_the_containers_namespaces_only(trials: Trials) -> None:
    def host(name: str) -> str:
        return Path(f"/proc/sys/{name}").read_text().strip()

    before = [host("net/core/somaxconn"), host("kernel/msgmax"), host("fs/mqueue/msg_max")]
    sysctls = {
        "net.core.somaxconn": 77,
        "net/ipv4/ip_unprivileged_port_start": 0,
        "kernel.msgmax": 12345,
        "kernel.sem": "250 32000 33 129",
        "fs.mqueue.msg_max": 12,
    }
    trial = trials.start({"sysctls": sysctls})
    names = [
        "net/core/somaxconn",
        "net/ipv4/ip_unprivileged_port_start",
        "kernel/msgmax",
        "fs/mqueue/msg_max",
    ]
    assert trial.run("cat", *(f"/proc/sys/{name}" for name in names)).split() == ["77", "0", "12345", "12"]
    assert trial.run("cat", "/proc/sys/kernel/sem").split() == ["250", "32000", "33", "129"]
    assert [host("net/core/somaxconn"), host("kernel/msgmax"), host("fs/mqueue/msg_max")] == before


def test_a_sysctl_that_the_kernel_refuses_is_a_failed_step_that_names_it(trials: Trials) -> None:
    with pytest.raises(ReconcilerError, match=r"sysctl: net/core/nothing: .*[Nn]o such file"):
        trials.start({"sysctls": {"net.core.nothing": 1}})


def test_variables_come_from_configs_the_device_and_the_spec_the_nearest_first(trials: Trials) -> None:
    configs = {
        "base": {"content": "# of all\nA=base\nexport B='base  #1'\nC=base # note\n"},
        "more": {"content": 'A="more\\ttab"\n'},
        "token": {"content": "two\nlines\n"},
    }
    trial = trials.start(
        {
            "env_from": [{"config": "base"}, {"config": "more"}],
            "environment": {"C": "spec", "T": {"config": "token"}, "SITE": {"device": "labels.site"}},
        },
        configs=configs,
    )
    assert trial.shell('echo "$A|$B|$C|$T|$SITE"') == "more\ttab|base  #1|spec|two\nlines|lab 3"
    environ = trial.proc("environ").split("\0")
    assert "SITE=lab 3" in environ
    assert not any(line.startswith("#") for line in environ)


def test_annotations_and_labels_change_in_place_and_are_kept_with_the_container(trials: Trials) -> None:
    trial = trials.start({"labels": {"tier": "web"}}, labels={"team": "kiosks", "tier": "all"})
    assert trial.found().settings.labels == (("team", "kiosks"), ("tier", "web"))
    pid = trial.pid
    steps = trials.update(trial, {"annotations": {"docs": "x"}}, labels={"team": "doors"})
    assert steps == [f"update {trial.app}/c (labels, annotations)"]
    found = trial.found()
    assert (found.settings.labels, found.settings.annotations) == ((("team", "doors"),), (("docs", "x"),))
    assert trial.pid == pid
    assert os.path.exists(f"/proc/{pid}")
