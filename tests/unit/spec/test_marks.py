"""Places and problems as people see them."""

from reconciler.spec.marks import WARNING, Mark, Problem, Source, Span, printable, quote, summary


def test_a_problem_shows_its_line_with_carets_under_the_place() -> None:
    source = Source("apps/web.yaml", "name: web\nprot: 80\n")
    problem = source.problem(Span(2, 1, 4), "unknown key 'prot'", hint="write 'port'")
    assert problem.render() == (
        "apps/web.yaml:2:1: error: unknown key 'prot'\n    2 | prot: 80\n      | ^^^^  write 'port'"
    )
    assert str(problem) == problem.render()


def test_colour_changes_nothing_but_the_colour() -> None:
    source = Source("a.yaml", "a: 1")
    problem = source.problem(Span(1, 4, 1), "no", severity=WARNING, hint="yes")
    coloured = problem.render(color=True)
    assert "\x1b[" in coloured
    assert _without_colour(coloured) == problem.render()


def _without_colour(text: str) -> str:
    for code in ("\x1b[1m", "\x1b[0m", "\x1b[1;31m", "\x1b[1;33m"):
        text = text.replace(code, "")
    return text


def test_a_problem_without_an_excerpt_is_one_line_and_its_hint() -> None:
    assert Problem(Mark("a.yaml", 1, 1), "no").render() == "a.yaml:1:1: error: no"
    assert Problem(Mark("a.yaml", 1, 1), "no", hint="yes").render().endswith("\n      |  yes")


def test_width_zero_means_the_rest_of_the_line() -> None:
    problem = Source("a.yaml", "a: b c  \nnext").problem(Span(1, 4, 0), "no")
    assert problem.width == 3


def test_a_long_line_is_cut_around_the_place() -> None:
    source = Source("a.yaml", "x" * 5000 + "HERE" + "y" * 5000)
    problem = source.problem(Span(1, 5001, 4), "no")
    assert len(problem.excerpt) <= 160
    assert problem.excerpt[problem.caret : problem.caret + problem.width] == "HERE"
    assert problem.mark.column == 5001


def test_carets_stand_under_wide_and_combining_characters() -> None:
    text = "a: 日本 e\u0301 HERE"
    shown = Source("a.yaml", text).problem(Span(1, text.index("HERE") + 1, 4), "no").render().splitlines()
    assert shown[2].index("^") == len("    1 | a: ") + 4 + 1 + 1 + 1


def test_a_place_beyond_the_text_still_renders() -> None:
    assert Source("a.yaml", "a").problem(Span(9, 9, 3), "no").render().startswith("a.yaml:9:9: error: no")
    assert Source("a.yaml", "a").problem(Span(1, 9, 3), "no").render()


def test_nothing_of_a_file_moves_the_cursor() -> None:
    assert printable("a\x1b[31m\tb\u202e\r") == "a\ufffd[31m b\ufffd\ufffd"
    assert quote("a\x1b\u202e\n") == "'a\\x1b\\u202e\\n'"
    assert quote("x" * 100) == "'" + "x" * 60 + "'..."
    assert str(Mark("a\nb.yaml", 1, 2)) == "a\ufffdb.yaml:1:2"


def test_problems_sort_by_file_line_and_column() -> None:
    marks = [Mark("b", 1, 1), Mark("a", 10, 1), Mark("a", 9, 2), Mark("a", 9, 1)]
    assert [str(mark) for mark in sorted(marks)] == ["a:9:1", "a:9:2", "a:10:1", "b:1:1"]


def test_the_summary_counts_errors_warnings_and_files() -> None:
    one, two = Problem(Mark("a", 1, 1), "x"), Problem(Mark("b", 1, 1), "x")
    warning = Problem(Mark("b", 2, 1), "x", WARNING)
    assert summary([]) == ""
    assert summary([one]) == "1 error in 1 file"
    assert summary([one, two, warning]) == "2 errors and 1 warning in 2 files"
