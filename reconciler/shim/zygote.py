"""The zygote: a small process that forks shims, so that a shim costs its differences only, and a clone copies little.

Single-threaded. It holds nothing but the agent's socket, never waits for a container, and exits when the agent's end
closes. Its shims are its children as long as it lives; the kernel reaps them.
"""

import gc
import os
import signal
import socket
import sys

from reconciler.linux import heap, process
from reconciler.shim import monitor, protocol

TITLE = "reconciler zygote"
NAME = "reconciler"


def serve(requests: int) -> None:
    """Fork a shim for each request from the socket `requests`; return when its other end is closed."""
    area = process.title_area()
    process.close_except((0, 1, 2, requests))
    process.set_dumpable(False)
    try:
        os.setsid()
    except PermissionError:
        pass  # it leads a session already
    process.set_name(NAME)
    process.set_title(area, TITLE)
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGCHLD, signal.SIG_IGN
    )  # the kernel reaps: no shim stays a zombie, nobody wakes up for it
    channel = socket.socket(fileno=requests)
    _shed()
    try:
        protocol.send(channel, {"ok": True, "pid": os.getpid()})
        while (received := protocol.receive(channel)) is not None:
            message, fds = received
            if len(fds) != 1:
                for fd in fds:
                    os.close(fd)
                continue
            _fork(channel, message, fds[0], area)
            os.close(fds[0])
            del received, message
    except (BrokenPipeError, ConnectionResetError):
        return  # the agent died without closing
    except protocol.ProtocolError as error:
        print(f"zygote: {error}", file=sys.stderr)


def _shed() -> None:
    """Give back what the imports left over, and keep the collector away from what all shims share."""
    sys.path_importer_cache.clear()
    gc.collect()
    gc.freeze()
    heap.trim()


def _fork(channel: socket.socket, message: protocol.Message, reply: int, area: tuple[int, int]) -> None:
    bundle, run = message.get("bundle"), message.get("run")
    with socket.socket(fileno=os.dup(reply)) as answer:
        if message.get("op") != "create" or not isinstance(bundle, str) or not isinstance(run, str):
            _refuse(answer, 0, "request not understood")
            return
        try:
            pid = os.fork()
        except OSError as error:
            _refuse(answer, error.errno or 0, f"fork: {error.strerror}")
            return
        if pid:
            return
        status = 70
        try:
            os.close(reply)
            channel.close()
            status = monitor.run(bundle, run, answer, area)
        except BaseException as error:  # noqa: BLE001 - the end of the shim: all that is left is to say why
            print(monitor.describe(error), file=sys.stderr, flush=True)
        finally:
            os._exit(status)


def _refuse(answer: socket.socket, number: int, text: str) -> None:
    error = {"step": "zygote", "path": "", "errno": number, "message": f"zygote: {text}"}
    try:
        protocol.send(answer, {"error": error})
    except OSError:
        pass  # the agent is gone
