"""Whatever a file holds: an app or problems in our own words, never a traceback."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from reconciler.config import Device, load_device
from reconciler.errors import InvalidSpecError
from reconciler.spec.load import load
from reconciler.spec.terms import Terms

FOREIGN = (
    "pydantic",
    "input should",
    "field required",
    "validation error",
    "value error",
    "traceback",
    "can't be this",
)

KEYS = st.sampled_from(
    [
        "apiVersion", "kind", "name", "containers", "volumes", "configs", "web", "db", "image", "ports",
        "limits", "memory", "restart", "policy", "environment", "depends_on", "type", "source", "target",
        "content", "file", "x-a", "labels", "published", "host_ip", "tmpfs", "logging", "driver", "command",
        "user", "Bad_Name", "", "<<", "1", "healthcheck", "gc", "high", "low", "metrics", "listen", "defaults",
        "registries", "insecure", "interval", "bundles",
    ]
)  # fmt: skip
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from(
        [
            "reconciler/v1", "App", "Device", "web", "db", "64Mi", "1s", "80:80", "1.2.3.4:1:1", "data:/x", "/srv:/x",
            "ghcr.io/a/b:1@sha256:" + "1" * 64, "nginx",
            "always", "on-failure:3", "volume", "bind", "tmpfs", "tcp", "85%", "a=b",
            "started", "file", "/x", "..", "SIGTERM", "'", "0755",
        ]
    ),
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=6)),
    max_leaves=25,
)
CONTAINERS = st.dictionaries(KEYS, TREES, max_size=8)
APPS = st.fixed_dictionaries(
    {
        "apiVersion": st.just("reconciler/v1"),
        "kind": st.just("App"),
        "name": st.one_of(st.just("web"), TREES),
    },
    optional={
        "containers": st.one_of(st.dictionaries(KEYS, st.one_of(CONTAINERS, TREES), max_size=3), TREES),
        "volumes": TREES,
        "configs": TREES,
        "labels": TREES,
    },
)


def read(name: str) -> bytes:
    raise FileNotFoundError(name)


def check(data: bytes) -> None:
    loaded = load({"a.yaml": data}, read, terms=Terms(binds=("/srv",)))
    assert loaded.apps or loaded.failed
    for problem in loaded.problems:
        shown = str(problem)
        assert shown.replace("\n", "").isprintable()
        assert not any(word in problem.message.lower() for word in FOREIGN), problem.message
        assert problem.hint.isprintable()
        assert problem.mark.line >= 1
        assert len(shown.splitlines()) <= 3
    try:
        found = load_device("device.yaml", data)
    except InvalidSpecError:
        return
    assert isinstance(found, Device)


def as_yaml(value: object) -> bytes:
    """JSON is YAML, but for what JSON leaves unescaped and specs refuse."""
    return json.dumps(value, ensure_ascii=True).encode()


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(data)


@given(TREES)
def test_any_tree(value: object) -> None:
    check(as_yaml(value))


@example(
    value={
        "apiVersion": "reconciler/v1",
        "kind": "App",
        "name": "web",
        "containers": {"a": {"image": "\x1f"}},
    }
)
@given(APPS)
def test_anything_that_looks_like_an_app(value: object) -> None:
    check(as_yaml(value))


@given(APPS)
def test_reading_is_deterministic(value: object) -> None:
    files = {"a.yaml": as_yaml(value)}
    assert load(files, read) == load(files, read)
