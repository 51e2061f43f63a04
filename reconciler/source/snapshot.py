"""A snapshot: everything that a source of specs holds at one moment, as values.

Whatever goes wrong is in the value, never an exception, because nothing may be removed for the reason that something
could not be read: a file that can't be read is a `ReadFailure` in its place, and a source that can't be read as a
whole, or only in part, says so in `problem`, and then nobody may conclude anything from what is missing in `files`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from reconciler.errors import NotFoundError
from reconciler.spec.load import ReadFailure

MAX_BYTES: Final = 1024 * 1024  # of one file; spec/yaml12 has the same limit
MAX_FILES: Final = 10_000
MAX_DEPTH: Final = 16

_SPECS: Final = (".yaml", ".yml")

Files = Mapping[str, bytes | ReadFailure]


def no_configs(path: str) -> bytes:
    """Know no file: the reader of a source that has none to give."""
    raise NotFoundError(f"{path}: no such file")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The spec files by their path in the source, `/`-separated.

    `revision` identifies the content of `files`: a commit, or a hash over all of them; "" where there is nothing to
    read. `problem` says why `files` is not all that there should be, "" if it is. `stale` says why something newer may
    exist elsewhere (a fetch that failed): `files` is complete all the same.
    """

    revision: str
    files: Files
    problem: str = ""
    stale: str = ""
    read: Callable[[str], bytes] = field(default=no_configs, compare=False, repr=False)

    def read_config(self, path: str) -> bytes:
        """Return the content of a file that a spec names by its path in the source.

        Raises a ReconcilerError that says why not: missing, too large, outside of the source, not a regular file.
        """
        return self.read(path)


def is_spec(name: str) -> bool:
    """Whether a file of this name (without its directory) is read as a spec: *.yaml and *.yml that are not hidden."""
    return name.endswith(_SPECS) and not name.startswith(".")


def is_hidden(name: str) -> bool:
    """Whether a directory of this name is left out: `.git`, and the `..data` of a mounted ConfigMap."""
    return name.startswith(".")
