"""Cold pull: a Debian base image from a registry on this machine into a store that does not have it.

Downloaded, verified, unpacked and made durable, each as the program's users get it. GNU tar on the layer's own file is
a yardstick: no network, no digest, nothing durable.
"""

import json
from pathlib import Path

from bench.measure import Figure, Round, Sample, cpus, interleave, timed, walls
from bench.report import Row
from bench.session import Session
from bench.subject import PROGRAM
from tests.images import Built, debian_base

_OURS = "ours"


def run(session: Session) -> list[Row]:
    peers = session.peers
    image = debian_base()
    pinned = session.registry.push(image, "debian")
    tagged = pinned.partition("@")[0]
    packed = _layer(image)
    contestants: dict[str, Round] = {_OURS: lambda: _ours(session, pinned)}
    if peers.podman is not None:
        podman = peers.podman
        contestants[podman.label] = lambda: podman.cold_pull(tagged)
    if peers.docker is not None:
        docker = peers.docker
        contestants[docker.label] = lambda: docker.cold_pull(tagged)
    if peers.containerd is not None:
        containerd = peers.containerd
        contestants[containerd.label] = lambda: containerd.cold_pull(tagged)
    rivals = [name for name in contestants if name != _OURS]
    contestants["GNU tar"] = lambda: _tar(session, packed)
    samples = interleave(session.rounds(5), contestants)
    megabytes = packed.stat().st_size / 1e6
    what = f"cold pull, Debian base ({megabytes:.0f} MB packed)"

    def row(name: str, told: str, figures: dict[str, Figure]) -> Row:
        return Row(
            name,
            f"{what}, {told}",
            "s",
            figures[_OURS],
            {rival: figures[rival] for rival in rivals},
            {"GNU tar": figures["GNU tar"]},
        )

    return [
        row("pull/wall", "wall", {name: walls(found) for name, found in samples.items()}),
        row("pull/cpu", "CPU", {name: cpus(found) for name, found in samples.items()}),
    ]


def _ours(session: Session, reference: str) -> Sample:
    root = session.place.disk / "pull"
    root.mkdir()
    device = root / "device.yaml"
    host = reference.partition("/")[0]
    device.write_text(
        f"apiVersion: reconciler/v1\nkind: Device\nname: pull\nregistries: {{insecure: {json.dumps([host])}}}\n"
    )
    run_directory = session.place.root / "pull-run"
    places = ["--state", str(root / "state"), "--run", str(run_directory), "--device", str(device)]
    try:
        return timed([*PROGRAM, "pull", reference, *places])
    finally:
        session.place.clear(root)
        session.place.clear(run_directory)


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


def _layer(image: Built) -> Path:
    """The file of the image's one layer."""
    manifest: dict[str, list[dict[str, str]]] = json.loads(
        (image.layout / "blobs" / "sha256" / image.digest.hex).read_bytes()
    )
    (layer,) = manifest["layers"]
    return image.layout / "blobs" / "sha256" / layer["digest"].partition(":")[2]
