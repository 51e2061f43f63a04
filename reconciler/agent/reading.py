"""The loop's parts for verbs that run without an agent: a plan that writes nothing, and a loop that ends.

`planned` is what `plan`, `status` and `gc --dry-run` use: it makes no directory, takes no lock, and keeps
what it has to fetch (manifests) in memory.
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reconciler.agent.gauges import Gauges
from reconciler.agent.history import read_failures, read_generations
from reconciler.agent.images import open_images
from reconciler.agent.intent import Intent, Reader, Source
from reconciler.agent.loop import Agent
from reconciler.agent.parts import Parts, open_parts, retention
from reconciler.agent.resolver import Resolver
from reconciler.agent.turn import Listener, Turn
from reconciler.agent.wanted import wanted_devices, wanted_networks, wanted_ports
from reconciler.config import Device
from reconciler.engine import instance, replaced
from reconciler.engine.devices import present
from reconciler.engine.layout import Layout
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.foreign import ForwardBlocker, forward_blockers
from reconciler.engine.network.networks import Networks
from reconciler.engine.observe import Observer, capacity, listeners_on
from reconciler.engine.process import boot_id
from reconciler.engine.store import Store
from reconciler.errors import BlockedError, ReconcilerError, UsageError
from reconciler.plan.diff import plan as make_plan
from reconciler.plan.garbage import Explained, explain
from reconciler.plan.steps import Plan
from reconciler.report import status
from reconciler.source.directory import DirectorySource
from reconciler.source.git import Fetch, GitSource
from reconciler.source.snapshot import Snapshot
from reconciler.source.watch import watch as watch_directory
from reconciler.state.desired import Desired
from reconciler.state.observed import Networks as FoundNetworks
from reconciler.state.observed import Now, Observed


def now() -> Now:
    """The time on both clocks that the planner looks at."""
    return Now(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


def describe_source(layout: Layout, args: argparse.Namespace) -> dict[str, str]:
    """The source that the arguments name, or else the one that the running agent follows, as agent.json has it."""
    if args.git is not None:
        if args.path is not None:
            raise UsageError("a directory and --git are two sources; name one")
        return {"git": args.git, "branch": args.branch, "path": args.subpath}
    if args.path is not None:
        return {"git": "", "branch": "", "path": str(Path(args.path).absolute())}
    known = (instance.read_agent(layout) or {}).get("source")
    if not isinstance(known, dict):
        raise UsageError("no directory of specs was named, and no agent is running that has one")
    return {name: str(known.get(name, "")) for name in ("git", "branch", "path")}


def open_source(
    layout: Layout,
    described: Mapping[str, str],
    fetched: Callable[[Fetch], None] = lambda _: None,
    *,
    repository: Path | None = None,
) -> DirectorySource | GitSource:
    """The source as `describe_source` describes it; `fetched` hears of every fetch of a git branch.

    `repository` is where a branch is fetched to, for those who must leave the state directory as it is.
    """
    if described["git"]:
        return GitSource(
            repository or layout.repository,
            described["git"],
            branch=described["branch"],
            path=described["path"],
            listener=fetched,
            known=layout.repository if repository is not None else None,
        )
    return DirectorySource(Path(described["path"]))


def refuse_other_source(layout: Layout, args: argparse.Namespace) -> None:
    """A running agent applies its own source and no other; say so where the arguments name a different one."""
    if args.git is None and args.path is None:
        return
    known = instance.read_agent(layout)
    if known is not None and known.get("source") != describe_source(layout, args):
        raise BlockedError(
            f"the agent that runs with {layout.state} follows another source",
            hint="leave the path out, or stop it",
        )


def observe(layout: Layout, desired: Desired | None = None) -> Observed:
    """What is there, or an empty world where no agent has ever run."""
    boot = boot_id()
    if not layout.instance.exists():
        if desired is None:
            return Observed(boot=boot)
        conflicts = Networks(layout, "").conflicts(wanted_networks(desired))
        taken = listeners_on(p.port for p in wanted_ports(desired))
        return Observed(
            boot=boot,
            listeners=taken,
            network=FoundNetworks(conflicts=conflicts),
            devices=present(wanted_devices(desired)),
            capacity=capacity(),
        )
    identity = instance.read_id(layout)
    observer = Observer(layout, identity, Store(layout), Networks(layout, identity))
    ports = wanted_ports(desired) if desired is not None else []
    wanted = wanted_devices(desired) if desired is not None else frozenset()
    return observer.observe(
        failures=read_failures(layout, boot),
        ports=ports,
        wanted_devices=wanted,
        networks=wanted_networks(desired) if desired is not None else (),
    )


@contextmanager
def planned(layout: Layout, device: Device, source: Source) -> Iterator[tuple[Intent, Plan]]:
    """Read, resolve, observe and plan once, changing nothing."""
    store = Store(layout)
    resolver = Resolver(open_images(layout, device, store), store, lambda: None, background=False, keep=False)
    try:
        intent = Reader(layout, device, source, resolver, keep=False).read()
        yield (
            intent,
            make_plan(
                intent.desired,
                observe(layout, intent.desired),
                now(),
                retention=retention(device),
                generations=read_generations(layout),
            ),
        )
    finally:
        resolver.close()


def traffic_warnings(desired: Desired) -> tuple[ForwardBlocker, ...]:
    """What other people's firewalls drop of the containers' traffic; nothing where none has a network of its own, nor
    for somebody who may not look.
    """
    if not any(want.networked for app in desired.apps.values() for want in app.containers.values()):
        return ()
    firewall = Firewall("0" * 16)
    try:
        return forward_blockers(firewall, ipv6=any(network.ipv6 for network in wanted_networks(desired)))
    except ReconcilerError:
        return ()
    finally:
        firewall.close()


def apply_here(
    layout: Layout,
    device: Device,
    source: Callable[[], Source],
    listener: Listener,
    *,
    allow_empty: bool,
    wait: bool,
    timeout: float,
) -> Turn | None:
    """Run the loop until nothing is left to do (or, with `wait`, until everything is as desired); None on time-out."""
    parts = open_parts(layout, device, lambda _: None)
    try:
        with instance.StateLock(layout, "reconciler apply"):
            agent = Agent(parts, source(), listener)
            if allow_empty:
                agent.reconcile(allow_empty=True)
            deadline = time.monotonic() + timeout

            def done(turn: Turn) -> bool:
                over = turn.converged if wait else turn.finished
                return over or time.monotonic() > deadline

            try:
                agent.run(done)
                last = agent.last
            finally:
                agent.close()
    finally:
        parts.close()
    if last is None or not (last.converged if wait else last.finished):
        return None
    return last


def status_here(layout: Layout, device: Device) -> dict[str, Any]:
    """The status document where no agent runs: the last good specs against what is there."""
    resolver = Resolver(None, Store(layout), lambda: None, background=False, keep=False)
    try:
        intent = Reader(layout, device, NoSource(), resolver, keep=False).remembered()
    finally:
        resolver.close()
    observed, moment = observe(layout, intent.desired), now()
    plan = make_plan(intent.desired, observed, moment, retention=retention(device))
    generations = read_generations(layout)
    gauges = Gauges(layout, f"reconciler-{instance.read_id(layout)}")
    try:
        usage = gauges.usage(c for same in observed.containers.values() for c in same)
    finally:
        gauges.close()
    return status.document(
        intent.desired,
        observed,
        plan,
        moment,
        live=status.Live(agent=False, usage=usage),
        generation=generations[-1].number if generations else 0,
        adhoc={"agent": "not running"},
    )


class NoSource:
    """A source that can't be read, so that the last good specs count."""

    def snapshot(self) -> Snapshot:
        return Snapshot(revision="", files={}, problem="no agent is running")


