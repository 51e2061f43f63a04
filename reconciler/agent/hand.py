"""What people ask for by hand, as a part of what is desired: ad-hoc containers, and wishes about declared ones.

Read afresh in every turn, like a source; a record that is the same file as before is not parsed again. What can't be
read is held, with the reason, and never taken away.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from pathlib import Path

from reconciler.config import Device
from reconciler.engine import byhand
from reconciler.engine.byhand import Adhoc, DamagedRecordError
from reconciler.engine.layout import Layout
from reconciler.engine.sight import ParsedFile
from reconciler.errors import ReconcilerError
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.commandline import load_text
from reconciler.spec.load import LoadedApp
from reconciler.spec.reference import Reference
from reconciler.state.desire import desire, references
from reconciler.state.desired import App, UnresolvedImage, lane_of
from reconciler.state.image import Image, Unresolved
from reconciler.state.wish import Wish

Resolve = Callable[[Reference], Image | Unresolved]


class Hand:
    """Reads the records of one state directory; keep one for as long as its caches are useful."""

    def __init__(self, layout: Layout, device: Device) -> None:
        self._layout = layout
        self._device = device
        self._byhand = byhand.ByHand(layout)
        self._records: dict[str, ParsedFile[tuple[Adhoc, LoadedApp] | str]] = {}
        self._wishes: dict[tuple[str, str], ParsedFile[Wish]] = {}
        self._apps: dict[str, tuple[Adhoc, Image | Unresolved, App]] = {}

    def stamp(self) -> object:
        """What changes with every change of what people ask for by hand."""
        adhoc = byhand.adhoc_names(self._layout)
        paths = [self._layout.adhoc(name) for name in sorted(adhoc or ())]
        paths += byhand.wished_names(self._layout).values()
        return adhoc is None, tuple([(str(path), _identity(path)) for path in paths])

    def adhoc(self, resolve: Resolve) -> tuple[dict[str, App], dict[str, str]]:
        """The ad-hoc containers as apps by lane, and why those are held that can't be read."""
        apps: dict[str, App] = {}
        held: dict[str, str] = {}
        names = sorted(byhand.adhoc_names(self._layout) or ())
        self._records = {
            name: self._records.get(name) or ParsedFile(self._layout.adhoc(name), self._load)
            for name in names
        }
        for name, file in self._records.items():
            try:
                found = file.read()
            except FileNotFoundError:
                continue  # it has just been removed
            except (DamagedRecordError, OSError) as error:
                found = str(error)
            if found is None:
                continue
            if isinstance(found, str):
                held[lane_of(ADHOC, name)] = found
            else:
                apps[lane_of(ADHOC, name)] = self._app(*found, resolve)
        for gone in self._apps.keys() - self._records.keys():
            del self._apps[gone]
        return apps, held

    def _load(self, path: str) -> tuple[Adhoc, LoadedApp] | str:
        record = byhand.parse_adhoc(Path(path))
        try:
            return record, load_text(record.spec, self._device.defaults)
        except ReconcilerError as error:  # a later release may refuse what an earlier one took
            return f"{path}: {error}"

    def _app(self, record: Adhoc, loaded: LoadedApp, resolve: Resolve) -> App:
        (reference,) = references(loaded)
        image = resolve(reference)
        known = self._apps.get(record.name)
        if known is not None and known[0] is record and (known[1] is image or known[1] == image):
            return known[2]
        app = adhoc_app(record, loaded, image, self._device)
        self._apps[record.name] = record, image, app
        return app

    def wishes(self) -> tuple[dict[tuple[str, str], Wish], dict[str, str]]:
        """What is wished of declared containers, and why apps are held of which that can't be read."""
        found: dict[tuple[str, str], Wish] = {}
        held: dict[str, str] = {}
        self._wishes = {
            names: self._wishes.get(names) or ParsedFile(path, lambda path: byhand.parse_wish(Path(path)))
            for names, path in byhand.wished_names(self._layout).items()
        }
        for names, file in self._wishes.items():
            try:
                wish = file.read()
            except FileNotFoundError:
                continue  # it has just been let go
            except (DamagedRecordError, OSError) as error:
                held[names[0]] = str(error)
            else:
                if wish is not None:
                    found[names] = wish
        return found, held

    def forget(self, apps: Mapping[str, App], removed: Set[str]) -> None:
        """Forget wishes about containers that are gone for good reason: with their app, or from one that was read."""
        for app, container in byhand.wished_names(self._layout):
            value = apps.get(app)
            declared = value is not None and not value.stale
            if value is not None and declared:
                names = {*value.containers, *(item.container for item in value.unresolved)}
                declared = container not in names
            if declared or app in removed:
                self._byhand.drop(app, container)


def _identity(path: Path) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0, 0
    return status.st_ino, status.st_mtime_ns, status.st_size


def adhoc_app(record: Adhoc, loaded: LoadedApp, image: Image | Unresolved, device: Device) -> App:
    """The app of one ad-hoc container: what its spec comes to, under its own name and id."""
    (reference,) = references(loaded)
    app = desire(loaded, {str(reference): image}, defaults=device.defaults)
    made = [
        replace(
            want,
            app=ADHOC,
            name=record.name,
            mark="",
            wish=record.wish,
            id=record.id,
            identity=replace(want.identity, tty=record.tty, stdin=record.stdin),
        )
        for want in app.containers.values()
    ]
    return replace(
        app,
        name=ADHOC,
        path="",
        digest=hashlib.sha256(f"{record.id}\0{record.spec}".encode("utf-8", "surrogateescape")).hexdigest(),
        containers={want.name: want for want in made},
        unresolved=tuple(
            UnresolvedImage(record.name, item.reference, item.unresolved) for item in app.unresolved
        ),
        only=record.name,
        replicas={},
    )


def with_wishes(apps: dict[str, App], wishes: Mapping[tuple[str, str], Wish]) -> dict[str, App]:
    """The same apps, with what is wished of their containers."""
    if not wishes:
        return apps
    result = dict(apps)
    for (name, container), wish in wishes.items():
        app = result.get(name)
        want = app.containers.get(container) if app is not None else None
        if app is not None and want is not None:
            result[name] = replace(app, containers={**app.containers, container: replace(want, wish=wish)})
    return result
