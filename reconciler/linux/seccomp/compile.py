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

from reconciler.linux.seccomp import load, numbers, rules
from reconciler.linux.seccomp.rules import KILL_PROCESS, Condition, Rule

_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": load.FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": load.FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": load.FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": load.FLAG_WAIT_KILLABLE_RECV,
}

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


def compile(section: Mapping[str, object], machine: str = os.uname().machine) -> bytes:
    """Give the filter of `section` for `machine` (x86_64 or aarch64) as struct sock_filter[].

    Raise ValueError, which names the field, for what is wrong in the section, for a machine without a table, and for
    more rules than the kernel takes instructions (4096).
    """
    if machine not in _FACES:
        raise ValueError(f"system call numbers of {machine} are not known")
    default = rules.default(section)
    listed = rules.strings(section, "architectures", "architectures")
    found = rules.read(section)
    native, compatible = _FACES[machine]
    code = _Code()
    kill = code.answer(KILL_PROCESS)
    other = kill
    if compatible[0] in listed:
        tree = _tree(code, _ranges(compatible[2], found, default))
        other = code.test(_EQUAL, compatible[1], code.load(_NR, tree), code.answer(KILL_PROCESS))
    ranges = _ranges(native[2], found, default)
    if machine == "x86_64":
        ranges = _without_x32(ranges)
    tree = code.load(_NR, _tree(code, ranges))
    code.load(_ARCH, code.test(_EQUAL, native[1], tree, other))
    return code.assemble()


def flags(section: Mapping[str, object]) -> int:
    """Give the SECCOMP_FILTER_FLAG_* of `section` for `load`, the listener's where it notifies; raise ValueError."""
    result = 0
    for name in rules.strings(section, "flags", "flags"):
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
    return any(
        rules.text(entry, "action", where) == "SCMP_ACT_NOTIFY" for entry, where in rules.entries(section)
    )


def features() -> dict[str, list[str]]:
    """Tell what a section may say here, by the names of features-linux.md, "Seccomp"."""
    return {
        "actions": list(rules.ACTIONS),
        "operators": list(rules.OPERATORS),
        "archs": [name for name, _, _ in _FACES.get(os.uname().machine, ())],
        "knownFlags": list(_FLAGS),
        "supportedFlags": list(_FLAGS),
    }


def unknown(section: Mapping[str, object]) -> list[str]:
    """Give the names of calls in `section` that no table knows: newer than it, misspelt, or of other processors."""
    known = {name for faces in _FACES.values() for _, _, table in faces for name in table}
    names = {
        name
        for entry, where in rules.entries(section)
        for name in rules.strings(entry, "names", f"{where}.names")
    }
    return sorted(names - known)


# --- deciding ---------------------------------------------------------------------------------------------------------

Decision = tuple[Rule, ...]  # the last one has no conditions
Ranges = list[tuple[int, Decision]]  # from which number on; the first is 0


def _ranges(table: dict[str, int], named: dict[str, list[Rule]], default: int) -> Ranges:
    """Give the decisions by number, equal neighbours as one."""
    otherwise: Decision = (((), default),)
    decided: dict[int, Decision] = {}
    for name, found in named.items():
        if name in table:
            number = table[name]
            before = decided.get(number, ())[:-1]  # by another name of the same call
            settled = rules.settled([*before, *found])
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
    return [*below, (_X32, (((), KILL_PROCESS),)), (_NEGATIVE, default)]


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
