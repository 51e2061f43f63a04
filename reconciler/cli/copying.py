"""The verb cp: files out of a container and into it, as Docker's does it. No agent is needed, nothing runs inside."""

import argparse
import gzip
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from reconciler.cli.common import find_container, layout_of
from reconciler.engine.transfer import archive, place
from reconciler.engine.transfer.item import CHUNK, Item
from reconciler.engine.transfer.landing import Landing, Ownership
from reconciler.engine.transfer.root import open_root
from reconciler.engine.transfer.walk import renumbered, walk
from reconciler.errors import UsageError
from reconciler.linux import capability
from reconciler.report.progress import CopyProgress
from reconciler.shim import users

_STREAM: Final = "-"
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class _End:
    """One side of a copy: `container` is "" for this host."""

    container: str
    path: str


def _end(text: str) -> _End:
    """CONTAINER:PATH, or a local path: what begins with / or . or has no colon is local, as with Docker."""
    container, colon, path = text.partition(":")
    if not text:
        raise UsageError("cp: an empty path")
    if not colon or text.startswith(("/", ".")):
        return _End("", text)
    return _End(container, "/" + path)


def copy(args: argparse.Namespace) -> int:
    """Copy SOURCE to TARGET; just one of them is in a container."""
    source, target = _end(args.source), _end(args.target)
    if bool(source.container) == bool(target.container):
        both = "both are" if source.container else "neither is"
        raise UsageError(
            f"cp: one of SOURCE and TARGET must be CONTAINER:PATH, {both}",
            hint="reconciler cp web/db:/etc/passwd . or reconciler cp ./file web/db:/tmp",
        )
    layout = layout_of(args)
    found = find_container(layout, source.container or target.container)
    progress = CopyProgress(sys.stderr, shown=False if args.quiet else None)
    with ExitStack() as stack:
        stack.callback(progress.close)
        root = stack.enter_context(open_root(layout, found))
        inside = place.Tree(root.fd, found.full_name, True)
        if source.container:
            _out(args, inside, source.path, target.path, progress, stack, root.first)
        else:
            # With CAP_SYS_RESOURCE the size_limit of a volume would not hold (fs/quota/dquot.c, ignore_hardlimit)
            capability.drop_effective(capability.NUMBERS["CAP_SYS_RESOURCE"])
            if root.first:
                users.make_files_as(root.first)
            _in(args, inside, source.path, target.path, progress, stack, root.first)
    return 0


def _out(
    args: argparse.Namespace,
    inside: place.Tree,
    path: str,
    target: str,
    progress: CopyProgress,
    stack: ExitStack,
    first: int,
) -> None:
    what = place.source(inside, path, follow=args.follow_link)
    stack.callback(os.close, what.fd)
    stream = target == _STREAM
    found = walk(what.fd, inside.said(path), _warn, attributes=args.archive or stream)
    items = renumbered(found, first)
    if stream:
        _write(items, "." if what.contents else what.name, progress)
        return
    mine = Ownership() if args.archive else Ownership(os.geteuid(), os.getegid(), special=False)
    _land(items, place.host(), target, what, mine, progress)


def _in(
    args: argparse.Namespace,
    inside: place.Tree,
    path: str,
    target: str,
    progress: CopyProgress,
    stack: ExitStack,
    first: int,
) -> None:
    if path == _STREAM:
        top = place.directory(inside, target)
        try:
            # The owners in an archive are part of it
            _put(
                archive.read(_standard_input()),
                top,
                "",
                inside.said(target),
                Ownership(first=first),
                progress,
            )
        finally:
            os.close(top)
        return
    what = place.source(place.host(), path, follow=args.follow_link)
    stack.callback(os.close, what.fd)
    theirs = Ownership(first=first) if args.archive else Ownership(0, 0, first=first)
    _land(walk(what.fd, path, _warn, attributes=args.archive), inside, target, what, theirs, progress)


def _land(
    items: Iterator[Item],
    tree: place.Tree,
    path: str,
    what: place.Source,
    ownership: Ownership,
    progress: CopyProgress,
) -> None:
    top, name = place.destination(tree, path, what)
    try:
        _put(items, top, name, tree.said(path), ownership, progress)
    finally:
        os.close(top)


def _put(
    items: Iterator[Item], top: int, name: str, where: str, ownership: Ownership, progress: CopyProgress
) -> None:
    landing = Landing(top, name, where, ownership=ownership, warn=_warn, progress=progress)
    try:
        for item in items:
            landing.put(item)
        landing.finish()
    finally:
        landing.close()


def _write(items: Iterator[Item], name: str, progress: CopyProgress) -> None:
    if sys.stdout.isatty():
        raise UsageError("cp: a tar archive is not for a terminal", hint="redirect standard output")
    sys.stdout.flush()
    out = sys.stdout.buffer

    def write(data: bytes) -> None:
        out.write(data)
        progress(len(data))

    archive.write(items, name, write)
    out.flush()


def _standard_input() -> Iterator[bytes]:
    """The archive on standard input, unpacked if it was gzipped."""
    if sys.stdin.isatty():
        raise UsageError("cp: a tar archive does not come from a terminal", hint="redirect standard input")
    raw = io.BufferedReader(io.FileIO(0, closefd=False), CHUNK)
    file: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == _GZIP else raw
    while chunk := file.read(CHUNK):
        yield chunk


def _warn(text: str) -> None:
    print(f"reconciler: {text}", file=sys.stderr)
