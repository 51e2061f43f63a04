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
_POOL = 16384
_POOL_HEAD = 48
_HOLES = 20_000


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
    plugs: list[object] = _shed()
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
        pass  # the agent died without closing
    except protocol.ProtocolError as error:
        print(f"reconciler zygote: {error}", file=sys.stderr, flush=True)
    del plugs


def _shed() -> list[object]:
    """Give back what the imports left over, and keep the shims away from what they share; hold the result for ever."""
    sys.path_importer_cache.clear()
    gc.collect()
    plugs: list[object] = [_plug(size) for size in range(16, 513, 16)]
    gc.freeze()
    heap.trim()
    return plugs


def _plug(size: int) -> list[object]:
    """Fill the holes that the interpreter's allocator has among blocks of `size`, so that shims allocate elsewhere.

    A new object in a hole costs a shim a page of its own for a few bytes. The allocator (obmalloc, Python 3.10 and on)
    takes blocks from pools of 16 KiB with a head of 48 bytes; a block right behind a head is in a pool without holes.
    """
    plugs: list[object] = []
    while len(plugs) < _HOLES:
        plug = object() if size == 16 else float(len(plugs)) if size == 32 else bytes(size - 33)
        plugs.append(plug)
        if id(plug) % _POOL == _POOL_HEAD:
            break
    return plugs


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
        os.close(reply)
        channel.close()
        monitor.finish(lambda: monitor.run(bundle, run, answer, area))


def _refuse(answer: socket.socket, number: int, text: str) -> None:
    error = {"step": "zygote", "path": "", "errno": number, "message": f"zygote: {text}"}
    try:
        protocol.send(answer, {"error": error})
    except OSError:
        pass  # the agent is gone
