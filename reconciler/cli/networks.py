"""The verb network: ls. Which networks there are, who is in them, and what is wrong with them; no agent is needed.

A network is its app's, APP or APP/NAME: made with the first container that needs it, and taken away with the app; or it
is one that apps share, /NAME.
"""

import argparse
from collections.abc import Mapping
from typing import Any, Final

from reconciler.cli.common import layout_of
from reconciler.cli.listing import show
from reconciler.engine import instance
from reconciler.engine.layout import Layout
from reconciler.engine.network.names import full_name
from reconciler.engine.network.networks import Networks
from reconciler.engine.network.observed import AppObserved
from reconciler.engine.record import records
from reconciler.report.filters import Filters, Match, like, truth
from reconciler.report.tables import Column
from reconciler.state.desired import called

_COLUMNS: Final = (
    Column("NETWORK", lambda item: str(item["name"])),
    Column("SUBNET", lambda item: str(item["subnet"])),
    Column("GATEWAY", lambda item: str(item["gateway"])),
    Column("CONTAINERS", lambda item: ", ".join(one["name"] for one in item["containers"])),
    Column("IPV6 SUBNET", lambda item: str(item["subnet6"]) or "-", wide=True),
    Column("STATE", lambda item: str(item["state"])),
    Column("DRIVER", lambda item: str(item["driver"]), wide=True),
    Column("BRIDGE", lambda item: str(item["bridge"]), wide=True),
)


def found(layout: Layout, instance_id: str) -> list[dict[str, Any]]:
    """Every network by name, with its containers; `state` is up, or what is wrong with it in words."""
    networks = Networks(layout, instance_id)
    try:
        seen = networks.observe().apps
    finally:
        networks.close()
    ids = {record.full_name: record.id for record in records(layout)}
    return [_item(app, network, ids) for app, network in sorted(seen.items())]


def _item(app: str, network: AppObserved, ids: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": app,
        "driver": "bridge",
        "scope": "local",
        "subnet": str(network.subnet),
        "gateway": str(network.gateway),
        "subnet6": str(network.subnet6 or ""),
        "gateway6": str(network.gateway6 or ""),
        "bridge": network.bridge,
        "internal": network.declared is not None and network.declared.internal,
        "labels": dict(network.declared.labels) if network.declared is not None else {},
        "state": "; ".join(network.faults) or "up",
        "containers": [
            {
                "name": called(*full.split("/", 1)),
                "id": ids[full],
                "address": str(address),
                "address6": str(network.addresses6.get(name, "")),
                "connected": name in network.attached,
            }
            for name, address in sorted(network.addresses.items())
            # an address stays leased while its container is made anew
            if (full := full_name(app, name)) in ids
        ],
    }


def listing(args: argparse.Namespace) -> int:
    """List networks with subnet, containers and state."""
    layout = layout_of(args)
    which = Filters(args.filter, _KEYS)
    items = [item for item in found(layout, instance.read_id(layout)) if which.matches(item)]
    show(args, "NetworkList", items, _COLUMNS, quiet=lambda item: str(item["name"]))
    return 0


_KEYS: Final[dict[str, Match]] = {
    "dangling": lambda item, value: (not item["containers"]) is truth("dangling", value),
    "name": lambda item, value: like(item["name"], value),
    "driver": lambda item, value: item["driver"] == value,
}
