"""`Fault`: what a validator says about a value. It knows neither files nor pydantic; `spec.check` adds the place.

Pure. A fault's message is a predicate ("must be at least 6Mi, not 4Mi"): the reader supplies the subject.
"""

from collections.abc import Iterable


class Fault(ValueError):
    """A value breaks a rule.

    `path` leads from the value that was validated to the one that is wrong. With `subject` False the message is a whole
    sentence. `at_key` points at the key instead of the value.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        path: tuple[str | int, ...] = (),
        subject: bool = True,
        at_key: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.path = path
        self.subject = subject
        self.at_key = at_key


class Faults(ValueError):
    """Several faults of one value, so that all of them are reported at once."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(fault.message for fault in self.faults))


def not_yet(name: str, *, path: tuple[str | int, ...] = ()) -> Fault:
    """Return the fault for something the format has and this release does not."""
    return Fault(f"{name} is not supported yet", path=path, subject=False)
