"""Spec files that a person names, one by one or by their directory, for verbs that want to know their images."""

from collections.abc import Sequence
from pathlib import Path

from reconciler.errors import InvalidSpecError, NotFoundError
from reconciler.source.directory import DirectorySource
from reconciler.spec.load import ReadFailure
from reconciler.spec.pins import File, read


def spec_files(paths: Sequence[str]) -> list[tuple[Path, File]]:
    """Read the files, and those in the directories, by the rules of a source.

    NotFoundError where one is not there, InvalidSpecError with every problem where one can't be read.
    """
    found: list[tuple[Path, File]] = []
    said: list[str] = []
    for text in paths:
        path = Path(text)
        if not path.exists():
            raise NotFoundError(f"{path}: no such file or directory")
        snapshot = DirectorySource(path if path.is_dir() else path.parent).snapshot()
        if snapshot.problem:
            raise InvalidSpecError(snapshot.problem)
        files = dict(snapshot.files)
        if not path.is_dir():
            if path.name not in files:
                raise InvalidSpecError(f"{path}: not a spec file", hint="specs are named *.yaml or *.yml")
            files = {path.name: files[path.name]}
        for name in sorted(files):
            where = (path if path.is_dir() else path.parent) / name
            data = files[name]
            if isinstance(data, ReadFailure):
                said.append(f"{where}: {data.reason}")
                continue
            file = read(str(where), data)
            said += [str(problem) for problem in file.problems]
            found.append((where, file))
    if said:
        raise InvalidSpecError("\n".join(said))
    return found
