"""What the device's own file names for getting images, each tried: credentials, certificates, keys, peers.

A pull finds out too, but perhaps in a month and at night. Reads files, and asks peers whether they are there; no
registry is asked anything. What is wrong is a warning: containers that run need none of it.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reconciler.config import Device
from reconciler.engine.enforcing import Check
from reconciler.engine.layout import Layout
from reconciler.engine.registry import tls
from reconciler.engine.registry.client import Registry
from reconciler.engine.registry.errors import RegistryError
from reconciler.engine.registry.keyring import AUTHFILE, read
from reconciler.engine.trust.keys import KeyFileError, read_key
from reconciler.errors import ReconcilerError


def checks(layout: Layout, device: Device) -> Iterator[Check]:
    """One for each kind of thing that the device's file names, and none for what it does not. A few seconds at most."""
    yield from _credentials(layout, device)
    yield from _certificates(device)
    yield from _keys(device)
    yield from _peers(device)


def _credentials(layout: Layout, device: Device) -> Iterator[Check]:
    given = device.registries.authfile
    files = {f"{AUTHFILE} {given}": Path(given)} if given is not None else {}
    if layout.auth.exists():
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
    for registry in given:
        try:
            tls.own(given, registry)
        except ReconcilerError as error:
            yield _wrong("certificates", error)
            return
    if given:
        yield Check("certificates", True, f"registries.ca: {', '.join(sorted(given))}")


def _keys(device: Device) -> Iterator[Check]:
    paths = sorted({key for rule in device.trust for key in rule.keys})
    for path in paths:
        try:
            read_key(path)
        except KeyFileError as error:
            yield _wrong("keys", error)
            return
    if paths:
        yield Check("keys", True, f"trust: {len(paths)} that images may be signed by")


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
