"""What a person may take away at once: images that nothing needs, runs that are over, volumes that nobody mounts.

The collector (`plan.garbage`) goes by age and by room; a person who prunes does not wait. The roots are the same, and
nothing that one of them reaches is ever among what goes: the same marks decide, looked at again under the store's lock
at the moment of removal. Names that people gave keep an image until `all` is said. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from reconciler.plan.garbage import Wanted
from reconciler.state.generation import Generation
from reconciler.state.image import Image
from reconciler.state.observed import Store, StoredObject

Key = tuple[str, str]
Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Going:
    """One thing that would go, as people know it: `kind` is container, image, volume, run or blob.

    `objects` are what it consists of in the store, `names` those that people gave it; `used` is wall seconds.
    """

    kind: str
    name: str
    size: int
    reason: str
    used: float = 0.0
    labels: Pairs = ()
    objects: tuple[Key, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What it is known by from one look to the next: an image may have lost the name that a container gave it."""
        return self.objects[0] if self.objects else (self.kind, self.name)


@dataclass(frozen=True, slots=True)
class Filter:
    """What `--filter` leaves: used last before `until` (wall seconds), with all of `labels` and none of `without`.

    A label is (key, value), or (key, None) for any value.
    """

    until: float | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    without: tuple[tuple[str, str | None], ...] = ()

    def lets(self, used: float, labels: Pairs) -> bool:
        """Say whether something that was used then, and has these labels, may go."""
        return (
            (self.until is None or used < self.until)
            and all(_has(labels, *wanted) for wanted in self.labels)
            and not any(_has(labels, *unwanted) for unwanted in self.without)
        )


def _has(labels: Pairs, key: str, value: str | None) -> bool:
    return any(key == k and value in (None, v) for k, v in labels)


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as a prune sees it: `anonymous` if nobody chose its name, `users` the containers that mount it."""

    app: str
    name: str
    size: int
    created: float
    labels: Pairs = ()
    anonymous: bool = False
    declared: bool = False
    users: tuple[str, ...] = ()


def objects_of(image: Image) -> tuple[Key, ...]:
    """Everything that a store may hold of an image."""
    documents = dict.fromkeys(str(digest) for digest in (image.index, image.manifest, image.config))
    keys: list[Key] = [(kind, digest) for digest in documents for kind in ("image", "blob")]
    for layer in image.layers:
        keys += [("layer", layer.chain_id.hex), ("blob", str(layer.digest))]
    return tuple(keys)


def image_removal(image: Image, others: Iterable[Image], store: Store, stay: Wanted) -> tuple[Key, ...]:
    """Return what goes when `image` is removed by hand: nothing that `stay` or another image here still needs."""
    kept = {key for other in others if other.manifest != image.manifest for key in objects_of(other)}
    there = {(item.kind, item.name) for item in store.objects}
    return tuple(key for key in objects_of(image) if key in there and key not in kept and key not in stay)


def images(
    store: Store,
    found: Sequence[Image],
    names: Mapping[str, Sequence[str]],
    wanted: Wanted,
    named: Wanted,
    which: Filter,
    *,
    everything: bool,
) -> tuple[Going, ...]:
    """Return the images that may go, longest unused first, and what the store holds beside all images.

    `names` are those that images go by, by manifest digest. Without `everything` a name given by hand keeps its image.
    """
    stay = {**(named if not everything else {}), **wanted}
    objects = {(item.kind, item.name): item for item in store.objects}
    going: list[tuple[float, Image]] = []
    kept: set[Key] = set()
    for image in found:
        used = _used(objects, image)
        if ("image", str(image.index)) in stay:
            # Its packed layers are not needed once they are unpacked: `stay` has those that are
            kept.update(key for key in objects_of(image) if key[0] != "blob" or key in stay)
        elif which.lets(used, image.labels):
            going.append((used, image))
        else:
            kept.update(objects_of(image))
    result: list[Going] = []
    taken: set[Key] = set(kept)
    for used, image in sorted(going, key=lambda pair: (pair[0], str(pair[1].manifest))):
        keys = tuple(
            key for key in objects_of(image) if key in objects and key not in stay and key not in taken
        )
        taken.update(keys)
        own = tuple(sorted(name for name, what in store.tagged if what.manifest == image.manifest))
        known = names.get(str(image.manifest), ())
        reason = "nothing uses it" if own or known else "nothing uses it, and it has no name"
        size = sum(objects[key].size for key in keys)
        name = own[0] if own else known[-1] if known else str(image.manifest)
        result.append(Going("image", name, size, reason, used, image.labels, keys, own))
    packed = {str(layer.digest) for image in found for layer in image.layers}
    for (kind, name), item in sorted(objects.items()):
        loose = kind in ("layer", "blob", "image") and (kind, name) not in stay and (kind, name) not in taken
        if loose and which.lets(item.last_used, ()):
            reason = "it is unpacked" if name in packed else "no image here needs it"
            result.append(Going(kind, name, item.size, reason, item.last_used, (), ((kind, name),)))
    return tuple(result)


def _used(objects: Mapping[Key, StoredObject], image: Image) -> float:
    """When the image was last asked for; where its own record is gone, when anything of it was."""
    record = objects.get(("image", str(image.index)))
    if record is not None:
        return record.last_used
    return max((objects[key].last_used for key in objects_of(image) if key in objects), default=0.0)


@dataclass(frozen=True, slots=True)
class Stopped:
    """An ad-hoc container that came to its end, or was never started; `ended` says how, `created` is wall seconds."""

    name: str
    size: int
    created: float
    ended: str
    labels: Pairs = ()


def containers(found: Iterable[Stopped], which: Filter) -> tuple[Going, ...]:
    """Return the ad-hoc containers that may go, by age of their making, as Docker's `until` has it."""
    return tuple(
        Going("container", item.name, item.size, item.ended, item.created, item.labels)
        for item in found
        if which.lets(item.created, item.labels)
    )


def runs(store: Store, wanted: Wanted, which: Filter) -> tuple[Going, ...]:
    """Return what is kept of containers that ran before, and of which nobody wants another run."""
    return tuple(
        Going(
            "run",
            item.name,
            item.size,
            "its container is gone",
            item.last_used,
            (),
            ((item.kind, item.name),),
        )
        for item in store.objects
        if item.kind == "previous" and (item.kind, item.name) not in wanted and which.lets(item.last_used, ())
    )


def volumes(
    found: Sequence[Volume], generations: Sequence[Generation], which: Filter, *, everything: bool
) -> tuple[Going, ...]:
    """Return the volumes that may go: mounted by no container, declared by no spec, of no app of a kept generation.

    Without `everything` only those that nobody gave a name.
    """
    back = {app.name for generation in generations for app in generation.apps}
    return tuple(
        Going(
            "volume",
            f"{volume.app}/{volume.name}",
            volume.size,
            "no container mounts it" + (", and nobody named it" if volume.anonymous else ""),
            volume.created,
            volume.labels,
        )
        for volume in found
        if not volume.users
        and not volume.declared
        and volume.app not in back
        and (everything or volume.anonymous)
        and which.lets(volume.created, volume.labels)
    )
