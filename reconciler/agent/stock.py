"""Images and volumes by hand: what is here, what it is called, who needs it, and taking away what nobody needs.

Called by the running agent for its clients, and by verbs where no agent runs. Decisions are `plan.prune`'s and are made
twice: once for a person to look at, and once more under the store's locks, when what was looked at is taken away.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from reconciler.agent import reading
from reconciler.agent.history import read_generations
from reconciler.agent.parts import Parts, retention
from reconciler.config import Device
from reconciler.engine import tags, volumes
from reconciler.engine.byhand import parse_adhoc
from reconciler.engine.layout import Layout
from reconciler.engine.record import Record, records
from reconciler.engine.store import Store
from reconciler.errors import BlockedError, NotFoundError, ReconcilerError, UsageError
from reconciler.plan import garbage, prune
from reconciler.plan.byhand import rests
from reconciler.plan.prune import Going
from reconciler.spec.adhoc import ADHOC
from reconciler.spec.reference import Digest
from reconciler.state import observed
from reconciler.state.desired import Desired
from reconciler.state.generation import Generation
from reconciler.state.image import Image

_SHORTEST = 2  # digits of an id that people may leave it at


@dataclass(frozen=True)
class Stock:
    """What is kept in one state directory, and who needs it; each part is read once, when it is first asked for.

    `sizes` False leaves out what volumes take, which is found by walking them: not for whoever holds a lock. Ad-hoc
    containers whose names are in `leaving` count as gone.
    """

    layout: Layout
    device: Device
    store: Store
    sizes: bool = True
    leaving: frozenset[str] = frozenset()

    @cached_property
    def desired(self) -> Desired:
        """What should run by the last good specs, and by hand."""
        desired = reading.remembered(self.layout, self.device)
        stay = {lane: app for lane, app in desired.apps.items() if app.only not in self.leaving}
        return replace(desired, apps=stay) if self.leaving else desired

    @cached_property
    def observed(self) -> observed.Observed:
        found = reading.observe(self.layout)
        gone = {f"{ADHOC}/{name}" for name in self.leaving}
        if not gone:
            return found
        return replace(found, containers={k: v for k, v in found.containers.items() if k not in gone})

    @cached_property
    def stopped(self) -> Sequence[prune.Stopped]:
        """The ad-hoc containers that do not run and are not to."""
        return list(stopped_containers(self))

    @cached_property
    def generations(self) -> Sequence[Generation]:
        newest_first = sorted(read_generations(self.layout), key=lambda generation: -generation.number)
        return newest_first[: self.device.gc.keep_generations]

    @cached_property
    def records(self) -> Sequence[Record]:
        return [
            record
            for record in records(self.layout)
            if record.app != ADHOC or record.name not in self.leaving
        ]

    @cached_property
    def images(self) -> Sequence[Image]:
        """The images that are here, each once: an index and its manifest may both be known."""
        found: dict[Digest, Image] = {}
        for image in self.store.images():
            if image.manifest not in found or image.index != image.manifest:
                found[image.manifest] = image
        return list(found.values())

    @cached_property
    def names(self) -> Mapping[str, Sequence[str]]:
        return image_names(self.layout, self.store)

    @cached_property
    def wanted(self) -> garbage.Wanted:
        """What the roots reach, with the reason."""
        return garbage.mark(
            self.observed.store,
            self.desired,
            self.observed.containers,
            read_generations(self.layout),
            retention(self.device),
        )

    @cached_property
    def named(self) -> garbage.Wanted:
        return garbage.mark_named(self.observed.store, retention(self.device))

    @cached_property
    def volumes(self) -> Sequence[prune.Volume]:
        """All volumes."""
        users = volume_users(self.records)
        return [
            prune.Volume(
                volume.app,
                volume.name,
                volumes.size(self.layout, volume.app, volume.name) if self.sizes else 0,
                volume.created,
                volume.labels,
                volume.anonymous,
                declares(self.desired, volume.app, volume.name),
                tuple(users.get(volume.full_name, ())),
            )
            for volume in volumes.volumes(self.layout)
        ]

    def find(self, text: str) -> Image:
        """The image that a name, a digest or the start of one means; NotFoundError or UsageError where none does."""
        found = [image for image in self.images if self._means(text, image)]
        if not found:
            found = [image for image in self.images if _starts(text, image)]
        if len(found) > 1:
            ids = ", ".join(sorted(image.manifest.short for image in found))
            raise UsageError(f"image {text}: ambiguous: {ids}", hint="use more digits, or the digest")
        if not found:
            raise NotFoundError(f"image {text}: not found", hint="run: reconciler images")
        return found[0]

    def _means(self, text: str, image: Image) -> bool:
        digests = {str(image.index), str(image.manifest), str(image.config)}
        name, at, digest = text.partition("@")
        if at:
            return digest in digests
        known = self.names.get(str(image.manifest), ())
        return text in digests or name in known or completed(name) in known

    def users(self, image: Image) -> list[dict[str, str]]:
        """Who needs the image: specs, containers, kept generations, and the names that people gave it."""
        found = [
            {"kind": "spec", "name": container.full_name}
            for app in self.desired.apps.values()
            for container in app.containers.values()
            if container.image.manifest == image.manifest
        ]
        found += [
            {"kind": "container", "name": record.full_name}
            for record in self.records
            if record.manifest == str(image.manifest)
        ]
        found += [
            {"kind": "generation", "name": str(generation.number)}
            for generation in self.generations
            if any(
                str(image.manifest) == manifest for app in generation.apps for _, manifest, _ in app.images
            )
        ]
        found += [
            {"kind": "tag", "name": tag.name}
            for tag in tags.tags(self.layout)
            if tag.digest in (image.index, image.manifest)
        ]
        return found

    def pin(self, name: str) -> tuple[str, str] | None:
        """The digest that a spec, or what runs, pins `name` to, and whose that is."""
        for app in self.desired.apps.values():
            pairs = [(c.reference, c.full_name) for c in app.containers.values()]
            pairs += [(u.reference, f"{app.name}/{u.container}") for u in app.unresolved]
            for reference, who in pairs:
                pinned, at, digest = reference.partition("@")
                if at and pinned == name:
                    return digest, who
        return None


def image_names(layout: Layout, store: Store) -> dict[str, list[str]]:
    """The names by which images were asked for, by manifest digest; the one used last is the last."""
    names: dict[str, list[str]] = {}

    def note(manifest: str, reference: str) -> None:
        name, known = reference.partition("@")[0], names.setdefault(manifest, [])
        if name in known:
            known.remove(name)
        known.append(name)

    for generation in read_generations(layout):
        for app in generation.apps:
            for reference, manifest, _ in app.images:
                note(manifest, reference)
    for record in records(layout):
        note(record.manifest, record.reference)
    for tag in tags.tags(layout):
        image = store.resolved(tag.digest)
        if image is not None:
            note(str(image.manifest), tag.name)
    return names


def stopped_containers(stock: Stock) -> Iterator[prune.Stopped]:
    """Each ad-hoc container that rests, but for one that waits to be started again, can't be told, or is waited for."""
    found, boot = stock.observed.containers, stock.observed.boot
    awaited = {
        want.joins
        for app in stock.desired.apps.values()
        for want in app.containers.values()
        if want.joins and not rests(want, found.get(want.full_name, ()), boot)
    }
    for lane, app in sorted(stock.desired.apps.items()):
        want = app.containers.get(app.only)
        have = found.get(lane, ())
        if want is None or any(_lives(one) for one in have) or not rests(want, have, boot):
            continue
        if f"{ADHOC}/{want.id}" in awaited:
            continue
        try:
            record = parse_adhoc(stock.layout.adhoc(app.only))
        except (OSError, ReconcilerError):
            continue
        size = volumes.tree_size(stock.layout.container(want.id)) if stock.sizes else 0
        yield prune.Stopped(app.only, size, record.created, _ended(have), want.settings.labels)


