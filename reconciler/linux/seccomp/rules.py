"""The rules of an OCI `linux.seccomp`, read and checked: names of calls, conditions on arguments, answers. Pure.

Everything wrong is a ValueError that names the field.
"""

from collections.abc import Mapping

ERRNO = 0x00050000
ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ACTIONS = {
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": ALLOW,
}
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_EPERM = 1
_LARGEST_ERRNO = 4095
OPERATORS = (
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
)
_MANY = (
    64  # rules of one call, beyond which their order is left as it is: a comparison is one of each with each
)
_ALL = 2**64 - 1

Condition = tuple[int, str, int, int]  # argument, operator, value, valueTwo
Rule = tuple[tuple[Condition, ...], int]  # conditions that all hold, the value that the filter returns


def default(section: Mapping[str, object]) -> int:
    """Give the answer where no rule matches."""
    return _action(section, "defaultAction", "defaultErrnoRet", "")


def entries(section: Mapping[str, object]) -> list[tuple[dict[str, object], str]]:
    """Give the objects in `syscalls`, each with its place."""
    value = section.get("syscalls")
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError("syscalls: expected a list")
    found = []
    for index, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ValueError(f"syscalls[{index}]: expected an object")
        found.append((entry, f"syscalls[{index}]"))
    return found


def read(section: Mapping[str, object]) -> dict[str, list[Rule]]:
    """Read the rules of each name, the most restrictive first; what follows one without conditions is left out."""
    found: dict[str, list[Rule]] = {}
    for entry, where in entries(section):
        names = strings(entry, "names", f"{where}.names")
        if not names:
            raise ValueError(f"{where}.names: expected at least one name")
        answer = _action(entry, "action", "errnoRet", where)
        conditions = _conditions(entry, where)
        arguments = [condition[0] for condition in conditions]
        alternatives = [conditions]
        if len(set(arguments)) < len(arguments):
            alternatives = [(condition,) for condition in conditions]
        for name in names:
            found.setdefault(name, []).extend((alternative, answer) for alternative in alternatives)
    return {name: settled(rules) for name, rules in found.items()}


def settled(rules: list[Rule]) -> list[Rule]:
    """Put rules of one call in the order in which the first one that matches is the most restrictive that does.

    One that allows comes before those that it can't match together with, so that what is usual is found soon.
    """
    result: list[Rule] = []
    for rule in sorted(rules, key=lambda rule: _rank(rule[1])):
        place = len(result)
        if rule[1] == ALLOW and len(rules) <= _MANY:
            while place and result[place - 1][1] != ALLOW and _disjoint(rule, result[place - 1]):
                place -= 1
        result.insert(place, rule)
        if not rule[0]:
            break
    return result


def _disjoint(one: Rule, other: Rule) -> bool:
    return any(_exclude(first, second) for first in one[0] for second in other[0])


def _exclude(one: Condition, other: Condition) -> bool:
    """Say whether two conditions are sure not to hold together."""
    if one[0] != other[0]:
        return False
    for first, second in ((one, other), (other, one)):
        if first[1] == "SCMP_CMP_EQ":
            return not _holds(second, first[2])
    if one[1] == other[1] == "SCMP_CMP_MASKED_EQ":
        return bool(one[2] & other[2] & (one[3] ^ other[3]))
    return False


def _holds(condition: Condition, have: int) -> bool:
    _, operator, value, second = condition
    return {
        "SCMP_CMP_NE": have != value,
        "SCMP_CMP_LT": have < value,
        "SCMP_CMP_LE": have <= value,
        "SCMP_CMP_EQ": have == value,
        "SCMP_CMP_GE": have >= value,
        "SCMP_CMP_GT": have > value,
        "SCMP_CMP_MASKED_EQ": have & value == second,
    }[operator]


def _rank(answer: int) -> int:
    """As the kernel compares answers: signed, without their data, and the smallest wins (kernel/seccomp.c)."""
    action = answer & 0xFFFF0000
    return action - (1 << 32) if action & KILL_PROCESS else action


def _conditions(entry: Mapping[str, object], where: str) -> tuple[Condition, ...]:
    value = entry.get("args")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ValueError(f"{where}.args: expected a list")
    found = []
    for index, condition in enumerate(value):
        place = f"{where}.args[{index}]"
        if not isinstance(condition, dict):
            raise ValueError(f"{place}: expected an object")
        operator = text(condition, "op", place)
        if operator not in OPERATORS:
            raise ValueError(f"{place}.op: {operator or 'missing'}: expected one of {', '.join(OPERATORS)}")
        argument = _number(condition, "index", place, 5)
        first = _number(condition, "value", place, _ALL)
        found.append((argument, operator, first, _number(condition, "valueTwo", place, _ALL)))
    return tuple(found)


def _action(entry: Mapping[str, object], key: str, number: str, where: str) -> int:
    prefix = f"{where}." if where else ""
    name = text(entry, key, where)
    if name not in ACTIONS:
        raise ValueError(f"{prefix}{key}: {name or 'missing'}: expected one of {', '.join(sorted(ACTIONS))}")
    if name not in _WITH_ERRNO:
        if entry.get(number) is not None:
            raise ValueError(f"{prefix}{number}: {name} has no error number")
        return ACTIONS[name]
    given = entry.get(number)
    return ACTIONS[name] | (_EPERM if given is None else _number(entry, number, where, _LARGEST_ERRNO))


def text(entry: Mapping[str, object], key: str, where: str) -> str:
    value = entry.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{where}.{key}: expected a string" if where else f"{key}: expected a string")
    return value


def _number(entry: Mapping[str, object], key: str, where: str, largest: int) -> int:
    value = entry.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise ValueError(
            f"{where}.{key}: expected 0 to {largest}" if where else f"{key}: expected 0 to {largest}"
        )
    return value


def strings(entry: Mapping[str, object], key: str, where: str) -> list[str]:
    value = entry.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: expected a list of strings")
    return value
