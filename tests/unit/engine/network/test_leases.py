"""The lease file: what is written is read back, what is not a lease file is told apart, callers share writes."""

import json
import threading
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.engine.network.leases import LeaseFile, Leases, NetworkLease, decode, encode
from reconciler.errors import BlockedError, ReconcilerError
from reconciler.state.network import Network

SUBNET = IPv4Network("172.20.5.0/24")
names = st.text(min_size=1, max_size=8)
leases = st.dictionaries(
    names,
    st.dictionaries(names, st.integers(2, 254).map(lambda n: SUBNET[n]), max_size=5)
    .filter(lambda found: len(set(found.values())) == len(found))
    .map(lambda found: NetworkLease(SUBNET, found)),
    max_size=4,
)
DECLARED: Leases = {
    "web/back": NetworkLease(
        SUBNET,
        {"db": SUBNET[9]},
        Network(
            "web/back", str(SUBNET), str(SUBNET[7]), True, (("db", str(SUBNET[9])),), (("zone", "inner"),)
        ),
        {"db": ("database", "store")},
    ),
    "web/six": NetworkLease(
        IPv4Network("10.1.0.0/24"),
        {"db": IPv4Address("10.1.0.5"), "old": IPv4Address("10.1.0.6")},
        Network(
            "web/six",
            ipv6=True,
            subnet6="fd12::/64",
            gateway6="fd12::ffff",
            fixed6=(("db", "fd12::5"),),
        ),
        {},
        IPv6Network("fd12::/64"),
        {"db": IPv6Address("fd12::5")},
    ),
    "/lan": NetworkLease(IPv4Network("10.0.0.0/24"), {"web/db": IPv4Address("10.0.0.5")}),
}


def never() -> Leases:
    raise AssertionError("nothing is to be recovered")


def lease_file(directory: Path, recovered: Leases | None = None) -> LeaseFile:
    recover = never if recovered is None else (lambda: dict(recovered))
    return LeaseFile(directory / "leases.json", directory / "lock", recover)


def add(app: str, container: str, last: int) -> Callable[[Leases], IPv4Address]:
    def change(found: Leases) -> IPv4Address:
        lease = found.get(app, NetworkLease(SUBNET))
        found[app] = NetworkLease(SUBNET, {**lease.addresses, container: SUBNET[last]})
        return SUBNET[last]

    return change


@given(leases)
def test_what_is_written_is_read_back(wanted: Leases) -> None:
    assert decode(json.dumps(encode(wanted)).encode()) == wanted


def test_what_is_declared_and_further_names_are_read_back_too() -> None:
    assert decode(json.dumps(encode(DECLARED)).encode()) == DECLARED
    back = DECLARED["web/back"]
    assert (back.gateway, back.internal, back.fixed) == (SUBNET[7], True, {"db": SUBNET[9]})
    six = DECLARED["web/six"]
    assert (six.gateway6, six.fixed6) == (IPv6Address("fd12::ffff"), {"db": IPv6Address("fd12::5")})
    assert six.addresses_of(["db", "old"]) == [
        IPv4Address("10.1.0.5"),
        IPv6Address("fd12::5"),
        IPv4Address("10.1.0.6"),
    ]
    assert DECLARED["/lan"].gateway6 is None
    assert DECLARED["/lan"].gateway == IPv4Address("10.0.0.1")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version":2,"apps":{}}',
        '{"version":1}',
        '{"version":1,"apps":[]}',
        '{"version":1,"apps":{"web":{}}}',
        '{"version":1,"apps":{"web":{"subnet":"172.20.5.0/24","addresses":[]}}}',
        '{"version":1,"apps":{"web":{"subnet":"172.20.5.1/24","addresses":{}}}}',
        '{"version":1,"apps":{"web":{"subnet":"172.20.5.0/24","addresses":{"a":"x"}}}}',
        '{"version":1,"apps":{"web":{"subnet":"172.20.5.0/24","addresses":{"a":"10.0.0.1"}}}}',
        '{"version":1,"apps":{"web":{"subnet":"172.20.5.0/24","addresses":{"a":"172.20.5.2","b":"172.20.5.2"}}}}',
        '{"version":1,"apps":{"web":{"subnet":7,"addresses":{"a":null}}}}',
    ],
)
def test_what_is_no_lease_file_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says; the file is kept for people to look at
        decode(text.encode())


