"""Have a verb of single containers done: by the running agent, or by a loop of our own where none runs.

The same code answers in both cases (`agent.verbs`). A loop of our own works on ad-hoc containers, and on the app of the
declared container that is meant, and ends with the verb.
"""

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, Final

from reconciler.agent import client
from reconciler.cli.common import device_of, layout_of
from reconciler.engine.layout import Layout
from reconciler.errors import BlockedError, ReconcilerError, UnreachableError
from reconciler.report.progress import PullProgress, heard

_PATIENCE: Final = 60.0  # seconds in which others may be done with what we wait for
_LONGEST: Final = 2 * 365 * 86400.0
_AGAIN: Final = 0.1
_STARTING: Final = ("create", "start", "restart", "update")


def ask(args: argparse.Namespace, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Have it done, and return the answer; raises what went wrong."""
    layout = layout_of(args)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return _by_agent(layout, verb, body)
        except UnreachableError:
            if client.running(layout):
                raise
        except ReconcilerError as error:
            busy = error.transient and error.exit_code == BlockedError.exit_code
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN)
            continue
        try:
            return _here(args, layout, verb, body)
        except BlockedError as error:
            # Another verb has the lock, or an agent that is about to answer
            if "in use by" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN)


def _by_agent(layout: Layout, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
    path = f"/v1/containers/{verb}"
    if verb != "fetch":
        return client.request(layout, "POST", path, dict(body), timeout=_LONGEST)
    if not client.running(layout):
        raise UnreachableError("agent: not running")
    progress = PullProgress(sys.stderr)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.request, layout, "POST", path, dict(body), timeout=_LONGEST)
        try:
            while not answer.done():
                wait([answer], 0.2)
                with suppress(ReconcilerError):
                    for item in client.request(layout, "GET", "/v1/progress")["layers"]:
                        progress(heard(item))
        finally:
            progress.close()
        return answer.result()


def _here(args: argparse.Namespace, layout: Layout, verb: str, body: Mapping[str, Any]) -> dict[str, Any]:
    from reconciler.agent.verbs import Verbs  # what a loop needs: only where no agent has it ready

    progress = PullProgress(sys.stderr)
    try:
        with _loop(args, layout, verb, str(body.get("name", "")), progress) as (agent, parts):
            verbs: dict[str, Any] = dict(Verbs(agent, parts, progress).by_name())
            answer: dict[str, Any] = verbs[verb](body)
            if verb in _STARTING:
                _say_unmeasured(layout, str(answer.get("name") or body.get("name", "")))
            return answer
    finally:
        progress.close()


def _say_unmeasured(layout: Layout, name: str) -> None:
    """A limit that the kernel does not keep is none while nobody measures."""
    from reconciler.engine import rootfslimit
    from reconciler.engine.named import find
    from reconciler.engine.snapshot import Uppers

    with suppress(ReconcilerError):
        found = find(layout, name)
        if found.settings.limits.rootfs is not None and not rootfslimit.counts(layout, Uppers(layout)):
            print(
                f"reconciler: {name}: its rootfs limit is not kept while no agent runs; see: reconciler doctor",
                file=sys.stderr,
            )


@contextmanager
def _loop(
    args: argparse.Namespace, layout: Layout, verb: str, name: str, progress: PullProgress
) -> Iterator[tuple[Any, Any]]:
    """A loop on a thread of its own, over what is on disk, for the lanes that matter to the verb."""
    from reconciler.agent.loop import Agent
    from reconciler.agent.parts import open_parts
    from reconciler.agent.reading import NoSource
    from reconciler.engine.instance import StateLock, prepare
    from reconciler.engine.named import named
    from reconciler.spec.adhoc import ADHOC

    device = device_of(args)
    prepare(layout)
    with StateLock(layout, f"reconciler {verb}"):
        app = name.partition("/")[0]
        with suppress(ReconcilerError):
            app = named(layout, name)[0]
        parts = open_parts(layout, device, progress)
        agent = Agent(parts, NoSource(), _Quiet(), only=lambda lane: lane.partition("/")[0] in (ADHOC, app))
        thread = threading.Thread(target=agent.run, name="loop", daemon=True)
        thread.start()
        try:
            yield agent, parts
        finally:
            agent.stop()
            thread.join()
            agent.close()
            parts.close()


class _Quiet:
    """Listens to a loop of our own: the verb's answer says what came of it, other trouble is said here."""

    def turn(self, turn: object) -> None:
        """Nothing to say."""

    def outcome(self, outcome: object) -> None:
        """Nothing to say."""

    def lane(self, end: object) -> None:
        """Nothing to say."""

    def noted(self, kind: str, subject: str, text: str) -> None:
        """The verb itself says this."""

    def problem(self, text: str) -> None:
        print(f"reconciler: {text}", file=sys.stderr)

    def broken_turn(self, text: str) -> None:
        """The verb itself raises this."""
