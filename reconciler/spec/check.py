"""A tree of nodes against a model: the model, and every problem with its place, in our own words.

pydantic finds what is wrong; its texts and URLs never leave this module. Where something is wrong, it is taken out and
the rest is looked at again, so that one mistake does not hide the next, and the rules that need a whole model can run
on what is left. Pure.
"""

from collections.abc import Mapping as MappingType
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from reconciler.spec.fault import Fault, Faults
from reconciler.spec.marks import Problem, Source
from reconciler.spec.places import MAX_PROBLEMS, Locator, Path, place, subject
from reconciler.spec.sentences import owner_of, sentence, unknown
from reconciler.spec.values import describe
from reconciler.spec.yaml12 import Node, Value, plain

_ROUNDS: Final = 8

M = TypeVar("M", bound=BaseModel)


@dataclass(slots=True)
class Checked(Generic[M]):
    """What came of checking. `model` lacks what `problems` complain about; None where nothing useful is left.

    `excused` are fields that are not missing, because an unknown key was meant to be them.
    """

    model: M | None
    problems: list[Problem]
    locator: Locator
    excused: AbstractSet[Path] = frozenset()


@dataclass(slots=True)
class _Repair:
    """What was taken out of the data, and what was put in for a required value, by path in the file."""

    removed: set[Path] = field(default_factory=set)
    excused: set[Path] = field(default_factory=set)
    standing_in: dict[Path, object] = field(default_factory=dict)


def check(model: type[M], root: Node, source: Source, *, stand_ins: MappingType[str, object]) -> Checked[M]:
    """Validate the tree and return all problems at once.

    `stand_ins` are values for required fields, by their last key, that let the rest be looked at when one is missing.
    """
    locator = Locator(source, root)
    raw = plain(root)
    if not isinstance(raw, dict):
        message = f"a spec is a map of fields, not {describe(raw)}"
        return Checked(None, [locator.problem((), message)], locator)
    data: Value = _without_extensions(model, raw)
    problems: list[Problem] = []
    repair = _Repair()
    for _ in range(_ROUNDS):
        try:
            return Checked(model.model_validate(data), problems, locator, repair.excused)
        except ValidationError as error:
            details = error.errors(include_url=False)
        before = len(repair.removed) + len(repair.standing_in)
        # Unknown keys first: what one of them was meant to be is not missing.
        details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
        for index, detail in enumerate(details):
            if (
                len(problems) >= MAX_PROBLEMS
            ):  # enough to read, and the rest costs time that a hostile file chooses
                problems.append(locator.overflow(len(details) - index))
                return Checked(None, problems, locator, repair.excused)
            _explain(model, detail, data, locator, stand_ins, repair, problems)
        if () in repair.removed or len(repair.removed) + len(repair.standing_in) == before:
            break
        locator.shifted.clear()
        data = _repaired(_without_extensions(model, raw), (), repair, locator.shifted)
    return Checked(None, problems, locator, repair.excused)


def _without_extensions(model: type[BaseModel], raw: dict[str, Value]) -> dict[str, Value]:
    """Leave `x-*` out at the top level and in containers, where the format allows it."""
    found = {key: value for key, value in raw.items() if not key.startswith("x-")}
    containers = found.get("containers")
    if "containers" in model.model_fields and isinstance(containers, dict):
        found["containers"] = {
            name: {key: item for key, item in value.items() if not key.startswith("x-")}
            if isinstance(value, dict)
            else value
            for name, value in containers.items()
        }
    return found


def _repaired(value: Value, path: Path, repair: _Repair, shifted: dict[Path, list[int]]) -> Value:
    if isinstance(value, dict):
        found: dict[str, Any] = {
            key: _repaired(item, (*path, key), repair, shifted)
            for key, item in value.items()
            if (*path, key) not in repair.removed
        }
        for where, stand_in in repair.standing_in.items():
            if where[:-1] == path:
                found[str(where[-1])] = stand_in
        return found
    if isinstance(value, tuple):
        kept = [index for index in range(len(value)) if (*path, index) not in repair.removed]
        if len(kept) < len(value):
            shifted[path] = kept
        return tuple([_repaired(value[index], (*path, index), repair, shifted) for index in kept])
    return value


def _explain(
    model: type[BaseModel],
    detail: ErrorDetails,
    data: Value,
    locator: Locator,
    stand_ins: MappingType[str, object],
    repair: _Repair,
    problems: list[Problem],
) -> None:
    """Add the problems of one of pydantic's errors, and note what to take out before looking again."""
    path = locator.original(_in_data(detail["loc"], data))
    owner = owner_of(model, detail["loc"])
    last = str(detail["loc"][-1]) if detail["loc"] else ""
    value = detail["input"]
    kind = detail["type"]
    context = detail.get("ctx", {})
    if kind == "missing":
        if (*path, last) not in repair.removed | repair.excused:
            where = f" in {place(path)}" if path else ""
            problems.append(locator.problem(path, f"'{last}' is missing{where}", at_key=True))
        if last in stand_ins:
            repair.standing_in[*path, last] = stand_ins[last]
        else:
            repair.removed.add(path)
        return
    repair.removed.add(path)
    if kind == "extra_forbidden":
        message, meant = unknown(owner, last, path)
        problems.append(locator.problem(path, message, at_key=True))
        if meant is not None:
            repair.excused.add((*path[:-1], meant))
        return
    if kind == "value_error" and any(
        len(gone) > len(path) and gone[: len(path)] == path for gone in repair.removed
    ):
        return  # it may only be wrong because of what was taken out of it
    error = context.get("error")
    faults: tuple[object, ...] = (sentence(kind, context, value, owner, last),)
    if isinstance(error, Faults):
        faults = error.faults
    elif kind == "value_error":
        faults = (error,)
    at_key = detail["loc"][-1:] == ("[key]",)
    room = max(1, MAX_PROBLEMS - len(problems))
    for found in faults[:room]:
        # Anything else is a ValueError of the standard library, which names no place of a spec.
        fault = found if isinstance(found, Fault) else Fault(f"can't be {describe(value)}")
        inner = (*path, *fault.path)
        message = fault.message if not fault.subject else f"{subject(inner)} {fault.message}"
        problems.append(locator.problem(inner, message, at_key=at_key or fault.at_key, hint=fault.hint))
    if len(faults) > room:
        problems.append(locator.overflow(len(faults) - room))


def _in_data(loc: tuple[int | str, ...], data: Value) -> Path:
    """Return the part of pydantic's location that exists in the data: without tags of unions and `[key]`."""
    path: list[str | int] = []
    current = data
    for part in loc:
        match current, part:
            case dict(), str() if part in current:
                current = current[part]
            case tuple(), int() if part < len(current):
                current = current[part]
            case _:
                continue
        path.append(part)
    return tuple(path)
