"""What a device allows a container: where its image is from, capabilities, devices, calls, `privileged`. Rules of one.

A refusal names the file of the device, the key in it, and what to add there. What is allowed and dangerous is a
warning, which `validate` and `plan` show: whoever applies it should have read it. Pure.
"""

from collections.abc import Iterable

from reconciler.spec.capabilities import DEFAULT_CAPABILITIES
from reconciler.spec.finding import Finding
from reconciler.spec.kernel import DANGEROUS, device_allowed
from reconciler.spec.marks import WARNING
from reconciler.spec.model import Container
from reconciler.spec.places import Path
from reconciler.spec.reference import STAND_IN
from reconciler.spec.seccomp import DEFAULT, UNCONFINED
from reconciler.spec.terms import Terms


def privileges(container: Container, at: Path, terms: Terms) -> Iterable[Finding]:
    """Yield what the device does not allow, what contradicts itself, and what is a risk."""
    yield from _image(container, at, terms)
    yield from _privileged(container, at, terms)
    yield from _seccomp(container, at, terms)
    yield from _capabilities(container, at, terms)
    yield from _devices(container, at, terms)


def _image(container: Container, at: Path, terms: Terms) -> Iterable[Finding]:
    name = f"{container.image.registry}/{container.image.repository}"
    if (
        terms.registries
        and container.image != STAND_IN
        and not any(name == allowed or name.startswith(f"{allowed}/") for allowed in terms.registries)
    ):
        hint = f"add it in {terms.file}: registries: {{allow: [{container.image.registry}]}}"
        yield Finding((*at, "image"), f"the device does not allow images of {name}", hint=hint)


def _privileged(container: Container, at: Path, terms: Terms) -> Iterable[Finding]:
    if not container.privileged:
        return
    where = (*at, "privileged")
    if not terms.privileged:
        hint = f"add it in {terms.file}: allow_privileged: true"
        yield Finding(where, "the device does not allow privileged containers", hint=hint)
        return
    yield Finding(
        where, f"{_name(at)} is privileged: its root can do anything to the device", WARNING, at_key=True
    )
    if container.cap_add:
        yield Finding(
            (*at, "cap_add"),
            "cap_add has no effect: a privileged container has all capabilities",
            at_key=True,
        )


def _seccomp(container: Container, at: Path, terms: Terms) -> Iterable[Finding]:
    where, wanted = (*at, "seccomp"), container.seccomp
    if wanted == DEFAULT:
        return
    key = "unconfined" if wanted == UNCONFINED else "profiles"
    if container.privileged:
        if key == "profiles":
            message = "seccomp has no effect: a privileged container is not filtered"
            yield Finding(where, message, at_key=True)
    elif key not in terms.seccomp:
        what = "containers without a seccomp filter" if key == "unconfined" else "seccomp profiles of specs"
        hint = f"add it in {terms.file}: allowed_seccomp: [{key}]"
        yield Finding(where, f"the device does not allow {what}", hint=hint)
    elif key == "unconfined":
        message = f"{_name(at)} is unconfined: it can make every system call that its capabilities allow"
        yield Finding(where, message, WARNING, at_key=True)


def _capabilities(container: Container, at: Path, terms: Terms) -> Iterable[Finding]:
    both = sorted(set(container.cap_add) & set(container.cap_drop))
    if both:
        message = f"cap_add and cap_drop both name {', '.join(map(_short, both))}"
        yield Finding((*at, "cap_drop"), message, at_key=True)
    for name in container.cap_add:
        if name in DEFAULT_CAPABILITIES or "ALL" in terms.caps or name in terms.caps:
            if name in DANGEROUS:
                message = f"{_name(at)} has {_short(name)}: its root has ways to the whole device"
                yield Finding((*at, "cap_add"), message, WARNING, at_key=True)
            continue
        yield Finding(
            (*at, "cap_add"),
            f"the device does not allow the capability {_short(name)}",
            hint=f"add it in {terms.file}: allowed_caps: [{_short(name)}]",
        )


def _devices(container: Container, at: Path, terms: Terms) -> Iterable[Finding]:
    first: dict[str, int] = {}
    for index, device in enumerate(container.devices):
        target = device.target or device.source
        if target in first:
            message = f"devices[{index}] is at {target}, and so is devices[{first[target]}]"
            yield Finding((*at, "devices", index), message)
        first.setdefault(target, index)
        if not device_allowed(device.source, terms.devices):
            yield Finding(
                (*at, "devices", index),
                f"the device does not allow {device.source} to be used",
                hint=f"add it in {terms.file}: allowed_devices: [{device.source}]",
            )


def _name(at: Path) -> str:
    return ".".join(map(str, at))


def _short(name: str) -> str:
    return name.removeprefix("CAP_")
