"""Write the generated pages of docs/ again; with --check, say which are stale and exit 1. `make docs` runs it."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent


def pages() -> dict[Path, str]:
    """Path -> content of every generated page."""
    from reconciler.cli.manual import manual
    from reconciler.spec.schema import documents

    return {DOCS / "cli.md": manual(), **{DOCS / name: text for name, text in documents().items()}}


def main() -> int:
    """Write what is stale, or only name it."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(path.relative_to(DOCS.parent))
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path])
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
