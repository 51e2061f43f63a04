"""Verbs that change something: the running agent is asked; where none runs, its lock is taken and it is done here.

What an agent has ready, models and a registry's client, is imported only where none runs: it costs a third of a second.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from reconciler.agent import client
from reconciler.cli.common import device_of, layout_of
from reconciler.engine import instance

if TYPE_CHECKING:
    from reconciler.agent.parts import Parts

_TIMEOUT = 600.0


def change(
    args: argparse.Namespace,
    holder: str,
    path: str,
    body: Mapping[str, Any],
    here: "Callable[[Parts], dict[str, Any]]",
) -> dict[str, Any]:
    """Return the agent's answer to `body` at `path`, or what `here` gives with the state lock held for `holder`."""
    layout = layout_of(args)
    if client.running(layout):
        return client.request(layout, "POST", path, dict(body), timeout=_TIMEOUT)
    from reconciler.agent.parts import open_parts

    parts = open_parts(layout, device_of(args), lambda _: None)
    try:
        with instance.StateLock(layout, f"reconciler {holder}"):
            return here(parts)
    finally:
        parts.close()
