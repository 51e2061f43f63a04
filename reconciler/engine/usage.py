"""What a container uses: counters of its cgroup, read from descriptors that stay open between scrapes.

Opening a control file costs more than reading it, so a `Meter` opens each once and reads it again with pread. Version 1
and 2 are translated to one set of values; what a hierarchy does not count is None, never zero.
"""

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from reconciler.engine.hierarchies import Cgroup

_KINDS: Final = ("cpu", "memory", "io")


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
    """Reads one cgroup's usage again and again; close it when the container is gone."""

    def __init__(self, group: Cgroup) -> None:
        self._group = group
        self._open: dict[Path, int] = {}

    def close(self) -> None:
        """Let go of every descriptor."""
        for fd in self._open.values():
            if fd >= 0:
                os.close(fd)
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self) -> Usage:
        """Read everything now; raise nothing where the cgroup has vanished: its values are None then."""
        group = self._group
        cpu = self._table(group.file("cpu", "cpu.stat", "cpu.stat"))
        memory = self._table(group.file("memory", "memory.stat", "memory.stat"))
        used = self._number(group.file("memory", "memory.current", "memory.usage_in_bytes"))
        v2 = "memory" in group.controllers and group.v2 is not None
        inactive = memory.get("inactive_file" if v2 else "total_inactive_file")
        events = self._table(group.file("memory", "memory.events", "memory.oom_control"))
        throttled = cpu.get("throttled_usec", _scaled(cpu.get("throttled_time"), 1000))
        read, written = self._io()
        return Usage(
            cpu_seconds=self._cpu_seconds(),
            cpu_periods=cpu.get("nr_periods"),
            cpu_throttled_periods=cpu.get("nr_throttled"),
            cpu_throttled_seconds=None if throttled is None else throttled / 1e6,
            memory=used,
            memory_max=self._number(group.file("memory", "memory.peak", "memory.max_usage_in_bytes")),
            memory_working_set=None if used is None or inactive is None else max(0, used - inactive),
            memory_rss=memory.get("anon" if v2 else "total_rss"),
            oom_kills=events.get("oom_kill"),
            processes=self._processes(),
            read_bytes=read,
            written_bytes=written,
            pressure=self._pressure(),
        )

    def _cpu_seconds(self) -> float | None:
        group = self._group
        if group.v2 is not None and "cpu" in group.controllers:
            microseconds = self._table(group.v2 / "cpu.stat").get("usage_usec")
            return None if microseconds is None else microseconds / 1e6
        nanoseconds = self._number(group.v1["cpuacct"] / "cpuacct.usage") if "cpuacct" in group.v1 else None
        return None if nanoseconds is None else nanoseconds / 1e9

    def _processes(self) -> int | None:
        return self._number(self._group.file("pids", "pids.current", "pids.current"))

    def _io(self) -> tuple[int | None, int | None]:
        group = self._group
        if group.v2 is not None and "io" in group.controllers:
            # 8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0
            found = {"rbytes": 0, "wbytes": 0}
            text = self._text(group.v2 / "io.stat")
            for word in (text or "").split():
                name, _, value = word.partition("=")
                if name in found and value.isdigit():
                    found[name] += int(value)
            return (None, None) if text is None else (found["rbytes"], found["wbytes"])
        if "blkio" not in group.v1:
            return None, None
        # 8:0 Read 1 / 8:0 Write 2 / ... / Total 3
        text = self._text(group.v1["blkio"] / "blkio.throttle.io_service_bytes")
        sums = {"Read": 0, "Write": 0}
        for line in (text or "").splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in sums:
                sums[words[1]] += int(words[2])
        return (None, None) if text is None else (sums["Read"], sums["Write"])

    def _pressure(self) -> dict[str, float]:
        """PSI lives in the v2 directory, with or without controllers, unless the kernel was booted with psi=0."""
        found: dict[str, float] = {}
        if self._group.v2 is None:
            return found
        for kind in _KINDS:
            text = self._text(self._group.v2 / f"{kind}.pressure") or ""
            total = text.partition("\n")[0].rpartition("total=")[2]  # the first line is "some"
            if total.isdigit():
                found[kind] = int(total) / 1e6
        return found

    # --- files -----------------------------------------------------------------------------------------------------

    def _number(self, file: Path | None) -> int | None:
        text = (self._text(file) or "").strip() if file is not None else ""
        return int(text) if text.isdigit() else None

    def _table(self, file: Path | None) -> dict[str, int]:
        """Read `name value` lines."""
        found: dict[str, int] = {}
        for line in ((self._text(file) or "") if file is not None else "").splitlines():
            name, _, value = line.partition(" ")
            if value.strip().isdigit():
                found[name] = int(value)
        return found

    def _text(self, file: Path) -> str | None:
        fd = self._open.get(file)
        if fd is None:
            try:
                fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                fd = -1  # this kernel, or this hierarchy, does not have it
            self._open[file] = fd
        if fd < 0:
            return None
        chunks: list[bytes] = []
        with contextlib.suppress(OSError):  # ENODEV: the cgroup is gone; EOPNOTSUPP: psi=0
            while chunk := os.pread(fd, 16384, sum(map(len, chunks))):
                chunks.append(chunk)
        return b"".join(chunks).decode() if chunks else None


def _scaled(value: int | None, divisor: int) -> int | None:
    return None if value is None else value // divisor


def usage(group: Cgroup) -> Usage:
    """Read a cgroup's usage once."""
    with Meter(group) as meter:
        return meter.read()
