"""Fifty containers: how long until all run, how soon an edit does, what they cost in memory and, while idle, in CPU.

One app each, with a port and limits, so that nothing is shared that need not be. The peers get the same containers
through their command lines, several at a time.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bench.measure import (
    BenchError,
    Figure,
    Sample,
    boottime,
    exact_cpu,
    memory,
    named,
    processes,
    until,
    walls,
    written,
)
from bench.measure import run as run_program
from bench.peers import Docker, Podman
from bench.report import Row
from bench.session import Session
from bench.subject import Instance, app

COUNT = 50
_FEW = 10
_PORTS = 21000
_AT_ONCE = {"docker": 8, "podman": 4}  # more make them slower on two cores
_IDLE = 30.0
_SETTLE = 3.0  # seconds after which what starting has left to do is done
MIB = 1 << 20


def names(count: int = COUNT) -> list[str]:
    return [f"a{number:02}" for number in range(count)]


def write_specs(instance: Instance, session: Session, wanted: Sequence[str]) -> None:
    for number, name in enumerate(wanted):
        text = app(
            name,
            str(session.image.digest),
            session.moments.directory,
            command=[name, "wait"],
            port=_PORTS + number,
            extra="    stop_grace_period: 2s\n",
        )
        instance.spec(name, text)


def all_up(session: Session, instance: Instance, began: int, wanted: Sequence[str]) -> Sample:
    """From `began` until every container's first instruction has run and every port is published."""
    try:
        moments = session.moments.take(wanted, timeout=60)
    except BenchError as error:
        raise BenchError(f"{error}; the agent's last words:\n{instance.said()}") from error
    until(lambda: _published(len(wanted)), timeout=30, message="the published ports", step=0.005)
    ready = max(moments.values())
    return Sample((ready - began) / 1e9)


def _published(count: int) -> bool:
    """Whether the machine's ruleset, which is ours alone in here, has a mapping for every port."""
    ruleset = run_program(["nft", "list", "ruleset"])
    return all(str(_PORTS + number) in ruleset for number in range(count))


def run(session: Session) -> list[Row]:
    """Fifty containers up, and an edit beside them."""
    started, running, edits, batch = [], [], [], []
    for _ in range(session.rounds(3)):
        with session.instance() as instance:
            write_specs(instance, session, names())
            began = boottime()
            instance.start()
            started.append(all_up(session, instance, began, names()))
            edits += _edits(session, instance, 1 if session.quick else 4)
        with session.instance() as instance:
            instance.start()
            instance.serving()
            time.sleep(0.5)
            began = boottime()
            write_specs(instance, session, names())
            batch.append((boottime() - began) / 1e9)
            running.append(all_up(session, instance, began, names()))
    theirs: dict[str, Figure] = {}
    if not session.quick:
        for peer in session.peers.engines:
            sample, _ = _peer_up(session, peer)
            theirs[f"{peer.label}, {_AT_ONCE[peer.program]} at a time"] = walls([sample])
    what = f"{COUNT} containers with ports up"
    return [
        Row("many/started", f"{what}, from the agent's start", "s", walls(started), theirs),
        Row("many/running", f"{what}, from the first spec written", "s", walls(running), theirs),
        Row("many/edit", f"spec edit to first instruction, {COUNT} running", "ms", walls(edits, 1e3)),
    ]


def _edits(session: Session, instance: Instance, count: int) -> list[Sample]:
    """Change one app's command again and again, well apart; its old container ends on its own at SIGTERM."""
    samples = []
    for number in range(count):
        time.sleep(1.0)
        name = f"edit{number}"
        text = app(
            "a07",
            str(session.image.digest),
            session.moments.directory,
            command=[name, "wait"],
            port=_PORTS + 7,
            extra="    stop_grace_period: 2s\n",
        )
        began = boottime()
        instance.spec("a07", text)
        samples.append(session.moments.after(began, name))
    return samples


# --- peers -----------------------------------------------------------------------------------------------------------


