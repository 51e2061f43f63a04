"""The compiler of seccomp filters: `linux.seccomp` of the OCI runtime specification to classic BPF. Pure.

Meaning (config-linux.md, "Seccomp"): a rule matches a call that it names when all its conditions hold; as with runc and
crun, a rule with two conditions on one argument is as many rules of one condition. Of several rules that match the most
restrictive counts, in the order that seccomp(2) has for several filters, and the first one among equals; where none
matches, the default action. A name that no table here knows is left out, as the specification has it: whoever wants to
tell about it asks `unknown`. The native architecture is always filtered by the rules, its 32-bit one if it is listed.
A call of any other architecture ends the process, and so does one of x32, whatever is listed: few kernels have x32, and
those give every call a second number for it, with code of its own behind some (CVE-2014-0038).

Form: which architecture, then a binary search over ranges of numbers with one answer, then conditions. So a call costs
a dozen instructions, and the kernel's cache of calls that are always allowed (Linux 5.11) understands all of it.
"""

import os
import struct
from collections.abc import Mapping

from reconciler.linux.seccomp import load, numbers

_ALLOW = 0x7FFF0000
_ACTIONS = {
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": _ALLOW,
}
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_EPERM = 1
_LARGEST_ERRNO = 4095
_KILL_PROCESS = 0x80000000

_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": load.FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": load.FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": load.FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": load.FLAG_WAIT_KILLABLE_RECV,
}
_OPERATORS = (
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
)

# By machine: the native architecture's name, AUDIT_ARCH_* and table, then those of its 32-bit face.
_FACES = {
    "x86_64": (
        ("SCMP_ARCH_X86_64", 0xC000003E, numbers.X86_64),
        ("SCMP_ARCH_X86", 0x40000003, numbers.X86),
    ),
    "aarch64": (
        ("SCMP_ARCH_AARCH64", 0xC00000B7, numbers.AARCH64),
        ("SCMP_ARCH_ARM", 0x40000028, numbers.ARM),
    ),
}
_X32 = 0x40000000
_NEGATIVE = 0x80000000
_END = 1 << 32

# struct seccomp_data, and instructions (linux/bpf_common.h)
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_LOAD, _JUMP, _EQUAL, _GREATER, _NOT_LESS, _AND, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x54, 0x06
_FARTHEST = 255
_LONGEST = 4096  # BPF_MAXINSNS

Condition = tuple[int, str, int, int]  # argument, operator, value, valueTwo
Rule = tuple[tuple[Condition, ...], int]  # conditions that all hold, the value that the filter returns


def compile(section: Mapping[str, object], machine: str = os.uname().machine) -> bytes:
    """Give the filter of `section` for `machine` (x86_64 or aarch64) as struct sock_filter[].

    Raise ValueError, which names the field, for what is wrong in the section, for a machine without a table, and for
    more rules than the kernel takes instructions (4096).
    """
    if machine not in _FACES:
        raise ValueError(f"system call numbers of {machine} are not known")
    default = _action(section, "defaultAction", "defaultErrnoRet", "")
    listed = _strings(section, "architectures", "architectures")
    rules = _rules(section)
    native, compatible = _FACES[machine]
    code = _Code()
    kill = code.answer(_KILL_PROCESS)
    other = kill
    if compatible[0] in listed:
        tree = _tree(code, _ranges(compatible[2], rules, default))
        other = code.test(_EQUAL, compatible[1], code.load(_NR, tree), code.answer(_KILL_PROCESS))
    ranges = _ranges(native[2], rules, default)
    if machine == "x86_64":
        ranges = _without_x32(ranges)
    tree = code.load(_NR, _tree(code, ranges))
    code.load(_ARCH, code.test(_EQUAL, native[1], tree, other))
    return code.assemble()


def flags(section: Mapping[str, object]) -> int:
    """Give the SECCOMP_FILTER_FLAG_* of `section` for `load`, the listener's where it notifies; raise ValueError."""
    result = 0
    for name in _strings(section, "flags", "flags"):
        if name not in _FLAGS:
            raise ValueError(f"flags: {name}: no such flag")
        result |= _FLAGS[name]
    if notifies(section):
        result |= load.FLAG_NEW_LISTENER
        if result & load.FLAG_TSYNC:  # or the number of a thread could be taken for the listener
            result |= load.FLAG_TSYNC_ESRCH
    return result