def _lives(container: observed.Container) -> bool:
    phase = container.phase
    return isinstance(phase, observed.Running) or (isinstance(phase, observed.Lost) and phase.alive)


def _ended(have: Sequence[observed.Container]) -> str:
    match have[-1].phase if have else None:
        case observed.Exited(record):
            return f"it ended with {record.code if record.code is not None else f'signal {record.signal}'}"
        case observed.Created():
            return "it was never started"
        case _:
            return "it does not run"


def volume_users(found: Iterable[Record]) -> dict[str, list[str]]:
    """The containers that mount each volume, by app/volume."""
    users: dict[str, list[str]] = {}
    for record in found:
        for name in record.volumes:
            users.setdefault(f"{record.app}/{name}", []).append(record.full_name)
    return users


def declares(desired: Desired, app: str, volume: str) -> bool:
    """Whether a spec declares the volume, or nobody can tell because its app can't be read now."""
    if app in desired.held or (desired.hold_all and app not in desired.apps):
        return True
    return app in desired.apps and volume in desired.apps[app].volumes


def completed(name: str) -> str:
    try:
        return tags.full_name(name)
    except UsageError:
        return name


def _starts(text: str, image: Image) -> bool:
    digits = text.removeprefix("sha256:")
    return len(digits) >= _SHORTEST and any(
        digest.hex.startswith(digits) for digest in (image.index, image.manifest, image.config)
    )


# --- names ---------------------------------------------------------------------------------------------------------


def tag(parts: Parts, source: str, target: str) -> str:
    """Give the image `source` the name `target` and return the whole name; refused where a spec pins it elsewhere."""
    stock = Stock(parts.layout, parts.device, parts.store)
    name = tags.full_name(target)
    with parts.store.adding(), parts.store.claims:
        image = stock.find(source)
        reason = pinned_elsewhere(stock, name, image)
        if reason:
            raise BlockedError(f"name {name}: {reason}", hint="choose another name")
        tags.give(parts.layout, name, image.index)
    return name


def pinned_elsewhere(stock: Stock, name: str, image: Image) -> str:
    """Why `name` can't be given to `image`: a spec pins it to another digest, and nothing by hand overrules a spec."""
    pin = stock.pin(name)
    if pin is None or pin[0] in (str(image.index), str(image.manifest)):
        return ""
    return f"the spec of {pin[1]} pins it to {pin[0]}"


