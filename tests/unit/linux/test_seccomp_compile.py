"""The compiler of seccomp filters: for any profile and any call its program answers what the profile says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.linux.seccomp import load, numbers
from reconciler.linux.seccomp.compile import compile, flags, notifies, unknown
from tests.bpf import AARCH64, ALLOW, ARM, ERRNO, KILL_PROCESS, X86, X86_64, Filter

# From the most restrictive to the least, as seccomp(2) orders them; written out here, not taken from the compiler
ORDER = {
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
FACES = {
    "x86_64": {X86_64: numbers.X86_64, X86: numbers.X86},
    "aarch64": {AARCH64: numbers.AARCH64, ARM: numbers.ARM},
}
NATIVE = {"x86_64": X86_64, "aarch64": AARCH64}
THIRTY_TWO = {"x86_64": "SCMP_ARCH_X86", "aarch64": "SCMP_ARCH_ARM"}

words = st.sampled_from([0, 1, 2, 9, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]) | st.integers(0, 2**32 - 1)
values = st.builds(lambda high, low: high << 32 | low, words, words) | words
operators = st.sampled_from(["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"])
names = st.sampled_from(
    [
        "read",
        "write",
        "open",
        "clone",
        "clone3",
        "socket",
        "socketcall",
        "ioctl",
        "mseal",
        "breakpoint",
        "no_such",
    ]
)


@st.composite
def actions(draw: st.DrawFn, key: str = "action", number: str = "errnoRet") -> dict[str, Any]:
    action = draw(st.sampled_from(sorted(ORDER)))
    entry: dict[str, Any] = {key: action}
    if action in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") and draw(st.booleans()):
        entry[number] = draw(st.integers(0, 4095))
    return entry


@st.composite
def sections(draw: st.DrawFn) -> dict[str, Any]:
    condition = st.fixed_dictionaries(
        {"index": st.integers(0, 5), "op": operators.map(lambda op: f"SCMP_CMP_{op}"), "value": values},
        optional={"valueTwo": values},
    )
    section: dict[str, Any] = draw(actions("defaultAction", "defaultErrnoRet"))
    section["architectures"] = draw(
        st.lists(st.sampled_from(["SCMP_ARCH_X86", "SCMP_ARCH_ARM", "SCMP_ARCH_X32", "SCMP_ARCH_S390X"]))
    )
    section["syscalls"] = [
        {"names": draw(st.lists(names, min_size=1, max_size=3)), **draw(actions()), "args": args}
        for args in draw(st.lists(st.lists(condition, max_size=3), max_size=8))
    ]
    return section


def holds(condition: dict[str, Any], args: tuple[int, ...]) -> bool:
    have: int = args[condition["index"]]
    value: int = condition["value"]
    match condition["op"].removeprefix("SCMP_CMP_"):
        case "NE":
            return have != value
        case "LT":
            return have < value
        case "LE":
            return have <= value
        case "EQ":
            return have == value
        case "GE":
            return have >= value
        case "GT":
            return have > value
    return have & value == int(condition.get("valueTwo", 0))


def matches(rule: dict[str, Any], name: str, args: tuple[int, ...]) -> bool:
    if name not in rule["names"]:
        return False
    each = [holds(condition, args) for condition in rule["args"]]
    indexes = [condition["index"] for condition in rule["args"]]
    return any(each) if len(set(indexes)) < len(indexes) else all(each)


def answer(entry: dict[str, Any], key: str = "action", number: str = "errnoRet") -> int:
    value = ORDER[entry[key]]
    return value | entry.get(number, 1) if entry[key] in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE") else value


def evaluate(section: dict[str, Any], machine: str, arch: int, number: int, args: tuple[int, ...]) -> int:
    """Read the profile as its words say, one call at a time."""
    if arch != NATIVE[machine]:
        faces = FACES[machine]
        if arch not in faces or THIRTY_TWO[machine] not in section["architectures"]:
            return KILL_PROCESS
    elif machine == "x86_64" and 0x40000000 <= number < 0x80000000:
        return KILL_PROCESS
    called = [name for name, value in FACES[machine][arch].items() if value == number]
    found = [rule for rule in section["syscalls"] for name in called if matches(rule, name, args)]
    order = list(ORDER)
    found.sort(key=lambda rule: order.index(rule["action"]))
    return answer(found[0]) if found else answer(section, "defaultAction", "defaultErrnoRet")


@given(data=st.data(), section=sections(), machine=st.sampled_from(["x86_64", "aarch64"]))
def test_a_program_answers_what_the_profile_says(
    data: st.DataObject, section: dict[str, Any], machine: str
) -> None:
    program = Filter(compile(section, machine))
    mentioned = [
        condition[key] for rule in section["syscalls"] for condition in rule["args"]
        for key in ("value", "valueTwo") if key in condition
    ]  # fmt: skip
    near = st.sampled_from(mentioned or [0]).flatmap(
        lambda value: st.sampled_from([value, max(0, value - 1), min(2**64 - 1, value + 1), value ^ 1 << 32])
    )
    for _ in range(12):
        arch = data.draw(st.sampled_from([X86_64, X86, AARCH64, ARM, 0x80000016]))
        table = FACES[machine].get(arch, {})
        known = st.sampled_from(
            ["read", "open", "clone", "socket", "ioctl", "socketcall", "breakpoint", "mseal"]
        )
        number = data.draw(
            known.map(lambda name, table=table: table.get(name, 9999))  # type: ignore[misc]
            | st.sampled_from(
                [0, 1, 511, 0x3FFFFFFF, 0x40000000, 0x40000001, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
            )
        )
        args = tuple(data.draw(near | values) for _ in range(6))
        assert program.run(number, arch, args).value == evaluate(section, machine, arch, number, args)


@given(st.lists(st.tuples(st.integers(0, 5), operators, values, values), max_size=6), st.data())
def test_all_conditions_on_different_arguments_hold_in_64_bits(
    conditions: list[tuple[int, str, int, int]], data: st.DataObject
) -> None:
    args = [
        {"index": index, "op": f"SCMP_CMP_{op}", "value": value, "valueTwo": two}
        for index, op, value, two in {condition[0]: condition for condition in conditions}.values()
    ]
    rule = {"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": args}
    program = Filter(compile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}, "x86_64"))
    given_args = tuple(
        int(data.draw(st.sampled_from([c["value"] for c in args if c["index"] == n] or [0]) | values))  # type: ignore[call-overload]
        for n in range(6)
    )
    wanted = ALLOW if all(holds(condition, given_args) for condition in args) else ERRNO | 1
    assert program.run(numbers.X86_64["ioctl"], X86_64, given_args).value == wanted


def test_hundreds_of_rules_with_conditions_reach_over_more_than_a_short_jump() -> None:
    rules = [
        {
            "names": ["ioctl"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": number,
            "args": [{"index": 1, "op": "SCMP_CMP_EQ", "value": number << 20}],
        }
        for number in range(1, 600)
    ]
    program = Filter(compile({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}, "x86_64"))
    assert len(program.code) > 2000
    for number in (1, 2, 255, 256, 599):
        assert program.run(16, X86_64, (0, number << 20)).value == ERRNO | number
    assert program.run(16, X86_64, (0, 600 << 20)).value == ALLOW
    assert program.run(0).value == program.run(400).value == ALLOW


def test_more_instructions_than_the_kernel_takes_are_refused() -> None:
    args = [[{"index": 1, "op": "SCMP_CMP_EQ", "value": number}] for number in range(2000)]
    rules = [{"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": each} for each in args]
    with pytest.raises(ValueError, match="too many rules"):
        compile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}, "x86_64")


def test_a_search_by_halves_costs_few_instructions() -> None:
    every_other = [name for name, number in numbers.X86_64.items() if number % 2]
    section = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": every_other, "action": "SCMP_ACT_ALLOW"}],
    }
    program = Filter(compile(section, "x86_64"))
    assert max(program.run(number).instructions for number in range(600)) <= 16


def test_the_most_restrictive_of_the_rules_that_match_counts_in_whatever_order() -> None:
    one = {"index": 0, "op": "SCMP_CMP_EQ", "value": 1}
    rules = [
        {"names": ["ioctl"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": [one]},
    ]
    for syscalls in (rules, rules[::-1]):
        program = Filter(compile({"defaultAction": "SCMP_ACT_KILL", "syscalls": syscalls}, "x86_64"))
        assert program.run(16, args=(1,)).value == ERRNO | 5
        assert program.run(16, args=(2,)).value == ALLOW


def test_the_flags_are_those_of_the_kernel() -> None:
    named = [f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")]
    assert [flags({"flags": [name]}) for name in named] == [1, 2, 4, 32]
    assert flags({}) == 0
    notify = {"flags": named[:1], "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}
    assert flags(notify) == load.FLAG_TSYNC | load.FLAG_NEW_LISTENER | load.FLAG_TSYNC_ESRCH
    assert notifies(notify)
    assert not notifies({})


def test_names_that_no_table_knows_are_told_and_left_out() -> None:
    section = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read", "raed", "s390_runtime_instr"], "action": "SCMP_ACT_ALLOW"}],
    }
    assert unknown(section) == ["raed", "s390_runtime_instr"]
    assert Filter(compile(section, "x86_64")).run(0).value == ALLOW


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({}, "defaultAction: missing"),
        ({"defaultAction": "SCMP_ACT_DENY"}, "defaultAction: SCMP_ACT_DENY: expected one of"),
        ({"defaultAction": 3}, "defaultAction: expected a string"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "defaultErrnoRet: SCMP_ACT_ALLOW has no"),
        ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}, "defaultErrnoRet: expected 0 to 4095"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}}, "syscalls: expected a list"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [3]}, r"syscalls\[0\]: expected an object"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}, "at least one name"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "architectures": "x"}, "architectures: expected a list of strings"),
        ({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_FAST"]}, "flags: .*: no such flag"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(section: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _ = (compile(section, "x86_64"), flags(section))


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        ({"index": 6, "op": "SCMP_CMP_EQ", "value": 1}, r"syscalls\[0\].args\[0\].index: expected 0 to 5"),
        ({"index": 0, "op": "EQ", "value": 1}, r"args\[0\].op: EQ: expected one of"),
        ({"index": 0, "op": "SCMP_CMP_EQ", "value": -1}, r"args\[0\].value: expected 0 to"),
        ({"index": 0, "op": "SCMP_CMP_EQ", "value": 2**64}, r"args\[0\].value: expected 0 to"),
        ({"index": 0, "op": "SCMP_CMP_EQ", "value": True}, r"args\[0\].value: expected 0 to"),
        (3, r"args\[0\]: expected an object"),
    ],
)
def test_what_is_wrong_in_a_condition_is_named(condition: object, text: str) -> None:
    rule = {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [condition]}
    with pytest.raises(ValueError, match=text):
        compile({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}, "x86_64")


def test_a_machine_without_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="riscv64"):
        compile({"defaultAction": "SCMP_ACT_ALLOW"}, "riscv64")
