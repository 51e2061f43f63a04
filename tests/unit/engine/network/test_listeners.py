"""Which sockets of the host stand in the way of a port, and how that is said; from values and from /proc's text."""

from ipaddress import ip_address

import pytest

from reconciler.engine.network.listeners import Listener, PortConflict, conflicts, read_proc_net
from reconciler.engine.network.ports import PortMapping


def wanted(host_ip: str = "0.0.0.0", port: int = 80, protocol: str = "tcp") -> PortMapping:
    where = ip_address(host_ip)
    to = ip_address("172.20.5.2" if where.version == 4 else "fd12::2")
    return PortMapping("web", "server", where, port, 8000, protocol, to)


def listener(
    address: str = "0.0.0.0", port: int = 80, protocol: str = "tcp", *, v6_only: bool = False
) -> Listener:
    return Listener(protocol, ip_address(address), port, v6_only, inode=1, pid=612, process="nginx")


@pytest.mark.parametrize(
    ("host_ip", "found", "blocks"),
    [
        ("0.0.0.0", listener(), True),
        ("0.0.0.0", listener("192.0.2.1"), True),
        ("0.0.0.0", listener("127.0.0.53"), True),
        ("192.0.2.1", listener(), True),
        ("192.0.2.1", listener("192.0.2.1"), True),
        ("192.0.2.1", listener("192.0.2.2"), False),
        ("192.0.2.1", listener("127.0.0.1"), False),
        ("0.0.0.0", listener("::"), True),
        ("192.0.2.1", listener("::"), True),
        ("0.0.0.0", listener("::", v6_only=True), False),
        ("0.0.0.0", listener("::1"), False),
        ("0.0.0.0", listener("2001:db8::1"), False),
        ("192.0.2.1", listener("::ffff:192.0.2.1"), True),
        ("192.0.2.1", listener("::ffff:192.0.2.2"), False),
        ("::", listener(), False),
        ("::", listener("127.0.0.1"), False),
        ("::", listener("::ffff:192.0.2.1"), False),
        ("::", listener("::"), True),
        ("::", listener("::", v6_only=True), True),
        ("::", listener("::1"), True),
        ("2001:db8::1", listener("::1"), False),
        ("2001:db8::1", listener("2001:db8::1"), True),
        ("0.0.0.0", listener(protocol="udp"), False),
        ("0.0.0.0", listener(port=81), False),
    ],
)
def test_a_socket_blocks_what_could_not_be_bound_beside_it(
    host_ip: str, found: Listener, blocks: bool
) -> None:
    assert found.blocks(wanted(host_ip)) is blocks
    assert len(conflicts([wanted(host_ip)], [found])) == blocks


def test_a_conflict_names_the_port_and_the_process() -> None:
    (found,) = conflicts([wanted()], [listener()])
    assert str(found) == "port 0.0.0.0:80/tcp already used by nginx (pid 612)"


def test_a_conflict_with_an_unseen_process_says_so() -> None:
    unseen = Listener("tcp", ip_address("0.0.0.0"), 80, False, 2**63)
    assert str(PortConflict(wanted(), unseen)).endswith(
        "already used by a process that can't be seen from here"
    )


PROC_TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0000 100 0 0 10 0
   1: 020200C0:0016 010200C0:D431 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0000 20 4 30 10 -1
"""
PROC_UDP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  12: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 77 2 0000 0
  13: 0000000000000000FFFF00000100007F:0036 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 78 2 0000 0
"""  # noqa: E501 - as the kernel prints it


@pytest.mark.skipif(
    __import__("sys").byteorder != "little", reason="this kernel lacks the byte order of the sample"
)
def test_the_text_of_proc_is_read_where_the_kernel_has_no_sock_diag() -> None:
    (found,) = read_proc_net(PROC_TCP, "tcp")
    assert (str(found.address), found.port, found.inode) == ("127.0.0.1", 8080, 4242)
    wildcard, mapped = read_proc_net(PROC_UDP6, "udp")
    assert (str(wildcard.address), wildcard.port) == ("::", 53)
    assert wildcard.blocks(wanted(port=53, protocol="udp"))
    assert mapped.blocks(wanted("127.0.0.1", 54, "udp"))
    assert not mapped.blocks(wanted("192.0.2.1", 54, "udp"))
