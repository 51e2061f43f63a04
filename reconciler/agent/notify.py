"""Tell the service manager that the agent is ready and alive (sd_notify(3)), where there is one that asked to be told.

The watchdog is fed from the loop itself, so that a loop that hangs is restarted; containers do not notice.
"""

import os
import socket


class Notify:
    """Sends READY=1 at the first call and WATCHDOG=1 at each; does nothing without NOTIFY_SOCKET."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self._ready = False

    def __call__(self) -> None:
        if not self._address:
            return
        state = b"WATCHDOG=1" if self._ready else b"READY=1\nSTATUS=reconciling"
        self._ready = True
        self._send(state)

    def stopping(self) -> None:
        """Say that the agent is about to end by itself."""
        if self._address:
            self._send(b"STOPPING=1")

    def _send(self, state: bytes) -> None:
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.sendto(state, address)
            except OSError:
                pass  # the manager went away; there is nobody to tell


def watchdog_interval() -> float | None:
    """Seconds within which the loop must come round, half of what the manager allows; None without a watchdog."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 2e6