def remembered(layout: Layout, device: Device) -> Desired:
    """What should run by the last good specs."""
    resolver = Resolver(None, Store(layout), lambda: None, background=False, keep=False)
    try:
        return Reader(layout, device, NoSource(), resolver, keep=False).remembered().desired
    finally:
        resolver.close()


def explain_garbage(layout: Layout, device: Device) -> tuple[Explained, ...]:
    """Every object of the store, and why it stays or goes, by the last good specs and the kept generations."""
    desired = remembered(layout, device)
    observed = observe(layout)
    return explain(
        observed.store,
        desired,
        observed.containers,
        read_generations(layout),
        retention(device),
        now(),
    )


def collect(parts: Parts, explained: Iterable[Explained]) -> tuple[int, int]:
    """Delete what may go; return how many objects and how many bytes that was."""
    removed = reclaimed = 0
    for entry in explained:
        if not entry.kept and parts.engine.collect(entry.object.kind, entry.object.name):
            removed += 1
            reclaimed += entry.object.size
    replaced.release(parts.layout)
    parts.store.empty_trash()
    return removed, reclaimed


def watch(
    source: DirectorySource | GitSource,
    wake: Callable[[], None],
    interval: float,
    warn: Callable[[str], None],
) -> Callable[[], None]:
    """Have `wake` called whenever the source has something new; return what ends that.

    A git branch is fetched every `interval` seconds, give or take a tenth, so that a fleet does not ask at once.
    """
    stop = threading.Event()
    if isinstance(source, GitSource):
        thread = source.poll(interval, wake, stop)
    else:
        thread = watch_directory(source.root, wake, stop, warn=warn)

    def end() -> None:
        stop.set()
        thread.join(5)

    return end
