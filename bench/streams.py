"""What flows all the time: a container's output through its shim into the log, and bytes through a published port."""

import socket
import time

from bench.measure import BenchError, Figure, Sample, interleave, own_cpu, until
from bench.report import Row
from bench.session import Session
from bench.subject import Instance, app
from reconciler.engine.process import Control
from reconciler.engine.record import records

_RATE = 100  # MB/s
_SECONDS = 5
_PORT = 22000
_BLOCK = bytes(1 << 20)
_FOREVER = "    stop_signal: SIGKILL\n"


def logs(session: Session) -> list[Row]:
    """The shim's share of a core while its container writes as fast as it is told to."""
    with session.instance() as instance:
        command = ["flood", "flood", str(_RATE), str(_SECONDS)]
        instance.spec(
            "flood",
            app(
                "flood", str(session.image.digest), session.moments.directory, command=command, extra=_FOREVER
            ),
        )
        instance.start()
        session.moments.take(["flood"])
        (id,) = instance.shims()
        shim = instance.shims()[id].shim.pid
        time.sleep(0.5)
        began, cpu = time.monotonic(), own_cpu(shim)
        before = _counted(instance, id)
        time.sleep(_SECONDS - 1.5)
        seconds, used = time.monotonic() - began, own_cpu(shim) - cpu
        after = _counted(instance, id)
    rate = (after["bytes"] - before["bytes"]) / seconds / 1e6
    note = f"{rate:.0f} MB/s went through of {_RATE} MB/s written; dropped: {after['dropped'] - before['dropped']}"
    return [
        Row(
            "logs/shim",
            f"log pump at {_RATE} MB/s: CPU of the shim",
            "% of a core",
            Figure((100 * used / seconds,)),
            notes=[note],
        )
    ]


def _counted(instance: Instance, id: str) -> dict[str, int]:
    """What the shim has taken in, and what of it was lost."""
    with Control.connect(instance.layout.control_socket(id)) as control:
        log = control.state()["log"]
    if not isinstance(log, dict):
        raise BenchError(f"the shim says nothing of its log: {log!r}")
    numbers = {name: value for name, value in log.items() if isinstance(value, int)}
    dropped = numbers.pop("dropped", 0)
    return {"bytes": sum(numbers.values()), "dropped": dropped}


def port(session: Session) -> list[Row]:
    """Throughput through a published port and to the container's own address, one connection each."""
    with session.instance() as instance:
        text = app(
            "sink",
            str(session.image.digest),
            session.moments.directory,
            command=["sink", "sink", "80"],
            port=_PORT,
            extra=_FOREVER,
        )
        instance.spec("sink", text)
        instance.start()
        session.moments.take(["sink"])
        (found,) = records(instance.layout)
        own, published = (found.address, 80), ("127.0.0.1", _PORT)
        until(lambda: answers(published), timeout=10, message="the published port")
        seconds = 0.5 if session.quick else 1.5
        samples = interleave(
            max(3, session.rounds(3)),
            {"own": lambda: _pour(own, seconds), "published": lambda: _pour(published, seconds)},
        )
    own_rate, rate = (
        Figure(tuple(1 / sample.wall for sample in samples[name])) for name in ("own", "published")
    )
    return [
        Row(
            "ports/throughput",
            "published port, one connection",
            "GB/s",
            rate,
            {},
            {"the container's own address": own_rate},
        )
    ]


def answers(address: tuple[str, int]) -> bool:
    """Whether somebody takes a connection."""
    try:
        socket.create_connection(address, 1).close()
    except OSError:
        return False
    return True


def _pour(address: tuple[str, int], seconds: float) -> Sample:
    """Send for some seconds; gives seconds per GB."""
    sent = 0
    with socket.create_connection(address, 5) as connection:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            sent += connection.send(_BLOCK)
    return Sample(passed / (sent / 1e9))
