"""Reading a bundle's config.json from its directory: bounded, and an object or nothing."""

import json
import os

from reconciler.shim.step import Step, StepError

_LARGEST_CONFIG = 4 * 1024 * 1024


def text(config: dict[str, object]) -> str:
    """Write a config.json as this program keeps it."""
    return json.dumps(config)


def read_config(directory: int, shown: str) -> dict[str, object]:
    """Read config.json in the open bundle `directory`; raise StepError."""
    with Step("config", shown):
        fd = os.open("config.json", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(fd, "rb") as file:
            data = file.read(_LARGEST_CONFIG + 1)
    if len(data) > _LARGEST_CONFIG:
        raise StepError("config", shown, 0, "larger than 4 MiB")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StepError("config", shown, 0, f"not JSON: {error}") from error
    if not isinstance(config, dict):
        raise StepError("config", shown, 0, "not an object")
    return config
