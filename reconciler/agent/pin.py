"""`pin`: the digests of images in spec files, written where a tag stands alone, and moved where the tag has moved.

All files and all registries are asked first, and nothing is written unless every answer is there; each file is then
replaced as a whole, with everything else in it as it was. What a tag means is believed to its registry, as by `digest`.
"""

import difflib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from reconciler.agent.specfiles import spec_files
from reconciler.engine.durable import sync_directory
from reconciler.errors import InvalidSpecError
from reconciler.spec.pins import File, Use, read, rewritten
from reconciler.spec.reference import Digest, InvalidReferenceError, Reference

Lookup = Callable[[Reference], Digest]


@dataclass(frozen=True, slots=True)
class Change:
    """One image that is to be pinned, or pinned otherwise: what stands there, and what is to."""

    path: Path
    use: Use
    after: str

    def document(self) -> dict[str, object]:
        """The same as plain values."""
        return {
            "file": str(self.path),
            "line": self.use.span.line,
            "column": self.use.span.column,
            "container": self.use.who,
            "before": self.use.text,
            "after": self.after,
        }


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A file with its changes: `before` and `after` are its whole text."""

    path: Path
    before: str
    after: str
    changes: tuple[Change, ...]

    def diff(self) -> Iterator[str]:
        """The lines of a unified diff."""
        before, after = self.before.splitlines(keepends=True), self.after.splitlines(keepends=True)
        for line in difflib.unified_diff(before, after, str(self.path), str(self.path), n=1):
            yield line.rstrip("\r\n")

    def write(self) -> None:
        """Replace the file, with its owner and mode; a link to it stays a link."""
        path = self.path.resolve()
        status = path.stat()
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with partial.open("xb") as file:
                os.fchmod(file.fileno(), status.st_mode & 0o7777)
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
                file.write(self.after.encode())
                file.flush()
                os.fsync(file.fileno())
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        sync_directory(path.parent)


def rewrites(paths: Sequence[str], lookup: Lookup, *, update: bool) -> list[Rewrite]:
    """Return the files that change, so that each image in them is pinned; with `update`, to what its tag means now.

    `lookup` asks a registry, once for each reference. Raises InvalidSpecError with every place where that can't be
    done, NotFoundError, and what `lookup` raises. What has a digest and no tag is left alone.
    """
    files = spec_files(paths)
    said: list[str] = []
    wanted: list[tuple[Path, File, Use, Reference]] = []
    for path, file in files:
        for use in file.uses:
            try:
                reference = Reference.parse(use.text)
            except InvalidReferenceError as error:
                said.append(str(file.source.problem(use.span, str(error), hint=error.hint)))
                continue
            if reference.tag is not None and (update or reference.digest is None):
                wanted.append((path, file, use, reference))
    if said:
        raise InvalidSpecError("\n".join(said))
    tags = {replace(reference, digest=None) for _, _, _, reference in wanted}
    digests = {reference: lookup(reference) for reference in sorted(tags, key=str)}
    changes: dict[Path, tuple[File, list[Change]]] = {}
    for path, file, use, reference in wanted:
        after = str(replace(reference, digest=digests[replace(reference, digest=None)]))
        if after != use.text:
            changes.setdefault(path, (file, []))[1].append(Change(path, use, after))
    return [_rewrite(path, file, found) for path, (file, found) in changes.items()]


def _rewrite(path: Path, file: File, changes: Sequence[Change]) -> Rewrite:
    after, left = rewritten(file, {change.use: change.after for change in changes})
    if left:
        said = "the reference is written over several lines, or with escapes, and can't be changed in place"
        raise InvalidSpecError(
            "\n".join(
                str(file.source.problem(use.span, said, hint="write it plainly, in one line")) for use in left
            )
        )
    # What is written is read again: a file that would mean something else is not
    expected = {change.use: change.after for change in changes}
    again = read(str(path), after.encode())
    if again.problems or [use.text for use in again.uses] != [
        expected.get(use, use.text) for use in file.uses
    ]:
        raise InvalidSpecError(f"{path}: can't be rewritten without changing more than its images")
    return Rewrite(path, file.source.text, after, tuple(changes))
