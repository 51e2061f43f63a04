"""YAML to a tree: the scalars of YAML 1.2, the limits, and hostile files refused cheaply (rows Y1 to Y5)."""

import re
import time
import tracemalloc

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reconciler.spec.marks import Problem
from reconciler.spec.yaml12 import Value, WrittenFloat, WrittenInt, compose, plain, resolve


def read(text: str | bytes) -> tuple[Value, list[Problem]]:
    root, _, problems = compose("a.yaml", text if isinstance(text, bytes) else text.encode())
    return (plain(root) if root is not None else None), problems


# The tables of YAML 1.2, 10.3.2 ("Core Schema, Tag Resolution"), without what specs leave out: other spellings of null
# and booleans, octal and hexadecimal numbers, infinity and not-a-number, all of which are text here.
CORE = [
    (re.compile(r"null|~|"), type(None)),
    (re.compile(r"true|false"), bool),
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
]


@given(
    st.one_of(
        st.text(), st.from_regex(r"\A[-+.0-9eE_:xo]{0,12}\Z"), st.sampled_from(["null", "~", "", "true"])
    )
)
def test_a_scalar_means_what_the_core_schema_says(text: str) -> None:
    value = resolve(text)
    expected = next((kind for pattern, kind in CORE if pattern.fullmatch(text)), str)
    if expected is int:
        assert type(value) is (WrittenInt if len(text) <= 40 else WrittenFloat)
    elif expected is float:
        assert type(value) is WrittenFloat
    else:
        assert type(value) is expected
    if isinstance(value, WrittenInt | WrittenFloat):
        assert value.text == text
    if expected is str:
        assert value == text


@pytest.mark.parametrize(
    "text",
    [
        "yes", "no", "on", "off", "True", "FALSE", "Null", "0o17", "0x1F", "0b1", "1_000", "12:30:45", "22:22",
        "2026-01-01", ".nan", ".inf", "-.inf", "1.2.3", "1e", "+", "-", ".", "e5", "\u0663",
    ],
)  # fmt: skip
def test_what_yaml_1_1_takes_for_something_else_is_text(text: str) -> None:
    assert read(f"a: {text}")[0] == {"a": text} if text != "-" else True


def test_quotes_make_text() -> None:
    assert read("a: '1'\nb: \"true\"\nc: |\n  null\n")[0] == {"a": "1", "b": "true", "c": "null\n"}


def test_numbers_remember_how_they_were_written() -> None:
    value, problems = read("a: 0755\nb: 1e400\nc: +1\nd: 1." + "\ne: " + "9" * 100_000)
    assert not problems
    assert isinstance(value, dict)
    texts = [item.text for item in value.values() if isinstance(item, WrittenInt | WrittenFloat)]
    assert texts == ["0755", "1e400", "+1", "1.", "9" * 100_000]


def test_keys_are_text_as_written() -> None:
    assert read("on: 1\n1: 2\ntrue: 3\n~: 4")[0] == {"on": 1, "1": 2, "true": 3, "~": 4}


def test_merging_keeps_what_the_map_says_itself_and_the_first_of_several() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 9}\nd: {<<: *a}\ne: {'<<': 1}"
    value, problems = read(text)
    assert not problems
    assert isinstance(value, dict)
    assert value["c"] == {"x": 9, "y": 1, "z": 2}
    assert value["d"] == {"x": 1, "y": 1}
    assert value["e"] == {"<<": 1}


