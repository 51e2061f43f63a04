"""What a device gives containers whose spec leaves it open: address of ports, logging, restart policy, ids. Pure."""

from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from reconciler.spec.fields import Part
from reconciler.spec.model import App, Container, Logging, Port, Restart

P = TypeVar("P", bound=Part)


@dataclass(frozen=True, slots=True)
class Defaults:
    """The device's own values for what a spec leaves out. `userns` is for the containers that it goes with."""

    host_ip: str = "0.0.0.0"
    logging: Logging = field(default_factory=Logging)
    restart: Restart = field(default_factory=Restart)
    userns: Literal["host", "auto"] = "auto"


BUILT_IN: Final = Defaults()


def with_defaults(app: App, defaults: Defaults) -> App:
    """Return `app` with the device's values where its file says nothing. Doing it twice changes nothing more."""
    if defaults == BUILT_IN:
        return app
    containers = {name: _container(container, defaults) for name, container in app.containers.items()}
    return app.model_copy(update={"containers": containers})


def _container(container: Container, defaults: Defaults) -> Container:
    return container.model_copy(
        update={
            "ports": tuple([_port(port, defaults.host_ip) for port in container.ports]),
            "logging": _merged(container.logging, defaults.logging),
            "restart": _merged(container.restart, defaults.restart),
        }
    )


def _port(port: Port, host_ip: str) -> Port:
    if "host_ip" in port.model_fields_set:
        return port
    changed = port.model_copy(update={"host_ip": host_ip})
    changed.model_fields_set.discard("host_ip")
    return changed


def _merged(own: P, given: P) -> P:
    """Return `given` with what `own` sets itself; only that counts as set in the result."""
    said = own.model_fields_set
    merged = given.model_copy(update={name: getattr(own, name) for name in said})
    merged.model_fields_set.clear()
    merged.model_fields_set.update(said)
    return merged
