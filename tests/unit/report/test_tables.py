"""Tables, sizes, ages and machine-readable forms: what people and scripts read."""

import io
import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import UsageError
from reconciler.report import tables
from reconciler.report.tables import Column

COLUMNS = (
    Column("NAME", lambda item: str(item["name"])),
    Column("NOTE", lambda item: str(item["note"]), wide=True),
)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.00KiB"),
        (10 * 1024, "10.0KiB"),
        (1023 * 1024 + 1023, "1.00MiB"),
        (164 * 2**20, "164MiB"),
        (2**63, "8.00EiB"),
        (-2048, "-2.00KiB"),
    ],
)
def test_sizes_are_iec_with_three_digits(count: int, text: str) -> None:
    assert tables.size(count) == text


@given(st.integers(0, 2**63))
def test_a_size_is_true_to_within_one_percent_and_never_long(count: int) -> None:
    text = tables.size(count)
    assert len(text) <= 8
    if count >= 1024:
        number, unit = text[:-3], text[-3:]
        factor = 1024 ** (1 + ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB").index(unit))
        assert float(number) * factor == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (180, "3 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (3 * 86400, "3 days"),
        (14 * 86400, "2 weeks"),
        (90 * 86400, "3 months"),
        (800 * 86400, "2 years"),
    ],
)
def test_durations_have_dockers_words(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@given(st.floats(allow_nan=False, allow_infinity=False, max_value=1e12))
def test_every_duration_has_words(seconds: float) -> None:
    assert tables.duration(seconds)


def test_an_unknown_time_has_no_age() -> None:
    assert tables.age(0.0) == "-"
    assert tables.age(1000.0, now=1180.0) == "3 minutes ago"


def test_digests_are_short_and_other_names_stay() -> None:
    assert tables.short_digest("sha256:" + "ab" * 32) == "abababababab"
    assert tables.short_reference("r.example/x:1@sha256:" + "ab" * 32) == "r.example/x:1@abababababab"
    assert tables.short_reference("r.example:5000/x:1") == "r.example:5000/x:1"


def test_a3_control_characters_are_quoted() -> None:
    assert tables.quoted("a\x1b[2Jb\nc\x9b\u202e") == r"a\x1b[2Jb\nc\x9b\u202e"
    assert tables.quoted("größe") == "größe"


@given(st.text())
def test_nothing_unprintable_passes_into_a_table(text: str) -> None:
    assert tables.quoted(text).isprintable()
    (header, line) = tables.table(("A", "B"), [(text, "x")]).splitlines()
    assert header.startswith("A")
    assert line.isprintable()


@given(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_columns_of_a_table_begin_at_the_same_place(rows: list[tuple[str, str]]) -> None:
    header, *lines = tables.table(("ONE", "TWO", "X"), [(*row, "|") for row in rows]).split("\n")[:-1]
    assert len(lines) == len(rows)
    assert all(line.endswith("|") and tables.width(line) == tables.width(header) for line in lines)


def test_wide_characters_are_aligned() -> None:
    text = tables.table(("N", "V"), [("日本", "1"), ("abcd", "2")])
    assert text == "N      V\n日本   1\nabcd   2\n"


@given(st.text())
def test_a3_json_is_valid_printable_and_on_one_line(text: str) -> None:
    line = tables.json_line({"name": text})
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert json.loads(line) == {"name": text}
    assert json.loads(tables.dump_json([text])) == [text]


def test_every_output_shows_the_same_items() -> None:
    items = [{"name": "web", "note": "x"}, {"name": "db", "note": ""}]
    assert tables.listing("AppList", items, COLUMNS) == "NAME\nweb\ndb\n"
    assert tables.listing("AppList", items, COLUMNS, with_headers=False) == "web\ndb\n"
    assert tables.listing("AppList", items, COLUMNS, output="wide") == "NAME   NOTE\nweb    x\ndb     -\n"
    assert tables.listing("AppList", items, COLUMNS, output="name") == "web\ndb\n"
    document = {"apiVersion": "reconciler/v1", "kind": "AppList", "items": items}
    assert json.loads(tables.listing("AppList", items, COLUMNS, output="json")) == document
    assert yaml.safe_load(tables.listing("AppList", items, COLUMNS, output="yaml")) == document
    lines = tables.listing("AppList", items, COLUMNS, output="jsonl").splitlines()
    assert [json.loads(line) for line in lines] == items
    with pytest.raises(UsageError, match="expected wide"):
        tables.listing("AppList", items, COLUMNS, output="xml")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "mode", "environment", "expected"),
    [
        (Terminal(), "auto", {}, True),
        (Terminal(), "auto", {"NO_COLOR": "1"}, False),
        (Terminal(), "auto", {"TERM": "dumb"}, False),
        (Terminal(), "always", {"NO_COLOR": "1"}, True),
        (Terminal(), "never", {}, False),
        (io.StringIO(), "auto", {}, False),
        (io.StringIO(), "always", {}, True),
    ],
)
def test_colour_follows_the_terminal_no_color_and_the_switch(
    stream: io.StringIO, mode: str, environment: dict[str, str], expected: bool
) -> None:
    assert tables.use_color(stream, mode, environment) is expected
