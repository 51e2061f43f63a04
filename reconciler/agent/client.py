"""Ask the running agent: HTTP over its unix socket, JSON both ways."""

import http.client
import json
import socket
from typing import Any

from reconciler import errors
from reconciler.engine.layout import Layout


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("agent", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def request(
    layout: Layout, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float = 30.0
) -> dict[str, Any]:
    """Return the agent's answer.

    Raises UnreachableError where none runs, and the agent's own error by its exit code.
    """
    connection = _Connection(str(layout.agent_socket), timeout)
    try:
        connection.request(
            method,
            path,
            body=json.dumps(body or {}),
            headers={"Content-Type": "application/json", "Host": "agent"},
        )
        answer = connection.getresponse()
        status, data = answer.status, answer.read()
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
    except (OSError, http.client.HTTPException) as error:
        raise errors.UnreachableError(f"agent: {error}") from error
    finally:
        connection.close()
    try:
        value = json.loads(data)
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