def remove_image(parts: Parts, text: str, *, force: bool) -> dict[str, object]:
    """Take a name from an image, and with its last one the image; refused while something needs it.

    With `force` all its names go, and the image stays where it is needed. Raises BlockedError naming who needs it.
    """
    stock = Stock(parts.layout, parts.device, parts.store)
    with parts.store.exclusive(), parts.store.claims:
        image = stock.find(text)
        given = [t.name for t in tags.tags(parts.layout) if t.digest in (image.index, image.manifest)]
        by_name = next((name for name in (text, completed(text)) if name in given), "")
        rest = [name for name in given if name != by_name] if by_name else []
        if not by_name and len(given) > 1 and not force:
            raise BlockedError(
                f"image {text}: it has several names: {', '.join(given)}",
                hint="name the one to take away, or use -f for all",
            )
        needed = stock.wanted.get(("image", str(image.index)), "")
        if needed and not rest and not (force and given):
            raise BlockedError(
                f"image {text}: {needed}", hint="-f takes only its names away" if given else ""
            )
        untagged = [by_name] if by_name else given
        for name in untagged:
            tags.take(parts.layout, name)
        gone: tuple[prune.Key, ...] = ()
        if not needed and not rest:
            gone = prune.image_removal(image, stock.images, stock.observed.store, stock.wanted)
            for kind, name in gone:
                parts.engine.discard(kind, name)
        sizes = {(item.kind, item.name): item.size for item in stock.observed.store.objects}
    parts.store.empty_trash()
    return {
        "untagged": untagged,
        "deleted": [str(image.manifest)] if gone else [],
        "bytes": sum(sizes[key] for key in gone),
    }


# --- pruning -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What a person wants to prune: kinds of things, `everything` for -a, and which of them."""

    kinds: frozenset[str]
    everything: bool
    which: prune.Filter


def order_from(body: Mapping[str, object]) -> tuple[Order, frozenset[prune.Key]]:
    """What a client asks for, and what its person has agreed to; UsageError where that makes no sense."""
    try:
        objects = body["objects"]
        kinds = frozenset(str(kind) for kind in _list(body["kinds"]))
        until = body.get("until")
        which = prune.Filter(
            float(str(until)) if until is not None else None,
            tuple(_label(item) for item in _list(body.get("labels", []))),
            tuple(_label(item) for item in _list(body.get("without", []))),
        )
        agreed = frozenset((str(kind), str(name)) for kind, name in map(_list, _list(objects)))
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"prune: not a request: {error}") from error
    return Order(kinds, body.get("everything") is True, which), agreed


def order_document(order: Order, agreed: Iterable[prune.Key]) -> dict[str, object]:
    """The inverse of `order_from`."""
    return {
        "kinds": sorted(order.kinds),
        "everything": order.everything,
        "until": order.which.until,
        "labels": [list(label) for label in order.which.labels],
        "without": [list(label) for label in order.which.without],
        "objects": [list(key) for key in agreed],
    }


def removed(gone: Iterable[Going]) -> list[dict[str, object]]:
    """What a client is told of what went."""
    return [{"key": list(item.key), "kind": item.kind, "name": item.name, "size": item.size} for item in gone]


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _label(value: object) -> tuple[str, str | None]:
    key, wanted = _list(value)
    return str(key), None if wanted is None else str(wanted)


def decide(stock: Stock, order: Order, *, containers: bool = True) -> tuple[Going, ...]:
    """What would go, and why: containers first, and then also what only they have needed."""
    going: tuple[Going, ...] = ()
    if "container" in order.kinds and containers:
        going += prune.containers(stock.stopped, order.which)
        stock = replace(stock, leaving=frozenset(item.name for item in going)) if going else stock
    if "container" in order.kinds:
        going += prune.runs(stock.observed.store, stock.wanted, order.which)
    if "image" in order.kinds:
        going += prune.images(
            stock.observed.store,
            stock.images,
            stock.names,
            stock.wanted,
            stock.named,
            order.which,
            everything=order.everything,
        )
    if "volume" in order.kinds:
        going += prune.volumes(stock.volumes, stock.generations, order.which, everything=order.everything)
    return going


def carry_out(parts: Parts, order: Order, agreed: frozenset[prune.Key]) -> tuple[Going, ...]:
    """Take away what was `agreed` to, the `key` of each, and may still go now; return what went.

    Containers are the loop's: whoever asks has them removed by it before, and none of them is among what this returns.
    """
    with parts.store.exclusive(), parts.store.claims:
        stock = Stock(parts.layout, parts.device, parts.store, sizes=False)
        going = decide(stock, order, containers=False)
        gone = tuple(item for item in going if item.key in agreed)
        for item in gone:
            for name in item.names:
                tags.take(parts.layout, name)
            for kind, name in item.objects:
                parts.engine.discard(kind, name)
            if item.kind == "volume":
                app, _, name = item.name.partition("/")
                volumes.remove(parts.layout, app, name, users=())
    parts.store.empty_trash()
    return gone
