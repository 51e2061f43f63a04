"""From a source to what is desired: read, parse, fall back on the last good, guard against shrinking, resolve images.

Reading never deletes: whatever can't be read, parsed or resolved keeps what it stands for as it is. Resolving an image
may take a network round trip, so it happens on threads of its own and an app waits for its own images only.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from reconciler.agent.history import LastGood, forget_last_good, read_last_good, write_last_good
from reconciler.config import Device
from reconciler.engine.layout import Layout
from reconciler.engine.pull import Images
from reconciler.engine.store import Store
from reconciler.errors import ReconcilerError
from reconciler.source.snapshot import Snapshot
from reconciler.spec.load import Loaded, LoadedApp, load
from reconciler.spec.marks import Problem
from reconciler.spec.reference import Digest, Reference
from reconciler.state.desire import desire, references
from reconciler.state.desired import App, Desired
from reconciler.state.image import Image, Unresolved
from reconciler.state.shrink import shrink_reason

_RETRY_FIRST = 2.0
_RETRY_LAST = 300.0


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


@dataclass
class _Attempt:
    """An image that is not resolved yet: when it may be tried again (monotonic), and why it failed last."""

    running: bool = False
    failures: int = 0
    retry_at: float = 0.0
    error: Unresolved = field(default_factory=lambda: Unresolved("looking it up"))


class Resolver:
    """Digest -> image, for ever once known.

    Each registry has threads of its own, so that one that hangs holds up only what comes from it; and what one registry
    says of a digest is not held against the same digest elsewhere. `background` false looks up at once, in the
    caller's thread; without `images` nothing is looked up at all. With `keep` what was found is stored.
    """

    def __init__(
        self,
        images: Images | None,
        store: Store,
        wake: Callable[[], None],
        *,
        background: bool = True,
        keep: bool = True,
    ) -> None:
        self._images = images
        self._store = store
        self._wake = wake
        self._keep = keep
        self._known: dict[Digest, Image] = {}
        self._attempts: dict[Reference, _Attempt] = {}
        self._asked: set[Reference] = set()
        self._lock = threading.Lock()
        self._background = background
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self.pending = 0  # how many images were asked for, since `begin`, that are on their way

    def begin(self) -> None:
        """A new reading begins: what it does not ask for need not be tried again."""
        with self._lock:
            for reference in [*self._attempts]:
                if reference not in self._asked and not self._attempts[reference].running:
                    del self._attempts[reference]
            self._asked = set()
            self.pending = 0

    def resolve(self, reference: Reference) -> Image | Unresolved:
        """The image, or why it is not known (yet)."""
        digest = reference.digest
        if digest is None:
            return Unresolved(f"{reference}: not pinned by digest", transient=False)
        image = self._known.get(digest) or self._store.resolved(digest)
        if image is not None:
            self._known[digest] = image
            return image
        if self._images is None:
            return Unresolved(f"{reference}: not on this device")
        with self._lock:
            self._asked.add(reference)
            attempt = self._attempts.setdefault(reference, _Attempt())
            if not attempt.running and time.monotonic() < attempt.retry_at:
                return attempt.error
            self.pending += 1
            if attempt.running:
                return attempt.error
            attempt.running = True
        if not self._background:
            self._look_up(self._images, reference, digest, attempt)
            return self._known.get(digest) or attempt.error
        pool = self._pools.get(reference.registry)
        if pool is None:
            pool = self._pools[reference.registry] = ThreadPoolExecutor(2, thread_name_prefix="resolve")
        pool.submit(self._look_up, self._images, reference, digest, attempt)
        return attempt.error

    @property
    def retry_at(self) -> float | None:
        """When the next look-up is due (monotonic), if one has failed of those that were asked for last."""
        with self._lock:
            times = [
                attempt.retry_at
                for reference, attempt in self._attempts.items()
                if reference in self._asked and not attempt.running
            ]
        return min(times, default=None)

    def retries(self) -> dict[Reference, float]:
        """Seconds until the next look-up of each image whose last one failed."""
        now = time.monotonic()
        with self._lock:
            return {
                reference: max(0.0, attempt.retry_at - now)
                for reference, attempt in self._attempts.items()
                if attempt.failures and not attempt.running
            }

    def forget_failures(self) -> None:
        """Try everything again now: somebody asked for it."""
        with self._lock:
            for attempt in self._attempts.values():
                attempt.retry_at = 0.0

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _look_up(self, images: Images, reference: Reference, digest: Digest, attempt: _Attempt) -> None:
        error: Unresolved | None = None
        try:
            if self._keep:
                self._known[digest] = images.resolve(reference)
            else:
                self._known[digest] = images.resolve_without_storing(reference)
        except ReconcilerError as failure:
            hint = f" ({failure.hint})" if failure.hint else ""
            error = Unresolved(f"{failure}{hint}", failure.transient)
        except OSError as failure:
            error = Unresolved(f"{reference}: {failure}", transient=True)
        with self._lock:
            attempt.running = False
            if error is None:
                self._attempts.pop(reference, None)
            else:
                attempt.error = error
                delay = min(_RETRY_LAST, _RETRY_FIRST * 2**attempt.failures)
                attempt.failures += 1
                attempt.retry_at = time.monotonic() + delay
        self._wake()


class Reader:
    """Reads a source again and again; keeps what need not be parsed or resolved again."""

    def __init__(
        self, layout: Layout, device: Device, source: Source, resolver: Resolver, *, keep: bool = True
    ) -> None:
        self._layout = layout
        self._device = device
        self._source = source
        self._resolver = resolver
        self._keep = keep
        self._cache: dict[object, object] = {}
        self._good: dict[str, LastGood] | None = None
        self._good_loaded: dict[str, LoadedApp] = {}
        self._unkept: set[str] = set()
        self._apps: dict[tuple[str, str], tuple[LoadedApp, tuple[Image | Unresolved, ...], str, App]] = {}

    def read(self, *, allow_empty: bool = False) -> Intent:
        """Read the source and return what is desired now.

        With `allow_empty` the shrink guard lets everything through that could be read.
        """
        snapshot = self._source.snapshot()
        unkept = ""
        self._resolver.begin()
        loaded = self._load(snapshot.files, snapshot.read_config)
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
            unkept = self._remember(snapshot, fit, removed=good.keys() - apps.keys() - stale.keys())
        self._forget_others(loaded.apps)
        desired = Desired(
            apps=values,
            held={app: reason for app, reason in stale.items() if app not in apps},
            hold_all=self._hold_all(snapshot, loaded, allow_empty),
        )
        return Intent(
            revision=snapshot.revision,
            desired=desired,
            problems=loaded.problems,
            apps=apps,
            source_problem=snapshot.problem,
            source_stale=snapshot.stale,
            guard=guard,
            stale=stale,
            resolving=self._resolver.pending > 0,
            unkept=unkept,
        )

    def remembered(self) -> Intent:
        """What is desired by the last good specs alone, without a look at the source."""
        apps: dict[str, LoadedApp] = {}
        for name, kept in self._last_good().items():
            app = self._reload(kept)
            if app is not None:
                apps[name] = app
        desired = Desired(apps={name: self._desire(apps[name], "") for name in sorted(apps)})
        return Intent(revision="", desired=desired, problems=(), apps=apps)

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
        return shrink_reason(
            known=frozenset(good),
            desired=frozenset(apps) | frozenset(stale),
            max_removed=settings.max_removed,
            min_apps=settings.min_apps,
            emptied=not snapshot.files,
            allow=allow_empty,
        )

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

        loaded = self._load({kept.path: kept.content}, read_config, cache=False)
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
            configs = tuple(
                (config.file, app.config_files[config_name])
                for config_name, config in sorted(app.app.configs.items())
                if config.file is not None
            )
            good[name] = LastGood(name, app.path, app.digest, content, configs)
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
        self, files: Mapping[str, object], read_config: Callable[[str], bytes], *, cache: bool = True
    ) -> Loaded:
        return load(
            files,  # type: ignore[arg-type]
            read_config,
            terms=self._device.terms,
            defaults=self._device.defaults,
            cache=self._cache if cache else None,
        )

    def _desire(self, app: LoadedApp, stale: str) -> App:
        images = {str(reference): self._resolver.resolve(reference) for reference in references(app)}
        resolved = tuple(images.values())
        key = (app.app.name, app.digest)
        cached = self._apps.get(key)
        if cached is not None and cached[0] is app and cached[2] == stale and _same(cached[1], resolved):
            return cached[3]
        value = desire(app, images, defaults=self._device.defaults, stale=stale)
        self._apps[key] = (app, resolved, stale, value)
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
