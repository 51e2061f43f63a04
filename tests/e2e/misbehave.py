"""Registries that misbehave, as a program: `python -m tests.e2e.misbehave LAYOUT...` inside a device's network.

Each is on a port of its own and has one fault; all of them have the images of the layouts. Prints one line of JSON,
name -> host:port, and serves until it is ended.
"""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from reconciler.spec.reference import Digest
from tests.images import Built
from tests.registry import FakeRegistry, Request, Script, Wire

LARGE = 4 << 20


def answers(status: int, text: str, headers: Mapping[str, str] | None = None) -> Script:
    """A registry that says the same to everything."""
    body = json.dumps({"errors": [{"code": "X", "message": text}]}).encode()
    return lambda _request, wire: wire.respond(status, body, headers)


def layers(registry: FakeRegistry, wrong: Callable[[bytes, Wire], None]) -> Script:
    """A registry that sends documents as they are, and does `wrong` to layers."""

    def script(request: Request, wire: Wire) -> None:
        data = registry.blobs.get(request.path.rpartition("/")[2], b"{")
        if data.startswith(b"{"):
            registry.answer(request, wire)
        else:
            wrong(data, wire)

    return script


def stall(data: bytes, wire: Wire) -> None:
    """Send the beginning, and nothing more."""
    wire.respond(200, data[:100], length=len(data))
    wire.hang()


def half(data: bytes, wire: Wire) -> None:
    """Send small layers whole, and half of a large one."""
    if len(data) < LARGE:
        wire.respond(200, data)
        return
    wire.respond(200, data[: len(data) // 2], length=len(data))
    wire.hang()


def later(data: bytes, wire: Wire) -> None:
    """Have everybody come back later for large layers."""
    if len(data) < LARGE:
        wire.respond(200, data)
        return
    wire.respond(503, b"{}", {"Retry-After": "29"})


def faults(registry: FakeRegistry) -> dict[str, Script]:
    """Every fault by name."""
    return {
        "good": registry.answer,
        "401": answers(401, "who are you?", {"WWW-Authenticate": 'Basic realm="vault"'}),
        "404": answers(404, "manifest unknown"),
        "429": answers(429, "too many requests", {"Retry-After": "1"}),
        "500": answers(500, "on fire"),
        "slow": lambda _request, wire: wire.hang(),
        "content": layers(registry, lambda data, wire: wire.respond(200, bytes(len(data)))),
        "longer": layers(registry, lambda data, wire: wire.respond(200, data + b"more")),
        "shorter": layers(registry, lambda data, wire: wire.respond(200, data[:-5])),
        "stalling": layers(registry, stall),
        "half": layers(registry, half),
        "later": layers(registry, later),
    }


def main() -> None:
    """Serve until ended."""
    with ExitStack() as stack:
        found = {}
        for name in faults(FakeRegistry()):
            registry = stack.enter_context(FakeRegistry())
            for layout in map(Path, sys.argv[1:]):
                listed = json.loads((layout / "index.json").read_text())["manifests"][0]
                registry.add(Built(layout, Digest.parse(listed["digest"])))
            registry.scripts["/v2/*"] = faults(registry)[name]
            found[name] = registry.name
        print(json.dumps(found), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
