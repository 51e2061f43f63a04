"""The zygote: a small process that forks shims, so that a shim costs its differences only, and a clone copies little.

Single-threaded. It holds nothing but the agent's socket, never waits for a container, and exits when the agent's end
closes. Its shims are its children as long as it lives, and it reaps them.

When nothing is asked of it, it forks a spare: a shim whose maker waits to hear which container it is for. The next
request then begins two forks later. Whatever becomes of the spare, a request finds a way without it; it ends with the
zygote, which alone holds the other end of its channel.
"""

import gc
import os
import select
import signal
import socket
import sys

from reconciler.linux import heap, process
from reconciler.shim import channel, clerk, maker, monitor, protocol, rehearsal

TITLE = "reconciler zygote"
NAME = "reconciler"
_POOL = 16384
_POOL_HEAD = 48
_HOLES = 20_000
_REHEARSALS = 3
_QUIET = 100  # milliseconds without a request after which a spare is made: a burst does not wait for one
_LARGEST = 49152  # bytes of a request
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def serve(requests: int, directory: str) -> None:
    """Fork a shim for each request from the socket `requests`; return when its other end is closed.

    The dispositions of signals are set here for the shims too: at a shutdown that signals every process they stay as
    long as their containers, and this process stays as long as the agent.
    """
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
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    agent = socket.socket(fileno=requests)
    try:
        for _ in range(_REHEARSALS):
            rehearsal.rehearse(directory)
    except OSError as error:
        print(f"reconciler zygote: rehearsal: {error}", file=sys.stderr, flush=True)
    plugs: list[object] = _shed()
    try:
        protocol.send(agent, {"ok": True, "pid": os.getpid()})
        _loop(channel.Channel(fileno=agent.detach()), area)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the agent died without closing
    del plugs


def _loop(agent: channel.Channel, area: tuple[int, int]) -> None:
    """Fork a shim for each request, and reap those that end. As little as can be is done between two forks:

    a page that this process writes to is a page of its own, from then on, for every shim that there is already.
    """
    poll = select.poll()
    poll.register(agent, select.POLLIN)
    shims: dict[int, int] = {}  # pidfd: pid
    orders: channel.Channel | None = None  # to the spare, if there is one
    spare = -1  # its pidfd
    while True:
        ready = [fd for fd, _ in poll.poll(_QUIET if orders is None else None)]
        for fd in ready:
            if fd in shims:
                os.waitpid(shims.pop(fd), 0)
                poll.unregister(fd)
                os.close(fd)
                if fd == spare and orders is not None:
                    orders.close()
                    orders = None
        if not ready:
            orders, pid = _fork_spare((agent.fileno(), *shims), area)
            spare = _adopt(pid, shims, poll)
        elif agent.fileno() in ready:
            received = channel.receive(agent, _LARGEST)
            if received is None:
                return
            request, fds = received
            taken = orders is not None and len(fds) == 1 and _order(orders, request, fds[0])
            if orders is not None:
                orders.close()
                orders = None
            if len(fds) == 1 and not taken:
                _adopt(_fork(request, fds[0], (agent.fileno(), *shims), area), shims, poll)
            for fd in fds:
                os.close(fd)


def _adopt(pid: int, shims: dict[int, int], poll: select.poll) -> int:
    """Watch over a shim that has been forked; give its pidfd, or -1 where `pid` is 0."""
    if not pid:
        return -1
    pidfd = os.pidfd_open(pid)
    shims[pidfd] = pid
    poll.register(pidfd, select.POLLIN)
    return pidfd


def _fork_spare(held: tuple[int, ...], area: tuple[int, int]) -> tuple[channel.Channel | None, int]:
    """Fork a shim that waits for an order; give the channel for that, and its pid. (None, 0) where that can't be."""
    try:
        orders, theirs = channel.pair()
        ends = channel.pair()
        pid = os.fork()
    except OSError:
        return None, 0
    if pid == 0:
        for fd in (*held, orders.detach()):
            os.close(fd)
        order = theirs.detach()
        make = lambda shim: maker.attend(order, shim, area)  # noqa: E731
        monitor.finish(lambda: monitor.run(make, clerk.serve, (order, *ends), area))
    for end in (theirs, *ends):
        end.close()
    return orders, pid


def _order(orders: channel.Channel, request: bytes, reply: int) -> bool:
    """Hand the request on to the spare; False where that has died."""
    try:
        channel.send(orders, (request,), (reply,))
    except OSError:
        return False
    return True


def _shed() -> list[object]:
    """Give back what the imports left over, and keep the shims away from what they share; hold the result for ever."""
    sys.path_importer_cache.clear()
    gc.collect()
    plugs: list[object] = [_plug(size) for size in range(16, 513, 16)]
    gc.freeze()
    gc.disable()  # here and in shims nothing makes cycles, and a collection would touch what is shared
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


def _fork(request: bytes, reply: int, held: tuple[int, ...], area: tuple[int, int]) -> int:
    """Fork the shim for `request`, which its maker reads, to answer on `reply`; give its pid, or 0 after refusing.

    `held` are the descriptors of this process that are none of the shim's.
    """
    try:
        ends = channel.pair()
        pid = os.fork()
    except OSError as error:
        _refuse(reply, error.errno or 0, f"fork: {error.strerror}")
        return 0
    if pid == 0:
        for fd in held:
            os.close(fd)
        make = lambda shim: maker.make(request, reply, shim, area)  # noqa: E731
        monitor.finish(lambda: monitor.run(make, clerk.serve, (reply, *ends), area))
    for end in ends:
        end.close()
    return pid


def _refuse(reply: int, number: int, text: str) -> None:
    error = {"step": "zygote", "path": "", "errno": number, "message": f"zygote: {text}"}
    with socket.socket(fileno=os.dup(reply)) as answer:
        try:
            protocol.send(answer, {"error": error})
        except OSError:
            pass  # the agent is gone
