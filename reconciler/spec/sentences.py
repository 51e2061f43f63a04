"""What pydantic finds, said in our own words; its texts and URLs end here. Pure."""

import types
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from reconciler.spec.dialect import NOT_YET, VALUES, suggest, translate
from reconciler.spec.fault import Fault, not_yet
from reconciler.spec.marks import quote
from reconciler.spec.places import Path, place
from reconciler.spec.values import describe

# Values of the format that this release does not build: (model, field) -> values.
_LATER: Final[dict[tuple[str, str], tuple[object, ...]]] = {
    ("Dependency", "condition"): ("healthy", "completed"),
    ("Dependency", "required"): (False,),
    ("Dependency", "restart"): (True,),
}


def unknown(owner: type[BaseModel] | None, key: str, path: Path) -> tuple[str, str | None]:
    """Return what to say about a key that the model does not have, and the key that was probably meant."""
    name = owner.__name__ if owner is not None else ""
    later = NOT_YET.get(name, frozenset())
    if key in later:
        return f"'{key}' is not supported yet", None
    where = f"in {place(path[:-1])}" if len(path) > 1 else "at the top level"
    message = f"unknown key {quote(key)} {where}"
    if translation := translate(name, key):
        return f"{message}: {translation}", None
    known = [item.alias or word for word, item in owner.model_fields.items()] if owner is not None else []
    guess = suggest(key, known) or suggest(key, later)
    return (f"{message} (did you mean '{guess}'?)", guess) if guess else (message, None)


def sentence(
    kind: str, context: dict[str, Any], value: object, owner: type[BaseModel] | None, last: str
) -> Fault:
    """Return what one of pydantic's own errors means, as a validator of ours would say it."""
    shown = describe(value)
    bare = shown.removeprefix("the number ")
    match kind:
        case "string_type":
            return Fault(f"must be a string, not {shown}")
        case "bool_type":
            hint = "write true or false" if isinstance(value, str) else ""
            return Fault(f"must be true or false, not {shown}", hint=hint)
        case "int_type" | "int_from_float" | "int_parsing":
            digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
            return Fault(
                f"must be a whole number, not {shown}", hint=f"write {value} without quotes" if digits else ""
            )
        case "float_type" | "finite_number":
            return Fault(f"must be a number, not {bare}")
        case "tuple_type":
            short = isinstance(value, str) and len(value) < 40 and value.isprintable() and '"' not in value
            return Fault(f"must be a list, not {shown}", hint=f'write ["{value}"]' if short else "")
        case "dict_type" | "model_type" | "model_attributes_type":
            return Fault(f"must be a map, not {shown}")
        case "greater_than_equal":
            return Fault(f"must be at least {_number(context['ge'])}, not {bare}")
        case "less_than_equal":
            return Fault(f"must be at most {_number(context['le'])}, not {bare}")
        case "union_tag_not_found":
            return Fault("must say its 'type': volume, bind or tmpfs")
        case "union_tag_invalid":
            return Fault(f"must have a 'type' of volume, bind or tmpfs, not {quote(str(context.get('tag')))}")
        case "literal_error":
            return _choice(owner, last, value)
        case _:
            return Fault(f"can't be {shown}")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _choice(owner: type[BaseModel] | None, last: str, value: object) -> Fault:
    name = owner.__name__ if owner is not None else ""
    if value in _LATER.get((name, last), ()):
        return not_yet(f"'{last}: {value if isinstance(value, str) else describe(value)}'")
    choices = _choices(owner, last)
    shown = [describe(choice) if isinstance(choice, bool) else str(choice) for choice in choices]
    expected = " or ".join(filter(None, [", ".join(shown[:-1]), shown[-1]])) if shown else "something else"
    hint = ""
    if isinstance(value, str):
        hint = VALUES.get((name, last), {}).get(value, "")
        if not hint and (guess := suggest(value, shown)):
            hint = f"did you mean '{guess}'?"
    if last == "apiVersion" and isinstance(value, str):
        return Fault(f"{quote(value)} is not known; this version reads {expected}", hint=hint)
    return Fault(f"must be {expected}, not {describe(value)}", hint=hint)


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
    if get_origin(annotation) in (Union, types.UnionType):  # a map that may be left out
        given = [choice for choice in get_args(annotation) if choice is not types.NoneType]
        return _bare(given[0]) if len(given) == 1 else annotation
    return annotation
