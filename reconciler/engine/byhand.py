"""What people ask for by hand, on disk: ad-hoc containers, and what is wished of declared ones.

An ad-hoc container exists by its record, which holds its spec and the wish that goes with it; without one it goes.
Records are durable before anything is done for them, and change under one lock, because a lane may let go of a record
while somebody asks for something else. A file that can't be read holds its container as it is; it is never taken for a
missing one.
"""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from reconciler.engine.durable import replace_json, sync_directory
from reconciler.engine.layout import Layout
from reconciler.engine.record import records
from reconciler.errors import BlockedError, NotFoundError, ReconcilerError
from reconciler.failpoint import failpoint
from reconciler.spec.adhoc import ADHOC
from reconciler.state.wish import Goal, Wish

# How a file shows that it is none of ours any more: JSON of another shape, nested too deep, a number like 1e999.
_DAMAGED: Final = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
_SUFFIX: Final = ".json"


class DamagedRecordError(ReconcilerError):
    """A record is there and can't be read; what it is about is left alone."""


@dataclass(frozen=True, slots=True)
class Adhoc:
    """An ad-hoc container: `spec` is the text of a spec file with this one container, `created` wall seconds.

    `tty` and `stdin` are those of `state.desired.Identity`.
    """

    name: str
    id: str
    created: float
    spec: str
    wish: Wish
    tty: bool = False
    stdin: str = ""


def adhoc_names(layout: Layout) -> frozenset[str] | None:
    """The names that have a record, readable or not; None where there are such containers, but no place of records."""
    try:
        return frozenset(
            name.removesuffix(_SUFFIX) for name in os.listdir(layout.adhoc_root) if _is_record(name)
        )
    except FileNotFoundError:
        return None if any(found.app == ADHOC for found in records(layout)) else frozenset()
    except NotADirectoryError:
        return None


def parse_adhoc(path: Path) -> Adhoc:
    """The record in a file; DamagedRecordError where it is none, OSError where it can't be read."""
    try:
        value = json.loads(path.read_bytes())
        found = Adhoc(
            name=str(value["name"]),
            id=str(value["id"]),
            created=float(value["created"]),
            spec=str(value["spec"]),
            wish=_wish(value["wish"]),
            tty=value.get("tty", False) is True,
            stdin=str(value.get("stdin", "")),
        )
    except _DAMAGED as error:
        raise DamagedRecordError(
            f"{path}: not the record of an ad-hoc container", hint="to remove the container, delete the file"
        ) from error
    if f"{found.name}{_SUFFIX}" != path.name:
        raise DamagedRecordError(f"{path}: the record of {found.name}, under another name")
    return found


def parse_wish(path: Path) -> Wish:
    """The wish in a file; DamagedRecordError where it is none, OSError where it can't be read."""
    try:
        return _wish(json.loads(path.read_bytes())["wish"])
    except _DAMAGED as error:
        raise DamagedRecordError(f"{path}: not a wish", hint="delete the file to let go") from error


def _wish(value: dict[str, Any]) -> Wish:
    grace = value.get("grace")
    return Wish(
        goal=Goal(value["goal"]),
        turn=int(value["turn"]),
        force=bool(value.get("force", False)),
        grace=None if grace is None else float(grace),
        auto_remove=bool(value.get("auto_remove", False)),
        reason=str(value.get("reason", "")),
    )


def _wish_value(wish: Wish) -> dict[str, Any]:
    return {**asdict(wish), "goal": wish.goal.value}


def wished_names(layout: Layout) -> dict[tuple[str, str], Path]:
    """The files of wishes by (app, container)."""
    found: dict[tuple[str, str], Path] = {}
    for app in _names(layout.wishes_root):
        for name in _names(layout.wishes_root / app):
            if _is_record(name):
                container = name.removesuffix(_SUFFIX)
                found[app, container] = layout.wish(app, container)
    return found


class ByHand:
    """Changes what people ask for. Thread-safe; whoever has one holds the state lock."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._lock = threading.Lock()

    # --- ad-hoc containers -------------------------------------------------------------------------------------------

    def add(self, adhoc: Adhoc) -> None:
        """Make the record of a new ad-hoc container, or raise BlockedError where the name is taken."""
        with self._lock:
            self._make_place()
            if self._layout.adhoc(adhoc.name).exists():
                raise BlockedError(
                    f"the name {adhoc.name} is taken by another container",
                    hint=f"use another --name, or: reconciler rm {adhoc.name}",
                )
            self._write(adhoc)

    def change(self, name: str, change: Callable[[Adhoc], Adhoc]) -> Adhoc:
        """Replace the record by what `change` makes of it, and return that; NotFoundError where it is gone."""
        with self._lock:
            adhoc = change(self._read(name))
            self._write(adhoc)
        return adhoc

    def rename(self, old: str, new: str) -> str:
        """Have the record of `old` under the name `new`, and return its id; "" where it is under neither."""
        with self._lock:
            try:
                adhoc = self._read(old)
            except NotFoundError:  # done already
                adhoc = None
            if adhoc is not None:
                self._write(replace(adhoc, name=new))
                self._forget(old)
                return adhoc.id
            try:
                return self._read(new).id
            except NotFoundError:
                return ""

    def read(self, name: str) -> Adhoc:
        """The record, or NotFoundError, or DamagedRecordError."""
        with self._lock:
            return self._read(name)

    def forget(self, name: str) -> None:
        """Delete the record, durably: its container is not wanted any more. Succeeds if it is gone."""
        with self._lock:
            self._forget(name)

    def _make_place(self) -> None:
        if adhoc_names(self._layout) is None:
            orphans = sorted(found.name for found in records(self._layout) if found.app == ADHOC)
            raise ReconcilerError(
                f"{self._layout.adhoc_root}: gone, and with it the records of {', '.join(orphans)}",
                hint="bring it back; an empty directory in its place has these containers removed",
            )
        if not self._layout.adhoc_root.exists():
            self._layout.adhoc_root.mkdir(mode=0o700)
            sync_directory(self._layout.state)

    def _read(self, name: str) -> Adhoc:
        try:
            return parse_adhoc(self._layout.adhoc(name))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(f"container {name}: not found", hint="run: reconciler ps -a") from error

    def _write(self, adhoc: Adhoc) -> None:
        value = {
            "version": 1,
            "name": adhoc.name,
            "id": adhoc.id,
            "created": adhoc.created,
            "spec": adhoc.spec,
            "wish": _wish_value(adhoc.wish),
            **({"tty": True} if adhoc.tty else {}),
            **({"stdin": adhoc.stdin} if adhoc.stdin else {}),
        }
        replace_json(self._layout.adhoc(adhoc.name), value)
        failpoint("adhoc.written")

    def _forget(self, name: str) -> None:
        try:
            self._layout.adhoc(name).unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        sync_directory(self._layout.adhoc_root)
        failpoint("adhoc.forgotten")

    # --- declared containers -----------------------------------------------------------------------------------------

    def wish(self, app: str, container: str) -> Wish | None:
        """What is wished of a declared container, None for nothing."""
        try:
            return parse_wish(self._layout.wish(app, container))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, app: str, container: str, wish: Wish) -> None:
        """Wish something of a declared container, durably."""
        with self._lock:
            path = self._layout.wish(app, container)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_json(path, {"version": 1, "wish": _wish_value(wish)})
            sync_directory(self._layout.wishes_root)
            failpoint("wish.written")

    def drop(self, app: str, container: str) -> None:
        """Wish nothing of it any more; succeeds if nothing was."""
        with self._lock:
            path = self._layout.wish(app, container)
            path.unlink(missing_ok=True)
            failpoint("wish.forgotten")
            try:
                path.parent.rmdir()
            except OSError:
                pass  # others of the app are there, or it was never


def _is_record(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(".")


def _names(path: Path) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
