"""What a published port costs, by the tools that people measure it with: iperf3 for bytes, wrk for requests.

The published port and the container's own address take turns in one run, so that only their ratio has to hold.
"""

import json
import re
import subprocess
from functools import partial
from ipaddress import IPv4Network

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
        server = subprocess.Popen(
            [*inside, "iperf3", "-s", "-p", str(_IPERF)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            device = str(IPv4Network(f"{found.address}/24", strict=False)[1])
            for port in (_BYTES, _REQUESTS):
                until(partial(answers, (device, port)), timeout=20, message=f"port {port}")
            rows = []
            for name, what, unit, measure, own, port in (
                ("ports/tcp", "one of 1000 published ports, TCP", "ms/GB", _tcp, _IPERF, _BYTES),
                ("ports/udp", "the same, UDP of 1400 bytes", "ms/GB", _udp, _IPERF, _BYTES),
                ("ports/http", "the same, HTTP with 16 connections", "us/request", _http, _WEB, _REQUESTS),
            ):
                ways = {
                    _DIRECT: (found.address, own),
                    _DEVICE: (device, port),
                    _LOOPBACK: ("127.0.0.1", port),
                }
                samples = interleave(
                    session.rounds(15),
                    {way: partial(measure, *address) for way, address in ways.items()},
                )
                figures = {
                    way: Figure(tuple(sample.wall for sample in taken)) for way, taken in samples.items()
                }
                ours = figures.pop(_DEVICE)
                yardsticks = {_LOOPBACK: figures.pop(_LOOPBACK)}
                rows.append(Row(name, what, unit, ours, figures, yardsticks))
            return rows
        finally:
            end(server)


def _iperf(address: str, port: int, *options: str) -> Sample:
    """Milliseconds for each gigabyte that arrived."""
    said = run(["iperf3", "-J", "-c", address, "-p", str(port), "-t", str(_SECONDS), *options])
    end_of = json.loads(said)["end"]
    received = end_of.get("sum_received") or end_of["sum"]
    rate = float(received["bits_per_second"])
    if not rate:
        raise BenchError(f"iperf3 to {address}: nothing arrived")
    return Sample(8e12 / rate)


def _tcp(address: str, port: int) -> Sample:
    return _iperf(address, port)


def _udp(address: str, port: int) -> Sample:
    return _iperf(address, port, "-u", "-b", "0", "-l", "1400")


def _http(address: str, port: int) -> Sample:
    """Microseconds for each request that was answered."""
    said = run(["wrk", "-t", "1", "-c", "16", "-d", str(_SECONDS), f"http://{address}:{port}/"])
    rate = re.search(r"^Requests/sec:\s+([0-9.]+)", said, re.MULTILINE)
    if rate is None or not float(rate[1]):
        raise BenchError(f"wrk of {address}: no answers: {said}")
    return Sample(1e6 / float(rate[1]))
