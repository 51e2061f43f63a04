"""What went through a container's network: the counters of its links, as it sees them (received is what came in)."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes since the links were made, of all links but the loopback together."""

    received: int
    sent: int


def read_traffic(pid: int) -> Traffic | None:
    """The counters of the network namespace of process `pid`.

    None where there is no such process, or where its network is the one that we are in ourselves: what the whole host
    sends is nobody's own.
    """
    try:
        if os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino:
            return None
        with open(f"/proc/{pid}/net/dev", encoding="ascii", errors="replace") as file:
            lines = file.read().splitlines()[2:]
    except OSError:
        return None
    received = sent = 0
    for line in lines:
        name, _, figures = line.partition(":")
        numbers = figures.split()
        if name.strip() != "lo" and len(numbers) > 8:
            received += int(numbers[0])
            sent += int(numbers[8])
    return Traffic(received, sent)
