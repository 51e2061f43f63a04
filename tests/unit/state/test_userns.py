"""Whose ids a container has where its spec does not say."""

import json
from dataclasses import replace
from typing import Any

import pytest

from reconciler.spec.defaults import BUILT_IN, Defaults
from reconciler.spec.load import load
from reconciler.spec.terms import ANYTHING
from reconciler.state.desire import desire
from tests import values

IMAGE = values.image("one")
REFERENCE = f"registry.example/one:1@{IMAGE.index}"


def found(fields: dict[str, Any], *, image_user: str = "", defaults: Defaults = BUILT_IN) -> str:
    spec = {
        **{"apiVersion": "reconciler/v1", "kind": "App", "name": "web", "volumes": {"data": {}}},
        "containers": {"site": {"image": REFERENCE, **fields}},
        "configs": {"conf": {"content": "x"}},
    }
    loaded = load(
        {"web.yaml": json.dumps(spec).encode()}, str.encode, terms=replace(ANYTHING, binds=("/srv",))
    )
    assert not loaded.failed, loaded.problems
    images = {REFERENCE: replace(IMAGE, user=image_user)}
    return desire(loaded.apps["web"], images, defaults=defaults).containers["site"].identity.userns


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"user": "1000:1000", "group_add": [44, "audio"]},
        {"volumes": ["data:/data"], "tmpfs": ["/tmp"]},
        {"cap_add": ["SETFCAP", "SYS_PTRACE"], "cap_drop": ["ALL"]},
        {"network_mode": "none"},
        {"privileged": False, "devices": []},
        {"seccomp": "unconfined", "no_new_privileges": False},
    ],
)
def test_they_are_its_own(fields: dict[str, Any]) -> None:
    assert found(fields, image_user="nginx") == "auto"


@pytest.mark.parametrize(
    "fields",
    [
        {"userns": "host"},
        {"volumes": ["/srv/www:/www:ro"]},
        {"volumes": ["data:/data", {"type": "bind", "source": "/srv", "target": "/srv"}]},
        {"devices": ["/dev/ttyUSB0"]},
        {"devices": [{"source": "/dev/ttyUSB0", "optional": True}]},
        {"network_mode": "host"},
        {"privileged": True},
        {"cap_add": ["NET_ADMIN"]},
        {"cap_add": ["ALL"]},
        {"user": "65536"},
        {"user": "0:70000"},
        {"user": "web:65536"},
        {"group_add": [70000]},
        {"configs": [{"source": "conf", "target": "/conf", "uid": 70000}]},
    ],
)
def test_they_are_the_devices_where_it_has_to_do_with_those(fields: dict[str, Any]) -> None:
    assert found(fields) == "host"


def test_the_users_of_an_image_count_where_the_spec_names_none() -> None:
    assert found({}, image_user="1000650000") == "host"
    assert found({}, image_user="0:1000650000") == "host"
    assert found({"user": "0"}, image_user="1000650000") == "auto"


def test_a_device_may_say_otherwise() -> None:
    assert found({}, defaults=Defaults(userns="host")) == "host"
    assert found({"userns": "auto"}, defaults=Defaults(userns="host")) == "auto"
