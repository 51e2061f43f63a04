"""Ask the running agent: HTTP over its unix socket, JSON both ways.

By hand, and not by http.client, which brings along TLS and mail: to load those takes a third of a verb's time. What
answers is our own server, at the other end of a socket of ours.
"""

import json
import re
import socket
from typing import Any, Final

from reconciler import errors
from reconciler.engine.layout import Layout

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]{1,12})\r\n", re.IGNORECASE)


def _exchange(path: str, method: str, target: str, body: bytes, timeout: float) -> tuple[int, bytes]:
    """Return the status and the body of the answer, or raise OSError or UnreachableError."""
    head = (
        f"{method} {target} HTTP/1.0\r\nHost: agent\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        answer = bytearray()
        try:
            connection.sendall(head.encode() + body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # turned away at the door; the answer says so
        try:
            while chunk := connection.recv(1 << 16):
                answer += chunk
        except ConnectionResetError:
            if not answer:  # what has come counts: the other end did not read to our end
                raise
    status, (header, _, data) = _STATUS.match(answer), bytes(answer).partition(b"\r\n\r\n")
    length = _LENGTH.search(header + b"\r\n")
    if status is None or (length is not None and int(length[1]) != len(data)):
        raise errors.UnreachableError("agent: its answer broke off")
    return int(status[1]), data


def request(
    layout: Layout, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float = 30.0
) -> dict[str, Any]:
    """Return the agent's answer.

    Raises UnreachableError where none runs, and the agent's own error by its exit code.
    """
    data = json.dumps(body or {}).encode()
    try:
        status, answer = _exchange(str(layout.agent_socket), method, path, data, timeout)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise errors.UnreachableError("agent: not running", hint="run: reconciler agent SPECS") from error
    except PermissionError as error:
        raise errors.UnreachableError(
            f"{layout.agent_socket}: permission denied", hint="run it as root"
        ) from error
    except (
        TimeoutError,
        BlockingIOError,
    ) as error:  # connect(2) on a full queue: EAGAIN, whatever the time limit
        raise errors.TimedOutError("agent: no answer in time") from error
    except OSError as error:
        raise errors.UnreachableError(f"agent: {error}") from error
    try:
        value = json.loads(answer)
    except ValueError as error:
        raise errors.UnreachableError(f"agent: an answer that is not JSON ({status})") from error
    if status >= 400:
        code = int(value.get("exit_code", 1))
        failure = errors.of_code(code)(str(value.get("error", status)), hint=str(value.get("hint", "")))
        failure.exit_code = code
        failure.transient = bool(value.get("transient", False))
        raise failure
    if not isinstance(value, dict):
        raise errors.UnreachableError("agent: an answer that is not an object")
    return value


def running(layout: Layout) -> bool:
    """Whether an agent answers on this run directory."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(layout.agent_socket))
    except OSError:
        return False
    finally:
        probe.close()
    return True
