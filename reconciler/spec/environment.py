"""The environment of a container: what it takes from configs and from the device, checked and put together. Pure."""

from collections.abc import Iterable, Mapping
from typing import Final

from reconciler.spec import dotenv
from reconciler.spec.model import App, Container
from reconciler.spec.places import Path
from reconciler.spec.process import FromConfig, FromDevice

_LONGEST: Final = 128 << 10  # MAX_ARG_STRLEN of Linux, name and `=` included


def references(container: Container) -> Iterable[tuple[Path, str]]:
    """Yield the configs that the environment comes from, each with the place in the container that names it."""
    for index, name in enumerate(container.env_from):
        yield ("env_from", index), name
    for variable, value in container.environment.items():
        if isinstance(value, FromConfig):
            yield ("environment", variable), value.config


def labels_of(app: App) -> frozenset[str]:
    """Return the device's labels that the app asks for."""
    return frozenset(
        value.label
        for container in app.containers.values()
        for value in container.environment.values()
        if isinstance(value, FromDevice)
    )


def faulty(app: App, contents: Mapping[str, bytes]) -> Iterable[tuple[Path, str]]:
    """Yield what is wrong with configs as sources of variables, each with its place in the app.

    Configs whose content is not in `contents` are somebody else's error.
    """
    for name, container in app.containers.items():
        at = ("containers", name)
        for path, config in references(container):
            if config not in contents:
                continue
            if path[0] == "env_from":
                variables, wrong = dotenv.parse(contents[config])
                for said in wrong:
                    yield (*at, *path), f"the config '{config}' is no list of variables: {said}"
            else:
                said = _unfit(contents[config])
                if said:
                    yield (*at, *path), f"the config '{config}' can't be the value of a variable: {said}"
                variables = {} if said else {str(path[1]): _text(contents[config])}
            for variable, value in variables.items():
                if len(variable.encode()) + len(value.encode()) + 2 > _LONGEST:
                    message = f"the config '{config}' makes {variable} larger than {_LONGEST >> 10} KiB"
                    yield (*at, *path), message


def _unfit(content: bytes) -> str:
    if b"\0" in content:
        return "it holds a NUL"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start}"
    return ""


def _text(content: bytes) -> str:
    """The content without its last line break, which editors add and nobody means."""
    return content.decode().removesuffix("\n").removesuffix("\r")


def variables(
    container: Container, contents: Mapping[str, bytes], labels: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables that the spec sets, for configs that are not `faulty` and labels that the device has."""
    found: dict[str, str] = {}
    for name in container.env_from:
        found |= dotenv.parse(contents[name])[0]
    for variable, value in container.environment.items():
        match value:
            case FromConfig(config):
                found[variable] = _text(contents[config])
            case FromDevice(label):
                found[variable] = labels[label]
            case str():
                found[variable] = value
    return found
