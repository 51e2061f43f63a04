"""How a field of a model describes itself: `Doc` for people and schemas, `AlsoAccepts` for short forms.

`Part` is the base of all models. The JSON Schema and the field reference in docs/ are generated from these; so is the
table of fields whose change restarts a container. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

JsonSchema = dict[str, Any]


class Part(BaseModel):
    """A map of a spec: strict (no conversion behind the user's back), frozen, without unknown keys."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


@dataclass(frozen=True, slots=True)
class Doc:
    """What a field means. `type`, `default` and `example` are shown as they are; `example` is YAML.

    `restart` says whether changing the field restarts the container; None where that is no question.
    """

    meaning: str
    type: str
    example: str = ""
    default: str = ""
    restart: bool | None = None

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchema:
        described: JsonSchema = dict(handler(schema))
        described["description"] = self.meaning
        if self.restart is not None:
            described["x-restarts-container"] = self.restart
        return described


@dataclass(frozen=True, slots=True)
class AlsoAccepts:
    """The JSON Schema of a short form that a validator turns into the long one."""

    pattern: str
    title: str = "short form"
    type: str = "string"

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchema:
        short: JsonSchema = {"type": self.type, "title": self.title}
        if self.pattern:
            short["pattern"] = self.pattern
        return {"anyOf": [short, dict(handler(schema))]}


def docs(model: type[BaseModel]) -> Iterator[tuple[str, Doc]]:
    """Yield the fields of a model, as they are spelled in YAML, with their descriptions, in the order of the model."""
    for name, field in model.model_fields.items():
        for item in field.metadata:
            if isinstance(item, Doc):
                yield field.alias or name, item
                break
        else:
            raise TypeError(f"{model.__name__}.{name} has no Doc")
