"""The fingerprint: a change of an old one restarts every container in the field.

tests/golden/fingerprint/identities.json holds identities with the fingerprints that the first release gave them. New
ones may be added; a diff in an existing one is a release note.
"""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.state.desired import BindMount, ConfigMount, Device, Identity, Mount, TmpfsMount, VolumeMount
from reconciler.state.network import Attachment, Network
from tests.strategies import mounts

GOLDEN = Path(__file__).parents[2] / "golden" / "fingerprint" / "identities.json"
KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (BindMount, ConfigMount, TmpfsMount, VolumeMount)
}


def identity(value: dict[str, Any]) -> Identity:
    given: dict[str, Any] = {
        key: tuple(tuple(one) if isinstance(one, list) else one for one in item)
        if isinstance(item, list)
        else item
        for key, item in value.items()
    }
    if "mounts" in given:
        given["mounts"] = tuple(
            KINDS[mount["type"]](**{k: v for k, v in mount.items() if k != "type"})
            for mount in value["mounts"]
        )
    if "devices" in given:
        given["devices"] = tuple(Device(**device) for device in value["devices"])
    if "networks" in given:
        given["networks"] = tuple(
            Attachment(Network(**place["network"]), place.get("address", "")) for place in value["networks"]
        )
    return Identity(**given)


@pytest.mark.parametrize("golden", json.loads(GOLDEN.read_text()), ids=lambda golden: golden["about"])
def test_the_fingerprint_of_an_old_spec_never_changes(golden: dict[str, Any]) -> None:
    assert identity(golden["identity"]).fingerprint() == golden["fingerprint"]


def test_every_field_of_an_identity_is_in_the_golden_file() -> None:
    seen = {key for golden in json.loads(GOLDEN.read_text()) for key in golden["identity"]}
    assert seen == {field.name for field in fields(Identity)}


BASE = Identity("sha256:" + "0" * 64, ("/bin/serve",))
CHANGES: dict[str, Any] = {
    "image": "sha256:" + "1" * 64,
    "arguments": ("/bin/serve", ""),
    "environment": ("A=1",),
    "working_dir": "/app",
    "user": "0",
    "hostname": "web",
    "mounts": (VolumeMount("data", "/data"),),
    "tty": True,
    "stdin": "open",
    "init": True,
    "read_only": True,
    "log_driver": "none",
    "groups": ("44",),
    "ulimits": (("core", 0, 0),),
    "oom_score_adj": 500,
    "shm_size": 1 << 20,
    "sysctls": (("net.core.somaxconn", "1024"),),
    "cap_add": ("CAP_NET_ADMIN",),
    "cap_drop": ("ALL",),
    "privileged": True,
    "no_new_privileges": False,
    "seccomp": "unconfined",
    "userns": "auto",
    "devices": (Device("/dev/fuse", "/dev/fuse"),),
    "network_mode": "host",
    "dns": ("192.0.2.53",),
    "dns_search": (".",),
    "dns_opt": ("ndots:2",),
    "extra_hosts": (("printer", "192.0.2.7"),),
    "networks": (Attachment(Network("web", internal=True)),),
}


@pytest.mark.parametrize("name", [field.name for field in fields(Identity)])
def test_every_field_counts(name: str) -> None:
    assert replace(BASE, **{name: CHANGES[name]}).fingerprint() != BASE.fingerprint()


def test_where_a_container_is_in_networks_counts_and_in_which_order() -> None:
    front, back = Attachment(Network("web/front")), Attachment(Network("web/back", "10.20.0.0/24"))
    other = Attachment(back.network, "10.20.0.5")
    ways = [(), (front,), (front, back), (back, front), (front, other), (other,)]
    assert len({replace(BASE, networks=way).fingerprint() for way in ways}) == len(ways)


@pytest.mark.parametrize(
    "other",
    [
        VolumeMount("data", "/data", read_only=True),
        VolumeMount("more", "/data"),
        BindMount("data", "/data"),
        TmpfsMount("/data", 64 << 20),
        ConfigMount("data", "/data", "00"),
    ],
)
def test_mounts_on_one_path_are_told_apart_by_kind_and_content(other: Mount) -> None:
    one = replace(BASE, mounts=(VolumeMount("data", "/data"),))
    assert replace(BASE, mounts=(other,)).fingerprint() != one.fingerprint()


@given(mounts, st.randoms())
def test_the_order_of_mounts_does_not_count(some: tuple[Mount, ...], random: Any) -> None:
    shuffled = random.sample(some, len(some))
    left, right = replace(BASE, mounts=some), replace(BASE, mounts=tuple(shuffled))
    assert left.fingerprint() == right.fingerprint()


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_different_arguments_never_share_a_fingerprint(one: list[str], other: list[str]) -> None:
    left, right = replace(BASE, arguments=tuple(one)), replace(BASE, arguments=tuple(other))
    assert (left.fingerprint() == right.fingerprint()) is (one == other)


def test_a_field_that_has_its_default_is_not_hashed() -> None:
    """So that a field which a later release adds restarts nothing."""
    spelled_out = Identity(**{**asdict(BASE), "mounts": (), "networks": ()})
    assert spelled_out.fingerprint() == BASE.fingerprint()
    with_mount = replace(BASE, mounts=(VolumeMount("data", "/data", read_only=False),))
    assert with_mount.fingerprint() == replace(BASE, mounts=(VolumeMount("data", "/data"),)).fingerprint()


def test_text_that_is_not_unicode_has_a_fingerprint_too() -> None:
    assert replace(BASE, environment=("A=\ud800",)).fingerprint() != BASE.fingerprint()
