"""Fail points: places at which a test makes the program fail, be slow or die, to show that the next turn copes.

Every boundary between two effects on disk or in the kernel has one, `failpoint("create.recorded")`, named after what
has just happened (or is about to, where the name says so). Nothing is armed unless `arm` was called, by the command
line, with the text of RECONCILER_FAILPOINT; a point that is not armed costs one look at an empty dict. The grammar is
that of the Linux fail points of FreeBSD and containerd:

    RECONCILER_FAILPOINT=name:terms[;name:terms ...]     terms = term[->term ...]     term = [count*]type[(argument)]

A term without a count applies for ever; one whose count is used up gives way to the next. Types: `off`, `error`
(raises, the argument is the message), `enospc` (raises as a write on a full disk does), `delay` (milliseconds), `kill`
(SIGKILL to this very process, after a line that says so: no clean-up runs). It may import nothing of the
program but its errors.
"""

import errno
import os
import re
import signal
import threading
import time
from dataclasses import dataclass

from reconciler.errors import ReconcilerError, UsageError

VARIABLE = "RECONCILER_FAILPOINT"

_TERM = re.compile(r"(?:(\d+)\*)?(off|error|enospc|delay|kill)(?:\(([^()]*)\))?")


class InjectedError(ReconcilerError):
    """A test asked for this failure."""

    transient = True


@dataclass
class _Term:
    kind: str
    argument: str
    left: int | None  # how many times more; None is for ever


_armed: dict[str, list[_Term]] = {}
_lock = threading.Lock()


def arm(text: str) -> None:
    """Arm the points that `text` names, and no others; UsageError where it is not understood. Empty disarms all."""
    _armed.clear()
    for part in filter(None, text.split(";")):
        name, colon, terms = part.partition(":")
        if not (name and colon):
            raise UsageError(f"{VARIABLE}: {part!r}: not understood, expected name:terms")
        _armed[name] = [_term(term) for term in terms.split("->")]


def _term(text: str) -> _Term:
    found = _TERM.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{VARIABLE}: {text!r}: not understood, expected [count*]type[(argument)]",
            hint="types: off, error, enospc, delay, kill",
        )
    count, kind, argument = found.groups()
    if kind == "delay" and not (argument or "").isdecimal():
        raise UsageError(f"{VARIABLE}: {text!r}: a delay needs its milliseconds, as in delay(100)")
    return _Term(kind, argument or "", int(count) if count else None)


def failpoint(name: str) -> None:
    """Do what is armed for `name`: usually nothing. Raises InjectedError or OSError, sleeps, or does not return."""
    if not _armed or name not in _armed:
        return
    with _lock:
        term = next((term for term in _armed[name] if term.left != 0), None)
        if term is None:
            return
        if term.left is not None:
            term.left -= 1
    match term.kind:
        case "kill":
            os.write(2, f"failpoint: {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()  # pragma: no cover - it is delivered before the call returns
        case "error":
            raise InjectedError(f"{name}: {term.argument or 'injected failure'}")
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        case "delay":
            time.sleep(int(term.argument) / 1000)
