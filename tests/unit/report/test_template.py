"""`--format`: what people write for Docker comes out the same, and nothing that can be typed is a traceback."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import UsageError
from reconciler.report.template import Template

VALUE: dict[str, Any] = {
    "name": "web/page",
    "exit_code": 137,
    "oom": False,
    "State": {"Status": "running", "Pid": 12, "Health": None},
    "Args": ["-c", "x y"],
    "Config": {"Labels": {"a.b": "c", "org": "<é>"}},
    "NetworkSettings": {
        "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "81/tcp": None},
        "Networks": {"b": {"IPAddress": "10.0.0.3"}, "a": {"IPAddress": "10.0.0.2"}},
    },
    "Mounts": [],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{.name}}", "web/page"),
        ("{{ .Name }}: {{.State.Status}}", "web/page: running"),
        ("{{.ExitCode}} {{.exitcode}}", "137 137"),
        ("{{.oom}} {{not .oom}}", "false true"),
        ("{{json .State}}", '{"Status":"running","Pid":12,"Health":null}'),
        ("{{.State | json}}", '{"Status":"running","Pid":12,"Health":null}'),
        ("{{.State.Health}}|{{.State.Health.Status}}|", "||"),
        ("{{.Args}}", '["-c","x y"]'),
        ('{{join .Args ","}} {{index .Args 1}} {{len .Args}}', "-c,x y x y 2"),
        ('{{index .Config.Labels "a.b"}}{{index .Config.Labels "none"}}', "c"),
        ('{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}', "8080"),
        ("{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", "10.0.0.2 10.0.0.3 "),
        ("{{range .Mounts}}x{{else}}none{{end}}", "none"),
        ("{{if .State.Pid}}up{{else}}down{{end}}", "up"),
        ('{{if eq .State.Status "running"}}up{{end}}', "up"),
        ("{{.name | upper}}{{lower `ABC`}}", "WEB/PAGEabc"),
        ('a {{- .name -}} b{{/* a comment */}}{{"}}"}}', "aweb/pageb}}"),
        (r"{{.name}}\t{{.oom}}\n", "web/page\tfalse\n"),
        ("{{.Config.Labels.org}}", "<é>"),
        ("no tags", "no tags"),
        ("", ""),
    ],
)
def test_templates_show_what_they_name(template: str, expected: str) -> None:
    assert Template(template).render(VALUE) == expected


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{.nothing}}", "no field .nothing"),
        ("{{.name.first}}", "has no fields"),
        ("{{.name", "is not closed"),
        ("{{nonsense .name}}", "no function 'nonsense'"),
        ("{{range .name}}{{end}}", "expected a list or an object"),
        ("{{range .Args}}", "without its {{end}}"),
        ("{{end}}", "without a beginning"),
        ("{{if .oom}}{{else}}{{else}}{{end}}", "without its {{end}}"),
        ("{{index .Args 7}}", "index"),
        ("{{json}}", "json"),
        ("{{}}", "something is missing"),
        ("{{.name | .name}}", "a pipe leads to a function"),
        ("{{(.name}}", "not closed"),
        ("{{.name $x}}", "not understood"),
        ("{{" + "(" * 100 + ".name" + ")" * 100 + "}}", "nested too deeply"),
        ("{{if .oom}}" * 100 + "{{end}}" * 100, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said(template: str, said: str) -> None:
    with pytest.raises(UsageError, match="--format") as raised:
        Template(template).render(VALUE)
    assert said in str(raised.value)


def test_a_table_has_the_names_of_its_fields_as_heading() -> None:
    template = Template(r"table {{.name}}\t{{.exit_code}}\t{{json .State.Status}}")
    assert template.table
    assert template.heading() == "NAME\tEXIT CODE\tSTATUS"
    assert template.render(VALUE) == 'web/page\t137\t"running"'


_pieces = st.sampled_from(
    [
        "{{",
        "}}",
        ".name",
        ".State",
        "json",
        "range",
        "if",
        "else",
        "end",
        "|",
        "(",
        ")",
        '"',
        "`",
        " ",
        "-",
        "x",
        "0",
        "é",
        "\\",
    ]
)


@given(st.lists(_pieces, max_size=24).map("".join), st.sampled_from([VALUE, {}, [], None, "text", 1]))
def test_whatever_is_typed_gives_text_or_a_usage_error(text: str, value: Any) -> None:
    try:
        template = Template(text)
        assert isinstance(template.heading(), str)
        assert isinstance(template.render(value), str)
    except UsageError:
        pass
