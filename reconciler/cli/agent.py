"""The verb `agent`: the loop in the foreground, its metrics, its socket, and what it says."""

import argparse
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack

import reconciler
from reconciler.agent import reading
from reconciler.agent.loop import Agent, Turn
from reconciler.agent.parts import open_parts
from reconciler.agent.requests import Requests
from reconciler.agent.watch import watch_source
from reconciler.cli.common import device_of, duration, layout_of
from reconciler.cli.console import Console
from reconciler.engine import doctor, instance
from reconciler.engine.durable import replace_json
from reconciler.engine.layout import Layout
from reconciler.errors import UnsupportedError


def agent(args: argparse.Namespace) -> int:
    """Run the loop until SIGTERM or SIGINT; containers go on running afterwards."""
    layout, device = layout_of(args), device_of(args)
    missing = [check for check in doctor.checks(layout, quick=True) if check.ok is False]
    if missing:
        for check in missing:
            print(f"{check.name}: {check.detail}; {check.remedy}", file=sys.stderr)
        raise UnsupportedError(
            f"this host lacks {len(missing)} thing{'s' if len(missing) > 1 else ''} that containers need",
            hint="run: reconciler doctor",
        )
    console = Console()
    with ExitStack() as stack:
        instance.prepare(layout)
        stack.enter_context(instance.StateLock(layout, "reconciler agent"))
        parts = open_parts(layout, device, console.progress)
        stack.callback(parts.close)
        source = reading.open_source(layout, args)
        telemetry = Telemetry(parts, console)
        loop = Agent(parts, source, telemetry)
        stack.callback(loop.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.stop())
        signal.signal(signal.SIGHUP, lambda *_: loop.reconcile())
        stack.callback(watch_source(source, loop.wake))
        telemetry.serve(stack, Requests(loop, parts, telemetry.status))
        _announce(layout, args, console)
        replace_json(
            layout.agent_record,
            {
                "version": 1,
                "pid": os.getpid(),
                "started": time.time(),
                "metrics": device.metrics.listen,
                "source": reading.describe_source(args),
            },
            mode=0o644,
            durable=False,
        )
        stack.callback(layout.agent_record.unlink, missing_ok=True)
        loop.run(alive=Notify())
    console.say("stopped; containers keep running")
    console.say(
        f"to remove everything of this agent: reconciler uninstall --state {layout.state} --run {layout.run}"
    )
    return 0
