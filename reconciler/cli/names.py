"""The names of what is here, read as quickly as can be: for completion, which people wait for at every key.

Directly from the files, without the checks that every other reader makes: nothing is decided by what comes from here.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from reconciler.engine.layout import Layout
from reconciler.state.desired import called


def names_of(kind: str, state: str, run: str) -> dict[str, str]:
    """The names of a kind with a word about each; empty for what can't be read, whatever the reason."""
    look = _LOOKS.get(kind)
    return look(Layout(Path(state), Path(run))) if look is not None else {}


def _records(layout: Layout) -> Iterator[dict[str, Any]]:
    for container_id in _listed(layout.containers):
        record = _read(layout.identity(container_id))
        if {"app", "name", "reference"} <= record.keys():
            yield record


def _containers(layout: Layout) -> dict[str, str]:
    return {called(one["app"], one["name"]): _short(one["reference"]) for one in _records(layout)}


def _apps(layout: Layout) -> dict[str, str]:
    found = {one["app"]: "app" for one in _records(layout)}
    stems = (name.removesuffix(".json") for name in _listed(layout.lastgood_root) if name.endswith(".json"))
    return found | dict.fromkeys(stems, "app")


def _volumes(layout: Layout) -> dict[str, str]:
    return {
        f"{app}/{name}": "volume" for app in _listed(layout.volumes) for name in _listed(layout.volumes / app)
    }


def _images(layout: Layout) -> dict[str, str]:
    """Names as they were asked for: of the containers, of the newest generation, and those given by hand."""
    found = {_short(one["reference"]): str(one.get("manifest", ""))[:19] for one in _records(layout)}
    for name in _listed(layout.tags):
        tag = _read(layout.tags / name)
        found[_short(tag.get("name", ""))] = str(tag.get("digest", ""))[:19]
    numbers = [
        int(stem) for name in _listed(layout.generations) if (stem := name.removesuffix(".json")).isdigit()
    ]
    newest = _read(layout.generation(max(numbers))) if numbers else {}
    for app in newest.get("apps", ()):
        for reference, manifest, _ in app["images"]:
            found[_short(reference)] = str(manifest)[:19]
    return found


def _networks(layout: Layout) -> dict[str, str]:
    return {app: str(lease["subnet"]) for app, lease in _read(layout.leases).get("apps", {}).items()}


def _short(reference: str) -> str:
    return str(reference).partition("@")[0]


def _listed(path: Path) -> list[str]:
    try:
        return [name for name in os.listdir(path) if not name.startswith(".")]
    except OSError:
        return []


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


_LOOKS: Final[Mapping[str, Callable[[Layout], dict[str, str]]]] = {
    "container": _containers,
    "app": _apps,
    "volume": _volumes,
    "image": _images,
    "network": _networks,
}
