"""Lists of variables: what a line means, and that every value can be written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.spec.dotenv import parse

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,10}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("A=", ""),
        ("  A = b c  ", "b c"),
        ("export A=b", "b"),
        ("A=b # note", "b"),
        ("A=b#c", "b#c"),
        ("A=#c", ""),
        ("A='b # $c \\n' # note", "b # $c \\n"),
        ('A="b\\n\\t\\"\\\\\\$x"', 'b\n\t"\\$x'),
        ("A=b=c", "b=c"),
        ("A=$HOME", "$HOME"),
        ("A=b\r", "b"),
        ("\ufeffA=b", "b"),
    ],
)
def test_a_line_sets_a_variable(line: str, value: str) -> None:
    assert parse(f"\n# comment\n   # more\n{line}\n".encode() if line[0] != "\ufeff" else line.encode()) == (
        {"A": value},
        (),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"A", "line 1: expected K=V: 'A'"),
        (b"\n=x", "line 2: expected K=V: ''"),
        (b"A B=x", "line 1: expected K=V: 'A B'"),
        (b"A='x", "line 1: quotes that do not end, or text after them: 'A'"),
        (b'A="x" y', "line 1: quotes that do not end, or text after them: 'A'"),
        (b"A=1\nA=2", "line 2: sets 'A' a second time"),
        (b"A=\xff", "not UTF-8 at byte 2"),
        (b"A=1\nB=\0", "line 2: holds a NUL"),
    ],
)
def test_what_is_no_variable_is_said_without_its_value(content: bytes, said: str) -> None:
    assert said in parse(content)[1]


@given(st.dictionaries(NAMES, TEXTS))
def test_every_value_can_be_written_in_double_quotes(variables: dict[str, str]) -> None:
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})
    lines = "\n".join(f'{name}="{value.translate(escapes)}"' for name, value in variables.items())
    assert parse(lines.encode()) == (variables, ())


@given(st.binary(max_size=200))
def test_nothing_breaks_it(content: bytes) -> None:
    variables, _ = parse(content)
    assert all(name and "=" not in name for name in variables)
