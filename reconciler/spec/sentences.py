"""What pydantic finds, said in our own words; its texts and URLs end here. Pure."""

import types
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from reconciler.spec.dialect import NOT_YET, VALUES, suggest, translate
from reconciler.spec.marks import quote
from reconciler.spec.places import Path, place
from reconciler.spec.values import describe

# Values of the format that this release does not build: (model, field) -> values.
_LATER: Final[dict[tuple[str, str], tuple[object, ...]]] = {
    ("Dependency", "condition"): ("healthy", "completed"),
    ("Dependency", "required"): (False,),
    ("Dependency", "restart"): (True,),
    ("Logging", "driver"): ("journald",),
}


def unknown(owner: type[BaseModel] | None, key: str, path: Path) -> tuple[str]:
    """Return what to say about a key that the model does not have."""
    name = owner.__name__ if owner is not None else ""
    later = NOT_YET.get(name, frozenset())
    if key in later:
        return (f"'{key}' is not supported yet",)
    where = f"in {place(path[:-1])}" if len(path) > 1 else "at the top level"
    message = f"unknown key {quote(key)} {where}"
    if translation := translate(name, key):
        return (f"{message}: {translation}",)
    known = [item.alias or word for word, item in owner.model_fields.items()] if owner is not None else []
    guess = suggest(key, known) or suggest(key, later)
    return (f"{message} (did you mean '{guess}'?)" if guess else message,)


def sentence(
    kind: str, context: dict[str, Any], value: object, owner: type[BaseModel] | None, last: str
) -> tuple[str, str]:
    """Return predicate and hint for one of pydantic's own errors. A literal that comes later is a whole sentence."""
    shown = describe(value)
    match kind:
        case "string_type":
            return f"must be a string, not {shown}", ""
        case "bool_type":
            hint = "write true or false" if isinstance(value, str) else ""
            return f"must be true or false, not {shown}", hint
        case "int_type" | "int_from_float" | "int_parsing":
            digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
            return f"must be a whole number, not {shown}", f"write {value} without quotes" if digits else ""
        case "float_type" | "finite_number":
            return f"must be a number, not {shown}", ""
        case "tuple_type":
            hint = (
                f"write [{value}]"
                if isinstance(value, str) and len(value) < 40 and value.isprintable()
                else ""
            )
            return f"must be a list, not {shown}", hint
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"must be a map, not {shown}", ""
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}, not {shown.removeprefix('the number ')}", ""
        case "less_than_equal":
            return f"must be at most {_number(context['le'])}, not {shown.removeprefix('the number ')}", ""
        case "union_tag_not_found":
            return "must say its 'type': volume, bind or tmpfs", ""
        case "union_tag_invalid":
            return f"must have a 'type' of volume, bind or tmpfs, not {quote(str(context.get('tag')))}", ""
        case "literal_error":
            return _choice(owner, last, value)
        case _:
            return f"can't be {shown}", ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _choice(owner: type[BaseModel] | None, last: str, value: object) -> tuple[str, str]:
    name = owner.__name__ if owner is not None else ""
    if value in _LATER.get((name, last), ()):
        return f"'{last}: {describe(value).strip(chr(39))}' is not supported yet", ""
    choices = _choices(owner, last)
    shown = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]
    expected = " or ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) if shown else "something else"
    hint = ""
    if isinstance(value, str):
        hint = VALUES.get((name, last), {}).get(value, "")
        if not hint and (guess := suggest(value, shown)):
            hint = f"did you mean '{guess}'?"
    if last == "apiVersion" and isinstance(value, str):
        return f"{quote(value)} is not known; this version reads {expected}", hint
    return f"must be {expected}, not {describe(value)}", hint


def _choices(owner: type[BaseModel] | None, last: str) -> tuple[object, ...]:
    if owner is not None:
        for name, item in owner.model_fields.items():
            if (item.alias or name) == last and get_origin(item.annotation) is Literal:
                return get_args(item.annotation)
    return ()


def owner_of(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """Return the model that holds the last part of `loc`."""
    current: Any = model
    for part in loc[:-1]:
        current = _inside(current, part)
        if current is None:
            return None
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _inside(kind: Any, part: str | int) -> Any:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, item in kind.model_fields.items():
            if (item.alias or name) == part:
                return _bare(item.annotation)
        return None
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is dict:
        return _bare(arguments[1])
    if origin is tuple:
        return _bare(arguments[0])
    if origin in (Union, types.UnionType):
        for choice in arguments:
            if part in get_args(choice.model_fields["type"].annotation):
                return choice
    return None


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation
