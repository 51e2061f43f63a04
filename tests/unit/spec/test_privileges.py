"""What a device allows beyond the default, and what it says where it does not."""

import pytest

from reconciler.linux.capability import NAMES
from reconciler.spec.kernel import CAPABILITIES, device_allowed
from reconciler.spec.load import load
from reconciler.spec.terms import ANYTHING, Terms

IMAGE = "ghcr.io/acme/web:1.5@sha256:" + "1" * 64


def said(container: str, terms: Terms) -> list[tuple[str, str, str]]:
    text = (
        f"apiVersion: reconciler/v1\nkind: App\nname: web\ncontainers:\n  web:\n    image: {IMAGE}\n"
        f"    limits: {{memory: 64Mi}}\n    {container}\n"
    )
    problems = load({"web.yaml": text.encode()}, lambda _: b"", terms=terms).problems
    return [(problem.severity, problem.message, problem.hint) for problem in problems]


def test_the_capabilities_of_the_format_are_those_of_the_kernel() -> None:
    assert sorted(CAPABILITIES) == sorted(NAMES)


@pytest.mark.parametrize(
    ("container", "message", "key"),
    [
        ("privileged: true", "the device does not allow privileged containers", "allow_privileged: true"),
        (
            "cap_add: [NET_ADMIN]",
            "the device does not allow the capability NET_ADMIN",
            "allowed_caps: [NET_ADMIN]",
        ),
        ("cap_add: [ALL]", "the device does not allow the capability ALL", "allowed_caps: [ALL]"),
        (
            "devices: [/dev/kmsg]",
            "the device does not allow /dev/kmsg to be used",
            "allowed_devices: [/dev/kmsg]",
        ),
        (
            "seccomp: unconfined",
            "the device does not allow containers without a seccomp filter",
            "allowed_seccomp: [unconfined]",
        ),
    ],
)
def test_a_refusal_names_the_file_the_key_and_what_to_add(container: str, message: str, key: str) -> None:
    terms = Terms(file="/data/device.yaml", caps=("CAP_SYS_TIME",), devices=("/dev/ttyUSB*",))
    assert said(container, terms) == [("error", message, f"add it in /data/device.yaml: {key}")]


@pytest.mark.parametrize(
    "container",
    [
        "cap_add: [SYS_TIME, CHOWN]",
        "cap_drop: [ALL]",
        "devices: [/dev/ttyUSB7, /dev/dri/card0]",
        "privileged: false",
        "seccomp: default",
        "userns: auto",
    ],
)
def test_what_is_allowed_or_default_is_said_nothing_about(container: str) -> None:
    assert said(container, Terms(caps=("CAP_SYS_TIME",), devices=("/dev/ttyUSB*", "/dev/dri"))) == []


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ("privileged: true", "containers.web is privileged: its root can do anything to the device"),
        ("cap_add: [SYS_ADMIN]", "containers.web has SYS_ADMIN: its root has ways to the whole device"),
        (
            "seccomp: unconfined",
            "containers.web is unconfined: it can make every system call that its capabilities allow",
        ),
    ],
)
def test_what_is_allowed_and_dangerous_is_a_warning(container: str, message: str) -> None:
    assert said(container, ANYTHING) == [("warning", message, "")]


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ("{cap_add: [CHOWN, KILL], cap_drop: [KILL]}", "cap_add and cap_drop both name KILL"),
        (
            "{privileged: true, cap_add: [SYS_TIME]}",
            "cap_add has no effect: a privileged container has all capabilities",
        ),
        (
            "{devices: [/dev/a, /dev/b:/dev/a]}",
            "devices[1] is at /dev/a, and so is devices[0]",
        ),
        (
            "{privileged: true, userns: auto}",
            "userns: auto takes away what privileged: true gives: write one of them",
        ),
        ("{cap_add: [NET_ADMIN], userns: auto}", "NET_ADMIN gives nothing with userns: auto"),
        ("{network_mode: host, userns: auto}", "userns: auto does not go with network_mode: host"),
        ("{user: 65536, userns: auto}", "with userns: auto there are ids below 65536 only, not 65536"),
        (
            "{configs: [{source: conf, target: /conf, uid: 70000}], userns: auto}",
            "with userns: auto there are ids below 65536 only, not 70000",
        ),
        ("{group_add: [70000], userns: auto}", "with userns: auto there are ids below 65536 only, not 70000"),
    ],
)
def test_what_contradicts_itself_is_an_error(container: str, message: str) -> None:
    fields = container.strip("{}").replace("], ", "]\n    ").replace("true, ", "true\n    ")
    fields = fields.replace(", userns", "\n    userns")
    assert ("error", message) in [(severity, text) for severity, text, _ in said(fields, ANYTHING)]


@pytest.mark.parametrize(
    ("path", "pattern", "allowed"),
    [
        ("/dev/ttyUSB0", "/dev/ttyUSB*", True),
        ("/dev/ttyUSB", "/dev/ttyUSB?", False),
        ("/dev/dri/card0", "/dev/dri", True),
        ("/dev/dri", "/dev/dri/card0", False),
        ("/dev/drifter", "/dev/dri", False),
        ("/dev/bus/usb/001/002", "/dev/bus/*/001", True),
        ("/dev/a/b", "/dev/a*b", False),
        ("/dev/tty7", "/dev/tty[0-9]", True),
    ],
)
def test_a_pattern_matches_within_components(path: str, pattern: str, allowed: bool) -> None:
    assert device_allowed(path, (pattern,)) is allowed


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ((), False),
        (("ghcr.io",), False),
        (("docker.io", "ghcr.io/acme"), False),
        (("ghcr.io/acme/web",), False),
        (("docker.io",), True),
        (("ghcr.io/acm",), True),
        (("ghcr.io/acme/web/x",), True),
        (("ghcr.io:443",), True),
        (("io",), True),
    ],
)
def test_an_image_is_from_where_the_device_allows_it(allowed: tuple[str, ...], refused: bool) -> None:
    found = said("init: true", Terms(registries=allowed, file="/data/device.yaml"))
    hint = "add it in /data/device.yaml: registries: {allow: [ghcr.io]}"
    message = "the device does not allow images of ghcr.io/acme/web"
    assert found == ([("error", message, hint)] if refused else [])


def test_a_reference_that_cannot_be_read_is_one_mistake() -> None:
    text = b"apiVersion: reconciler/v1\nkind: App\nname: web\ncontainers: {web: {image: x, limits: {memory: 64Mi}}}\n"
    problems = load({"web.yaml": text}, lambda _: b"", terms=Terms(registries=("ghcr.io",))).problems
    assert [problem.message for problem in problems] == ["image 'x': the registry host is missing"]
