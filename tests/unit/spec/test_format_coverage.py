"""Every field of the format is supported, or refused by name as not supported yet; none is ignored.

The lists are those of the format's own tables. When a field is built, it moves from LATER to SUPPORTED here.
"""

import pytest

from reconciler.spec.dialect import NOT_YET
from reconciler.spec.load import load
from reconciler.spec.model import App, Container, Limits

IMAGE = "ghcr.io/acme/web:1.5@sha256:" + "1" * 64

TOP = [
    "apiVersion", "kind", "name", "where", "containers", "jobs", "volumes", "networks", "configs", "secrets",
    "update", "allow_empty", "labels",
]  # fmt: skip
CONTAINER = [
    "image", "entrypoint", "command", "working_dir", "user", "group_add", "environment", "env_from", "configs",
    "secrets", "ports", "expose", "volumes", "tmpfs", "limits", "reserve", "cpuset", "ulimits", "oom_score_adj",
    "shm_size", "restart", "healthcheck", "depends_on", "update", "stop_signal", "stop_grace_period", "init",
    "read_only", "cap_drop", "cap_add", "privileged", "no_new_privileges", "seccomp", "apparmor", "selinux",
    "userns", "devices", "sysctls", "network_mode", "networks", "hostname", "dns", "dns_search", "dns_opt",
    "extra_hosts", "replicas", "logging", "labels", "annotations", "drift",
]  # fmt: skip
LIMITS = ["cpus", "memory", "swap", "pids", "io", "io_weight", "rootfs", "hugepages"]

SUPPORTED_TOP = [
    "apiVersion",
    "kind",
    "name",
    "containers",
    "volumes",
    "networks",
    "configs",
    "allow_empty",
    "labels",
]
SUPPORTED_CONTAINER = [
    "image", "entrypoint", "command", "working_dir", "user", "group_add", "environment", "env_from", "configs", "ports",
    "volumes", "tmpfs", "limits", "reserve", "cpuset", "ulimits", "oom_score_adj", "shm_size", "sysctls", "cap_add",
    "cap_drop", "privileged", "no_new_privileges", "seccomp", "userns", "devices", "restart", "stop_signal",
    "stop_grace_period", "init", "read_only", "hostname", "network_mode", "networks",
    "dns", "dns_search", "dns_opt", "extra_hosts",
    "replicas", "depends_on", "labels", "annotations", "logging",
]  # fmt: skip
NEVER = ["expose"]  # of no effect by design


def names(model: type[App] | type[Container] | type[Limits]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def test_the_models_have_the_supported_fields_and_no_others() -> None:
    assert names(App) == set(SUPPORTED_TOP)
    assert names(Container) == set(SUPPORTED_CONTAINER)
    assert names(Limits) == set(LIMITS)


def test_everything_else_of_the_format_is_refused_by_name() -> None:
    assert NOT_YET["App"] == set(TOP) - set(SUPPORTED_TOP)
    assert NOT_YET["Container"] == set(CONTAINER) - set(SUPPORTED_CONTAINER) - set(NEVER)


def messages(text: str) -> list[str]:
    return [problem.message for problem in load({"a.yaml": text.encode()}, lambda name: b"").problems]


def spec(top: str = "", container: str = "", limits: str = "") -> str:
    return (
        f"apiVersion: reconciler/v1\nkind: App\nname: web\n{top}containers:\n  web:\n    image: {IMAGE}\n{container}"
        f"    limits: {{memory: 64Mi{limits}}}\n"
    )


def test_the_frame_itself_is_fine() -> None:
    assert messages(spec()) == []


@pytest.mark.parametrize("key", sorted(NOT_YET["App"]))
def test_a_later_field_at_the_top_is_refused(key: str) -> None:
    assert messages(spec(top=f"{key}: {{}}\n")) == [f"'{key}' is not supported yet"]


@pytest.mark.parametrize("key", sorted(NOT_YET["Container"]))
def test_a_later_field_of_a_container_is_refused(key: str) -> None:
    assert messages(spec(container=f"    {key}: x\n")) == [f"'{key}' is not supported yet"]


def test_expose_is_refused_for_good() -> None:
    (message,) = messages(spec(container="    expose: [80]\n"))
    assert message.startswith("unknown key 'expose' in containers.web: it has no effect")
