"""Many files at once: what fails alone, what fails together, what is not read twice."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.errors import NotFoundError
from reconciler.spec.defaults import Defaults
from reconciler.spec.load import Loaded, ReadFailure, load
from reconciler.spec.marks import ERROR, Mark
from reconciler.spec.terms import Terms

IMAGE = "ghcr.io/acme/web:1.5@sha256:" + "1" * 64


def spec(name: str, extra: str = "", top: str = "") -> bytes:
    text = f"apiVersion: reconciler/v1\nkind: App\nname: {name}\n{top}containers:\n  a:\n    image: {IMAGE}\n"
    return f"{text}    limits: {{memory: 64Mi}}\n{extra}".encode()


def configured(name: str, file: str = "conf/a.toml") -> bytes:
    return spec(name, "    configs: [c]\n", f"configs: {{c: {{file: {file}}}}}\n")


def no_file(name: str) -> bytes:
    raise FileNotFoundError(2, "No such file or directory", name)


def reading(files: dict[str, bytes]) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            return files[name]
        except KeyError:
            return no_file(name)

    return read


def messages(loaded: Loaded, path: str) -> list[str]:
    return [problem.message for problem in loaded.failed.get(path, ())]


def test_y8_one_bad_file_among_a_thousand_stops_only_itself() -> None:
    files: dict[str, bytes | ReadFailure] = {f"apps/{i}.yaml": spec(f"app-{i}") for i in range(999)}
    files["apps/bad.yaml"] = b"name: web\nkind: App\n  apiVersion: x\n"
    loaded = load(files, no_file)
    assert len(loaded.apps) == 999
    (problem,) = loaded.problems
    assert str(problem.mark) == "apps/bad.yaml:3:13"
    assert list(loaded.failed) == ["apps/bad.yaml"]


def test_y9_a_file_that_could_not_be_read_is_a_failure_with_its_reason() -> None:
    loaded = load(
        {"a.yaml": ReadFailure("a link that leads out of the repository"), "b.yaml": spec("b")}, no_file
    )
    assert messages(loaded, "a.yaml") == ["can't be read: a link that leads out of the repository"]
    assert loaded.failed["a.yaml"][0].mark == Mark("a.yaml", 1, 1)
    assert list(loaded.apps) == ["b"]


def test_no_files_are_no_apps_and_no_problem() -> None:
    assert load({}, no_file) == Loaded({}, (), {})


def test_a_hostile_file_name_can_not_reach_the_terminal() -> None:
    loaded = load({"a\x1b[31m\n.yaml": b""}, no_file)
    assert str(loaded.problems[0]).replace("\n", "", 1).isprintable()


def test_an_unchanged_file_gives_the_same_app_and_the_same_result() -> None:
    cache: dict[object, object] = {}
    files: dict[str, bytes | ReadFailure] = {
        "a.yaml": configured("a"),
        "b.yaml": spec("b"),
        "bad.yaml": b"x: 1",
    }
    configs = {"conf/a.toml": b"one"}
    first = load(files, reading(configs), cache=cache)
    assert load(files, reading(configs), cache=cache) is first
    copies: dict[str, bytes | ReadFailure] = {
        path: bytes(bytearray(data)) for path, data in files.items() if isinstance(data, bytes)
    }
    assert load(copies, reading(dict(configs)), cache=cache) is first

    files = files | {"b.yaml": spec("b", "    init: true\n")}
    second = load(files, reading(configs), cache=cache)
    assert second.apps["a"] is first.apps["a"]
    assert second.apps["b"] != first.apps["b"]
    assert second.apps["b"].digest != first.apps["b"].digest
    files = {path: data for path, data in files.items() if path != "b.yaml"}
    third = load(files, reading(configs), cache=cache)
    assert list(third.apps) == ["a"]
    assert load(files, reading(configs), cache=cache) is third
    other = load(files, reading({"conf/a.toml": b"two"}), cache=cache)
    assert other.apps["a"].config_files == {"c": b"two"}
    assert not load(files, reading({}), cache=cache).apps


def test_a_change_of_a_config_changes_the_app_though_its_file_is_the_same() -> None:
    cache: dict[object, object] = {}
    files = {"a.yaml": configured("a")}
    one = load(files, reading({"conf/a.toml": b"one"}), cache=cache)
    two = load(files, reading({"conf/a.toml": b"two"}), cache=cache)
    gone = load(files, reading({}), cache=cache)
    again = load(files, reading({"conf/a.toml": b"one"}), cache=cache)
    assert one.apps["a"].config_files == {"c": b"one"}
    assert two.apps["a"].config_files == {"c": b"two"}
    assert one.apps["a"].digest != two.apps["a"].digest
    assert messages(gone, "a.yaml") == ["configs.c.file: conf/a.toml: there is no such file in the source"]
    assert gone.apps == {}
    assert load(files, reading({"conf/a.toml": b"one"}), cache=cache) is again
    assert again == one


def test_a_config_that_stays_missing_is_not_news() -> None:
    cache: dict[object, object] = {}
    first = load({"a.yaml": configured("a")}, no_file, cache=cache)
    assert load({"a.yaml": configured("a")}, no_file, cache=cache) is first


def test_the_settings_of_the_device_are_part_of_what_was_read() -> None:
    cache: dict[object, object] = {}
    files = {"a.yaml": spec("a", '    volumes: ["/srv/x:/x"]\n    ports: ["80:80"]\n')}
    assert load(files, no_file, cache=cache).apps == {}
    allowed = load(files, no_file, terms=Terms(binds=("/srv",)), cache=cache)
    assert allowed.apps["a"].app.containers["a"].ports[0].host_ip == "0.0.0.0"
    local = load(
        files, no_file, terms=Terms(binds=("/srv",)), defaults=Defaults(host_ip="127.0.0.1"), cache=cache
    )
    assert local.apps["a"].app.containers["a"].ports[0].host_ip == "127.0.0.1"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (PermissionError(13, "Permission denied"), "can't be read: Permission denied"),
        (
            NotFoundError("conf/a.toml: a link that leads out of the repository"),
            "can't be read: conf/a.toml: a link",
        ),
    ],
)
def test_a_config_that_can_not_be_read_fails_its_app_alone(failure: Exception, said: str) -> None:
    def read(name: str) -> bytes:
        raise failure

    loaded = load({"a.yaml": configured("a"), "b.yaml": spec("b")}, read)
    assert said in messages(loaded, "a.yaml")[0]
    assert str(loaded.failed["a.yaml"][0].mark) == "a.yaml:4:21"
    assert list(loaded.apps) == ["b"]


def test_a_config_of_more_than_a_megabyte_is_refused() -> None:
    loaded = load({"a.yaml": configured("a")}, lambda name: b"x" * ((1 << 20) + 1))
    assert messages(loaded, "a.yaml") == ["configs.c.file: conf/a.toml: is larger than 1 MiB"]


def test_content_in_the_spec_is_a_config_file_too() -> None:
    loaded = load({"a.yaml": spec("a", "    configs: [c]\n", 'configs: {c: {content: "é\\n"}}\n')}, no_file)
    assert loaded.apps["a"].config_files == {"c": "é\n".encode()}


def test_a_yaml_file_that_an_app_uses_as_a_config_is_not_an_app() -> None:
    files = {
        "a.yaml": configured("a", "conf/prometheus.yaml"),
        "conf/prometheus.yaml": b"job: !secret x\n---\n",
    }
    loaded = load(files, reading({"conf/prometheus.yaml": b"x"}))
    assert loaded.problems == ()
    files["conf/prometheus.yaml"] = b"apiVersion: reconciler/v1\nkind: App\n  x"
    assert list(load(files, reading({"conf/prometheus.yaml": b"x"})).failed) == ["conf/prometheus.yaml"]


def test_two_files_with_one_name_are_both_wrong_and_name_each_other() -> None:
    loaded = load({"a.yaml": spec("web"), "sub/b.yaml": spec("web"), "c.yaml": spec("c")}, no_file)
    assert messages(loaded, "a.yaml") == ["the name 'web' is also used in sub/b.yaml"]
    assert messages(loaded, "sub/b.yaml") == ["the name 'web' is also used in a.yaml"]
    assert list(loaded.apps) == ["c"]


def test_a_broken_file_takes_no_other_app_down_with_it() -> None:
    port = '    ports: ["80:80"]\n'
    loaded = load(
        {"good.yaml": spec("good", port), "broken.yaml": spec("broken", port + "    nonsense: 1\n")}, no_file
    )
    assert list(loaded.apps) == ["good"]
    assert "port 80/tcp of broken/a is published by good/a too" in messages(loaded, "broken.yaml")


@pytest.mark.parametrize(
    ("one", "two", "clash"),
    [
        ("80:80", "80:81", True),
        ("80:80", "80:80/udp", False),
        ("127.0.0.1:80:80", "80:80", True),
        ("127.0.0.1:80:80", "127.0.0.2:80:80", False),
        ("127.0.0.1:80:80", "127.0.0.1:80:80", True),
        ("80:80", "81:80", False),
    ],
)
def test_a_port_is_published_once_on_a_device(one: str, two: str, clash: bool) -> None:
    files = {"a.yaml": spec("a", f'    ports: ["{one}"]\n'), "b.yaml": spec("b", f'    ports: ["{two}"]\n')}
    loaded = load(files, no_file)
    assert bool(loaded.failed) == clash
    assert len(loaded.apps) == (0 if clash else 2)


def test_a_dependency_on_an_app_that_can_not_be_read_is_not_an_error() -> None:
    files = {"a.yaml": spec("a", "    depends_on: [b/x]\n"), "b.yaml": spec("b", "    nonsense: 1\n")}
    assert list(load(files, no_file).apps) == ["a"]
    files["b.yaml"] = b"half a fi: ["
    assert list(load(files, no_file).apps) == ["a"]
    del files["b.yaml"]
    assert messages(load(files, no_file), "a.yaml") == ["depends_on: there is no app 'b'"]


def test_a_long_chain_of_dependencies_is_no_circle() -> None:
    files = {f"{i}.yaml": spec(f"a{i}", f"    depends_on: [a{i + 1}/a]\n") for i in range(3000)}
    files["3000.yaml"] = spec("a3000")
    assert load(files, no_file).problems == ()


def test_marks_lead_to_the_place_or_to_the_nearest_that_is_there() -> None:
    text = spec("a", '    depends_on: [b/c]\n    ports: ["80:80"]\n') + b"volumes: {}\n"
    files = {"a.yaml": text, "b.yaml": spec("b").replace(b"  a:", b"  c:")}
    marks = load(files, no_file).apps["a"].marks
    assert str(marks.mark("containers", "a", "image")) == "a.yaml:6:12"
    assert str(marks.mark("containers", "a", "ports", 0)) == "a.yaml:9:13"
    assert str(marks.mark("containers", "a", "ports", 7, "target")) == "a.yaml:9:5"
    assert str(marks.mark("containers", "a", "depends_on", "b/c")) == "a.yaml:8:18"
    assert str(marks.mark("containers", "a", "restart")) == "a.yaml:5:3"
    assert str(marks.mark("nothing")) == "a.yaml:1:1"
    assert marks[("name",)] == Mark("a.yaml", 3, 7)
    assert ("containers", "a", "ports", 0) in marks
    assert ("containers", "a", "ports", 1) not in marks
    assert len(marks) == len(list(marks)) == len({*marks})


PIECES = st.sampled_from(
    [
        "    ports: ['80:80']\n",
        "    ports: ['81:80']\n",
        "    depends_on: [app-1/a]\n",
        "    depends_on: [app-2/a]\n",
        "    nonsense: 1\n",
        "    image: x\n",
        "",
    ]
)


@given(
    st.dictionaries(st.integers(0, 5), st.tuples(st.sampled_from(["app-1", "app-2", "app-3"]), PIECES)),
    st.randoms(use_true_random=False),
)
def test_the_order_of_the_files_and_the_cache_change_nothing(
    shape: dict[int, tuple[str, str]],
    random: "st.random.Random",  # type: ignore[name-defined]
) -> None:
    files = {f"{i}.yaml": spec(name, extra) for i, (name, extra) in shape.items()}
    paths = list(files)
    random.shuffle(paths)
    cache: dict[object, object] = {}
    straight = load(files, no_file)
    assert load({path: files[path] for path in paths}, no_file) == straight
    for path in paths:  # one file after another, as they may appear
        load({path: files[path]}, no_file, cache=cache)
    assert load(files, no_file, cache=cache) == straight
    assert list(straight.problems) == sorted(straight.problems)
    assert {p.mark.file for p in straight.problems if p.severity == ERROR} == set(straight.failed)
    assert {app.path for app in straight.apps.values()} | set(straight.failed) == set(files)


def test_a_turn_over_a_thousand_unchanged_files_costs_next_to_nothing(patience: float) -> None:
    cache: dict[object, object] = {}
    files = {f"apps/{i}.yaml": spec(f"app-{i}") for i in range(1000)}
    load(files, no_file, cache=cache)
    spent = []
    for _ in range(3):
        started = time.process_time()
        load(files, no_file, cache=cache)
        spent.append(time.process_time() - started)
    assert min(spent) < 0.005 * patience
