"""What a published port costs, by the tools that people measure it with: iperf3 for bytes, wrk for requests.

The published port and the container's own address take turns in one run, so that only their ratio has to hold. From
another machine the container's own address can't be reached, and must not be: there the published port takes turns with
a network namespace that the device routes to, as it would to a container if nothing were published.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

from bench.measure import BenchError, Figure, Sample, end, interleave, run, until
from bench.report import Row
from bench.session import Session
from bench.streams import answers
from bench.subject import app
from reconciler.engine.record import records

_BYTES, _REQUESTS = 22001, 22002
_IPERF, _WEB = 5201, 80
_PORTS = 998  # further ones: what a port costs must not depend on how many there are
_DEVICE = "the device's own address"
_SECONDS = (
    1  # many short turns: how the kernel places client and server differs from one to the next by a tenth
)
_LOOPBACK = "published, asked at 127.0.0.1"
_DIRECT = "direct (the container's own address)"
_ROUTED = "routed (nothing published, nothing translated)"
_NEIGHBOUR, _FAR = "10.77.0", "10.78.0"  # networks of the other machine and of what is routed to


def published(session: Session) -> list[Row]:
    """TCP, UDP and HTTP through one of a thousand published ports, and to the container's own address."""
    ports = [
        f"{_BYTES}:{_IPERF}", f"{_BYTES}:{_IPERF}/udp", f"{_REQUESTS}:{_WEB}",
        f"30000-{30000 + _PORTS - 1}:{30000}-{30000 + _PORTS - 1}",
    ]  # fmt: skip
    extra = f"    stop_signal: SIGKILL\n    ports: {json.dumps(ports)}\n"
    with session.instance() as instance:
        image, out = str(session.image.digest), session.moments.directory
        instance.spec("web", app("web", image, out, command=["web", "web", str(_WEB)], extra=extra))
        instance.start()
        session.moments.take(["web"])
        (found,) = records(instance.layout)
        (shim,) = instance.shims().values()
        inside = ["nsenter", f"--net=/proc/{shim.init.pid}/ns/net", "--"]
        with ExitStack() as stack:
            stack.enter_context(_serving(inside))
            device = str(IPv4Network(f"{found.address}/24", strict=False)[1])
            for port in (_BYTES, _REQUESTS):
                until(partial(answers, (device, port)), timeout=20, message=f"port {port}")
            here = {_DIRECT: found.address, _DEVICE: device, _LOOPBACK: "127.0.0.1"}
            rows = [_row(session, way, way.name, way.what, [], here) for way in _MEASURED]
            other = stack.enter_context(_machine(_NEIGHBOUR))
            far = stack.enter_context(_machine(_FAR))
            stack.enter_context(_serving(far))
            web = ["chroot", str(_root(session)), "/first", "web", "web", str(_WEB)]
            stack.enter_context(_serving(far, *web))
            for address, port in ((f"{_NEIGHBOUR}.1", _REQUESTS), (f"{_FAR}.2", _WEB)):
                until(partial(_answers, other, address, port), timeout=20, message=f"{address} port {port}")
            ways = {_ROUTED: f"{_FAR}.2", _DEVICE: f"{_NEIGHBOUR}.1"}
            for way in _MEASURED:
                rows.append(_row(session, way, way.lan, f"{way.what}, from another machine", other, ways))
            return rows


def _root(session: Session) -> Path:
    """A root directory with the program that containers have, and what it wants to find there."""
    root = session.place.root / "far"
    (root / "out").mkdir(parents=True)
    os.mkfifo(root / "out" / "first")
    shutil.copy(session.binary, root / "first")
    return root


def _answers(inside: list[str], address: str, port: int) -> bool:
    """Whether an HTTP server answers there, asked from a network namespace."""
    try:
        run([*inside, "curl", "--silent", "--fail", "--max-time", "2", f"http://{address}:{port}/"])
    except BenchError:
        return False
    return True


