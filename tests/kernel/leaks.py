"""What a test must not leave behind: mounts, links, nft tables, cgroups, processes, descriptors.

`snapshot` sees the whole machine; `compare` names what is there afterwards and was not before. On a machine where
other tests run at the same time (xdist, or several people) their work would look like a leak: there, only what carries
one of the test's own names counts. LEAK_CHECK=all, and CI=true without xdist, count everything.
"""

import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

Snapshot = Mapping[str, frozenset[str]]

_OWN = ("processes", "descriptors")  # of this very process: nobody else's work shows in them


def snapshot() -> Snapshot:
    """Look at everything that a container or a network can leave behind, one readable line each."""
    return {
        "mounts": frozenset(_mounts()),
        "links": frozenset(_links()),
        "tables": frozenset(_command("nft", "list", "tables")),
        "cgroups": frozenset(_cgroups()),
        "processes": frozenset(_children()),
        "descriptors": frozenset(_descriptors()),
    }


def compare(before: Snapshot, after: Snapshot, own: tuple[str, ...] | None = None) -> list[str]:
    """List what `after` has more than `before`; with `own`, of shared kinds only what contains one of these names."""
    found = []
    for kind, things in after.items():
        for thing in sorted(things - before[kind]):
            if own is None or kind in _OWN or any(name in thing for name in own):
                found.append(f"{kind}: {thing}")
    return found


class LeakCheck:
    """The running check of one test; `own` takes further names that mark things as the test's."""

    def __init__(self, *names: str) -> None:
        self._names = list(names)
        self._before = snapshot()

    def own(self, name: str) -> str:
        """Count everything whose description contains `name` as this test's; give `name` back."""
        self._names.append(name)
        return name

    def leaks(self, patience: float = 3.0, *, without: Collection[str] = ()) -> list[str]:
        """Give what is left over; what the kernel takes apart in the background has `patience` seconds for it.

        Kinds in `without` are not looked at.
        """
        everything = os.environ.get("LEAK_CHECK") == "all" or (
            os.environ.get("CI") == "true" and "PYTEST_XDIST_WORKER" not in os.environ
        )
        deadline = time.monotonic() + patience
        while True:
            after = {kind: things for kind, things in snapshot().items() if kind not in without}
            found = compare(self._before, after, None if everything else tuple(self._names))
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


@pytest.fixture
def leak_check(tmp_path: Path, patience: float) -> Iterator[LeakCheck]:
    """Fail the test that leaves anything behind."""
    check = LeakCheck(str(tmp_path))
    yield check
    left = check.leaks(3.0 * patience)
    assert left == [], left


def _mounts() -> list[str]:
    lines = []
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        lines.append(f"{fields[4]} {fields[3]} {right}")  # without the mount's ids, which say nothing
    return lines


def _links() -> list[str]:
    return [re.sub(r"^\d+: ", "", line).split(":")[0] for line in _command("ip", "-o", "link")]


def _command(*command: str) -> list[str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except FileNotFoundError:
        return []
    return done.stdout.splitlines()


def _cgroups() -> list[str]:
    found = []
    for line in _mounts():
        point, _, rest = line.partition(" ")
        if " cgroup" not in rest:
            continue
        for path in [*Path(point).glob("reconciler-*"), *Path(point).glob("system.slice/reconciler-*")]:
            found += [str(directory) for directory, _, _ in os.walk(path)]
    return found


def _children() -> list[str]:
    """Every descendant of this process, by pid and name; zombies count."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            text = (entry / "stat").read_text(errors="replace")
        except OSError:
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        parents.setdefault(int(rest.split()[1]), []).append((int(entry.name), name))
    found: list[str] = []
    left = [os.getpid()]
    while left:
        for pid, name in parents.get(left.pop(), []):
            found.append(f"{pid} {name}")
            left.append(pid)
    return found


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # the listing's own
    return found
