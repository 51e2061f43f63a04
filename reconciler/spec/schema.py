"""The JSON Schemas of app and device files, generated from the models, and the writing of what is generated in docs/.

`python -m reconciler.spec.schema` says which generated files are stale; with `--write` it writes them. The only module
of spec/ that touches the disk.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from reconciler.spec.device import DeviceFile
from reconciler.spec.fields import JsonSchema
from reconciler.spec.model import App
from reconciler.spec.pages import default_text, settings_page, spec_page

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def app_schema() -> JsonSchema:
    """Return the JSON Schema of `kind: App`. What a schema can't say (references, conflicts) `validate` checks."""
    return _schema(App, "app")


def device_schema() -> JsonSchema:
    """Return the JSON Schema of the device's own file."""
    return _schema(DeviceFile, "device")


def _schema(model: type[BaseModel], name: str) -> JsonSchema:
    schema = _tidy(model.model_json_schema(by_alias=True))
    for definition, part in _models(model).items():
        place = schema if part is model else schema["$defs"].get(definition)
        if place is None:
            continue
        for key, item in part.model_fields.items():
            text = default_text(part, key)
            prop = place["properties"][item.alias or key]
            if text not in ("required", "see below", ""):
                prop["description"] = f"{prop['description']} Default: {text.replace('`', '')}."
    return {"$schema": _DIALECT, "$id": f"reconciler/v1/{name}.schema.json", **schema}


def _models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Return the models that `model` is made of, by name."""
    found = {model.__name__: model}
    todo: list[Any] = [item.annotation for item in model.model_fields.values()]
    while todo:
        kind = todo.pop()
        todo += getattr(kind, "__args__", ())
        if isinstance(kind, type) and issubclass(kind, BaseModel) and kind.__name__ not in found:
            found[kind.__name__] = kind
            todo += [item.annotation for item in kind.model_fields.values()]
    return found


def _tidy(node: Any) -> Any:
    """Drop the titles and defaults that pydantic makes of Python names and values; name bounds as the standard does."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {}
    for key, value in node.items():
        if key == "properties":
            found[key] = {
                name: _tidy({k: v for k, v in prop.items() if k != "title"}) for name, prop in value.items()
            }
        elif key == "default" or (key == "discriminator" and "mapping" in value):
            continue
        else:
            found[{"ge": "minimum", "le": "maximum"}.get(key, key)] = _tidy(value)
    return found


def generated() -> dict[str, str]:
    """Return the content of every generated file, by its path from the root of the repository."""
    return {
        "docs/spec.md": spec_page(),
        "docs/settings.md": settings_page(),
        "docs/schema/app.schema.json": json.dumps(app_schema(), indent=2) + "\n",
        "docs/schema/device.schema.json": json.dumps(device_schema(), indent=2) + "\n",
    }


def stale(root: Path) -> list[str]:
    """Return the generated files under `root` that differ from what the models say."""
    return [
        name
        for name, content in generated().items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != content
    ]


def main(arguments: list[str] | None = None) -> int:
    """Check, or with --write renew, the generated files of a working copy."""
    parser = argparse.ArgumentParser(prog="python -m reconciler.spec.schema", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help="write what is stale")
    options = parser.parse_args(arguments)
    root = Path(__file__).resolve().parents[2]
    found = stale(root)
    for name in found:
        print(f"{name}: {'written' if options.write else 'stale'}")
        if options.write:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(generated()[name], encoding="utf-8")
    return 1 if found and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
