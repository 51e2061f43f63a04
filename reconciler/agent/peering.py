"""What this device gives to other devices: its blobs by digest, on an address that device.yaml names."""

from contextlib import ExitStack

from reconciler.agent.parts import Parts
from reconciler.engine.registry.client import PUBLIC
from reconciler.engine.shared import DOCUMENT, Shared, media_type
from reconciler.report.peer import PeerApplication
from reconciler.report.server import serve_strangers


def serve_peers(parts: Parts, stack: ExitStack) -> tuple[str, PeerApplication | None]:
    """Serve until `stack` is left; return where, "" where nothing is given, and what counts.

    BlockedError where the address is taken.
    """
    peers = parts.device.peers
    if peers.address is None:
        return "", None
    shared = Shared(parts.layout, everything=peers.everything)
    application = PeerApplication(shared.open, media_type, DOCUMENT, PUBLIC)
    server = serve_strangers(*peers.address, application)
    stack.callback(server.close)
    return server.address, application
