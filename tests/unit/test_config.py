"""The device's own file as values, and its defaults."""

import os

import pytest

from reconciler.config import (
    Device,
    Gc,
    ImageLimits,
    Metrics,
    Peers,
    Registries,
    ShrinkGuard,
    StoreCare,
    load_device,
)
from reconciler.errors import InvalidSpecError
from reconciler.spec.defaults import Defaults
from reconciler.spec.model import Logging, Restart
from reconciler.spec.registries import Certificates

PATH = "/etc/reconciler/device.yaml"


def test_every_setting_has_the_documented_default() -> None:
    found = Device()
    assert found == Device(
        name=os.uname().nodename,
        labels={},
        registries=Registries(insecure=(), ca={}, authfile=None, realms={}, mirrors={}, allow=()),
        bundles=(),
        allowed_binds=(),
        allowed_devices=(),
        allowed_caps=(),
        allow_privileged=False,
        allowed_seccomp=(),
        defaults=Defaults(host_ip="0.0.0.0", logging=Logging(), restart=Restart()),
        gc=Gc(keep_generations=3, min_age=3600.0, keep_blobs=False, high=85, low=75, min_free=512 << 20),
        limits=ImageLimits(unpacked=128 << 30, entries=4_000_000, ratio=300, path=4095, nesting=3),
        reserve=8 << 20,
        store=StoreCare(scrub=1 << 30, repair=True),
        shrink_guard=ShrinkGuard(max_removed=50, min_apps=3),
        metrics=Metrics(listen="127.0.0.1:9470"),
        interval=30.0,
    )


@pytest.mark.parametrize(
    "data", [None, b"", b"# nothing\n", b"---\n", b"kind: Device\napiVersion: reconciler/v1\n", b"x-a: 1\n"]
)
def test_a_missing_or_empty_file_means_the_defaults(data: bytes | None) -> None:
    assert load_device(PATH, data) == Device()


def test_what_the_file_says_goes_before_the_defaults() -> None:
    text = b"""\
name: kiosk-7
labels: {site: lab, floor: 2}
registries:
  insecure: ["registry.lan:5000", localhost]
  ca: {"*": /etc/ca.pem, r.example: {ca: /etc/r.pem, cert: /etc/me.pem, key: /etc/me.key}, s.example: /etc/s.pem}
  allow: [docker.io, "r.example:5000/team"]
  authfile: /etc/auth.json
  realms: {r.example: [auth.example, "auth.lan:81"]}
  mirrors: {docker.io: ["mirror.lan:5000/hub", other.lan]}
bundles: [/media/usb]
allowed_binds: [/srv/, /run/x]
allowed_devices: ["/dev/ttyUSB*"]
allowed_caps: [net_admin, ALL]
allow_privileged: true
allowed_seccomp: [profiles, unconfined]
defaults: {host_ip: 127.0.0.1, restart: on-failure:3, logging: {driver: none}}
limits: {unpacked: 2Gi, entries: 5, ratio: 20, path: 255, nesting: 1}
disk: {reserve: 1Mi}
store: {scrub: off, repair: false}
gc: {keep_generations: 0, min_age: 0s, keep_blobs: used, high: 90%, low: 90%, min_free: 1G}
shrink_guard: {max_removed: 100%, min_apps: 0}
peers: {ask: ["10.0.0.8:5080", edge.lan], listen: "10.0.0.7:5080", share: all}
metrics: {listen: "[::1]:0"}
interval: 1m30s
"""
    assert load_device(PATH, text) == Device(
        name="kiosk-7",
        labels={"site": "lab", "floor": "2"},
        registries=Registries(
            insecure=("registry.lan:5000", "localhost"),
            ca={
                "*": Certificates(ca="/etc/ca.pem"),
                "r.example": Certificates("/etc/r.pem", "/etc/me.pem", "/etc/me.key"),
                "s.example": Certificates(ca="/etc/s.pem"),
            },
            allow=("docker.io", "r.example:5000/team"),
            authfile="/etc/auth.json",
            realms={"r.example": ("auth.example", "auth.lan:81")},
            mirrors={"docker.io": ("mirror.lan:5000/hub", "other.lan")},
        ),
        bundles=("/media/usb",),
        allowed_binds=("/srv", "/run/x"),
        allowed_devices=("/dev/ttyUSB*",),
        allowed_caps=("CAP_NET_ADMIN", "ALL"),
        allow_privileged=True,
        allowed_seccomp=("profiles", "unconfined"),
        defaults=Defaults("127.0.0.1", Logging(driver="none"), Restart(policy="on-failure", max_attempts=3)),
        gc=Gc(0, 0.0, True, 90, 90, 10**9),
        limits=ImageLimits(2 << 30, 5, 20, 255, 1),
        reserve=1 << 20,
        store=StoreCare(0, False),
        shrink_guard=ShrinkGuard(100, 0),
        peers=Peers(("10.0.0.8:5080", "edge.lan"), "10.0.0.7:5080", everything=True),
        metrics=Metrics("[::1]:0"),
        interval=90.0,
    )


def test_one_file_of_authorities_is_for_every_registry() -> None:
    assert load_device(PATH, b"registries: {ca: /etc/ca.pem}").registries.ca == {
        "*": Certificates("/etc/ca.pem")
    }


def test_the_address_of_the_metrics() -> None:
    assert Metrics().address == ("127.0.0.1", 9470)
    assert Metrics("[::1]:0").address == ("::1", 0)
    assert load_device(PATH, b"metrics: {listen: none}").metrics.address is None


def test_a_device_that_keeps_nothing_has_nothing_to_give() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load_device(PATH, b'peers:\n  listen: "10.0.0.7:5080"\n')
    said = str(caught.value)
    assert said.startswith(
        f"{PATH}:2:11: error: peers.listen needs packed layers, and this device keeps none"
    )
    assert "gc: {keep_blobs: used}" in said
    assert load_device(PATH, b"peers: {ask: [a.lan]}").peers == Peers(("a.lan",))


@pytest.mark.parametrize(
    "listen", [":9470", "9470", "localhost:9470", "127.0.0.1", "127.0.0.1:70000", "1.2.3:80", "::1:80", ""]
)
def test_what_is_no_address(listen: str) -> None:
    with pytest.raises(InvalidSpecError, match="must be ADDRESS:PORT or none"):
        load_device(PATH, f"metrics: {{listen: {listen!r}}}".encode())


def test_all_problems_come_at_once_with_their_places() -> None:
    with pytest.raises(InvalidSpecError) as caught:
        load_device(PATH, b"nam: x\ninterval: 5\nsources: []\n")
    lines = [line for line in str(caught.value).splitlines() if not line.startswith(" ")]
    assert lines == [
        f"{PATH}:1:1: error: unknown key 'nam' at the top level (did you mean 'name'?)",
        f"{PATH}:2:11: error: interval must be a duration with a unit, not the number 5",
        f"{PATH}:3:1: error: 'sources' is not supported yet",
    ]
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "key",
    [
        "sources", "windows", "locks", "network", "notify",
    ],
)  # fmt: skip
def test_what_comes_later_is_refused_by_name(key: str) -> None:
    with pytest.raises(InvalidSpecError, match=f"'{key}' is not supported yet"):
        load_device(PATH, f"{key}: {{}}".encode())


@pytest.mark.parametrize("data", [b"- a", b"just text", b"a: [", b"\xff\xfe", b"kind: App\n", b"name: [x]"])
def test_a_broken_file_is_an_error_not_a_default(data: bytes) -> None:
    with pytest.raises(InvalidSpecError):
        load_device(PATH, data)
