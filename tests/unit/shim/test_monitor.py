"""What the monitor knows of the protocol's JSON by heart is what the protocol writes and reads."""

import json
import socket

from reconciler.shim import monitor, protocol, step


def test_the_start_is_the_packet_that_is_sent_for_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        protocol.send(ours, {"op": "start"})
        assert theirs.recv(4096) == monitor.START
        theirs.send(monitor.STARTED)
        assert protocol.receive(ours) == ({"ok": True}, [])


def test_a_child_that_could_not_write_a_line_is_told_of_in_one_way() -> None:
    assert json.loads(step.KILLED) == step.failure(b"")
