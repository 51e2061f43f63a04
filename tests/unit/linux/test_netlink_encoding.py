"""Netlink messages against pyroute2, which reads what we write and writes what we read; and against noise."""

import errno
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from reconciler.linux import conntrack, netlink, rtnetlink, sockdiag

CREATE_EXCLUSIVE = 0x1 | 0x400 | 0x200
CREATE_REPLACE = 0x1 | 0x400 | 0x100

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=15)
macs = st.binary(min_size=6, max_size=6)
ipv4 = st.binary(min_size=4, max_size=4)
mtus = st.integers(68, 65535)
indices = st.integers(1, 2**31 - 1)


def read(kind: Any, message: bytes) -> Any:
    found = kind(message)
    found.decode()
    assert found["header"]["length"] == len(message)
    return found


def written(message: Any) -> bytes:
    """What pyroute2 encodes, without the header."""
    message.encode()
    return bytes(message.data[16 : message["header"]["length"]])


def text(mac: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in mac)


class TestWhatWeWrite:
    @given(names, names, mtus, macs, indices, st.integers(0, 2**20))
    def test_makes_a_veth_pair_in_two_namespaces(
        self, name: str, peer: str, mtu: int, mac: bytes, bridge: int, fd: int
    ) -> None:
        message = rtnetlink.new_veth(name, bridge=bridge, mtu=mtu, peer=peer, peer_mac=mac, peer_namespace=fd)
        found = read(ifinfmsg, message)
        assert (found["header"]["type"], found["header"]["flags"]) == (16, CREATE_EXCLUSIVE)
        assert (found["flags"], found["change"]) == (1, 1)
        assert found.get_attr("IFLA_IFNAME") == name
        assert found.get_attr("IFLA_MTU") == mtu
        assert found.get_attr("IFLA_MASTER") == bridge
        assert found.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "veth"
        inner = found.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA", "VETH_INFO_PEER")
        assert inner.get_attr("IFLA_IFNAME") == peer
        assert inner.get_attr("IFLA_MTU") == mtu
        assert inner.get_attr("IFLA_ADDRESS") == text(mac)
        assert inner.get_attr("IFLA_NET_NS_FD") == fd
        assert (inner["flags"], inner["change"]) == (0, 0)

    @given(names, mtus, macs)
    def test_makes_a_bridge(self, name: str, mtu: int, mac: bytes) -> None:
        found = read(ifinfmsg, rtnetlink.new_bridge(name, mtu=mtu, mac=mac))
        assert found["header"]["flags"] == CREATE_EXCLUSIVE
        assert found["flags"] == 0
        assert found.get_attr("IFLA_ADDRESS") == text(mac)
        assert found.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "bridge"

    def test_changes_only_what_is_given(self) -> None:
        found = read(ifinfmsg, rtnetlink.set_link(9))
        assert (found["index"], found["flags"], found["change"], found["attrs"]) == (9, 0, 0, [])
        found = read(ifinfmsg, rtnetlink.set_link(9, up=False, master=0))
        assert (found["flags"], found["change"]) == (0, 1)
        assert found.get_attr("IFLA_MASTER") == 0

    def test_sets_ipv4_settings_and_hairpin(self) -> None:
        found = read(ifinfmsg, rtnetlink.set_link(9, devconf={26: 1, 1: 0}, hairpin=True))
        inner = found.get_nested("IFLA_AF_SPEC", "AF_INET")
        assert bytes(inner) == struct.pack("=HHHHHHIHHI", 24, 0x8002, 20, 0x8001, 8, 1, 0, 8, 26, 1)
        assert found.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_KIND") == "bridge"
        assert found.get_nested("IFLA_LINKINFO", "IFLA_INFO_SLAVE_DATA", "IFLA_BRPORT_MODE") == 1

    @given(indices, ipv4, st.integers(1, 32))
    def test_gives_an_address(self, index: int, address: bytes, length: int) -> None:
        found = read(ifaddrmsg, rtnetlink.new_address(index, address, length))
        assert found["header"]["flags"] == CREATE_REPLACE
        assert (found["family"], found["index"], found["prefixlen"]) == (socket.AF_INET, index, length)
        assert found.get_attr("IFA_LOCAL") == found.get_attr("IFA_ADDRESS") == socket.inet_ntoa(address)

    @given(indices, ipv4)
    def test_makes_a_default_route(self, index: int, gateway: bytes) -> None:
        found = read(rtmsg, rtnetlink.new_default_route(gateway, index))
        assert (found["dst_len"], found["table"], found["type"]) == (0, 254, 1)
        assert (found.get_attr("RTA_GATEWAY"), found.get_attr("RTA_OIF")) == (
            socket.inet_ntoa(gateway),
            index,
        )

    @given(indices, macs)
    def test_ties_a_hardware_address_to_a_port(self, port: int, mac: bytes) -> None:
        found = read(ndmsg, rtnetlink.new_forwarding_entry(port, mac))
        assert (found["ifindex"], found["state"], found["flags"]) == (port, 0x40, 0x04 | 0x40)
        assert (found["family"], found.get_attr("NDA_LLADDR")) == (socket.AF_BRIDGE, text(mac))

    @given(indices, ipv4, macs)
    def test_says_where_an_address_is(self, index: int, address: bytes, mac: bytes) -> None:
        found = read(ndmsg, rtnetlink.new_neighbour(index, address, mac))
        assert (found["ifindex"], found["state"], found["flags"]) == (index, 0x02, 0)
        assert found["header"]["flags"] == CREATE_REPLACE
        assert (found.get_attr("NDA_DST"), found.get_attr("NDA_LLADDR")) == (
            socket.inet_ntoa(address),
            text(mac),
        )


