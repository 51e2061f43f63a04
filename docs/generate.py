"""Write the generated pages of docs/ again; with --check, say which are stale and exit 1. `make docs` runs it."""

import sys
from pathlib import Path

from reconciler.cli.manual import manual
from reconciler.spec.schema import generated

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Write what is stale, or only name it."""
    pages = {"docs/cli.md": manual(), **generated()}
    check = "--check" in sys.argv
    stale = [
        name
        for name, text in pages.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text() != text
    ]
    for name in stale:
        print(f"{name}: {'stale, run: make docs' if check else 'written'}")
        if not check:
            (ROOT / name).parent.mkdir(exist_ok=True)
            (ROOT / name).write_text(pages[name])
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
