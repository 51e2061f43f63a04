"""Cold pulls from a registry on this machine into a store that has nothing of the image.

Downloaded, verified, unpacked and made durable, each as the program's users get it. GNU tar on the base's own layer is
a yardstick: no network, no digest, nothing durable.
"""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.images import QUICK, SUBJECTS, Subject, layer_files
from bench.measure import BenchError, Figure, Round, Sample, cpus, end, interleave, timed, until, walls
from bench.measure import run as run_verb
from bench.report import Row
from bench.session import Session
from bench.subject import PROGRAM
from reconciler.agent.client import running
from reconciler.engine.layout import Layout

_OURS = "ours"
_ALONE = "ours, without an agent"
_TAR = "GNU tar"


def run(session: Session) -> list[Row]:
    names = session.images or (QUICK if session.quick else [subject.name for subject in SUBJECTS])
    chosen = [subject for subject in SUBJECTS if subject.name in names]
    return [row for subject in chosen for row in _measured(session, subject)]


def _measured(session: Session, subject: Subject) -> list[Row]:
    session.say(f"       {subject.what} ...")
    image = subject.build()
    pinned = session.registry.push(image, subject.name)
    with _agent(session, pinned) as ours:
        contestants: dict[str, Round] = {_OURS: ours}
        notes = []
        for label, cold_pull in _peers(session).items():
            contestant = partial(cold_pull, pinned.partition("@")[0])
            try:
                contestant()  # not measured: some can't at all
            except BenchError as error:
                notes.append(f"{label} can't: {str(error).strip().splitlines()[-1][-160:]}")
            else:
                contestants[label] = contestant
        rivals = [name for name in contestants if name != _OURS]
        contestants[_ALONE] = partial(_alone, session, pinned)
        if subject.name == "base":
            (packed,) = layer_files(image)
            contestants[_TAR] = partial(_tar, session, packed)
        samples = interleave(session.rounds(5), contestants)

    def row(name: str, told: str, figures: Mapping[str, Figure]) -> Row:
        return Row(
            name,
            f"cold pull, {subject.described()}, {told}",
            "s",
            figures[_OURS],
            {rival: figures[rival] for rival in rivals},
            {name: figure for name, figure in figures.items() if name in (_ALONE, _TAR)},
            notes,
        )

    return [
        row(subject.wall, "wall", {name: walls(found) for name, found in samples.items()}),
        row(subject.cpu, "CPU", {name: cpus(found) for name, found in samples.items()}),
    ]


def _peers(session: Session) -> dict[str, Callable[[str], Sample]]:
    """How each peer that is here pulls, by its label."""
    peers = session.peers
    here = (peers.podman, peers.docker, peers.containerd)
    return {peer.label: peer.cold_pull for peer in here if peer is not None}


@contextmanager
def _store(session: Session, reference: str, name: str = "pull") -> Iterator[tuple[Layout, list[str]]]:
    """A state directory with nothing in it and the options that name it; it goes with all that is in it."""
    root = session.place.disk / name
    root.mkdir()
    device = root / "device.yaml"
    host = reference.partition("/")[0]
    device.write_text(
        f"apiVersion: reconciler/v1\nkind: Device\nname: pull\nregistries: {{insecure: {json.dumps([host])}}}\n"
    )
    layout = Layout(root / "state", session.place.root / f"{name}-run")
    try:
        yield layout, ["--state", str(layout.state), "--run", str(layout.run), "--device", str(device)]
    finally:
        session.place.clear(root)
        session.place.clear(layout.run)


@contextmanager
def _agent(session: Session, reference: str) -> Iterator[Round]:
    """How ours pulls with an agent on a device without specs: docker and ctr have their daemons running, too."""
    with _store(session, reference) as (layout, places):
        specs = layout.state.parent / "specs"
        specs.mkdir()
        with (session.place.root / "pull.log").open("wb") as log:
            agent = subprocess.Popen(
                [*PROGRAM, "agent", str(specs), *places], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

        def cold_pull() -> Sample:
            sample = timed([*PROGRAM, "pull", reference, *places], daemon=agent.pid)
            run_verb([*PROGRAM, "rmi", reference, *places])
            until(lambda: not _left(layout), timeout=60, message="an image that was removed")
            session.place.settle()
            return sample

        try:
            until(lambda: running(layout), timeout=30, message="the agent")
            cold_pull()  # not measured, as with the others
            yield cold_pull
        finally:
            end(agent)


def _left(layout: Layout) -> list[Path]:
    return [path for directory in (layout.layers, layout.trash) for path in directory.iterdir()]


def _alone(session: Session, reference: str) -> Sample:
    """Without one, as podman works."""
    with _store(session, reference, "alone") as (_, places):
        return timed([*PROGRAM, "pull", reference, *places])


def _tar(session: Session, packed: Path) -> Sample:
    target = session.place.disk / "tar"
    target.mkdir()
    try:
        return timed(
            [
                "tar",
                "--extract",
                "--gzip",
                "--numeric-owner",
                "--file",
                str(packed),
                "--directory",
                str(target),
            ]
        )
    finally:
        session.place.clear(target)
