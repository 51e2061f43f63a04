"""The networks of an app, and the places of its containers in them. Pure."""

import ipaddress
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from reconciler.spec.fault import Fault, Faults, not_yet
from reconciler.spec.fields import AlsoAccepts, Doc, Part
from reconciler.spec.marks import quote
from reconciler.spec.values import Labels, Name, describe, hostname, keys_of, name, text

DEFAULT: Final = "default"
_SHORTEST, _LONGEST = 8, 30  # of a subnet's prefix: two containers need a /29, one a /30
_MOST = 16


def subnet(value: object) -> str:
    """Return an IPv4 subnet that containers may have, as `address/length`."""
    found = text(value)
    try:
        network = ipaddress.ip_network(found, strict=False)
    except ValueError as error:
        raise Fault(f"must be a subnet such as 10.20.0.0/24, not {quote(found)}") from error
    if network.version == 6:
        raise not_yet(f"the IPv6 subnet {quote(found)}")
    if "/" not in found or not _SHORTEST <= network.prefixlen <= _LONGEST:
        raise Fault(f"must be a subnet of /{_SHORTEST} to /{_LONGEST}, not {quote(found)}")
    if str(network.network_address) != found.partition("/")[0]:
        raise Fault(f"has bits beside its length: {quote(found)}", hint=f"write {network}")
    if any(network.overlaps(IPv4Network(taken)) for taken in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3")):
        raise Fault(f"can't be {quote(found)}: no container may have such an address")
    return str(network)


def address(value: object) -> str:
    """Return an IPv4 address in its usual spelling."""
    found = text(value)
    try:
        return str(IPv4Address(found))
    except ValueError as error:
        raise Fault(f"must be an IPv4 address, not {quote(found)}") from error


_Subnet = Annotated[
    str | None, PlainValidator(subnet), WithJsonSchema({"type": "string", "pattern": r"^[0-9.]+/[0-9]+$"})
]
_Address = Annotated[
    str | None, PlainValidator(address), WithJsonSchema({"type": "string", "format": "ipv4"})
]


def first_usable(network: IPv4Network) -> IPv4Address:
    """Return the device's own address in a subnet where nothing else is said."""
    return network.network_address + 1


def usable(network: IPv4Network, found: IPv4Address) -> bool:
    """Return whether a host may have this address in the subnet."""
    return found in network and found not in (network.network_address, network.broadcast_address)


class Network(Part):
    """A network: a bridge of the device, with a subnet of its own."""

    subnet: Annotated[
        _Subnet,
        Doc(
            "Its IPv4 subnet, /8 to /30. None of another network, and none that the device routes elsewhere.",
            "subnet",
            "10.20.0.0/24",
            "one that is free",
            True,
        ),
    ] = None
    gateway: Annotated[
        _Address,
        Doc("The device's own address in it; needs `subnet`.", "address", "10.20.0.254", "the first", True),
    ] = None
    internal: Annotated[
        bool,
        Doc(
            "Nothing in it reaches anything outside it but the device, nor is it reached.",
            "boolean",
            "true",
            "",
            True,
        ),
    ] = False
    external: Annotated[
        bool,
        Doc(
            "It is that of all apps that declare this name so: the first makes it, and it goes after the last.",
            "boolean",
            "true",
            "",
            True,
        ),
    ] = False

    labels: Annotated[
        Labels,
        Doc(
            "Labels for people and tools, which `network inspect` shows.",
            "map",
            "{zone: inner}",
            "`{}`",
            False,
        ),
    ] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.external:
            for said in ("subnet", "gateway", "internal", "labels"):
                if getattr(self, said):
                    raise Fault("can't be said of an external network: it is no app's own", path=(said,))
        if self.gateway is not None:
            if self.subnet is None:
                raise Fault("needs 'subnet' beside it", path=("gateway",))
            if not usable(IPv4Network(self.subnet), IPv4Address(self.gateway)):
                raise Fault(f"is no address of a host in {self.subnet}", path=("gateway",))
        return self


def _aliases(value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple | list):
        raise Fault(f"must be a list of names, not {describe(value)}")
    found: dict[str, None] = {}
    faults = []
    for index, item in enumerate(value):
        try:
            found[hostname(item)] = None
        except Fault as fault:
            fault.path = (index,)
            faults.append(fault)
    if faults:
        raise Faults(faults)
    return tuple(sorted(found))


class Place(Part):
    """A container's place in a network."""

    aliases: Annotated[
        Annotated[
            tuple[str, ...],
            PlainValidator(_aliases),
            WithJsonSchema({"type": "array", "items": {"type": "string"}}),
        ],
        Doc("Further names that the others in the network know it by.", "list", "[database]", "`[]`", False),
    ] = ()
    ipv4_address: Annotated[
        _Address,
        Doc(
            "Its address there; the network must have a `subnet`, and the container one replica.",
            "address",
            "10.20.0.5",
            "one that is free",
            True,
        ),
    ] = None


def _places(value: object) -> object:
    """Turn a list of names into the map of the long form, and nothing more to say of a place into an empty one."""
    if isinstance(value, Mapping | tuple | list) and not 0 < len(value) <= _MOST:
        hint = "" if value else "for none, write network_mode: none"
        raise Fault(f"must name one network or more, {_MOST} at most", hint=hint)
    if isinstance(value, Mapping):
        return {key: {} if item is None else item for key, item in value.items()}
    if not isinstance(value, tuple | list):
        return value
    return keys_of(value, name)


def _declaration(value: object) -> object:
    """Let `networks: {back: }` declare a network with nothing more to say, as in Compose."""
    return {} if value is None else value


def only_default() -> dict[str, Any]:
    """Return the places of a container that says nothing of them."""
    return {DEFAULT: Place()}


Networks = dict[
    Name, Annotated[Network, BeforeValidator(_declaration), AlsoAccepts("", "nothing more to say", "null")]
]
Places = Annotated[
    dict[Name, Annotated[Place, AlsoAccepts("", "nothing more to say", "null")]],
    BeforeValidator(_places),
    AlsoAccepts("", "list of names", "array"),
]