def notifies(section: Mapping[str, object]) -> bool:
    """Say whether a rule hands calls over to a supervisor, at `listenerPath`; raise ValueError."""
    return any(_text(entry, "action", where) == "SCMP_ACT_NOTIFY" for entry, where in _entries(section))


def unknown(section: Mapping[str, object]) -> list[str]:
    """Give the names of calls in `section` that no table knows: newer than it, misspelt, or of other processors."""
    known = {name for faces in _FACES.values() for _, _, table in faces for name in table}
    names = {
        name for entry, where in _entries(section) for name in _strings(entry, "names", f"{where}.names")
    }
    return sorted(names - known)


# --- reading ----------------------------------------------------------------------------------------------------------


def _entries(section: Mapping[str, object]) -> list[tuple[dict[str, object], str]]:
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


def _rules(section: Mapping[str, object]) -> dict[str, list[Rule]]:
    """Read the rules of each name, the most restrictive first; what follows one without conditions is left out."""
    found: dict[str, list[Rule]] = {}
    for entry, where in _entries(section):
        names = _strings(entry, "names", f"{where}.names")
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
    return {name: _settled(rules) for name, rules in found.items()}


def _settled(rules: list[Rule]) -> list[Rule]:
    result = []
    for rule in sorted(rules, key=lambda rule: _rank(rule[1])):
        result.append(rule)
        if not rule[0]:
            break
    return result


def _rank(answer: int) -> int:
    """As the kernel compares answers: signed, without their data, and the smallest wins (kernel/seccomp.c)."""
    action = answer & 0xFFFF0000
    return action - _END if action & _NEGATIVE else action


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
        operator = _text(condition, "op", place)
        if operator not in _OPERATORS:
            raise ValueError(f"{place}.op: {operator or 'missing'}: expected one of {', '.join(_OPERATORS)}")
        argument = _number(condition, "index", place, 5)
        first = _number(condition, "value", place, 2**64 - 1)
        found.append((argument, operator, first, _number(condition, "valueTwo", place, 2**64 - 1)))
    return tuple(found)


def _action(entry: Mapping[str, object], key: str, number: str, where: str) -> int:
    prefix = f"{where}." if where else ""
    name = _text(entry, key, where)
    if name not in _ACTIONS:
        raise ValueError(f"{prefix}{key}: {name or 'missing'}: expected one of {', '.join(sorted(_ACTIONS))}")
    if name not in _WITH_ERRNO:
        if entry.get(number) is not None:
            raise ValueError(f"{prefix}{number}: {name} has no error number")
        return _ACTIONS[name]
    given = entry.get(number)
    return _ACTIONS[name] | (_EPERM if given is None else _number(entry, number, where, _LARGEST_ERRNO))


def _text(entry: Mapping[str, object], key: str, where: str) -> str:
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


def _strings(entry: Mapping[str, object], key: str, where: str) -> list[str]:
    value = entry.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: expected a list of strings")
    return value


# --- deciding ---------------------------------------------------------------------------------------------------------

Decision = tuple[Rule, ...]  # the last one has no conditions
Ranges = list[tuple[int, Decision]]  # from which number on; the first is 0


def _ranges(table: dict[str, int], rules: dict[str, list[Rule]], default: int) -> Ranges:
    """Give the decisions by number, equal neighbours as one."""
    otherwise: Decision = (((), default),)
    decided: dict[int, Decision] = {}
    for name, found in rules.items():
        if name in table:
            number = table[name]
            before = decided.get(number, ())[:-1]  # by another name of the same call
            settled = _settled([*before, *found])
            decided[number] = tuple(settled) if not settled[-1][0] else (*settled, ((), default))
    ranges: Ranges = []
    expected = 0
    for number in sorted(decided):
        if number > expected:
            _extend(ranges, expected, otherwise)
        _extend(ranges, number, decided[number])
        expected = number + 1
    _extend(ranges, expected, otherwise)
    return ranges


def _extend(ranges: Ranges, first: int, decision: Decision) -> None:
    if not ranges or ranges[-1][1] != decision:
        ranges.append((first, decision))


def _without_x32(ranges: Ranges) -> Ranges:
    """Replace the answer for numbers of x32. Negative ones stay: a tracer skips a call by making its number -1."""
    below = [entry for entry in ranges if entry[0] < _X32]
    default = ranges[-1][1]
    return [*below, (_X32, (((), _KILL_PROCESS),)), (_NEGATIVE, default)]


