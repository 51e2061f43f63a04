"""Verbs about the device itself: doctor, schema, version, uninstall."""

import argparse
import platform
import sys
from typing import TYPE_CHECKING

from reconciler.cli.common import device_of, layout_of, print_json
from reconciler.errors import BlockedError, InvalidSpecError, NotFoundError
from reconciler.report.tables import listing

if TYPE_CHECKING:
    from reconciler.engine.enforcing import Check


def doctor(args: argparse.Namespace) -> int:
    """Print a line per check; exit 1 if something that containers need is missing."""
    from reconciler.engine.doctor import checks

    found = [*checks(layout_of(args), quick=args.quick)]
    if not args.quick:
        found += _file(args)
    missing = [check for check in found if check.ok is False]
    if args.output != "table":
        items = [
            {"name": check.name, "ok": check.ok, "detail": check.detail, "remedy": check.remedy}
            for check in found
        ]
        sys.stdout.write(listing("CheckList", items, (), output=args.output))
        return 1 if missing else 0
    for check in missing if args.quick else found:
        mark = {True: "ok", None: "warning", False: "MISSING"}[check.ok]
        line = f"{check.name}: {check.detail}" if args.quick else f"{mark:8} {check.name}: {check.detail}"
        remedy = f"; {check.remedy}" if check.remedy and check.ok is not True else ""
        print(line + remedy)
    return 1 if missing else 0


def _file(args: argparse.Namespace) -> "list[Check]":
    """What the device's own file names, or what is wrong with that file."""
    from reconciler.engine import sources
    from reconciler.engine.enforcing import Check

    try:
        return [*sources.checks(layout_of(args), device_of(args))]
    except InvalidSpecError as error:
        return [Check("device file", False, str(error), error.hint)]


def schema(args: argparse.Namespace) -> int:
    """Print the JSON Schema of a spec or of the device's file."""
    from reconciler.spec import schema as schemas

    print_json(schemas.app_schema() if args.kind == "app" else schemas.device_schema())
    return 0


def version(args: argparse.Namespace) -> int:
    """Print the version of the program and of what it stands on."""
    from importlib.metadata import version as version_of

    facts = {
        "version": version_of("reconciler"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
    }
    if args.output == "json":
        print_json({"apiVersion": "reconciler/v1", "kind": "Version", **facts})
    else:
        print(
            f"reconciler {facts['version']} (Python {facts['python']}, Linux {facts['kernel']} {facts['architecture']})"
        )
    return 0


def uninstall(args: argparse.Namespace) -> int:
    """Stop and remove everything of a state directory, its volumes included."""
    from reconciler.agent.parts import open_parts
    from reconciler.agent.removal import remove_everything
    from reconciler.engine.instance import StateLock
    from reconciler.engine.volumes import volumes

    layout = layout_of(args)
    if not layout.instance.exists():
        raise NotFoundError(f"{layout.state}: no agent has run with this state directory")
    if not args.yes:
        names = [volume.full_name for volume in volumes(layout)]
        print(
            f"This removes all containers, images, networks and volumes of {layout.state}.", file=sys.stderr
        )
        if names:
            print(f"Volumes and their data: {', '.join(names)}", file=sys.stderr)
        if not sys.stdin.isatty():
            raise BlockedError("nobody to ask", hint="add --yes")
        if input("Remove everything? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    parts = open_parts(layout, device_of(args), lambda _: None)
    with StateLock(layout, "reconciler uninstall"):
        remove_everything(parts, lambda line: print(line, file=sys.stderr))
    return 0
