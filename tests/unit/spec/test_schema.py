"""The generated documents: fresh, and true: their examples load, and the schema agrees with the loader."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from reconciler.config import load_device
from reconciler.spec.device import DeviceFile
from reconciler.spec.fields import docs
from reconciler.spec.load import load
from reconciler.spec.model import App, Container
from reconciler.spec.schema import app_schema, device_schema, main, stale
from reconciler.spec.terms import ANYTHING
from reconciler.spec.yaml12 import Value, compose, plain

ROOT = Path(__file__).parents[3]
BAD = Path(__file__).parent / "bad"
IMAGE = "ghcr.io/acme/web:1.5@sha256:" + "1" * 64


def as_json(value: Value) -> Any:
    return json.loads(json.dumps(value))


def tree(text: str) -> Any:
    root, _, problems = compose("a.yaml", text.encode())
    assert root is not None
    assert not problems
    return as_json(plain(root))


def last_example(page: str) -> str:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.rpartition("```yaml\n")[2].removesuffix("```\n")


def test_what_is_generated_is_fresh() -> None:
    assert stale(ROOT) == [], "run: python -m reconciler.spec.schema --write"


def test_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out == ""


def test_the_complete_example_of_the_spec_page_loads_without_a_warning() -> None:
    loaded = load({"web.yaml": last_example("spec.md").encode()}, lambda name: b"")
    assert loaded.problems == ()
    assert set(loaded.apps["web"].app.containers) == {"db", "app"}


def test_the_complete_example_of_the_settings_page_loads() -> None:
    assert load_device("device.yaml", last_example("settings.md").encode()).name == "kiosk-7"


def test_the_schemas_are_valid_schemas_and_accept_the_examples() -> None:
    for schema, page in ((app_schema(), "spec.md"), (device_schema(), "settings.md")):
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema).validate(tree(last_example(page)))


@pytest.mark.parametrize(
    "name", ["sample", "all-at-once", "dialects", "not-yet", "numbers", "misspelt", "images", "names"]
)
def test_the_schema_refuses_what_the_loader_refuses(name: str) -> None:
    root, _, _ = compose("a.yaml", (BAD / f"{name}.yaml").read_bytes())
    assert root is not None
    assert list(jsonschema.Draft202012Validator(app_schema()).iter_errors(as_json(plain(root))))


@pytest.mark.parametrize("key", [key for key, _ in docs(Container)])
def test_the_documented_example_of_a_field_loads_and_satisfies_the_schema(key: str) -> None:
    example = dict(docs(Container))[key].example
    assert example
    fields = {"image": IMAGE, "limits": "{memory: 64Mi}", key: example}
    lines = "".join(f"    {name}: {value}\n" for name, value in fields.items())
    text = (
        f"apiVersion: reconciler/v1\nkind: App\nname: web\ncontainers:\n  web:\n{lines}"
        f"  db: {{image: '{IMAGE}', limits: {{memory: 64Mi}}}}\n"
        "volumes: {data: {}}\nnetworks: {back: {}}\nconfigs: {app_conf: {content: x}, app_env: {content: A=1}}\n"
    )
    files = {"conf/seccomp.json": b'{"defaultAction": "SCMP_ACT_ALLOW"}'}
    loaded = load({"web.yaml": text.encode()}, files.__getitem__, terms=ANYTHING)
    assert not loaded.failed
    jsonschema.Draft202012Validator(app_schema()).validate(tree(text))


@pytest.mark.parametrize("key", [key for key, doc in docs(DeviceFile)])
def test_the_documented_example_of_a_setting_loads_and_satisfies_the_schema(key: str) -> None:
    example = dict(docs(DeviceFile))[key].example
    text = f"{key}: {example}\n"
    load_device("device.yaml", text.encode())
    jsonschema.Draft202012Validator(device_schema()).validate(tree(text))


def test_the_schema_has_exactly_the_fields_of_the_models() -> None:
    schema = app_schema()
    assert set(schema["properties"]) == {key for key, _ in docs(App)}
    assert set(schema["$defs"]["Container"]["properties"]) == {key for key, _ in docs(Container)}
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name


def test_the_schema_holds_no_python_values() -> None:
    text = json.dumps([app_schema(), device_schema()])
    assert '"default"' not in text
    assert "67108864" not in text
