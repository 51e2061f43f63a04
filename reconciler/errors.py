"""The failures this program can name.

Every error says where (a file, an object, an address), what happened and, where one exists, the next command to run.
The executor reads only `transient`; the command line reads only `exit_code`. This module imports nothing.
"""


class ReconcilerError(Exception):
    """A failure we can name. `transient` says whether trying again, unchanged, may succeed.

    The message reads `subject: what happened[, expected ...]`, lower case, without a full stop. `hint` is what to do
    next, usually a command.
    """

    transient = False
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", transient: bool | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        if transient is not None:
            self.transient = transient


class UsageError(ReconcilerError):
    """The command line itself is wrong."""

    exit_code = 64


class InvalidSpecError(ReconcilerError):
    """A spec or device file breaks a rule; the message already carries file:line:col."""

    exit_code = 3


class BlockedError(ReconcilerError):
    """Something that is allowed in general must not happen now: a lock, a guard, a full disk, a taken port."""

    exit_code = 5


class TimedOutError(ReconcilerError):
    """What was waited for did not happen in time."""

    transient = True
    exit_code = 6


class VerificationError(ReconcilerError):
    """Content does not match its digest, its size or its declared identity."""

    exit_code = 7


class NotFoundError(ReconcilerError):
    """The named object does not exist."""

    exit_code = 8


class UnreachableError(ReconcilerError):
    """The agent, or a control socket, does not answer, or we may not talk to it."""

    transient = True
    exit_code = 9


class UnsupportedError(ReconcilerError):
    """This kernel or host lacks what the request needs; the message names it and the remedy."""


_SAID = {
    kind.exit_code: kind
    for kind in (BlockedError, TimedOutError, VerificationError, NotFoundError, UsageError)
}


def of_code(exit_code: int) -> type[ReconcilerError]:
    """Return the error that an agent's answer with this exit code stands for, so that callers can tell it by its type.

    What an agent could not reach is not the agent itself: that, and all without a type here, is a ReconcilerError.
    """
    return _SAID.get(exit_code, ReconcilerError)
