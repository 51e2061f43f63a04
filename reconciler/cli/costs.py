"""`stats --self`: what this program itself costs on this device, process by process."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from reconciler.engine import instance
from reconciler.engine.layout import Layout
from reconciler.engine.process import alive, read_shim
from reconciler.engine.proctable import private_memory, read_processes
from reconciler.engine.record import records
from reconciler.report.tables import Column, size


def costs(layout: Layout) -> Iterator[dict[str, Any]]:
    """The running agent, the zygote that it starts shims from, the spare of that one, then each container's shim."""
    instance.read_id(layout)
    found = [(record.full_name, read_shim(layout.shim_record(record.id))) for record in records(layout)]
    shims = sorted((name, shim.shim.pid) for name, shim in found if shim is not None and alive(shim.shim))
    agent = (instance.read_agent(layout) or {}).get("pid")
    if isinstance(agent, int):
        yield from _row("agent", agent)
        for zygote in _children(agent):
            yield from _row("zygote", zygote)
            for spare in set(_children(zygote)) - {pid for _, pid in shims}:
                for pid in (spare, *_children(spare)):
                    yield from _row("spare", pid)
    for name, pid in shims:
        yield from _row(f"shim {name}", pid)


def _row(name: str, pid: int) -> Iterator[dict[str, Any]]:
    for process in read_processes([pid]):
        yield {
            "name": name,
            "pid": pid,
            "cpu_seconds": process.cpu_seconds,
            "memory": process.resident,
            "private": private_memory(pid),
            "threads": process.threads,
        }


def _children(pid: int) -> list[int]:
    """The processes that the main thread of `pid` has started."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def _private(item: Mapping[str, Any]) -> str:
    return "-" if item["private"] is None else size(item["private"])


COLUMNS: Final = (
    Column("PROCESS", lambda item: str(item["name"])),
    Column("PID", lambda item: str(item["pid"])),
    Column("CPU TIME", lambda item: f"{item['cpu_seconds']:.2f}s"),
    Column("MEM", lambda item: size(item["memory"])),
    Column("PRIVATE", _private),
    Column("THREADS", lambda item: str(item["threads"]), wide=True),
)
