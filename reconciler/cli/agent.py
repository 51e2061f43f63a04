"""The verb `agent`: the loop in the foreground, what it serves, and what it says."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from types import FrameType
from typing import Any

from reconciler.agent import reading
from reconciler.agent.bundlewatch import BundleWatch
from reconciler.agent.loop import Agent
from reconciler.agent.notify import Notify
from reconciler.agent.parts import open_parts
from reconciler.agent.peering import serve_peers
from reconciler.agent.requests import Requests
from reconciler.agent.scrub import Scrub
from reconciler.agent.telemetry import Telemetry
from reconciler.agent.turn import Turn
from reconciler.cli.common import device_of, duration, layout_of
from reconciler.cli.console import Console
from reconciler.engine import doctor, instance
from reconciler.engine.durable import replace_json
from reconciler.engine.pull import Images
from reconciler.errors import UnsupportedError
from reconciler.linux import heap


def agent(args: argparse.Namespace) -> int:
    """Run the loop until SIGTERM or SIGINT; containers go on running afterwards."""
    heap.share()
    layout, device = layout_of(args), device_of(args)
    missing = [check for check in doctor.checks(layout, quick=True) if check.ok is False]
    if missing:
        for check in missing:
            print(f"{check.name}: {check.detail}; {check.remedy}", file=sys.stderr)
        raise UnsupportedError("this host lacks what containers need", hint="run: reconciler doctor")
    console = Console()
    with ExitStack() as stack:
        instance.prepare(layout)
        stack.enter_context(instance.StateLock(layout, "reconciler agent"))
        parts = open_parts(layout, device, console.progress)
        stack.callback(parts.close)
        described = reading.describe_source(layout, args)
        telemetry = Telemetry(
            parts, console, source=described["git"] or described["path"], branch=described["branch"]
        )
        source = reading.open_source(layout, described, telemetry.tally.fetch)
        loop = Agent(parts, source, telemetry)
        stack.callback(parts.store.session.end)  # last: whoever writes has stopped by then
        stack.callback(loop.close)
        if device.bundles:
            stack.callback(_watch_bundles(device.bundles, telemetry, loop, parts.images).close)
        notify = Notify()
        _handle_signals(loop)

        def status(turn: Turn) -> dict[str, Any]:
            return telemetry.status(turn, loop.doing(), loop.retries(turn))

        metrics = telemetry.serve(stack, Requests(loop, parts, status).routes())
        peers, telemetry.peers = serve_peers(parts, stack)
        stack.callback(reading.watch(source, loop.wake, duration(args.poll, "--poll"), console.say))
        replace_json(
            layout.agent_record,
            {
                "version": 1,
                "pid": os.getpid(),
                "started": time.time(),
                "metrics": metrics,
                "peers": peers,
                "source": described,
            },
            durable=False,
        )
        stack.callback(layout.agent_record.unlink, missing_ok=True)
        scrub = telemetry.scrub = Scrub(parts, telemetry)
        stack.callback(scrub.close)
        scrub.start()
        console.say(f"reconciling {described['git'] or described['path']} with {layout.state}")
        if metrics:
            console.say(f"metrics: http://{metrics}/metrics")
        if peers:
            console.say(f"peers: http://{peers}/v2/")
        loop.run(alive=notify)
        notify.stopping()
    console.say("stopped; containers keep running")
    console.say(f"to remove everything: reconciler uninstall --state {layout.state} --run {layout.run}")
    return 0


def _watch_bundles(patterns: Sequence[str], telemetry: Telemetry, loop: Agent, images: Images) -> BundleWatch:
    """Have everything that failed tried again when an image may have come, by a stick or a copy."""

    def changed() -> None:
        images.look_again()
        loop.reconcile()

    return BundleWatch(patterns, partial(telemetry.noted, "bundle"), changed)


def _handle_signals(loop: Agent) -> None:
    """Stop the loop on SIGTERM and SIGINT, have it try everything again on SIGHUP.

    The loop is told by a thread: a handler runs in the middle of the main thread's work, which may hold the very lock
    that the telling takes.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)

    def tell() -> None:
        while True:
            for number in os.read(read, 64):
                if number == signal.SIGHUP:
                    loop.reconcile()
                elif number in (signal.SIGTERM, signal.SIGINT):
                    loop.stop()

    def stop(number: int, _: FrameType | None) -> None:
        # A second one means it: what runs in threads (a download) would otherwise be waited for.
        signal.signal(number, signal.SIG_DFL)

    threading.Thread(target=tell, name="signals", daemon=True).start()
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGHUP, lambda *_: None)
