"""What the verbs of `reconciler oci` print that look at containers: state, list, ps."""

import argparse
import json
import os

from reconciler.shim import oci_cgroup, oci_state
from reconciler.shim.oci_cgroup import status
from reconciler.shim.oci_state import Container, NotThereError, OciError


def show(value: object) -> None:
    """Print JSON as runc does."""
    print(json.dumps(value, indent=2))


def _told(container: Container) -> dict[str, object]:
    """The state with what runc adds to it."""
    found = status(container)
    told = container.state(found)
    annotations = told.pop("annotations", None)
    told["rootfs"] = container.text("rootfs")
    told["created"] = container.text("time")
    told["owner"] = ""
    if annotations:
        told["annotations"] = annotations
    return told


def state(args: argparse.Namespace) -> int:
    """Print the state of a container as JSON."""
    show(_told(oci_state.find(args.root, args.id)))
    return 0


def list_all(args: argparse.Namespace) -> int:
    """Print the containers below --root."""
    found = []
    for name in oci_state.names(args.root):
        try:
            container = oci_state.find(args.root, name)
        except NotThereError:
            continue  # gone meanwhile
        found.append(_told(container))
        os.close(container.directory)
    if args.quiet:
        for told in found:
            print(told["id"])
    elif args.format == "json":
        for told in found:
            told.pop("annotations", None)
        print(json.dumps(found))
    else:
        rows: list[tuple[str, ...]] = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        rows += [tuple(str(told[key.lower()]) for key in rows[0]) for told in found]
        _table(rows)
    return 0


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def ps(args: argparse.Namespace) -> int:
    """List the processes of a container: their pids, or what ps(1) says of them."""
    container = oci_state.find(args.root, args.id)
    if status(container) == "stopped":
        raise OciError("container not running")
    pids = oci_cgroup.pids(oci_cgroup.of(container))
    if args.format == "json":
        print(json.dumps(pids))
        return 0
    wanted = args.options[1:] if args.options[:1] == ["--"] else args.options
    reader, writer = os.pipe()
    child = os.posix_spawnp(
        "ps",
        ["ps", *(wanted or ["-ef"])],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_CLOSE, reader)],
    )
    os.close(writer)
    with open(reader, encoding="utf-8", errors="backslashreplace") as file:
        lines = file.read().splitlines()
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        raise OciError("ps: it has failed")
    head = lines[0].split() if lines else []
    if "PID" not in head:
        raise OciError("ps: its output has no column PID")
    column = head.index("PID")
    print(lines[0])
    for line in lines[1:]:
        cells = line.split()
        if len(cells) > column and cells[column].isdigit() and int(cells[column]) in pids:
            print(line)
    return 0
