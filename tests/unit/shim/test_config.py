"""config.json: what is understood, what is refused by name, and that nothing else ever escapes as another exception."""

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.linux import namespace
from reconciler.shim.config import prepare
from reconciler.shim.fields import ConfigError, clean

_BASE: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {"args": ["/bin/true"], "cwd": "/", "env": ["A=b=c"], "user": {"uid": 0, "gid": 0}},
    "root": {"path": "rootfs"},
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "mount", "uts", "ipc", "cgroup")]},
}


def config(**changes: Any) -> dict[str, Any]:
    """Give the base with values at dotted places: process__cwd="/x"."""
    result = copy.deepcopy(_BASE)
    for place, value in changes.items():
        *above, last = place.split("__")
        at = result
        for key in above:
            at = at.setdefault(key, {})
        at[last] = value
    return result


def annotated(**values: object) -> dict[str, Any]:
    texts = {k.replace("_", "-"): v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    return config(annotations={f"dev.reconciler.{key}": text for key, text in texts.items()})


def test_the_cgroup_namespace_is_left_to_the_child() -> None:
    found = prepare(config(), "/bundle")
    assert found.new_cgroup_namespace
    assert not found.clone_flags & namespace.CLONE_NEWCGROUP
    assert found.clone_flags & namespace.CLONE_NEWPID
    assert found.rootfs == "/bundle/rootfs"
    assert found.process.environment == {b"A": b"b=c"}
    assert found.process.user is None


def test_annotations_are_read() -> None:
    found = prepare(
        annotated(
            name="web/app",
            layers=["/a", "/b"],
            upper="/u",
            work="/w",
            user="",
            init="true",
            volumes=[
                {"destination": "/data/", "root": "/v"},
                {"destination": "/part", "root": "/v", "subpath": "a/b"},
                {"destination": "/new", "root": "/v", "nocopy": True},
            ],
            cgroup={"v2": None, "v1": ["/c"]},
            rlimits_requested=["RLIMIT_CORE"],
        )
    )
    assert (found.name, found.layers, found.upper, found.work) == ("web/app", ("/a", "/b"), "/u", "/w")
    assert found.process.user == ""
    assert found.init
    assert found.volumes == (
        ("/data", "/v", "", True),
        ("/part", "/v", "a/b", False),
        ("/new", "/v", "", False),
    )
    assert (found.cgroup_v2, found.cgroup_v1) == (None, ("/c",))
    assert found.process.rlimits_requested == frozenset({"RLIMIT_CORE"})


def test_every_rlimit_of_a_bundle_that_is_not_the_engines_was_asked_for() -> None:
    assert prepare(config()).process.rlimits_requested is None
    assert prepare(annotated(name="web/app")).process.rlimits_requested == frozenset()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"linux__uidMappings": [{"containerID": 0, "hostID": 9, "size": 9}]},
            "linux.uidMappings: goes with a new",
        ),
        (
            {"linux__uidMappings": [{"containerID": 1, "hostID": 9, "size": 9}]},
            "linux.uidMappings: goes with a new",
        ),
        (
            {"linux__namespaces": [{"type": "user"}, {"type": "mount"}]},
            "linux.uidMappings: goes with a new user",
        ),
        ({"linux__namespaces": [{"type": "time"}]}, "time namespaces are not supported"),
        ({"linux__namespaces": [{"type": "pid"}]}, "a new mount namespace is needed"),
        ({"linux__namespaces": [{"type": "mount"}, {"type": "mount"}]}, "mount is there twice"),
        (
            {"linux__namespaces": [{"type": "mount"}, {"type": "pid", "path": "/p"}]},
            "joining a pid namespace",
        ),
        ({"linux__intelRdt": {"closID": "x"}}, "Intel RDT"),
        ({"linux__rootfsPropagation": "shared"}, "linux.rootfsPropagation: shared"),
        ({"linux__personality": {"domain": "LINUX32"}}, "linux.personality"),
        ({"linux__sysctl": {"kernel.panic": "1"}}, "not in a namespace of the container"),
        ({"linux__sysctl": {"net/../kernel/panic": "1"}}, "not in a namespace of the container"),
        ({"linux__sysctl": {"vm.swappiness": "1"}}, "not in a namespace of the container"),
        ({"linux__devices": [{"path": "/etc/x", "type": "c"}]}, "expected a path in /dev"),
        ({"linux__devices": [{"path": "/dev/../etc/x", "type": "c"}]}, "expected a path in /dev"),
        ({"linux__devices": [{"path": "/dev/x", "type": "d"}]}, "expected c, u, b or p"),
        ({"process__selinuxLabel": "x"}, "SELinux"),
        ({"process__apparmorProfile": "x"}, "AppArmor"),
        ({"process__args": []}, "process.args: expected a program"),
        ({"process__args": [""]}, "process.args: expected a program"),
        ({"process__args": ["a\0b"]}, "process.args: 'a\\x00b': holds a NUL"),
        ({"process__args": "x"}, "process.args: expected a list"),
        ({"process__env": ["A"]}, "process.env: A: expected NAME=value"),
        ({"process__env": [3]}, "process.env: expected strings"),
        ({"process__cwd": "x"}, "process.cwd: 'x': expected an absolute path"),
        ({"process__terminal": True}, "process.terminal: needs a devpts mount"),
        ({"process__user": {"uid": 2**32 - 1}}, "process.user.uid: 4294967295"),
        ({"process__user": {"uid": True}}, "process.user.uid: expected a whole number"),
        ({"process__user": {"additionalGids": [-1]}}, "process.user.additionalGids: -1"),
        ({"process__capabilities": {"bounding": ["CAP_ALL"]}}, "bounding: CAP_ALL: no such capability"),
        ({"process__rlimits": [{"type": "NOFILE", "soft": 1, "hard": 1}]}, "NOFILE: no such limit"),
        ({"process__rlimits": [{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]}, "above hard limit"),
        (
            {"mounts": [{"destination": "/x", "type": "tmpfs", "options": ["remount"]}]},
            "remount: not supported",
        ),
        ({"mounts": [{"destination": "/x", "options": []}]}, "mounts[0].type: missing"),
        ({"mounts": [{"destination": "/x", "type": "bind"}]}, "mounts[0].source: missing"),
        ({"mounts": [{"destination": "/a/..", "type": "tmpfs"}]}, "would hide the root file system"),
        ({"mounts": [{"type": "tmpfs"}]}, "mounts[0].destination: missing"),
        ({"mounts": {}}, "mounts: expected a list"),
        ({"mounts": [3]}, "mounts[0]: expected an object"),
        ({"hooks": {"prestart": [{"path": "/x"}]}}, "hooks: not supported"),
        ({"annotations": {"dev.reconciler.layers": "["}}, "dev.reconciler.layers: "),
        ({"annotations": {"dev.reconciler.layers": '["/a"]'}}, "needs dev.reconciler.upper"),
        ({"annotations": {"dev.reconciler.upper": "x"}}, "x: expected an absolute path"),
        ({"hostname": "x", "linux__namespaces": [{"type": "mount"}]}, "hostname: needs a new uts namespace"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(config(**changes))
    assert message in str(caught.value)


def test_a_sysctl_of_a_shared_namespace_would_change_the_host() -> None:
    spaces = [{"type": "mount"}, {"type": "ipc"}]
    with pytest.raises(ConfigError, match="needs a namespace of its own"):
        prepare(config(linux__namespaces=spaces, linux__sysctl={"net.core.somaxconn": "1"}))
    found = prepare(config(linux__namespaces=spaces, linux__sysctl={"kernel.shmmax": "1"}))
    assert found.sysctl == (("kernel/shmmax", "1"),)


def test_a_bind_by_option_alone_is_a_bind_and_relative_to_the_bundle() -> None:
    entry = {"destination": "x//y/../z", "source": "src", "options": ["rbind", "ro"]}
    (found,) = prepare(config(mounts=[entry]), "/bundle").mounts
    assert (found.destination, found.kind, found.source) == ("/x/z", "bind", "/bundle/src")


def test_a_device_of_the_bundle_replaces_the_default_one() -> None:
    device = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}
    found = prepare(config(linux__devices=[device])).devices
    assert [entry for entry in found if entry[0] == "/dev/null"] == [("/dev/null", 0o020600, 1, 3, 0, 0)]
    assert len(found) == 6


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_PLACES = [
    *("process", "process__args", "process__env", "process__user", "process__cwd", "process__rlimits"),
    *("process__capabilities", "process__consoleSize", "process__terminal", "process__oomScoreAdj"),
    *("root", "root__path", "mounts", "hooks", "hostname", "annotations", "linux", "linux__namespaces"),
    *("linux__devices", "linux__sysctl", "linux__maskedPaths", "linux__personality", "linux__seccomp"),
]


@settings(max_examples=300)
@given(st.sampled_from(_PLACES), _JSON)
def test_any_value_anywhere_is_understood_or_refused_and_nothing_else(place: str, value: object) -> None:
    with contextlib.suppress(ConfigError):
        prepare(config(**{place: value}), "/bundle")


@given(st.text())
def test_a_clean_path_is_absolute_and_stays_below_the_root(text: str) -> None:
    if "\0" in text:
        return
    found = clean(text)
    assert found.startswith("/")
    assert not found.startswith("//")
    assert ".." not in found.split("/")
    assert clean(found) == found
