"""What the device's own file names for getting images, each tried: credentials, certificates, keys, peers.

A pull finds out too, but perhaps in a month and at night. Reads files, and asks peers whether they are there; no
registry is asked anything. What is wrong is a warning: containers that run need none of it.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from reconciler.config import Device
from reconciler.engine.enforcing import Check
from reconciler.engine.layout import Layout, existing
from reconciler.engine.registry import tls
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.registry.keyring import AUTHFILE, read
from reconciler.engine.shared import can_mark
from reconciler.engine.trust.keys import read_key
from reconciler.errors import ReconcilerError


def checks(layout: Layout, device: Device) -> Iterator[Check]:
    """One for each kind of thing that the device's file names, and none for what it does not. A few seconds at most."""
    yield from _credentials(layout, device)
    yield from _certificates(device)
    yield from _keys(device)
    yield from _peers(device)
    yield from _giving(layout, device)


def _credentials(layout: Layout, device: Device) -> Iterator[Check]:
    given = device.registries.authfile
    files = {f"{AUTHFILE} {given}": Path(given)} if given is not None else {}
    if os.path.exists(layout.auth):  # no to who may not look, which is anybody but root
        files["reconciler login"] = layout.auth
    for where, path in files.items():
        try:
            found = read(path, where)
        except ReconcilerError as error:
            yield _wrong("credentials", error)
            continue
        if found is None:
            yield Check(
                "credentials", None, f"{where}: no such file", "take it out of device.yaml, or write it"
            )
            continue
        helpers = {*found.helpers.values(), found.store} - {""}
        absent = sorted(name for name in helpers if shutil.which(f"docker-credential-{name}") is None)
        if absent:
            names = ", ".join(f"docker-credential-{name}" for name in absent)
            yield Check("credentials", None, f"{where}: {names}: not in PATH", "install what it names")
        else:
            kept = f"{where}: {len(found.auths)} kept"
            yield Check("credentials", True, kept + (f", {len(helpers)} helpers" if helpers else ""))


def _certificates(device: Device) -> Iterator[Check]:
    given = device.registries.ca
    tries = [partial(tls.own, given, registry) for registry in given]
    yield from _tried("certificates", tries, f"registries.ca: {', '.join(sorted(given))}")


def _keys(device: Device) -> Iterator[Check]:
    paths = sorted({key for rule in device.trust for key in rule.keys})
    tries = [partial(read_key, path) for path in paths]
    yield from _tried("keys", tries, f"trust: {len(paths)} that images may be signed by")


def _tried(name: str, tries: Sequence[Callable[[], object]], fine: str) -> Iterator[Check]:
    """What is wrong with the first of several that fails, or that all are `fine`."""
    try:
        for attempt in tries:
            attempt()
    except ReconcilerError as error:
        yield _wrong(name, error)
    else:
        if tries:
            yield Check(name, True, fine)


def _giving(layout: Layout, device: Device) -> Iterator[Check]:
    """Whether this device can note what it may give to others."""
    peers = device.peers
    if peers.address is None or peers.everything or can_mark(existing(layout.state)):
        return
    yield Check(
        "giving",
        None,
        f"{layout.state}: the file system has no extended attributes of users: nothing can be noted as public",
        "put it on ext4, xfs or btrfs, or set peers.share: all",
    )


def _peers(device: Device) -> Iterator[Check]:
    peers = device.peers.ask
    if not peers:
        return
    registry = Registry(peers=peers)
    try:
        with ThreadPoolExecutor(min(8, len(peers))) as pool:
            said = list(pool.map(lambda peer: _ask(registry, peer), peers))
    finally:
        registry.close()
    silent = [text for text in said if text]
    here = f"{len(peers) - len(silent)} of {len(peers)} answer"
    if silent:
        yield Check("peers", None, f"{here}; {'; '.join(silent)}", "images come from elsewhere meanwhile")
    else:
        yield Check("peers", True, here)


def _ask(registry: Registry, peer: str) -> str:
    """What is wrong with a peer, "" for nothing."""
    try:
        registry.greet(peer)
    except RegistryError as error:
        return str(error)
    return ""


def _wrong(name: str, error: ReconcilerError) -> Check:
    return Check(name, None, str(error), error.hint)
