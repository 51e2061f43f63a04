"""Names that people give to images on this device: by `pull` of a tag, and by `tag`.

One file per name, replaced whole, so that two writers never undo each other. A name means an image only to whoever
types it: specs pin digests, and a digest is never looked up here. Names inside archives and bundles count for nothing
until a person has asked for them (CVE-2026-53489 and its kin took them for true).
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from reconciler.engine import trash
from reconciler.engine.durable import replace_json
from reconciler.engine.layout import Layout
from reconciler.engine.listing import Listing
from reconciler.errors import UsageError
from reconciler.failpoint import failpoint
from reconciler.spec.reference import Digest, InvalidReferenceError, Reference

_VERSION = 1
_LOCAL = "localhost"  # where names without a registry are, as with podman


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """`name` is `registry/repository:tag`; `digest` what its image was asked by, `created` wall seconds."""

    name: str
    digest: Digest
    created: float


def full_name(text: str) -> str:
    """Return the name that `text` spells, or raise UsageError: `web` is `localhost/web:latest`, `web:1` its tag 1."""
    host, slash, _ = text.partition("/")
    known = slash and ("." in host or ":" in host or host == _LOCAL)
    whole = text if known else f"{_LOCAL}/{text}"
    if ":" not in whole.rpartition("/")[2]:
        whole += ":latest"
    try:
        found = Reference.parse(whole)
    except InvalidReferenceError as error:
        raise UsageError(f"name {text!r}: {str(error).partition(': ')[2]}") from error
    if found.digest is not None:
        raise UsageError(f"name {text!r}: a name has no digest", hint="write REPOSITORY:TAG")
    return str(found)


def tags(layout: Layout) -> tuple[Tag, ...]:
    """Every name that was given, in order. One that can't be read any more is left out."""
    return tuple(sorted(Tags(layout).current()))


def read(path: Path) -> Tag | None:
    """The name in one file, or None where it is gone or damaged."""
    try:
        value = json.loads(path.read_bytes())
        return Tag(full_name(value["name"]), Digest.parse(value["digest"]), float(value["created"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    except (UsageError, InvalidReferenceError):
        return None


class Tags:
    """All names, read again only where a file has changed: the loop looks in every turn."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._listing = Listing(layout.tags)
        self._known: dict[str, tuple[tuple[int, int, int], Tag | None]] = {}

    def current(self) -> list[Tag]:
        """The names as they are now."""
        found = {}
        for name, status in self._listing.files().items():
            key = (status.st_ino, status.st_size, status.st_mtime_ns)
            known = self._known.get(name)
            found[name] = known if known is not None and known[0] == key else (key, self._read(name))
        self._known = found
        return [tag for _, tag in found.values() if tag is not None]

    def _read(self, name: str) -> Tag | None:
        tag = read(self._layout.tags / name)
        return tag if tag is not None and f"{_key(tag.name)}.json" == name else None


def find(layout: Layout, name: str) -> Tag | None:
    """What `name`, as `full_name` spells it, was given to."""
    tag = read(layout.tag(_key(name)))
    return tag if tag is not None and tag.name == name else None


def give(layout: Layout, name: str, digest: Digest) -> None:
    """Give `name` to an image, durably, whatever had it before."""
    layout.tags.mkdir(mode=0o700, exist_ok=True)
    value = {"version": _VERSION, "name": name, "digest": str(digest), "created": time.time()}
    replace_json(layout.tag(_key(name)), value)
    failpoint("tag.given")


def take(layout: Layout, name: str) -> None:
    """Take `name` away; succeeds if nobody has it."""
    trash.discard(layout.tag(_key(name)), layout.trash)
    failpoint("tag.taken")


def _key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()
