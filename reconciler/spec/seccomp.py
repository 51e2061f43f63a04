"""The seccomp profile of a container as a spec names it: default, unconfined, or one of its own. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import PlainValidator, WithJsonSchema

from reconciler.spec.fault import Fault
from reconciler.spec.marks import quote
from reconciler.spec.values import describe, repository_path, text

DEFAULT: Final = "default"
UNCONFINED: Final = "unconfined"


@dataclass(frozen=True, slots=True)
class Profile:
    """A profile of the spec's own: a file of the repository, or the text itself. Exactly one of them."""

    file: str | None = None
    content: str | None = None

    @property
    def where(self) -> tuple[str, str]:
        """The key in the spec, and what to call it in messages."""
        return ("profile", self.file) if self.file is not None else ("content", "this profile")


def _seccomp(value: object) -> str | Profile:
    if value in (DEFAULT, UNCONFINED):
        return str(value)
    match list(value.items()) if isinstance(value, dict) else value:
        case [("profile", path)]:
            return Profile(file=_within("profile", repository_path, path))
        case [("content", content)]:
            return Profile(content=_within("content", text, content))
        case str() as name:
            raise Fault(f"must be default, unconfined or {{profile: FILE}}, not {quote(name)}")
    raise Fault(
        f"must be default, unconfined or {{profile: FILE}}, not {describe(value)}",
        hint="the profile is a JSON file of the repository, in Docker's form",
    )


def _within(key: str, check: Callable[[object], str], value: object) -> str:
    try:
        return check(value)
    except Fault as fault:
        fault.path = (key, *fault.path)
        raise


_MAP: Final[dict[str, Any]] = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "properties": {"profile": {"type": "string", "pattern": "^[^/]"}, "content": {"type": "string"}},
    "additionalProperties": False,
}
Seccomp = Annotated[
    str | Profile,
    PlainValidator(_seccomp),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": "^(default|unconfined)$"}, _MAP]}),
]
