"""What the zygote hands on unread: a maker reads it, and refuses in words what is no request."""

import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.shim import channel, maker, protocol


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (b"", "not JSON"),
        (b"[1]", "not an object"),
        (b'{"op":"create"', "not JSON"),
        (b'{"op":"create","bundle":"/b"}', "not understood"),
        (b'{"op":"create","bundle":"/b","run":7}', "not understood"),
        (b'{"op":"delete","bundle":"/b","run":"/r"}', "not understood"),
    ],
)
def test_what_is_no_request_is_refused_and_nothing_is_made(request_: bytes, reason: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    shim, other = channel.pair()
    with ours:
        assert maker.make(request_, theirs.detach(), shim, (0, 0)) == 1
        received = protocol.receive(ours)
    for end in (shim, other):
        end.close()
    assert received is not None
    error = received[0]["error"]
    assert isinstance(error, dict)
    assert (error["step"], error["errno"]) == ("zygote", 0)
    assert reason in str(error["message"])


@given(st.text(), st.text())
def test_a_request_is_read_as_it_was_written(bundle: str, run: str) -> None:
    request = json.dumps({"op": "create", "bundle": bundle, "run": run}).encode()
    assert maker.read_request(request) == (bundle, run)