class _Code:
    """A program that grows from its end: every jump is forward, so what it leads to is there before it.

    A place is a distance from the end of the program, and so stays the same as it grows.
    """

    __slots__ = ("_answers", "_code", "_decisions")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._answers: dict[int, int] = {}
        self._decisions: dict[Decision, int] = {}

    def _add(self, code: int, value: int, true: int = 0, false: int = 0) -> int:
        self._code.append((code, true, false, value))
        return len(self._code) - 1

    def _distance(self, place: int) -> int:
        return len(self._code) - 1 - place

    def _near(self, place: int) -> int:
        """Give a place from where the program goes on as at `place`, right behind the next instruction."""
        code, _, _, value = self._code[place]
        if code == _RETURN:
            return self._add(_RETURN, value)
        return self._add(_JUMP, self._distance(place))

    def answer(self, value: int) -> int:
        """Return `value` to the kernel."""
        place = self._answers.get(value)
        if place is None or self._distance(place) > _FARTHEST // 2:
            place = self._answers[value] = self._add(_RETURN, value)
        return place

    def load(self, offset: int, then: int) -> int:
        """Load a word of struct seccomp_data, and go on at `then`."""
        if self._distance(then):
            self._near(then)
        return self._add(_LOAD, offset)

    def test(self, code: int, value: int, true: int, false: int) -> int:
        """Compare the word that is loaded."""
        while self._distance(true) > _FARTHEST or self._distance(false) > _FARTHEST:
            if self._distance(true) > _FARTHEST:
                true = self._near(true)
            else:
                false = self._near(false)
        return self._add(code, value, self._distance(true), self._distance(false))

    def mask(self, value: int) -> int:
        """Take only the bits of `value` from the word that is loaded, and go on at what was added last."""
        return self._add(_AND, value)

    def decide(self, decision: Decision) -> int:
        """Go through rules until the conditions of one hold."""
        if len(decision) == 1:
            return self.answer(decision[0][1])
        place = self._decisions.get(decision)
        if place is None:
            place = self.answer(decision[-1][1])
            for conditions, value in reversed(decision[:-1]):
                otherwise = place
                place = self.answer(value)
                for condition in reversed(conditions):
                    place = _compare(self, condition, place, otherwise)
            self._decisions[decision] = place
        return place

    def assemble(self) -> bytes:
        """Give the program; raise ValueError where the kernel would not take it for its length."""
        if len(self._code) > _LONGEST:
            raise ValueError(
                f"syscalls: too many rules: {len(self._code)} instructions, the kernel takes {_LONGEST}"
            )
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in reversed(self._code))


def _tree(code: _Code, ranges: Ranges) -> int:
    """Find the number that is loaded among `ranges` by halves."""
    if len(ranges) == 1:
        return code.decide(ranges[0][1])
    middle = len(ranges) // 2
    below = _tree(code, ranges[:middle])
    above = _tree(code, ranges[middle:])
    return code.test(_NOT_LESS, ranges[middle][0], above, below)


def _compare(code: _Code, condition: Condition, true: int, false: int) -> int:
    """Compare an argument, all 64 bits of it: two words, the high one first."""
    argument, operator, value, second = condition
    low = _ARGUMENTS + 8 * argument
    if operator == "SCMP_CMP_MASKED_EQ":
        return _compare_masked(code, low, value, second, true, false)
    if operator in ("SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE"):
        true, false = false, true
    test = {
        "SCMP_CMP_EQ": _EQUAL,
        "SCMP_CMP_NE": _EQUAL,
        "SCMP_CMP_GT": _GREATER,
        "SCMP_CMP_LE": _GREATER,
        "SCMP_CMP_GE": _NOT_LESS,
        "SCMP_CMP_LT": _NOT_LESS,
    }[operator]
    high = value >> 32
    place = code.load(low, code.test(test, value & 0xFFFFFFFF, true, false))
    place = code.test(_EQUAL, high, place, false)
    if test != _EQUAL:
        place = code.test(_GREATER, high, true, place)
    return code.load(low + 4, place)


def _compare_masked(code: _Code, low: int, mask: int, wanted: int, true: int, false: int) -> int:
    if wanted & ~mask:
        return false
    place = true
    for offset, shift in ((low, 0), (low + 4, 32)):
        bits = mask >> shift & 0xFFFFFFFF
        if bits:
            place = code.test(_EQUAL, wanted >> shift & 0xFFFFFFFF, place, false)
            if bits != 0xFFFFFFFF:
                place = code.mask(bits)
            place = code.load(offset, place)
    return place