@given(st.binary(max_size=200))
def test_noise_is_a_value_error(noise: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode(noise)


def test_a_change_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    file = lease_file(tmp_path, {})
    assert file.read() == {}
    assert not (tmp_path / "leases.json").exists(), "reading writes nothing"
    assert file.change(add("web", "server", 2)) == SUBNET[2]
    assert decode((tmp_path / "leases.json").read_bytes()) == {
        "web": NetworkLease(SUBNET, {"server": SUBNET[2]})
    }
    assert lease_file(tmp_path).read() == file.read()


def test_reading_again_gives_the_same_object_until_somebody_else_writes(tmp_path: Path) -> None:
    file = lease_file(tmp_path, {})
    file.change(add("web", "server", 2))
    assert file.read() is file.read()
    lease_file(tmp_path).change(add("web", "db", 3))
    assert set(file.read()["web"].addresses) == {"server", "db"}


def test_a_change_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    file = lease_file(tmp_path, {})
    file.change(add("web", "server", 2))
    before = (tmp_path / "leases.json").stat().st_ino
    file.change(add("web", "server", 2))
    assert (tmp_path / "leases.json").stat().st_ino == before


def test_a_change_that_fails_leaves_nothing_and_harms_no_other(tmp_path: Path) -> None:
    file = lease_file(tmp_path, {})

    def refuse(found: Leases) -> None:
        found["half"] = NetworkLease(SUBNET)
        raise BlockedError("no")

    with pytest.raises(BlockedError, match="no"):
        file.change(refuse)
    file.change(add("web", "server", 2))
    assert set(file.read()) == {"web"}


def test_a_directory_that_is_gone_is_an_error_for_every_caller(tmp_path: Path) -> None:
    file = lease_file(tmp_path / "missing", {})
    with pytest.raises(ReconcilerError, match="network leases: No such file"):
        file.change(add("web", "server", 2))


def test_a_missing_or_bad_file_is_made_again_from_what_is_recovered(tmp_path: Path) -> None:
    recovered: Leases = {"old": NetworkLease(SUBNET, {"x": SUBNET[9]})}
    file = lease_file(tmp_path, recovered)
    assert file.read() == recovered
    file.change(add("web", "server", 2))
    assert set(file.read()) == {"old", "web"}
    (tmp_path / "leases.json").write_bytes(b"\0\0\0")
    assert file.read() == recovered
    file.change(add("web", "db", 3))
    assert set(file.read()) == {"old", "web"}
    assert [p.read_bytes() for p in tmp_path.glob("leases.json.corrupt-*")] == [b"\0\0\0"]


def test_callers_that_wait_share_one_write(tmp_path: Path) -> None:
    file = lease_file(tmp_path, {})
    entered, go_on = threading.Event(), threading.Event()
    writes: list[int] = []

    def slow(found: Leases) -> None:
        entered.set()
        assert go_on.wait(10)
        found["slow"] = NetworkLease(SUBNET)

    def watch(number: int) -> Callable[[Leases], None]:
        def change(found: Leases) -> None:
            found[f"app{number}"] = NetworkLease(SUBNET)
            writes.append((tmp_path / "leases.json").stat().st_ino)

        return change

    first = threading.Thread(target=file.change, args=(slow,))
    first.start()
    assert entered.wait(10)
    others = [threading.Thread(target=file.change, args=(watch(number),)) for number in range(5)]
    for thread in others:
        thread.start()
    while len(file._queue) < 5:  # each has put its change in line, behind the one that is under way
        threading.Event().wait(0.001)
    go_on.set()
    for thread in [first, *others]:
        thread.join()
    assert len(file.read()) == 6
    assert len(set(writes)) == 1, "the five changes saw one state of the file: they were written together"
