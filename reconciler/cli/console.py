"""What the loop says to somebody who watches it: one line per step, per change of what is held up, per error.

Lines go to standard error with a time, because standard output belongs to data. The same thing is never said twice in a
row: a turn in which nothing changed prints nothing.
"""

import sys
import threading
import time
from typing import TextIO

from reconciler.agent.turn import Turn
from reconciler.engine.pull import Phase, Progress
from reconciler.execute.executor import LaneEnd
from reconciler.plan.steps import Outcome, PullImage
from reconciler.report.tables import printable
from reconciler.spec.marks import Problem


class Console:
    """A loop's listener that prints. Thread-safe."""

    def __init__(self, stream: TextIO = sys.stderr, *, stamps: bool = True) -> None:
        self._stream = stream
        self._stamps = stamps
        self._lock = threading.Lock()
        self._problems: tuple[Problem, ...] = ()
        self._blocked: frozenset[str] = frozenset()
        self._source_problem = ""
        self._guard = ""
        self._unkept = ""
        self._problem = ""
        self._trouble = ""
        self._converged = False
        self.failed = 0
        self.performed = 0

    def say(self, line: str) -> None:
        """Print one line, with the time before it."""
        stamp = time.strftime("%H:%M:%S ") if self._stamps else ""
        self._print(f"{stamp}{line}")

    def _print(self, text: str) -> None:
        if self._stream.isatty():
            text = printable(text)
        with self._lock:
            try:
                print(text, file=self._stream, flush=True)
            except OSError:
                pass  # the terminal is gone, or the disk behind it is full: the work goes on all the same

    def turn(self, turn: Turn) -> None:
        intent = turn.intent
        if self._trouble:
            self._trouble = ""
            self.say("turn: works again")
        if intent.problems != self._problems:
            self._problems = intent.problems
            for problem in intent.problems:
                self._print(problem.render())
            for app, reason in sorted(intent.stale.items()):
                self.say(f"{app}: keeps running its last good spec: {reason}")
        if intent.source_problem != self._source_problem:
            self._source_problem = intent.source_problem
            self.say(
                f"source: {intent.source_problem}" if intent.source_problem else "source: readable again"
            )
        if intent.guard != self._guard:
            self._guard = intent.guard
            if intent.guard:
                self.say(intent.guard)
        if intent.unkept != self._unkept:
            self._unkept = intent.unkept
            if intent.unkept:
                self.say(intent.unkept)
        blocked = frozenset(
            f"{item.app}{'/' + item.container if item.container else ''}: {item.reason}"
            for item in turn.plan.blocked
            if item.until is None
        )
        if not intent.resolving:  # what is still being looked up is not held up yet
            for line in sorted(blocked - self._blocked):
                self.say(line)
            self._blocked = blocked
        if turn.converged and not self._converged:
            apps = intent.desired.declared
            count = sum(len(app.containers) for app in apps.values())
            self.say(f"converged: {len(apps)} apps, {count} containers")
        self._converged = turn.converged

    def outcome(self, outcome: Outcome) -> None:
        self.performed += 1
        if outcome.error:
            self.failed += 1
            app = outcome.step.app or "device"
            self.say(f"{app}: {outcome.step}: {outcome.error}")
            if outcome.hint:
                self.say(f"  {outcome.hint}")
        elif not (isinstance(outcome.step, PullImage) and outcome.seconds < 0.001):
            self.say(f"{outcome.step} ({outcome.seconds * 1000:.0f} ms)")

    def lane(self, end: LaneEnd) -> None:
        if end.cancelled:
            self.say(f"{end.app}: a newer spec came; starting over")

    def noted(self, kind: str, subject: str, text: str) -> None:
        self.say(text)

    def problem(self, text: str) -> None:
        if text != self._problem:
            self._problem = text
            self.say(text)

    def broken_turn(self, text: str) -> None:
        if text != self._trouble:
            self._trouble = text
            self.say(f"turn: {text}")

    def progress(self, progress: Progress) -> None:
        """A layer has arrived: one line each, however long the download took."""
        if progress.phase is Phase.DONE:
            resumed = f", {progress.resumed} resumed" if progress.resumed else ""
            self.say(f"layer {progress.layer.short}: {progress.total} bytes{resumed}")
