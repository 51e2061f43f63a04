"""A registry that speaks TLS, as a program: `python -m tests.e2e.secure DIRECTORY LAYOUT` inside a device's network.

Prints one line of JSON, with the reference that pins its image and the file of its certificate authority, and serves
until it is ended.
"""

import json
import sys
import threading
from pathlib import Path

from reconciler.spec.reference import Digest
from tests.images import Built
from tests.registry import FakeRegistry, certificate


def main() -> None:
    """Serve until ended."""
    directory, layout = map(Path, sys.argv[1:])
    context, authority = certificate(directory)
    listed = json.loads((layout / "index.json").read_text())["manifests"][0]
    with FakeRegistry(tls=context) as registry:
        reference = registry.add(Built(layout, Digest.parse(listed["digest"])))
        print(json.dumps({"name": registry.name, "reference": reference, "ca": str(authority)}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