def _peer_up(session: Session, peer: Podman | Docker) -> tuple[Sample, int]:
    """Start fifty containers with a peer; give the time, and the PSS of all its processes afterwards.

    Once in a run: removing them takes as long again.
    """
    if peer.program in session.fifty:
        return session.fifty[peer.program]
    peer.pull(session.pushed)
    outer = session.moments.directory
    commands = [
        peer.run(
            session.pushed,
            *("--detach", "--publish", f"{_PORTS + number}:80", "--volume", f"{outer}:/out"),
            *("--memory", "16m", "--pids-limit", "16"),
            arguments=[name, "wait"],
        )
        for number, name in enumerate(names())
    ]
    try:
        began = boottime()
        with ThreadPoolExecutor(_AT_ONCE[peer.program]) as pool:
            list(pool.map(lambda command: run_program(command, timeout=120), commands))
        last = max(session.moments.take(names(), timeout=120).values())
        time.sleep(_SETTLE)
        pss, _ = memory(_engine_processes(peer))
    finally:
        peer.remove_all()
    session.fifty[peer.program] = Sample((last - began) / 1e9), pss
    return session.fifty[peer.program]


def _engine_processes(peer: Podman | Docker) -> list[int]:
    """What a peer keeps running for its containers."""
    return (
        named("docker", "containerd")
        if isinstance(peer, Docker)
        else named("conmon", "podman", "rootlessport")
    )


# --- memory and idleness ---------------------------------------------------------------------------------------------


def footprint(session: Session) -> list[Row]:
    """Memory with 10 and 50 containers, then what an idle agent does to CPU and disk."""
    with session.instance() as instance:
        write_specs(instance, session, names(_FEW))
        _up(session, instance, names(_FEW))
        few, _, _ = _memory(instance)
    with session.instance() as instance:
        write_specs(instance, session, names())
        _up(session, instance, names())
        many, shim, parts = _memory(instance)
        seconds = 10.0 if session.quick else _IDLE
        cpu, disk, woken = _idle(instance, seconds)
    theirs: dict[str, Figure] = {}
    daemonless: dict[str, Figure] = {}
    if not session.quick:
        for peer in session.peers.engines:
            _, pss = _peer_up(session, peer)
            if isinstance(peer, Docker):
                theirs[peer.label] = Figure((pss / MIB,))
            else:
                daemonless[f"{peer.label}, conmon alone"] = Figure((pss / MIB,))
    note = ", ".join(f"{name} {value / MIB:.1f} MiB" for name, value in parts.items())
    return [
        Row("memory/10", f"PSS of agent, zygote and shims, {_FEW} containers", "MiB", Figure((few / MIB,))),
        Row(
            "memory/50",
            f"the same, {COUNT} containers",
            "MiB",
            Figure((many / MIB,)),
            theirs,
            daemonless,
            [note],
        ),
        Row("memory/shim", "private memory of a shim", "MiB", Figure(tuple(value / MIB for value in shim))),
        Row(
            "idle/cpu",
            f"idle, {COUNT} containers, {seconds:g} s: CPU",
            "% of a core",
            Figure((100 * cpu / seconds,)),
            notes=[woken],
        ),
        Row(
            "idle/written",
            f"idle, {COUNT} containers, {seconds:g} s: written",
            "bytes",
            Figure((float(disk),)),
        ),
    ]


def _up(session: Session, instance: Instance, wanted: Sequence[str]) -> None:
    began = boottime()
    instance.start()
    all_up(session, instance, began, wanted)
    time.sleep(_SETTLE)


def _members(instance: Instance) -> tuple[int, list[int], list[int]]:
    """The agent, what it keeps (the zygote, and the spare of that one), and the shims."""
    agent = instance.agent
    shims = [record.shim.pid for record in instance.shims().values()]
    parents = processes()
    kept = [agent]
    for member in kept:
        kept += [pid for pid, parent in parents.items() if parent == member and pid not in shims]
    return agent, kept[1:], shims


def _memory(instance: Instance) -> tuple[int, list[int], dict[str, int]]:
    """PSS of all, private bytes of each shim, and what each kind takes."""
    agent, children, shims = _members(instance)
    parts = {"agent": memory([agent])[0], "zygote": memory(children)[0], "shims": memory(shims)[0]}
    return sum(parts.values()), [memory([pid])[1] for pid in shims], parts


def _idle(instance: Instance, seconds: float) -> tuple[float, int, str]:
    """CPU seconds used and bytes written by all of them in `seconds`, and who used the CPU."""
    agent, children, shims = _members(instance)
    groups = {"agent": [agent], "zygote": children, "shims": shims}
    everybody = [pid for pids in groups.values() for pid in pids]
    bytes_before = written(everybody)
    before = {name: exact_cpu(pids) for name, pids in groups.items()}
    time.sleep(seconds)
    used = {name: exact_cpu(pids) - before[name] for name, pids in groups.items()}
    said = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in used.items())
    return sum(used.values()), written(everybody) - bytes_before, said
