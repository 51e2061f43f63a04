"""What later turns need to know and no kernel remembers: last good specs, failures with their times,
generations.

Everything is a file that can be lost: without the last good specs a broken file holds its app as it is,
without failures a failing step is tried at once, without generations the collector keeps only what is wanted
now. A file that can't be read is reported as missing, never an exception.
"""

import base64
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from reconciler.engine.durable import replace_json
from reconciler.engine.layout import Layout
from reconciler.execute.executor import LaneEnd
from reconciler.failpoint import failpoint
from reconciler.plan.steps import Outcome
from reconciler.state.generation import AppliedApp, Generation
from reconciler.state.observed import Failure

# How a file shows that it is none of ours any more: the last ones come from JSON of another shape, nested too deep, or
# with a number like 1e999.
_DAMAGED: Final = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True, slots=True)
class LastGood:
    """A spec as it was when it last could be read: the file, and the config files it names."""

    app: str
    path: str
    digest: str
    content: bytes
    configs: tuple[tuple[str, bytes], ...]


def read_last_good(layout: Layout) -> dict[str, LastGood]:
    """The last good specs by app. Unreadable ones are left out."""
    found: dict[str, LastGood] = {}
    for name in _names(layout.lastgood_root):
        try:
            value = json.loads((layout.lastgood_root / name).read_bytes())
            good = LastGood(
                app=str(value["app"]),
                path=str(value["path"]),
                digest=str(value["digest"]),
                content=base64.b64decode(value["content"], validate=True),
                configs=tuple(
                    (str(path), base64.b64decode(content, validate=True))
                    for path, content in value["configs"]
                ),
            )
        except _DAMAGED:
            continue
        if f"{good.app}.json" == name:
            found[good.app] = good
    return found


def write_last_good(layout: Layout, good: LastGood) -> None:
    """Keep `good`, durably: it must protect its app across a reboot."""
    value = {
        "version": 1,
        "app": good.app,
        "path": good.path,
        "digest": good.digest,
        "content": base64.b64encode(good.content).decode(),
        "configs": [(path, base64.b64encode(content).decode()) for path, content in good.configs],
    }
    replace_json(layout.lastgood(good.app), value)
    failpoint("lastgood.written")


def forget_last_good(layout: Layout, app: str) -> None:
    layout.lastgood(app).unlink(missing_ok=True)
    failpoint("lastgood.forgotten")


def read_failures(layout: Layout, boot: str) -> dict[str, Failure]:
    """The failures of this boot, by app; those of another boot have meaningless times and count as over."""
    try:
        value = json.loads(layout.failures.read_bytes())
        if value["boot"] != boot:
            return {}
        return {app: _failure(failure) for app, failure in value["failures"].items()}
    except _DAMAGED:
        return {}


def _failure(value: dict[str, Any]) -> Failure:
    return Failure(
        step=str(value["step"]),
        error=str(value["error"]),
        hint=str(value["hint"]),
        transient=bool(value["transient"]),
        count=int(value["count"]),
        at=float(value["at"]),
        digest=str(value["digest"]),
        code=int(value.get("code", 1)),
    )


def failure_of(end: LaneEnd, outcome: Outcome, last: Failure | None) -> Failure:
    """What is to be known of a lane that failed; `last` is the app's failure before, counted on for the same spec."""
    return Failure(
        step=str(outcome.step),
        error=outcome.error,
        hint=outcome.hint,
        transient=outcome.transient,
        count=last.count + 1 if last is not None and last.digest == end.digest else 1,
        at=time.clock_gettime(time.CLOCK_BOOTTIME),
        digest=end.digest,
        code=outcome.code,
    )


def write_failures(layout: Layout, boot: str, failures: Mapping[str, Failure]) -> None:
    """Keep the failures in the run directory: an agent that restarts must not storm a registry."""
    value = {"boot": boot, "failures": {app: asdict(failure) for app, failure in failures.items()}}
    replace_json(layout.failures, value, durable=False)
    failpoint("failures.written")


def read_generations(layout: Layout) -> list[Generation]:
    """All kept generations, oldest first."""
    found = []
    for name in _names(layout.generations):
        try:
            found.append(_generation(json.loads((layout.generations / name).read_bytes())))
        except _DAMAGED:
            continue
    return sorted(found, key=lambda generation: generation.number)


def write_generation(layout: Layout, generation: Generation, keep: int) -> None:
    """Write a new generation, durably, and let go of all but the newest `keep`."""
    replace_json(layout.generation(generation.number), {"version": 1, **asdict(generation)})
    failpoint("generation.written")
    names = [name.removesuffix(".json") for name in _names(layout.generations)]
    numbers = sorted(int(name) for name in names if name.isascii() and name.isdigit())
    for number in numbers[: -max(1, keep)]:
        try:
            layout.generation(number).unlink(missing_ok=True)
        except IsADirectoryError:
            continue  # damage; the new generation is there all the same
        failpoint("generation.forgotten")


def _generation(value: dict[str, Any]) -> Generation:
    apps: Iterable[dict[str, Any]] = value["apps"]
    return Generation(
        number=int(value["number"]),
        revision=str(value["revision"]),
        created=float(value["created"]),
        apps=tuple(
            AppliedApp(
                name=str(app["name"]),
                path=str(app["path"]),
                digest=str(app["digest"]),
                images=tuple((str(a), str(b), str(c)) for a, b, c in app["images"]),
                layers=tuple(str(layer) for layer in app["layers"]),
                blobs=tuple(str(blob) for blob in app["blobs"]),
            )
            for app in apps
        ),
    )


def _names(path: os.PathLike[str]) -> list[str]:
    try:
        return sorted(
            name for name in os.listdir(path) if name.endswith(".json") and not name.startswith(".")
        )
    except (FileNotFoundError, NotADirectoryError):
        return []
