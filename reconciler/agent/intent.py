"""From a source to what is desired: read, parse, fall back on the last good, guard against shrinking, resolve images.

Reading never deletes: whatever can't be read, parsed or resolved keeps what it stands for as it is. What was made of
unchanged files and images is made once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from reconciler.agent.hand import Hand, with_wishes
from reconciler.agent.history import LastGood, forget_last_good, read_last_good, write_last_good
from reconciler.agent.resolver import Resolver
from reconciler.config import Device
from reconciler.engine import idmapping
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError
from reconciler.source.snapshot import Snapshot
from reconciler.spec.load import Loaded, LoadedApp, load
from reconciler.spec.marks import WARNING, Problem
from reconciler.spec.reference import Reference
from reconciler.state.desire import desire, references
from reconciler.state.desired import App, Desired
from reconciler.state.image import Image, Unresolved
from reconciler.state.shrink import shrink_reason


class Source(Protocol):
    """Where specs come from: a directory or a git branch."""

    def snapshot(self) -> Snapshot:
        """What is there now; a failure is a value in the snapshot, not an exception."""


@dataclass(frozen=True)
class Intent:
    """One reading of the source.

    `stale` maps apps that run an older spec to the reason; `resolving` says that images were being looked up;
    `guard` is why nothing shrinks; `unkept` is why what was read could not be kept as the last good.
    """

    revision: str
    desired: Desired
    problems: tuple[Problem, ...]
    apps: Mapping[str, LoadedApp]
    source_problem: str = ""
    source_stale: str = ""
    guard: str = ""
    stale: Mapping[str, str] = field(default_factory=dict)
    resolving: bool = False
    unkept: str = ""


@dataclass(frozen=True, slots=True)
class _Made:
    """What a loaded app came to with these images."""

    loaded: LoadedApp
    references: tuple[Reference, ...]
    images: tuple[Image | Unresolved, ...]
    value: App


class Reader:
    """Reads a source again and again; keeps what need not be parsed or resolved again."""

    def __init__(
        self, layout: Layout, device: Device, source: Source, resolver: Resolver, *, keep: bool = True
    ) -> None:
        self._layout = layout
        device = idmapping.possible(device, layout)
        self._device = device
        self._source = source
        self._resolver = resolver
        self._keep = keep
        self._hand = Hand(layout, device)
        self._by_hand_then: object = None
        self._cache: dict[object, object] = {}
        self._good: dict[str, LastGood] | None = None
        self._good_loaded: dict[str, LoadedApp] = {}
        self._unkept: set[str] = set()
        self._last: tuple[Snapshot, Loaded, bool, Intent] | None = None
        self._apps: dict[tuple[str, str], _Made] = {}

    def read(self, *, allow_empty: bool = False) -> Intent:
        """Read the source and return what is desired now: the very object of last time where nothing changed.

        With `allow_empty` the shrink guard lets everything through that could be read.
        """
        snapshot = self._source.snapshot()
        loaded = self._load(snapshot.files, snapshot.read_config)
        by_hand = self._hand.stamp()
        last = self._last if by_hand == self._by_hand_then else None
        if last is not None and self._is_same(last, snapshot, loaded, allow_empty):
            return last[3]
        self._resolver.begin()
        good = dict(self._last_good())
        intent = self._intent(snapshot, loaded, allow_empty)
        # What was just kept as the last good, or forgotten, may make the next reading another one
        settled = not intent.unkept and good == self._last_good()
        self._last = (snapshot, loaded, allow_empty, intent) if settled else None
        self._by_hand_then = by_hand
        return intent

    def _is_same(
        self,
        last: tuple[Snapshot, Loaded, bool, Intent],
        snapshot: Snapshot,
        loaded: Loaded,
        allow_empty: bool,
    ) -> bool:
        """Whether all that the last intent was made from is what it was."""
        before = last[0]
        return (
            loaded is last[1]
            and allow_empty == last[2]
            and snapshot.files is before.files
            and (snapshot.revision, snapshot.problem, snapshot.stale)
            == (before.revision, before.problem, before.stale)
            and self._resolver.answers_again()
        )

    def _intent(self, snapshot: Snapshot, loaded: Loaded, allow_empty: bool) -> Intent:
        unkept = ""
        good = self._last_good()
        stale: dict[str, str] = {}
        apps = dict(loaded.apps)
        for app, kept in good.items():
            if app in apps:
                continue
            if snapshot.problem:  # what can't be read was not removed, whatever was allowed
                stale[app] = snapshot.problem
            elif kept.path in loaded.failed:
                errors = [p for p in loaded.failed[kept.path] if p.severity == "error"]
                stale[app] = (
                    f"{errors[0].mark}: {errors[0].message}" if errors else f"{kept.path}: can't be read"
                )
        guard = "" if snapshot.problem else self._guard(good, apps, stale, snapshot, allow_empty)
        if guard:
            stale |= {app: guard for app in good if app not in apps and app not in stale}
        for app in stale:
            old = self._reload(good[app])
            if old is not None:
                apps[app] = old
        values = {name: self._desire(apps[name], stale.get(name, "")) for name in sorted(apps)}
        for name, value in values.items():
            if value.unresolved and name in good and good[name].digest != value.digest:
                values[name] = self._until_resolved(value, good[name], stale)
        if self._keep:
            fit = {
                name: app
                for name, app in loaded.apps.items()
                if not values[name].unresolved and name not in stale
            }
            removed = good.keys() - apps.keys() - stale.keys()
            # First: who is interrupted here finds the same app removed again
            self._hand.forget(values, removed)
            unkept = self._remember(snapshot, fit, removed=removed)
        self._forget_others(loaded.apps)
        by_hand, held = self._by_hand(values)
        desired = Desired(
            apps=by_hand,
            held=held | {app: reason for app, reason in stale.items() if app not in apps},
            hold_all=self._hold_all(snapshot, loaded, allow_empty),
        )
        return Intent(
            revision=snapshot.revision,
            desired=desired,
            problems=(*loaded.problems, *self._unsigned(apps)),
            apps=apps,
            source_problem=snapshot.problem,
            source_stale=snapshot.stale,
            guard=guard,
            stale=stale,
            resolving=self._resolver.pending > 0,
            unkept=unkept,
        )

    def _unsigned(self, apps: Mapping[str, LoadedApp]) -> Iterator[Problem]:
        """What is used although nobody has signed it, at the place that names it."""
        for _, loaded in sorted(apps.items()) if self._device.trust else ():
            for name, container in loaded.app.containers.items():
                text = self._resolver.unsigned(container.image)
                if text:
                    mark = loaded.marks.mark("containers", name, "image")
                    yield Problem(mark, f"{text}; it is used all the same", severity=WARNING)

    def remembered(self) -> Intent:
        """What is desired by the last good specs alone, without a look at the source."""
        self._resolver.begin()
        apps: dict[str, LoadedApp] = {}
        for name, kept in self._last_good().items():
            app = self._reload(kept)
            if app is not None:
                apps[name] = app
        values = {name: self._desire(apps[name], "") for name in sorted(apps)}
        by_hand, held = self._by_hand(values)
        desired = Desired(apps=by_hand, held=held)
        return Intent(revision="", desired=desired, problems=(), apps=apps)

    def _by_hand(self, values: dict[str, App]) -> tuple[dict[str, App], dict[str, str]]:
        """Add what people want by hand; return the apps by lane, and what of it is held because it can't be read."""
        adhoc, unreadable = self._hand.adhoc(self._resolver.resolve)
        wishes, held = self._hand.wishes()
        return with_wishes(values, wishes) | adhoc, held | unreadable

    # --- last good -------------------------------------------------------------------------------------------------

    def _last_good(self) -> dict[str, LastGood]:
        if self._good is None:
            self._good = read_last_good(self._layout)
        return self._good

    def _guard(
        self,
        good: Mapping[str, LastGood],
        apps: Mapping[str, LoadedApp],
        stale: Mapping[str, str],
        snapshot: Snapshot,
        allow_empty: bool,
    ) -> str:
        settings = self._device.shrink_guard
        gone = good.keys() - apps - stale.keys()
        return shrink_reason(
            known=frozenset(good) - {name for name in gone if self._may_go(good[name])},
            desired=frozenset(apps) | frozenset(stale),
            max_removed=settings.max_removed,
            min_apps=settings.min_apps,
            emptied=not snapshot.files,
            allow=allow_empty,
        )

    def _may_go(self, kept: LastGood) -> bool:
        """Whether its last good spec says that the app may go at any time."""
        loaded = self._reload(kept)
        return loaded is not None and loaded.app.allow_empty

    def _hold_all(self, snapshot: Snapshot, loaded: Loaded, allow_empty: bool) -> str:
        """Why apps that nobody knows a spec of are left alone: they may be what can't be read now."""
        if snapshot.problem:
            return snapshot.problem
        if allow_empty:
            return ""
        known = {kept.path for kept in self._last_good().values()}
        unknown = sorted(path for path in loaded.failed if path not in known)
        return f"{unknown[0]}: can't be read, and may be theirs" if unknown else ""

    def _reload(self, kept: LastGood) -> LoadedApp | None:
        cached = self._good_loaded.get(kept.app)
        if cached is not None and cached.digest == kept.digest:
            return cached
        configs = dict(kept.configs)

        def read_config(path: str) -> bytes:
            try:
                return configs[path]
            except KeyError as error:
                raise FileNotFoundError(path) from error

        # Alone: what it depends on in other files was there when it was good, and may be what can't be read now.
        loaded = self._load({kept.path: kept.content}, read_config, alone=True)
        app = loaded.apps.get(kept.app)
        if app is not None:
            self._good_loaded[kept.app] = app
        return app

    def _remember(self, snapshot: Snapshot, apps: Mapping[str, LoadedApp], removed: set[str]) -> str:
        """Keep what could be read now as the last good; forget apps that are gone for good reason.

        Return why the disk refused, if it did: reading goes on from memory, and the next reading tries again.
        """
        good = self._last_good()
        refused = ""
        for name, app in apps.items():
            kept = good.get(name)
            same = kept is not None and kept.digest == app.digest and kept.path == app.path
            if same and name not in self._unkept:
                continue
            content = snapshot.files[app.path]
            if not isinstance(content, bytes):
                continue
            good[name] = LastGood(name, app.path, app.digest, content, app.named)
            self._unkept.add(name)
            try:
                write_last_good(self._layout, good[name])
            except (OSError, ReconcilerError) as error:
                refused = f"last good spec of {name}: {error}"
            else:
                self._unkept.discard(name)
        for name in sorted(removed):
            del good[name]
            self._good_loaded.pop(name, None)
            self._unkept.discard(name)
            try:
                forget_last_good(self._layout, name)
            except (OSError, ReconcilerError) as error:
                refused = f"last good spec of {name}: {error}"  # the next agent finds it, and forgets it
        return refused

    # --- parsing and resolving -------------------------------------------------------------------------------------

    def _load(
        self, files: Mapping[str, object], read_config: Callable[[str], bytes], *, alone: bool = False
    ) -> Loaded:
        return load(
            files,  # type: ignore[arg-type]
            read_config,
            terms=self._device.terms,
            defaults=self._device.defaults,
            cache=None if alone else self._cache,
            alone=alone,
        )

    def _desire(self, app: LoadedApp, stale: str) -> App:
        key = (app.app.name, app.digest)
        made = self._apps.get(key)
        wanted = made.references if made is not None and made.loaded is app else references(app)
        resolved = tuple([self._resolver.resolve(reference) for reference in wanted])
        if (
            made is not None
            and made.loaded is app
            and made.value.stale == stale
            and _same(made.images, resolved)
        ):
            return made.value
        images = {str(reference): image for reference, image in zip(wanted, resolved, strict=True)}
        value = desire(app, images, defaults=self._device.defaults, stale=stale)
        self._apps[key] = _Made(app, wanted, resolved, value)
        return value

    def _until_resolved(self, value: App, kept: LastGood, stale: dict[str, str]) -> App:
        """The version that ran before, for as long as an image of the new one is not known:

        it must not die meanwhile.
        """
        old = self._reload(kept)
        if old is None:
            return value
        waiting = value.unresolved[0]
        reason = f"{value.name}/{waiting.container}: {waiting.unresolved.reason}"
        before = self._desire(old, reason)
        if before.unresolved:
            return value
        stale[value.name] = reason
        return before

    def _forget_others(self, loaded: Mapping[str, LoadedApp]) -> None:
        """Let go of versions that nobody will ask for again: neither what was read now nor the last good."""
        good = self._last_good()
        wanted = {(name, app.digest) for name, app in loaded.items()}
        wanted |= {(name, kept.digest) for name, kept in good.items()}
        for key in self._apps.keys() - wanted:
            del self._apps[key]


def _same(left: tuple[object, ...], right: tuple[object, ...]) -> bool:
    return len(left) == len(right) and all(a is b or a == b for a, b in zip(left, right, strict=True))
