"""The networks of an app, and the places of its containers in them. Pure."""

import ipaddress
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from reconciler.spec.fault import Fault, Faults
from reconciler.spec.fields import AlsoAccepts, Doc, Part
from reconciler.spec.marks import quote
from reconciler.spec.values import Labels, Name, describe, each, hostname, keys_of, name, text

DEFAULT: Final = "default"
# Of a subnet's prefix, by version: two containers need a /29, one a /30. Nobody has more of IPv6 than a /32.
_LENGTHS: Final = {4: (8, 30), 6: (32, 126)}
_TAKEN: Final = tuple(
    ipaddress.ip_network(taken)
    for taken in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/8", "fe80::/10", "ff00::/8")
)
_MOST = 16

_Network = IPv4Network | IPv6Network
_AnyAddress = IPv4Address | IPv6Address


def subnet(value: object) -> str:
    """Return a subnet that containers may have, as `address/length`."""
    found = text(value)
    try:
        network = ipaddress.ip_network(found, strict=False)
    except ValueError as error:
        raise Fault(
            f"must be a subnet such as 10.20.0.0/24 or fd12:3456:789a::/64, not {quote(found)}"
        ) from error
    shortest, longest = _LENGTHS[network.version]
    if "/" not in found or not shortest <= network.prefixlen <= longest:
        kind = "an IPv6 subnet" if network.version == 6 else "a subnet"
        raise Fault(f"must be {kind} of /{shortest} to /{longest}, not {quote(found)}")
    if network.network_address != ipaddress.ip_address(found.partition("/")[0]):
        raise Fault(f"has bits beside its length: {quote(found)}", hint=f"write {network}")
    if any(network.version == taken.version and network.overlaps(taken) for taken in _TAKEN):
        raise Fault(f"can't be {quote(found)}: no container may have such an address")
    return str(network)


def address(value: object) -> str:
    """Return an IPv4 address in its usual spelling."""
    found = text(value)
    try:
        return str(IPv4Address(found))
    except ValueError as error:
        raise Fault(f"must be an IPv4 address, not {quote(found)}") from error


def address6(value: object) -> str:
    """Return an IPv6 address in its usual spelling, without a link."""
    found = text(value)
    try:
        read = IPv6Address(found)
    except ValueError as error:
        raise Fault(f"must be an IPv6 address, not {quote(found)}") from error
    if read.scope_id is not None:
        raise Fault(f"must be an IPv6 address without a link, not {quote(found)}")
    return str(read)


def _either(value: object) -> str:
    return address6(value) if isinstance(value, str) and ":" in value else address(value)


def _both(value: object, read: Callable[[object], str]) -> tuple[str, ...]:
    """Return one of IPv4, or one of IPv6, or one of each in this order, from one or from a list."""
    found = each(value, read) if isinstance(value, tuple | list) else [read(value)]
    if not 0 < len(found) <= 2 or len({":" in one for one in found}) < len(found):
        raise Fault("must be one of IPv4, one of IPv6, or a list of one and the other")
    return tuple(sorted(found, key=lambda one: ":" in one))


def subnets(value: object) -> tuple[str, ...]:
    """Return the subnets of a network."""
    return _both(value, subnet)


def gateways(value: object) -> tuple[str, ...]:
    """Return the device's own addresses in a network."""
    return _both(value, _either)


def _one_or_both(**schema: object) -> WithJsonSchema:
    one = {"type": "string", **schema}
    both = {"type": "array", "items": one, "minItems": 1, "maxItems": 2}
    return WithJsonSchema({"anyOf": [one, both]})


_Subnets = Annotated[
    tuple[str, ...], PlainValidator(subnets), _one_or_both(pattern=r"^[0-9a-fA-F:.]+/[0-9]+$")
]
_Gateways = Annotated[tuple[str, ...], PlainValidator(gateways), _one_or_both(pattern=r"^[0-9a-fA-F:.]+$")]
_Address = Annotated[
    str | None, PlainValidator(address), WithJsonSchema({"type": "string", "format": "ipv4"})
]
_Address6 = Annotated[
    str | None, PlainValidator(address6), WithJsonSchema({"type": "string", "format": "ipv6"})
]


def first_usable(network: _Network) -> _AnyAddress:
    """Return the device's own address in a subnet where nothing else is said."""
    return network.network_address + 1


def usable(network: _Network, found: _AnyAddress) -> bool:
    """Return whether a host may have this address in the subnet."""
    reserved = [network.network_address] + ([network.broadcast_address] if network.version == 4 else [])
    return found in network and found not in reserved


class Network(Part):
    """A network: a bridge of the device, with a subnet of its own."""

    subnet: Annotated[
        _Subnets,
        Doc(
            "Its subnet, /8 to /30, or with `ipv6` one of /32 to /126, or a list of both. None of another network, and "
            "none that the device routes elsewhere.",
            "subnet, or list of two",
            "10.20.0.0/24",
            "one that is free",
            True,
        ),
    ] = ()
    gateway: Annotated[
        _Gateways,
        Doc(
            "The device's own address in it, or a list of that of IPv4 and that of IPv6; each needs its `subnet`.",
            "address, or list of two",
            "10.20.0.254",
            "the first",
            True,
        ),
    ] = ()
    ipv6: Annotated[
        bool,
        Doc(
            "It has a subnet of IPv6 beside that of IPv4: a /64 of the device's own unique local ones (RFC 4193), "
            "unless `subnet` says which. An external network has one as long as an app says so, for that app.",
            "boolean",
            "true",
            "",
            True,
        ),
    ] = False
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
        if self.subnet6 and not self.ipv6:
            raise Fault("needs 'ipv6: true' beside it, for its IPv6 subnet", path=("subnet",))
        for own, other in ((self.gateway4, self.subnet4), (self.gateway6, self.subnet6)):
            if own and not other:
                kind = "an IPv6 'subnet'" if ":" in own else "'subnet'"
                raise Fault(f"needs {kind} beside it", path=("gateway",))
            if own and not usable(ipaddress.ip_network(other), ipaddress.ip_address(own)):
                raise Fault(f"is no address of a host in {other}", path=("gateway",))
        return self

    @property
    def subnet4(self) -> str:
        """The subnet of IPv4 that it declares, or an empty string."""
        return next((one for one in self.subnet if ":" not in one), "")

    @property
    def subnet6(self) -> str:
        """The subnet of IPv6 that it declares, or an empty string."""
        return next((one for one in self.subnet if ":" in one), "")

    @property
    def gateway4(self) -> str:
        """The device's address of IPv4 that it declares, or an empty string."""
        return next((one for one in self.gateway if ":" not in one), "")

    @property
    def gateway6(self) -> str:
        """The device's address of IPv6 that it declares, or an empty string."""
        return next((one for one in self.gateway if ":" in one), "")


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
    ipv6_address: Annotated[
        _Address6,
        Doc(
            "The same for IPv6; the network must have an IPv6 `subnet`.",
            "address",
            '"fd12:3456:789a::5"',
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
