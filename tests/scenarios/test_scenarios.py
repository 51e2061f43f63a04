"""Every *.yaml here is a case of its own: specs, a world, and the plan that must come of them.

specs:    what should run: app -> what its file says, without the head. Image `site:2` stands for
          `registry.example/site:2@sha256:...`.
was:      the specs that the containers found were made from; the same where it is left out
containers: full name -> phase (`running`, `created`, `lost`, `exited`), or a map with `phase` and fields of the
          container; an exit has `code` or `signal`, `oom`, `ran` and `ago` in seconds, `boot`; or a list of such
images:   those that are complete on local disk; all of `was` where it is left out
networks, conflicts, volumes, published, listeners, previous, failures, unresolved, held, hold_all, busy, objects,
generations, traces, volume_limits:
          as the code below reads them
steps, blocked, wake_in: what must come of it; last, because `--update-scenarios` writes them
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from reconciler.plan.diff import plan
from reconciler.plan.steps import Plan
from reconciler.spec.load import LoadedApp, load
from reconciler.spec.terms import Terms
from reconciler.state.desire import desire
from reconciler.state.desired import App, Container, Desired
from reconciler.state.image import Image, Unresolved
from reconciler.state.network import Network as Declared
from reconciler.state.observed import Container as Found
from reconciler.state.observed import (
    Created,
    Exited,
    Failure,
    Listener,
    Lost,
    Networks,
    Observed,
    Previous,
    Published,
    Running,
    Store,
    StoredObject,
)
from reconciler.state.process import ExitRecord
from tests import values
from tests.values import BOOT, NOW

HERE = Path(__file__).parent
_LISTENER = re.compile(r"(tcp|udp) (.+):(\d+) (.+)")


def scenarios() -> list[Path]:
    return sorted(HERE.glob("*.yaml"))


@pytest.mark.parametrize("path", scenarios(), ids=lambda path: path.stem.replace("-", " "))
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    scenario = yaml.safe_load(text)
    made = _shown(_plan(scenario))
    expected = {key: scenario.get(key, made[key] if key == "steps" else None) for key in made}
    if request.config.getoption("--update-scenarios", default=False):
        head = text.partition("\nsteps:")[0].rstrip("\n") + "\n"
        path.write_text(head + _written(made), encoding="utf-8")
        return
    assert "steps" in scenario, "run: pytest tests/scenarios --update-scenarios"
    assert made["steps"] == expected["steps"]
    assert made["blocked"] == (expected["blocked"] or [])
    assert made["wake_in"] == expected["wake_in"]


def test_scenarios_begin_with_a_sentence_that_says_what_they_show() -> None:
    assert len(scenarios()) >= 25
    for path in scenarios():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        assert re.fullmatch(r"# [A-Z].{20,}\.", first), f"{path.name}: {first}"


# --- what comes of it -----------------------------------------------------------------------------------------------


def _shown(made: Plan) -> dict[str, Any]:
    blocked = [
        f"{'/'.join(filter(None, (item.app, item.container))) or 'device'}: {item.reason}"
        for item in made.blocked
    ]
    wake_in = None if made.wake_at is None else round(made.wake_at - NOW.boottime, 3)
    return {"steps": [str(step) for step in made.steps], "blocked": blocked, "wake_in": wake_in}


def _written(made: Mapping[str, Any]) -> str:
    def dump(value: object) -> str:
        return yaml.safe_dump(value, allow_unicode=True, width=1000, default_flow_style=False)

    lines = ["steps: []\n"] if not made["steps"] else ["steps:\n", dump(made["steps"])]
    if made["blocked"]:
        lines += ["blocked:\n", dump(made["blocked"])]
    if made["wake_in"] is not None:
        lines.append(f"wake_in: {made['wake_in']}\n")
    return "".join(lines)


# --- from YAML to values ----------------------------------------------------------------------------------------------


def _plan(scenario: Mapping[str, Any]) -> Plan:
    known = {
        "specs", "was", "containers", "images", "networks", "conflicts",
        "volumes", "published", "listeners", "previous", "failures",
        "unresolved", "held", "hold_all", "busy", "disk", "objects", "generations", "traces", "steps", "blocked",
        "wake_in", "volume_limits",
    }  # fmt: skip
    assert scenario.keys() <= known, f"unknown: {sorted(scenario.keys() - known)}"
    waiting = {_reference(name): why for name, why in scenario.get("unresolved", {}).items()}
    wanted = _apps(scenario.get("specs", {}), waiting)
    was = _apps(scenario["was"], {}) if "was" in scenario else wanted
    desired = Desired(
        {name: app for name, app in wanted.items() if name not in scenario.get("held", {})},
        scenario.get("held", {}),
        scenario.get("hold_all", ""),
    )
    made = {c.full_name: c for app in was.values() for c in app.containers.values()}
    return plan(
        desired,
        _world(scenario, desired, was, made),
        NOW,
        busy=frozenset(scenario.get("busy", ())),
        generations=[
            values.generation(number, *_apps(specs, {}).values())
            for number, specs in scenario.get("generations", {}).items()
        ],
    )


def _reference(name: str) -> str:
    return f"registry.example/{name}@{values.image(name).index}"


def _apps(specs: Mapping[str, Any], waiting: Mapping[str, str]) -> dict[str, App]:
    files = {}
    images: dict[str, Image | Unresolved] = {}
    for app, given in specs.items():
        names = {container: fields["image"] for container, fields in given["containers"].items()}
        containers = {
            container: {**fields, "image": _reference(names[container])}
            for container, fields in given["containers"].items()
        }
        images |= {_reference(name): values.image(name) for name in names.values()}
        spec = {"apiVersion": "reconciler/v1", "kind": "App", "name": app, **given, "containers": containers}
        files[f"{app}.yaml"] = json.dumps(spec).encode()
    images |= {reference: Unresolved(why) for reference, why in waiting.items()}
    loaded = load(files, lambda path: path.encode(), terms=Terms(binds=("/srv",)))
    errors = [str(problem) for problem in loaded.problems if problem.severity == "error"]
    assert not errors, "\n".join(errors)
    return {name: desire(app, images) for name, app in _sorted(loaded.apps).items()}


def _sorted(apps: Mapping[str, LoadedApp]) -> dict[str, LoadedApp]:
    return dict(sorted(apps.items()))


def _world(
    scenario: Mapping[str, Any], desired: Desired, was: Mapping[str, App], made: Mapping[str, Container]
) -> Observed:
    containers: dict[str, tuple[Found, ...]] = {}
    for name, given in scenario.get("containers", {}).items():
        same = given if isinstance(given, list) else [given]
        containers[name] = tuple(
            _found(made[name], one if isinstance(one, dict) else {"phase": one}, number)
            for number, one in enumerate(same, 1)
        )
    found = [one for same in containers.values() for one in same]
    rows = tuple(sorted({Published(c.app, c.name, port) for c in found for port in c.settings.ports}))
    images = scenario.get("images", sorted({_tag(c.reference) for c in made.values()}))
    there = {app.name: list(app.volumes) for app in was.values()}
    layers = values.chain_ids(tuple(values.image(name) for name in images))
    disk = scenario.get("disk", {})
    return Observed(
        boot=BOOT,
        containers=containers,
        previous={name: _previous(desired, name, one) for name, one in scenario.get("previous", {}).items()},
        volumes={app: frozenset(names) for app, names in scenario.get("volumes", there).items()},
        volume_limits=scenario.get("volume_limits", {}),
        network=Networks(
            frozenset(scenario.get("networks", {key for c in found for key in c.networks})),
            None if scenario.get("published") == "none" else rows,
            frozenset(scenario.get("traces", ())),
            tuple(sorted(n for app in was.values() for n in app.networks.values() if n != Declared(n.key))),
            tuple(scenario.get("conflicts", {}).items()),
        ),
        listeners=tuple(_listener(text) for text in scenario.get("listeners", ())),
        store=Store(
            layers,
            tuple(_object(one) for one in scenario.get("objects", ())),
            size=disk.get("size", 0),
            free=disk.get("free", 0),
        ),
        failures={app: _failure(desired, app, one) for app, one in scenario.get("failures", {}).items()},
    )


def _tag(reference: str) -> str:
    return reference.removeprefix("registry.example/").partition("@")[0]


def _found(want: Container, given: Mapping[str, Any], number: int) -> Found:
    fields = dict(given)
    phase = fields.pop("phase")
    have = values.found(want, id=f"{want.name}-{number}")
    match phase:
        case "running":
            ran = fields.pop("ran", 5000.0)
            have = replace(have, phase=Running(4711, NOW.boottime - ran, NOW.wall - ran))
        case "created":
            have = replace(have, phase=Created(), limits=None)
        case "lost":
            have = replace(have, phase=Lost("the device was restarted"), limits=None)
        case "exited":
            have = replace(have, phase=Exited(_record(fields)), limits=None)
        case _:
            raise ValueError(phase)
    if "limits" in fields:
        fields["limits"] = replace(want.settings.limits, **fields["limits"])
    return replace(have, **fields)


def _record(fields: dict[str, Any]) -> ExitRecord:
    names = ("code", "signal", "oom", "ran", "ago", "boot")
    return values.record(**{name: fields.pop(name) for name in names if name in fields})


def _previous(desired: Desired, full_name: str, given: Mapping[str, Any]) -> Previous:
    app, _, name = full_name.partition("/")
    fields = dict(given)
    record = _record(fields)
    return Previous(desired.apps[app].containers[name].fingerprint, record, **{"restarts": 0, **fields})


def _listener(text: str) -> Listener:
    match = _LISTENER.fullmatch(text)
    assert match is not None, text
    return Listener(match[1], match[2], int(match[3]), match[4])


def _failure(desired: Desired, app: str, given: Mapping[str, Any]) -> Failure:
    digest = given.get("digest", desired.apps[app].digest if app in desired.apps else "")
    return Failure(
        given["step"], given["error"], "", True, given["count"], NOW.boottime - given["ago"], digest
    )


def _object(given: Mapping[str, Any]) -> StoredObject:
    """`layer`: an image of which it is the top layer, `previous`: a full name; `age` in seconds, `size` in bytes."""
    kind = "layer" if "layer" in given else "previous"
    name = values.layer(given["layer"]).chain_id.hex if kind == "layer" else given["previous"]
    return StoredObject(kind, name, given.get("size", 1000), NOW.wall - given["age"])
