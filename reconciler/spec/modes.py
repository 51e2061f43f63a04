"""The one form of a network mode that names somebody: `container:NAME`. Apart, for who may load no models. Pure."""

from typing import Final

JOINS: Final = "container:"


def joined_by(mode: str) -> str:
    """Return the container whose network is joined with this mode; "" for none."""
    return mode.removeprefix(JOINS) if mode.startswith(JOINS) else ""
