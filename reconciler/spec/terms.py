"""The terms on which a device takes specs: what its own file allows them, and the labels that it has.

They come from device.yaml, never from the repository: a commit can't loosen them. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

DEVICE_FILE: Final = "/etc/reconciler/device.yaml"


@dataclass(frozen=True, slots=True)
class Terms:
    """What may be asked for: `binds` are paths that may be mounted with all below, `devices` patterns of paths, `caps`
    full names of capabilities beside the default ones, or ALL; `seccomp` is what they may have in place of the default
    profile: unconfined, profiles. `registries` are HOST or HOST/PREFIX that images may be from, none meaning any.
    `file` is the file that says all this, for messages. `foreign`: a container may join the network of one outside its
    app, which whoever asks has looked up.
    """

    binds: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    caps: tuple[str, ...] = ()
    privileged: bool = False
    seccomp: tuple[str, ...] = ()
    registries: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    file: str = DEVICE_FILE
    foreign: bool = False


ANYTHING: Final = Terms(
    binds=("/",),
    devices=("/dev",),
    caps=("ALL",),
    privileged=True,
    seccomp=("unconfined", "profiles"),
    foreign=True,
)