def test_an_alias_of_a_key_is_that_key() -> None:
    assert read("a: &k name\n*k : 1")[0] == {"a": "name", "name": 1}


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
DEEP_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("billion laughs", LAUGHS, "more than 10000 nodes"),
        ("ten megabytes of brackets", "[" * (10 << 20), "larger than 1 MiB"),
        ("a megabyte of brackets", "[" * (1 << 20), "nested more than 32"),
        ("a megabyte of braces", "{" * (1 << 20), "nested more than 32"),
        ("a megabyte of dashes", "- " * (1 << 19), "nested more than 32"),
        ("a chain of aliases", DEEP_ALIASES, "nested more than 32"),
        ("half a million keys", "".join(f"{i}:\n" for i in range(130_000)), "more than 10000 nodes"),
        ("many items", "a: [" + "1," * 400_000 + "]", "more than 10000 nodes"),
        ("a cycle", "a: &a {b: *a}", "stands inside what it refers to"),
        ("question marks", "? " * (1 << 19), ""),
        ("colons", "a:" * (1 << 18), ""),
        ("anchors", "&a " * 300_000, ""),
        ("tabs", "\t" * 900_000, ""),
        ("quotes", '"' + "\\n" * 400_000, ""),
        ("many duplicates", "a: 1\n" * 4000, "duplicate key"),
        ("many controls", "\x01" * 900_000, "not allowed"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_y1_a_hostile_file_is_refused_cheaply(name: str, data: str, message: str, patience: float) -> None:
    encoded = data.encode()
    tracemalloc.start()
    started = time.process_time()
    _, _, problems = compose("a.yaml", encoded)
    shown = [str(problem) for problem in problems]
    spent = time.process_time() - started
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert problems
    assert len(problems) <= 101
    assert message in shown[0]
    assert max(map(len, shown)) < 2000
    assert spent < 1.0 * patience
    assert peak < 50 << 20


def test_y1_a_megabyte_of_text_is_fine() -> None:
    value, problems = read("a: " + "x" * ((1 << 20) - 10))
    assert not problems
    assert isinstance(value, dict)
    assert len(str(value["a"])) == (1 << 20) - 10


@pytest.mark.parametrize(
    "text", ["a: !!python/object/apply:os.system [id]", "a: !x 1", "!x {a: 1}", "a: !!str 1", "a: ! 1"]
)
def test_y2_tags_are_refused(text: str) -> None:
    assert "the tag" in read(text)[1][0].message


@pytest.mark.parametrize(
    ("text", "line"),
    [("a: 1\na: 2", 2), ("a: {b: 1,\n b: 2}", 2), ("- a: 1\n  b: 2\n  a: 3", 3), ("a: 1\n'a': 2", 2)],
)
def test_y3_a_duplicate_key_is_an_error_with_its_line(text: str, line: int) -> None:
    (problem,) = read(text)[1]
    assert problem.message.startswith("duplicate key")
    assert problem.mark.line == line


@pytest.mark.parametrize(
    "data",
    [
        "a: 1".encode("utf-16"), "a: 1".encode("utf-32"), b"\xef\xbb\xbfa: 1", b"a: \xe9", b"a: \x00", b"a: \x1b[0m",
        "a: \u2028".encode(), "a: \u202e".encode(), "a: \u2066".encode(), "a: \x85".encode(), "a: \ufeff".encode(),
        b"a: \x7f", b"a: 1\rb: 2", b'a: "\\0"', b"\xed\xa0\x80", b"\xc0\xaf",
    ],
)  # fmt: skip
def test_y5_what_is_not_plain_utf_8_is_refused_and_never_shown_raw(data: bytes) -> None:
    problems = read(data)[1]
    assert problems
    for problem in problems:
        assert str(problem).replace("\n", "").isprintable()


def test_windows_line_ends_and_letters_of_all_scripts_are_fine() -> None:
    assert read("a: 日本語 é 🙂\r\nb: 2\r\n") == ({"a": "日本語 é 🙂", "b": 2}, [])


@given(st.binary(max_size=300))
def test_any_bytes_give_a_tree_or_problems(data: bytes) -> None:
    root, _, problems = compose("a.yaml", data)
    assert root is not None or problems
    for problem in problems:
        assert problem.mark.line >= 1
        assert problem.mark.column >= 1
        assert str(problem).replace("\n", "").isprintable()


FRAGMENTS = st.sampled_from(
    ["a", "b: ", "- ", "[", "]", "{", "}", ",", ":", "\n", "  ", "&x ", "*x", "<<: ", "'", '"', "|\n", ">\n", "#", "? ",
     "!t ", "---\n", "...\n", "%YAML 1.2\n", "\t", "1", "~", "\\", "@", "`", "\r\n", "é"]
)  # fmt: skip


@given(st.lists(FRAGMENTS, max_size=40).map("".join))
def test_any_pieces_of_yaml_give_a_tree_or_problems(text: str) -> None:
    value, problems = read(text)
    if problems:
        for problem in problems:
            assert str(problem)
        return
    # What we accept, PyYAML's own composer accepts as one document of the same shape.
    node = yaml.compose(text, Loader=yaml.CSafeLoader)
    kind = "mapping" if isinstance(value, dict) else "sequence" if isinstance(value, tuple) else "scalar"
    assert type(node).__name__ == f"{kind.capitalize()}Node"
