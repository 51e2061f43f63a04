"""Seccomp profiles in Docker's form: read strictly, brought into one form, resolved as Docker does."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.linux.seccomp import numbers
from reconciler.linux.seccomp.compile import compile
from reconciler.spec.fault import Fault
from reconciler.spec.load import Loaded, load
from reconciler.spec.profile import misspelt, normal, resolve
from reconciler.spec.terms import ANYTHING, Terms
from tests.bpf import ALLOW, ERRNO, X86, Filter

IMAGE = "ghcr.io/acme/web:1.5@sha256:" + "1" * 64
PODMAN = Path("/usr/share/containers/seccomp.json")

EVERYTHING: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "comment": "a profile with all that there is",
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
    ],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "x", "includes": {}},
        {"name": "mount", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}},
        {"name": "chroot", "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"name": "ptrace", "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"name": "mseal", "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "excludes": {"minKernel": "6.10"}},
        {"name": "arch_prctl", "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"name": "cacheflush", "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 40, "valueTwo": 0, "op": "SCMP_CMP_NE"}],
        },
    ],
}


def encode(value: object) -> bytes:
    return json.dumps(value).encode()


def names(section: dict[str, Any]) -> list[str]:
    return [name for rule in section["syscalls"] for name in rule["names"]]


def test_rules_are_there_by_capability_architecture_and_kernel() -> None:
    data = normal(encode(EVERYTHING))
    found = resolve(data, ("CAP_SYS_ADMIN", "CAP_CHOWN"), "x86_64", (6, 1))
    assert names(found) == ["read", "write", "mount", "ptrace", "mseal", "arch_prctl", "socket"]
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert (found["defaultErrnoRet"], found["flags"]) == (38, ["SECCOMP_FILTER_FLAG_LOG"])
    found = resolve(data, ("CAP_SYS_ADMIN",), "aarch64", (6, 10))
    assert names(found) == ["read", "write", "ptrace", "cacheflush", "socket"]
    assert found["architectures"] == ["SCMP_ARCH_AARCH64"]
    assert names(resolve(data, (), "aarch64", (4, 7))) == [
        "read",
        "write",
        "chroot",
        "mseal",
        "cacheflush",
        "socket",
    ]


def test_what_it_comes_to_can_be_compiled() -> None:
    program = Filter(compile(resolve(normal(encode(EVERYTHING)), (), "x86_64", (6, 1)), "x86_64"))
    assert program.run(0).value == program.run(0, X86).value or numbers.X86["read"] == 3
    assert program.run(numbers.X86["read"], X86).value == ALLOW
    assert program.run(numbers.X86_64["mseal"]).value == ERRNO | 5
    assert program.run(numbers.X86_64["keyctl"]).value == ERRNO | 38


def test_comments_blanks_and_the_order_of_keys_do_not_count() -> None:
    other = json.loads(encode(EVERYTHING))
    del other["comment"], other["syscalls"][0]["comment"]
    assert normal(json.dumps(dict(reversed(other.items())), indent=3).encode()) == normal(encode(EVERYTHING))
    assert normal(normal(encode(EVERYTHING))) == normal(encode(EVERYTHING))
    other["syscalls"][0]["names"].append("open")
    assert normal(encode(other)) != normal(encode(EVERYTHING))


@pytest.mark.skipif(not PODMAN.exists(), reason="podman's profile is not installed")
def test_the_profile_of_podman_is_understood() -> None:
    data = normal(PODMAN.read_bytes())
    section = resolve(data, (), "x86_64", (6, 1))
    program = Filter(compile(section, "x86_64"))
    table = numbers.X86_64
    assert section["defaultErrnoRet"] == 38
    assert program.run(table["read"]).value == ALLOW
    assert program.run(table["bpf"]).value == ERRNO | 1
    assert program.run(table["socket"], args=(16, 3, 9)).value == ERRNO | 22
    assert program.run(table["socket"], args=(2, 1, 9)).value == ALLOW
    assert misspelt(data) == ["swapcontext"]  # of PowerPC


def changed(path: str, value: object) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(encode(EVERYTHING))
    *outer, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = result
    for key in outer:
        at = at[key]
    at[last] = value
    return result


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"{", "not JSON"),
        (b"\xff{}", "not UTF-8"),
        (b"[]", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"defaultAction": 1, "defaultAction": 2}', "defaultAction is there twice"),
        (b"{}", "defaultAction: expected a string"),
        (encode(changed("syscals", [])), "syscals: no such key; known are"),
        (encode(changed("syscalls", {})), "syscalls: expected a list"),
        (encode(changed("syscalls.0", 3)), r"syscalls\[0\]: expected an object"),
        (encode(changed("syscalls.0.nmes", [])), r"syscalls\[0\].nmes: no such key"),
        (encode(changed("syscalls.0.name", "x")), r"syscalls\[0\]: expected exactly one of name and names"),
        (encode(changed("syscalls.0.names", None)), r"syscalls\[0\]: expected exactly one of name and names"),
        (encode(changed("syscalls.0.names", "read")), r"syscalls\[0\].names: expected a list of strings"),
        (encode(changed("syscalls.0.args", 3)), "args: expected a list"),
        (encode(changed("syscalls.7.args.0.op", "NE")), r"syscalls\[7\].args\[0\].op: NE: expected one of"),
        (encode(changed("syscalls.7.args.0.idx", 1)), r"syscalls\[7\].args\[0\].idx: no such key"),
        (encode(changed("syscalls.1.includes", [])), r"syscalls\[1\].includes: expected an object"),
        (encode(changed("syscalls.1.includes.cap", [])), r"syscalls\[1\].includes.cap: no such key"),
        (encode(changed("syscalls.1.includes.caps", ["SYS_ADMIN"])), "SYS_ADMIN: no such capability"),
        (encode(changed("syscalls.1.includes.caps", 3)), "includes.caps: expected a list of strings"),
        (encode(changed("syscalls.3.includes.minKernel", "new")), "minKernel: expected a version"),
        (encode(changed("architectures", ["SCMP_ARCH_X86"])), "archMap: not beside architectures"),
        (encode(changed("archMap.0.subArchitectures", 3)), r"archMap\[0\].subArchitectures: expected a list"),
        (encode(changed("flags", ["FAST"])), "flags: FAST: no such flag"),
        (encode(changed("flags", ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])), "there is no supervisor"),
        (encode(changed("listenerPath", "/x")), "SCMP_ACT_NOTIFY: there is no supervisor"),
        (encode(changed("syscalls.0.action", "SCMP_ACT_NOTIFY")), "SCMP_ACT_NOTIFY: there is no supervisor"),
        (
            encode(changed("defaultErrno", "EWHAT") | {"defaultErrnoRet": None}),
            "defaultErrnoRet: expected 0 to",
        ),
    ],
)
def test_what_is_wrong_is_named(data: bytes, text: str) -> None:
    with pytest.raises(Fault, match=text):
        normal(data)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
_PLACES = [
    *(
        "defaultAction",
        "defaultErrnoRet",
        "archMap",
        "archMap.0",
        "archMap.0.architecture",
        "flags",
        "syscalls",
    ),
    *("syscalls.0", "syscalls.0.names", "syscalls.0.action", "syscalls.0.errnoRet", "syscalls.1.includes"),
    *(
        "syscalls.1.includes.caps",
        "syscalls.3.includes.minKernel",
        "syscalls.5.includes.arches",
        "syscalls.7.args",
    ),
    *("syscalls.7.args.0", "syscalls.7.args.0.index", "syscalls.7.args.0.value", "architectures"),
]


@given(st.sampled_from(_PLACES), _JSON)
def test_any_value_anywhere_is_understood_or_refused_and_nothing_else(place: str, value: object) -> None:
    try:
        data = normal(encode(changed(place, value)))
    except Fault:
        return
    for machine in ("x86_64", "aarch64"):
        compile(resolve(data, ("CAP_SYS_ADMIN",), machine, (6, 1)), machine)


# --- in specs -------------------------------------------------------------------------------------------------------


def loaded(container: str, files: dict[str, bytes], terms: Terms = ANYTHING) -> Loaded:
    text = (
        f"apiVersion: reconciler/v1\nkind: App\nname: web\ncontainers:\n  web:\n    image: {IMAGE}\n"
        f"    limits: {{memory: 64Mi}}\n    seccomp: {container}\n"
    )

    def read(path: str) -> bytes:
        try:
            return files[path]
        except KeyError as error:
            raise FileNotFoundError(path) from error

    return load({"web.yaml": text.encode()}, read, terms=terms)


GOOD = {"conf/calls.json": encode(EVERYTHING)}


def test_a_profile_is_a_file_of_the_repository_or_written_in_the_spec() -> None:
    found = loaded("{profile: conf/calls.json}", GOOD)
    assert found.problems == ()
    app = found.apps["web"]
    assert app.profiles == {"web": normal(encode(EVERYTHING))}
    assert app.named == (("conf/calls.json", normal(encode(EVERYTHING))),)
    other = loaded(f"{{content: '{encode(EVERYTHING).decode()}'}}", {})
    assert other.apps["web"].profiles == app.profiles
    assert other.apps["web"].named == ()
    changed_file = loaded("{profile: conf/calls.json}", {"conf/calls.json": encode(changed("flags", []))})
    assert changed_file.apps["web"].digest != app.digest


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ("{profile: none.json}", "seccomp: none.json: there is no such file in the source"),
        ("{profile: bad.json}", "seccomp: bad.json: not JSON: "),
        ("{content: '{}'}", "seccomp: this profile: defaultAction: expected a string"),
        ("{profile: /etc/passwd}", "seccomp.profile must be a path from the root of the repository"),
        ("strict", "seccomp must be default, unconfined or {profile: FILE}, not 'strict'"),
        ("{profile: a, content: b}", "seccomp must be default, unconfined or {profile: FILE}, not a map"),
        ("[default]", "seccomp must be default, unconfined or {profile: FILE}, not a list"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said_with_its_place(container: str, message: str) -> None:
    found = loaded(container, {"bad.json": b"{"})
    (problem,) = found.problems
    assert problem.message.startswith(message)
    assert (problem.mark.file, problem.mark.line) == ("web.yaml", 8)
    assert not found.apps


def test_a_profile_needs_the_devices_leave() -> None:
    (problem,) = loaded("{profile: conf/calls.json}", GOOD, Terms(file="/d.yaml")).problems
    assert problem.message == "the device does not allow seccomp profiles of specs"
    assert problem.hint == "add it in /d.yaml: allowed_seccomp: [profiles]"


def test_a_refusal_of_a_call_that_nobody_knows_is_a_warning() -> None:
    rule = {"names": ["keyctl", "keyctrl"], "action": "SCMP_ACT_ERRNO"}
    found = loaded("{profile: p}", {"p": encode({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})})
    (problem,) = found.problems
    assert (problem.severity, problem.message) == (
        "warning",
        "seccomp: p: refuses calls that nobody knows: keyctrl",
    )
    assert "web" in found.apps
