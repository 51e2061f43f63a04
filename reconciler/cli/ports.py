"""The verb port: where the published ports of a container are; no agent is needed."""

import argparse
import sys

from reconciler.cli.common import find_container, layout_of, running
from reconciler.errors import NotFoundError, UsageError
from reconciler.report.tables import dump_json


def port(args: argparse.Namespace) -> int:
    """Print the published ports of a running container, or the addresses at which one of them is published."""
    layout = layout_of(args)
    found = find_container(layout, args.name)
    running(layout, found)
    number, _, protocol = (args.port or "").partition("/")
    if args.port and (not number.isdigit() or protocol not in ("", "tcp", "udp")):
        raise UsageError(f"port {args.port!r}: expected PORT or PORT/PROTOCOL, such as 80/tcp")
    ports = [
        published
        for published in sorted(
            found.settings.ports, key=lambda item: (item.target, item.protocol, item.published)
        )
        if not args.port or (published.target, published.protocol) == (int(number), protocol or "tcp")
    ]
    if args.port and not ports:
        raise NotFoundError(
            f"container {found.full_name}: port {number}/{protocol or 'tcp'} is not published"
        )
    if args.output == "json":
        items = [
            {
                "name": f"{item.target}/{item.protocol}",
                "target": item.target,
                "protocol": item.protocol,
                "host_ip": item.host_ip,
                "published": item.published,
            }
            for item in ports
        ]
        sys.stdout.write(dump_json({"apiVersion": "reconciler/v1", "kind": "PortList", "items": items}))
        return 0
    for item in ports:
        host = f"[{item.host_ip}]" if ":" in item.host_ip else item.host_ip
        address = f"{host}:{item.published}"
        print(address if args.port else f"{item.target}/{item.protocol} -> {address}")
    return 0
