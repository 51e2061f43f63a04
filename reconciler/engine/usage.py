"""What a container uses: counters of its cgroup, read from descriptors that stay open between scrapes.

Opening a control file costs more than reading it, so a `Meter` opens each once and reads it again with pread. Version 1
and 2 are translated to one set of values; what a hierarchy does not count is None, never zero.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from reconciler.engine.hierarchies import Cgroup

_KINDS: Final = ("cpu", "memory", "io")
_BLOCK: Final = 16384


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters since the cgroup was made, and gauges of now. Times in seconds, sizes in bytes.

    `memory_working_set` is usage less inactive file cache, as cAdvisor and the kubelet count it. `pressure` maps cpu,
    memory and io to the seconds in which some task waited for it (PSI). None: not counted here.
    """

    cpu_seconds: float | None = None
    cpu_periods: int | None = None
    cpu_throttled_periods: int | None = None
    cpu_throttled_seconds: float | None = None
    memory: int | None = None
    memory_max: int | None = None
    memory_working_set: int | None = None
    memory_rss: int | None = None
    oom_kills: int | None = None
    processes: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    pressure: dict[str, float] = field(default_factory=dict)


class Meter:
    """Reads one cgroup's usage again and again; close it when the container is gone.

    The names of its files are worked out once: fifty containers have five hundred of them, and a scrape little time.
    """

    def __init__(self, group: Cgroup) -> None:
        unified = group.v2 is not None
        self._memory_v2 = unified and "memory" in group.controllers
        self._cpu = _File(group.file("cpu", "cpu.stat", "cpu.stat"))
        self._cpuacct = _File(
            None
            if (unified and "cpu" in group.controllers) or "cpuacct" not in group.v1
            else group.v1["cpuacct"] / "cpuacct.usage"
        )
        self._memory = _File(group.file("memory", "memory.stat", "memory.stat"))
        self._used = _File(group.file("memory", "memory.current", "memory.usage_in_bytes"))
        self._peak = _File(group.file("memory", "memory.peak", "memory.max_usage_in_bytes"))
        self._events = _File(group.file("memory", "memory.events", "memory.oom_control"))
        self._pids = _File(group.file("pids", "pids.current", "pids.current"))
        self._io_v2 = group.v2 is not None and "io" in group.controllers
        self._io = _File(
            group.v2 / "io.stat"
            if group.v2 is not None and self._io_v2
            else group.v1["blkio"] / "blkio.throttle.io_service_bytes"
            if "blkio" in group.v1
            else None
        )
        # PSI lives in the v2 directory, with or without controllers, unless the kernel was booted with psi=0.
        self._pressure = {
            kind: _File(group.v2 / f"{kind}.pressure" if group.v2 is not None else None) for kind in _KINDS
        }

    def close(self) -> None:
        """Let go of every descriptor."""
        for file in (
            self._cpu,
            self._cpuacct,
            self._memory,
            self._used,
            self._peak,
            self._events,
            self._pids,
            self._io,
            *self._pressure.values(),
        ):
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> Usage:
        """Read everything now; raise nothing where the cgroup has vanished: its values are None then."""
        cpu = _table(self._cpu.read())
        memory = self._memory.read()
        used = _number(self._used.read())
        inactive = _entry(memory, b"inactive_file" if self._memory_v2 else b"total_inactive_file")
        throttled = cpu.get(b"throttled_usec", _scaled(cpu.get(b"throttled_time"), 1000))
        read, written = self._traffic()
        return Usage(
            cpu_seconds=self._cpu_seconds(cpu),
            cpu_periods=cpu.get(b"nr_periods"),
            cpu_throttled_periods=cpu.get(b"nr_throttled"),
            cpu_throttled_seconds=None if throttled is None else throttled / 1e6,
            memory=used,
            memory_max=_number(self._peak.read()),
            memory_working_set=None if used is None or inactive is None else max(0, used - inactive),
            memory_rss=_entry(memory, b"anon" if self._memory_v2 else b"total_rss"),
            oom_kills=_entry(self._events.read(), b"oom_kill"),
            processes=_number(self._pids.read()),
            read_bytes=read,
            written_bytes=written,
            pressure=self._waited(),
        )

    def _cpu_seconds(self, cpu: dict[bytes, int]) -> float | None:
        microseconds = cpu.get(b"usage_usec")
        if microseconds is not None:
            return microseconds / 1e6
        nanoseconds = _number(self._cpuacct.read())
        return None if nanoseconds is None else nanoseconds / 1e9

    def _traffic(self) -> tuple[int | None, int | None]:
        text = self._io.read()
        if text is None:
            return None, None
        read = written = 0
        if self._io_v2:
            # 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0
            for word in text.split():
                if word.startswith(b"rbytes="):
                    read += int(word[7:])
                elif word.startswith(b"wbytes="):
                    written += int(word[7:])
            return read, written
        # 8:0 Read 1 / 8:0 Write 2 / ... / Total 3
        for line in text.splitlines():
            words = line.split()
            if len(words) == 3 and words[1] == b"Read":
                read += int(words[2])
            elif len(words) == 3 and words[1] == b"Write":
                written += int(words[2])
        return read, written

    def _waited(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for kind, file in self._pressure.items():
            text = file.read() or b""
            total = text.partition(b"\n")[0].rpartition(b"total=")[2]  # the first line is "some"
            if total.isdigit():
                found[kind] = int(total) / 1e6
        return found


class _File:
    """A control file that is opened when it is read first, and then stays open."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._fd: int | None = None if path is not None else -1

    def close(self) -> None:
        if self._fd is not None and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def read(self) -> bytes | None:
        """All of it, None where this kernel or this hierarchy does not have it, or the cgroup is gone."""
        if self._fd is None:
            assert self._path is not None
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._fd = -1
        if self._fd < 0:
            return None
        try:
            data = os.pread(self._fd, _BLOCK, 0)
            while (
                len(data) % _BLOCK == 0 and data
            ):  # kernfs gives all that there is, up to the size asked for
                more = os.pread(self._fd, _BLOCK, len(data))
                if not more:
                    break
                data += more
        except OSError:  # ENODEV: the cgroup is gone; EOPNOTSUPP: psi=0
            return None
        return data or None


def _number(text: bytes | None) -> int | None:
    text = (text or b"").strip()
    return int(text) if text.isdigit() else None


def _table(text: bytes | None) -> dict[bytes, int]:
    """Read `name value` lines."""
    found: dict[bytes, int] = {}
    for line in (text or b"").splitlines():
        name, _, value = line.partition(b" ")
        if value.isdigit():
            found[name] = int(value)
    return found


def _entry(text: bytes | None, name: bytes) -> int | None:
    """One of many `name value` lines (memory.stat has fifty, of which two are wanted)."""
    if text is None:
        return None
    start = 0 if text.startswith(name + b" ") else text.find(b"\n" + name + b" ") + 1
    if not start and not text.startswith(name + b" "):
        return None
    value = text[start + len(name) + 1 :].partition(b"\n")[0].strip()
    return int(value) if value.isdigit() else None


def _scaled(value: int | None, divisor: int) -> int | None:
    return None if value is None else value // divisor


def usage(group: Cgroup) -> Usage:
    """Read a cgroup's usage once."""
    with Meter(group) as meter:
        return meter.read()
