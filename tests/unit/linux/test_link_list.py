"""Links that are read turn after turn: what is kept of them must never differ from reading them afresh."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from reconciler.linux import netlink, rtnetlink
from reconciler.linux.rtnetlink import Link, LinkList

_STATS, _STATS64 = 7, 23


def body(
    index: int = 3,
    *,
    flags: int = 1,
    mtu: int = 1500,
    master: int = 7,
    alias: str = "reconciler x a/b",
    counters: int = 0,
    timer: int = 0,
    forwarding: int = 1,
) -> bytes:
    """A link as the kernel describes it, as far as it matters: with counters, and with a kind that has a timer."""
    return (
        struct.pack("=BxHiII", 0, 1, index, flags, 0)
        + netlink.text(3, "rv0123456789abc")
        + netlink.u32(4, mtu)
        + netlink.u32(10, master)
        + netlink.attribute(_STATS64, struct.pack("=QQ", counters, counters))
        + netlink.attribute(_STATS, struct.pack("=II", counters, counters))
        + netlink.nested(18, netlink.text(1, "bridge"), netlink.nested(2, netlink.u32(9, timer)))
        + netlink.attribute(1, b"\x02\x72\x0a\x00\x00\x01")
        + netlink.attribute(20, alias.encode())
        + netlink.nested(26, netlink.nested(2, netlink.attribute(1, struct.pack("=ii", forwarding, 0))))
    )


def fields(link: Link) -> dict[str, object]:
    return {name: getattr(link, name) for name in Link.__slots__}


def test_a_link_whose_counters_and_timers_run_is_the_same_object() -> None:
    known = LinkList()
    first = known.read([body(1), body(2)])
    assert known.read([body(1, counters=9), body(2, timer=5)]) is first


@given(
    st.lists(
        st.builds(
            body,
            index=st.integers(1, 2),
            flags=st.sampled_from([0, 1]),
            mtu=st.sampled_from([1400, 1500]),
            master=st.sampled_from([0, 7]),
            alias=st.sampled_from(["", "reconciler x a/b", "reconciler x a/c", "another"]),
            counters=st.integers(0, 3),
            timer=st.integers(0, 3),
            forwarding=st.sampled_from([0, 1]),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_what_is_kept_never_differs_from_reading_afresh(bodies: list[bytes]) -> None:
    known = LinkList()
    for one in bodies:
        assert [fields(link) for link in known.read([one])] == [fields(rtnetlink.read_link(one))]


@given(st.integers(min_value=0), st.integers(1, 255))
def test_any_byte_that_counts_is_noticed(position: int, change: int) -> None:
    before = body()
    position %= len(before)
    after = before[:position] + bytes([before[position] ^ change]) + before[position + 1 :]
    known = LinkList()
    known.read([before])
    try:
        expected = fields(rtnetlink.read_link(after))
    except (ValueError, struct.error):
        return
    assert [fields(link) for link in known.read([after])] == [expected]


def test_a_link_that_comes_goes_or_moves_makes_another_list() -> None:
    known = LinkList()
    first = known.read([body(1), body(2)])
    assert known.read([body(2), body(1)]) is not first
    assert [link.index for link in known.read([body(2)])] == [2]
    assert [link.index for link in known.read([])] == []