class TestWhatWeRead:
    @given(names, mtus, macs, indices, st.booleans(), st.text("abc /0", max_size=30))
    def test_is_a_link(self, name: str, mtu: int, mac: bytes, index: int, up: bool, alias: str) -> None:
        message = ifinfmsg()
        message["index"] = index
        message["flags"] = 1 if up else 0
        message["attrs"] = [
            ("IFLA_IFNAME", name),
            ("IFLA_MTU", mtu),
            ("IFLA_MASTER", 12),
            ("IFLA_ADDRESS", text(mac)),
            ("IFLA_IFALIAS", alias),
            ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
        ]
        link = rtnetlink.read_link(written(message))
        assert (link.index, link.name, link.mtu, link.up) == (index, name, mtu, up)
        assert (link.address, link.master, link.kind) == (mac, 12, "veth")
        assert link.alias == alias
        assert link.setting(26) is None

    @given(ipv4, st.integers(0, 32), indices)
    def test_is_an_address(self, address: bytes, length: int, index: int) -> None:
        message = ifaddrmsg()
        message.update(family=socket.AF_INET, prefixlen=length, index=index)
        message["attrs"] = [("IFA_LOCAL", socket.inet_ntoa(address))]
        found = rtnetlink.read_address(written(message))
        assert (found.index, found.address, found.prefix_length) == (index, address, length)

    @given(ipv4, st.integers(0, 32), st.integers(1, 2**32 - 1), indices)
    def test_is_a_route_of_any_table(self, address: bytes, length: int, table: int, link: int) -> None:
        message = rtmsg()
        message.update(family=socket.AF_INET, dst_len=length, table=min(table, 252), type=1)
        message["attrs"] = [
            ("RTA_DST", socket.inet_ntoa(address)),
            ("RTA_OIF", link),
            ("RTA_TABLE", table),
            ("RTA_PRIORITY", 600),
        ]
        found = rtnetlink.read_route(written(message))
        assert (found.destination, found.prefix_length) == (address, length)
        assert (found.table, found.link, found.metric, found.unicast) == (table, link, 600, True)

    def test_is_a_tracked_flow_of_which_the_raw_form_names_one_direction_and_its_id(self) -> None:
        def side(source: bytes, destination: bytes, source_port: int, destination_port: int) -> bytes:
            ip = netlink.nested(1, netlink.attribute(1, source), netlink.attribute(2, destination))
            ports = netlink.u16_be(2, source_port) + netlink.u16_be(3, destination_port)
            return ip + netlink.nested(2, netlink.u8(1, 17) + ports)

        a, b, c = b"\x0a\0\0\1", b"\x0a\0\0\2", b"\x0a\0\0\3"
        body = b"\2\0\0\0" + netlink.nested(1, side(a, b, 5, 80)) + netlink.nested(2, side(c, a, 8080, 5))
        body += netlink.u32(12, 77)
        entry = conntrack.read_entry(body)
        assert (entry.original.source, entry.original.destination_port) == (a, 80)
        assert (entry.reply.source, entry.reply.source_port, entry.reply.protocol) == (c, 8080, 17)
        assert conntrack.delete(entry)[20:] == body[4:].replace(netlink.nested(2, side(c, a, 8080, 5)), b"")

    def test_is_a_bound_socket(self) -> None:
        head = struct.pack("=BBBB", socket.AF_INET, 10, 0, 0)
        ids = struct.pack(">HH16s16sIII", 53, 0, b"\x7f\0\0\x35", b"", 0, 0, 0)
        body = head + ids + struct.pack("=IIIII", 0, 0, 0, 0, 4242)
        found = sockdiag.read_bound(socket.IPPROTO_UDP, body)
        assert (found.address, found.port, found.inode, found.v6_only) == (b"\x7f\0\0\x35", 53, 4242, False)


class TestAttributes:
    @given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40), max_size=8))
    def test_survive_the_way_there_and_back(self, wanted: dict[int, bytes]) -> None:
        data = b"".join(netlink.attribute(kind, payload) for kind, payload in wanted.items())
        assert len(data) % 4 == 0
        assert netlink.attributes(data) == wanted

    @given(st.binary(max_size=200))
    def test_of_noise_are_read_or_refused_but_never_hang(self, noise: bytes) -> None:
        try:
            found = list(netlink.attribute_list(noise))
        except ValueError:
            return
        assert sum(len(payload) + 4 for _, payload in found) <= len(noise) + 3


class TestTheSocket:
    """Reading the host's own links needs no privilege and changes nothing."""

    def test_lists_the_loopback(self) -> None:
        with netlink.Socket(netlink.ROUTE) as sock:
            links = [rtnetlink.read_link(body) for body in sock.dump(rtnetlink.get_links())]
            loopback = rtnetlink.read_link(sock.get(rtnetlink.get_link("lo")))
        assert (loopback.index, loopback.name) == (1, "lo")
        assert loopback.name in [link.name for link in links]
        assert loopback.setting(rtnetlink.DEVCONF_FORWARDING) in (0, 1)

    def test_says_which_request_was_refused_and_why(self) -> None:
        with netlink.Socket(netlink.ROUTE) as sock:
            with pytest.raises(OSError, match="netlink request 18: No such device") as caught:
                sock.get(rtnetlink.get_link("no-such-link"))
            assert caught.value.errno == errno.ENODEV
            assert sock.get(rtnetlink.get_link("lo")), "the next answer is not mixed up with it"

    def test_leaves_no_descriptor(self) -> None:
        before = os.listdir("/proc/self/fd")
        with netlink.Socket(netlink.ROUTE):
            pass
        assert os.listdir("/proc/self/fd") == before
