"""A container's identity file: what it was made from, for every later turn, agent and release.

Writing it makes the container exist; what lacks it is a leftover of a crash. The format carries a version,
and unknown keys are kept out of the way of older readers: a reader takes what it knows. Values are those of
`state.desired`.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar, cast

from reconciler.engine.durable import replace_json
from reconciler.engine.layout import Layout
from reconciler.errors import NotFoundError, ReconcilerError
from reconciler.state.desired import Io, Limits, Port, RestartPolicy, Rotation, Settings

VERSION = 1
_T = TypeVar("_T")


class CorruptRecordError(ReconcilerError):
    """A record on disk can't be read; the container it describes counts as lost."""


@dataclass(frozen=True, slots=True)
class Record:
    """identity.json; `turn` is `Wish.turn` of the wish that it was made for.

    `networks` are the keys of its networks, in the order of its interfaces, and `address` is that in the first of them.
    `joins` is the full name of the container whose network it is in, of an ad-hoc one `adhoc/ID`.

    `ids` is the first of its range of ids (`engine.idrange`), 0 where it has the device's.

    `layers` are hex chain ids, bottom first, `image` and `manifest` digests, `created` wall seconds.
    """

    id: str
    app: str
    name: str
    fingerprint: str
    settings: Settings
    image: str
    manifest: str
    reference: str
    layers: tuple[str, ...]
    volumes: tuple[str, ...]
    address: str
    created: float
    attempt: int = 0
    restarts: int = 0
    turn: int = 0
    networks: tuple[str, ...] = ()
    joins: str = ""
    ids: int = 0

    @property
    def full_name(self) -> str:
        return f"{self.app}/{self.name}"

    def with_settings(self, settings: Settings) -> "Record":
        return replace(self, settings=settings)


def _known(kind: type[_T], value: dict[str, Any]) -> _T:
    names = {field.name for field in fields(cast(Any, kind))}
    return kind(**{key: item for key, item in value.items() if key in names})


def _limits(value: dict[str, Any]) -> Limits:
    io = value.get("io")
    pages = tuple((int(page), int(amount)) for page, amount in value.get("hugepages", ()))
    return _known(Limits, {**value, "io": _known(Io, io) if io is not None else None, "hugepages": pages})


def settings_from_json(value: dict[str, Any]) -> Settings:
    """The inverse of `asdict`, for settings that any release wrote."""
    return Settings(
        limits=_limits(value.get("limits", {})),
        restart=_known(RestartPolicy, value.get("restart", {})),
        stop_signal=str(value.get("stop_signal", "SIGTERM")),
        stop_grace=float(value.get("stop_grace", 10.0)),
        ports=tuple(_known(Port, port) for port in value.get("ports", ())),
        depends_on=tuple(value.get("depends_on", ())),
        labels=tuple((str(key), str(item)) for key, item in value.get("labels", ())),
        rotation=_known(Rotation, value.get("rotation", {})),
        annotations=tuple((str(key), str(item)) for key, item in value.get("annotations", ())),
        aliases=tuple((str(key), str(item)) for key, item in value.get("aliases", ())),
    )


def parse(data: bytes, where: str) -> Record:
    """Return the record, or raise CorruptRecordError naming `where`."""
    try:
        value = json.loads(data)
        return Record(
            id=value["id"],
            app=value["app"],
            name=value["name"],
            fingerprint=value["fingerprint"],
            settings=settings_from_json(value["settings"]),
            image=value["image"],
            manifest=value["manifest"],
            reference=value["reference"],
            layers=tuple(value["layers"]),
            volumes=tuple(value["volumes"]),
            address=value["address"],
            created=float(value["created"]),
            attempt=int(value["attempt"]),
            restarts=int(value["restarts"]),
            turn=int(value.get("turn", 0)),
            # A release that knew one network for each app wrote none
            networks=tuple(map(str, value.get("networks", [value["app"]] if value["address"] else []))),
            joins=str(value.get("joins", "")),
            ids=int(value.get("ids", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise CorruptRecordError(
            f"{where}: not a container record: {type(error).__name__}: {error}"
        ) from error


def write(layout: Layout, record: Record, *, durable: bool = False) -> None:
    """Write identity.json.

    Not synced, unless `durable`: a power cut ends the container anyway, and the next turn makes it again. One that
    keeps its files must not lose them by that. Its copy in the run directory is written first, so that where the two
    differ the copy is right.
    """
    value = {"version": VERSION, **asdict(record)}
    replace_json(layout.identity_copy(record.id), value, durable=False)
    replace_json(layout.identity(record.id), value, durable=durable)


def read_checked(layout: Layout, container_id: str) -> Record:
    """The record; CorruptRecordError also where it is not what its copy says: a flipped bit may still be a record."""
    path = layout.identity(container_id)
    data = path.read_bytes()
    found = parse(data, str(path))
    try:
        copy = layout.identity_copy(container_id).read_bytes()
    except FileNotFoundError:  # a release that wrote none, or the boot before this one
        return found
    if data != copy:
        raise CorruptRecordError(f"{path}: not what was written")
    return found


def records(layout: Layout) -> Iterator[Record]:
    """Every container with a readable record, by id; reads each file.

    OSError where a file is there and can't be read (EIO, EMFILE): such a container must not be taken for a leftover.
    """
    try:
        ids = sorted(os.listdir(layout.containers))
    except FileNotFoundError:
        return
    for container_id in ids:
        try:
            yield parse(layout.identity(container_id).read_bytes(), f"container {container_id[:12]}")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, CorruptRecordError):
            continue


def find(layout: Layout, app: str, name: str) -> Record:
    """The newest container of that name, or NotFoundError."""
    matching = [found for found in records(layout) if (found.app, found.name) == (app, name)]
    if not matching:
        raise NotFoundError(f"container {app}/{name}: not found", hint="run: reconciler ps -a")
    return max(matching, key=lambda found: found.created)
