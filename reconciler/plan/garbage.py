"""What the store may lose: mark everything that something wants, the rest is garbage once it is old enough.

Roots are what should run, what exists, and the kept generations; all of them come from disk, so that a restarted agent
collects exactly what the one before it would have. Nothing here deletes. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reconciler.plan.steps import Garbage
from reconciler.state.desired import App, Desired
from reconciler.state.generation import AppliedApp, Generation
from reconciler.state.image import Image
from reconciler.state.observed import Container, Now, Store, StoredObject


@dataclass(frozen=True, slots=True)
class Retention:
    """How long unwanted objects stay: `min_age` in seconds, `high` and `low` percent of the disk, `min_free` bytes.

    While more than `high` percent is used, or less than `min_free` bytes are free, age protects nothing until no more
    than `low` percent is used. `keep_blobs` keeps the compressed layers of wanted images beside their unpacked form.
    """

    keep_generations: int = 3
    min_age: float = 3600.0
    keep_blobs: bool = False
    high: float = 85.0
    low: float = 75.0
    min_free: int = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Explained:
    """One object of the store, whether it stays, and why: a line of `gc --dry-run`.

    `until` is the wall time at which age alone will let it go, None where it stays for another reason or goes now.
    """

    object: StoredObject
    kept: bool
    reason: str
    until: float | None = None


Wanted = dict[tuple[str, str], str]


@dataclass(frozen=True, slots=True)
class Roots:
    """What is wanted whatever is there now: the reason by kind and name, of what should run and of the generations.

    `images` are those that should run, each with the reason for what it is made from.
    """

    desired: Wanted
    images: tuple[tuple[Image, str], ...]
    applied: Wanted


def explain(
    store: Store,
    desired: Desired,
    containers: Mapping[str, Sequence[Container]],
    generations: Sequence[Generation],
    retention: Retention,
    now: Now,
    known: Roots | None = None,
) -> tuple[Explained, ...]:
    """Return every object of the store with the reason why it stays or goes, longest unused first.

    `known` are the roots of the same values, where somebody has them.
    """
    if not store.objects:
        return ()
    wanted = _mark(store, desired, containers, known or roots(desired, generations, retention), retention)
    named = mark_named(store, retention)
    kept: list[Explained] = []
    old: list[Explained] = []
    young: list[StoredObject] = []
    spared: list[StoredObject] = []
    for item in store.objects:
        age = now.wall - item.last_used
        if (reason := _reason(wanted, (item.kind, item.name))) is not None:
            kept.append(Explained(item, True, reason))
        elif (item.kind, item.name) in named:
            spared.append(item)
        elif age >= retention.min_age:
            old.append(Explained(item, False, f"nothing wants it, unused for {_duration(age)}"))
        else:
            young.append(item)
    result = kept + old
    shortage = _shortage(store, retention)
    missing = _missing(store, retention) - sum(e.object.size for e in old) if shortage else 0
    # What only a person's name keeps goes last, and only for want of room: nothing that should run needs it.
    for item in (*sorted(young, key=_age_order), *sorted(spared, key=_age_order)):
        if missing > 0:
            missing -= item.size
            result.append(Explained(item, False, f"nothing wants it, {shortage}"))
        elif (name := named.get((item.kind, item.name))) is not None:
            result.append(Explained(item, True, name))
        else:
            until = item.last_used + retention.min_age
            left = _duration(until - now.wall)
            result.append(Explained(item, True, f"nothing wants it, kept for another {left}", until))
    return tuple(sorted(result, key=lambda e: _age_order(e.object)))


def garbage(explained: Iterable[Explained]) -> tuple[Garbage, ...]:
    """Return what may be deleted now, longest unused first; never anything that a root reaches."""
    return tuple(
        Garbage(e.object.kind, e.object.name, e.object.size, e.reason) for e in explained if not e.kept
    )


def next_expiry(explained: Iterable[Explained], now: Now) -> float | None:
    """Return the boottime at which age alone makes the next unwanted object garbage, or None."""
    waiting = [e.until - now.wall for e in explained if e.until is not None]
    return now.boottime + min(waiting) if waiting else None


def _age_order(item: StoredObject) -> tuple[float, str, str]:
    return item.last_used, item.kind, item.name


def _shortage(store: Store, retention: Retention) -> str:
    """Return why age protects nothing now, or an empty string."""
    if store.size <= 0:
        return ""
    used = 100.0 * (store.size - store.free) / store.size
    if used > retention.high:
        return f"{used:.0f} % of the disk is used, more than {retention.high:g} %"
    if store.free < retention.min_free:
        return f"{store.free} bytes are free, less than {retention.min_free}"
    return ""


def _missing(store: Store, retention: Retention) -> int:
    """Return how many bytes have to become free until the shortage is over."""
    low = int(store.size * (1.0 - retention.low / 100.0))
    return max(low, retention.min_free) - store.free


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


# --- mark ---------------------------------------------------------------------------------------------------------


def roots(desired: Desired, generations: Sequence[Generation], retention: Retention) -> Roots:
    """Return what is wanted whatever is there now: what should run, and the kept generations."""
    wanted: Wanted = {}
    images: dict[int, tuple[Image, str]] = {}  # by identity: a thousand apps may share one
    for name in sorted(desired.apps):
        for container_name in sorted(desired.apps[name].containers):
            container = desired.apps[name].containers[container_name]
            wanted.setdefault(("previous", container.full_name), f"the run before of {container.full_name}")
            if id(container.image) not in images:
                images[id(container.image)] = container.image, f"{container.full_name} should run it"
                _mark_image(wanted, *images[id(container.image)])
        _mark_unresolved(wanted, desired.apps[name])
    applied: Wanted = {}
    for generation, app in _kept(desired, generations, retention.keep_generations):
        _mark_applied(applied, app, f"generation {generation.number} needs it for {app.name}")
    return Roots(wanted, tuple(images.values()), applied)


def mark_named(store: Store, retention: Retention) -> Wanted:
    """Return what the names that people gave keep, by kind and name, with the first such name as the reason."""
    wanted: Wanted = {}
    for name, image in sorted(store.tagged, key=lambda tagged: tagged[0]):
        reason = f"it was named {name} by hand"
        _mark_image(wanted, image, reason)
        _mark_blobs(wanted, image, store, retention, reason)
    return wanted


def mark(
    store: Store,
    desired: Desired,
    containers: Mapping[str, Sequence[Container]],
    generations: Sequence[Generation],
    retention: Retention,
) -> Wanted:
    """Return what the roots reach, by kind and name, with the first reason found."""
    merged: Wanted = {}
    for part in _mark(store, desired, containers, roots(desired, generations, retention), retention):
        merged = {**part, **merged}
    return merged


def _mark(
    store: Store,
    desired: Desired,
    containers: Mapping[str, Sequence[Container]],
    known: Roots,
    retention: Retention,
) -> tuple[Wanted, Wanted, Wanted]:
    """Return each wanted object by kind and name: what should run, what exists, what the generations had."""
    wanted: Wanted = {}
    for image, reason in known.images:
        _mark_blobs(wanted, image, store, retention, reason)
    for same in containers.values():
        for found in same:
            reason = f"container {found.full_name} ({found.id[:12]}) uses it"
            for layer in found.layers:
                wanted.setdefault(("layer", layer), reason)
            wanted.setdefault(("blob", found.image), reason)
            wanted.setdefault(("image", found.image), reason)
            if _left_alone(desired, found.app):
                wanted.setdefault(("previous", found.full_name), f"the run before of {found.full_name}")
    return known.desired, wanted, known.applied


def _reason(wanted: tuple[Wanted, ...], key: tuple[str, str]) -> str | None:
    """Return the first reason found."""
    return next((reason for part in wanted if (reason := part.get(key)) is not None), None)


def _left_alone(desired: Desired, app: str) -> bool:
    return app in desired.held or (bool(desired.hold_all) and app not in desired.apps)


def _mark_image(wanted: Wanted, image: Image, reason: str) -> None:
    for digest in (image.index, image.manifest, image.config):
        wanted.setdefault(("image", str(digest)), reason)
        wanted.setdefault(("blob", str(digest)), reason)
    for layer in image.layers:
        wanted.setdefault(("layer", layer.chain_id.hex), reason)


def _mark_blobs(wanted: Wanted, image: Image, store: Store, retention: Retention, reason: str) -> None:
    """What is not unpacked yet is needed for that, or is the part of a download that need not be repeated."""
    for layer in image.layers:
        if retention.keep_blobs or layer.chain_id.hex not in store.layers:
            wanted.setdefault(("blob", str(layer.digest)), reason)


def _mark_unresolved(wanted: Wanted, app: App) -> None:
    """The documents found so far of an image that is being resolved; what else it needs is not known yet."""
    for item in app.unresolved:
        _, at, digest = item.reference.partition("@")
        reason = f"{app.name}/{item.container} should run it"
        wanted.setdefault(
            ("previous", f"{app.name}/{item.container}"), f"the run before of {app.name}/{item.container}"
        )
        if at:
            wanted.setdefault(("blob", digest), reason)
            wanted.setdefault(("image", digest), reason)


def _mark_applied(wanted: Wanted, app: AppliedApp, reason: str) -> None:
    for reference, manifest, config in app.images:
        for digest in (reference.partition("@")[2], manifest, config):
            if digest:
                wanted.setdefault(("image", digest), reason)
                wanted.setdefault(("blob", digest), reason)
    for layer in app.layers:
        wanted.setdefault(("layer", layer), reason)
    for blob in app.blobs:
        wanted.setdefault(("blob", blob), reason)


def _kept(
    desired: Desired, generations: Sequence[Generation], keep: int
) -> Iterable[tuple[Generation, AppliedApp]]:
    """The apps of the newest `keep` generations, and the newest one of each app whose present needs are not known."""
    newest_first = sorted(generations, key=lambda generation: -generation.number)
    seen: set[str] = set()
    for position, generation in enumerate(newest_first):
        for app in generation.apps:
            unknown = (
                _left_alone(desired, app.name)
                or (app.name in desired.apps and bool(desired.apps[app.name].unresolved))
            ) and app.name not in seen
            seen.add(app.name)
            if position < keep or unknown:
                yield generation, app