def _row(
    session: Session, way: "_Way", name: str, what: str, inside: list[str], addresses: Mapping[str, str]
) -> Row:
    """One measure of the published port, and of the same program where it is reached without it."""
    reached = {
        told: partial(way.measure, inside, address, way.own if told in (_DIRECT, _ROUTED) else way.port)
        for told, address in addresses.items()
    }
    samples = interleave(session.rounds(15), reached)
    figures = {told: Figure(tuple(sample.wall for sample in taken)) for told, taken in samples.items()}
    ours = figures.pop(_DEVICE)
    yardsticks = {told: figures.pop(told) for told in (_LOOPBACK,) if told in figures}
    return Row(name, what, way.unit, ours, figures, yardsticks)


@contextmanager
def _machine(network: str) -> Iterator[list[str]]:
    """A network namespace with the address .2, the device at .1 of the link to it; gives how to run things there."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    try:
        own = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != own, timeout=10, message="a namespace")
        inside = ["nsenter", f"--net=/proc/{process.pid}/ns/net", "--"]
        link = f"m{network.rpartition('.')[0][-2:]}"
        run(["ip", "link", "add", link, "type", "veth", "peer", "name", "up0", "netns", str(process.pid)])
        run(["ip", "address", "add", f"{network}.1/24", "dev", link])
        run(["ip", "link", "set", link, "up"])
        run([*inside, "ip", "address", "add", f"{network}.2/24", "dev", "up0"])
        run([*inside, "ip", "link", "set", "up0", "up"])
        run([*inside, "ip", "link", "set", "lo", "up"])
        run([*inside, "ip", "route", "add", "default", "via", f"{network}.1"])
        yield inside
    finally:
        end(process)


@contextmanager
def _serving(inside: list[str], *command: str) -> Iterator[None]:
    """A server in a network namespace: that of iperf3, or `command`."""
    server = subprocess.Popen(
        [*inside, *(command or ("iperf3", "-s", "-p", str(_IPERF)))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        end(server)


def _iperf(inside: list[str], address: str, port: int, *options: str) -> Sample:
    """Milliseconds for each gigabyte that arrived."""
    said = run([*inside, "iperf3", "-J", "-c", address, "-p", str(port), "-t", str(_SECONDS), *options])
    end_of = json.loads(said)["end"]
    received = end_of.get("sum_received") or end_of["sum"]
    rate = float(received["bits_per_second"])
    if not rate:
        raise BenchError(f"iperf3 to {address}: nothing arrived")
    return Sample(8e12 / rate)


def _tcp(inside: list[str], address: str, port: int) -> Sample:
    return _iperf(inside, address, port)


def _udp(inside: list[str], address: str, port: int) -> Sample:
    return _iperf(inside, address, port, "-u", "-b", "0", "-l", "1400")


def _http(inside: list[str], address: str, port: int) -> Sample:
    """Microseconds for each request that was answered."""
    said = run([*inside, "wrk", "-t", "1", "-c", "16", "-d", str(_SECONDS), f"http://{address}:{port}/"])
    rate = re.search(r"^Requests/sec:\s+([0-9.]+)", said, re.MULTILINE)
    if rate is None or not float(rate[1]):
        raise BenchError(f"wrk of {address}: no answers: {said}")
    return Sample(1e6 / float(rate[1]))


@dataclass(frozen=True, slots=True)
class _Way:
    """One measure: its rows, from the device itself and from another machine; the program's own and published port."""

    name: str
    lan: str
    what: str
    unit: str
    measure: Callable[[list[str], str, int], Sample]
    own: int
    port: int


_MEASURED: Final = (
    _Way("ports/tcp", "lan/tcp", "one of 1000 published ports, TCP", "ms/GB", _tcp, _IPERF, _BYTES),
    _Way("ports/udp", "lan/udp", "the same, UDP of 1400 bytes", "ms/GB", _udp, _IPERF, _BYTES),
    _Way(
        "ports/http", "lan/http", "the same, HTTP with 16 connections", "us/request", _http, _WEB, _REQUESTS
    ),
)
