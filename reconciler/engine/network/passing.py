"""What somebody else's chains do with a packet of ours, as far as that can be told without one. Pure.

The chains are those that libnftables lists (libnftables-json(5)); iptables-nft's are among them. A packet is a new
connection: from a bridge of ours to another link, or from there to a published port. A rule that asks about anything
else, an address or a port, is passed over: whether it matches can't be told, so what is left is what happens to
traffic that nobody made a rule for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from reconciler.engine.network.ruleset import Json

Chains = Mapping[str, Sequence[Json]]  # the rules of each chain of a table, in their order

ACCEPT: Final = "accept"
DROP: Final = "drop"
REJECT: Final = "reject"
_END: Final = "end"  # of a base chain: its policy decides
_RETURN: Final = "return"
_IGNORED: Final = frozenset({"counter", "log", "comment"})
# Names of links that are never a device's way out.
_INNER: Final = ("lo", "docker", "br-", "veth", "virbr", "cni", "podman", "rc-", "rv")


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a connection; `iif` or `oif` is "" for the link that leads out of the device, whichever."""

    iif: str
    oif: str
    dnat: bool


def outbound(bridge: str) -> Packet:
    """What a container sends out."""
    return Packet(bridge, "", False)


def inbound(bridge: str) -> Packet:
    """What comes to a published port from outside."""
    return Packet("", bridge, True)


def verdict(chains: Chains, base: str, policy: str, packet: Packet) -> str:
    """ACCEPT, DROP or REJECT: what the base chain `base` does with the packet, by its rules or else by its policy."""
    found = _walk(chains, base, packet, {})
    return (policy or ACCEPT) if found in (_END, _RETURN) else found


def _walk(chains: Chains, name: str, packet: Packet, known: dict[str, str]) -> str:
    """What becomes of the packet in a chain; `known` are the answers so far, since many may lead to one."""
    if name not in known:
        known[name] = _END  # the kernel allows no loop; here one would end
        for rule in chains.get(name, ()):
            expression = rule.get("expr")
            found = _rule(chains, expression if isinstance(expression, list) else [], packet, known)
            if found:
                known[name] = found
                break
    return known[name]


def _rule(chains: Chains, expression: Sequence[Json], packet: Packet, known: dict[str, str]) -> str:
    """What the rule decides, or "" where the next one is asked."""
    for statement in expression:
        if not isinstance(statement, dict) or len(statement) != 1:
            return ""
        ((kind, what),) = statement.items()
        if kind in _IGNORED:
            continue
        if kind == "match":
            if not _matches(what, packet):
                return ""
        elif kind == "vmap":
            return _mapped(chains, what, packet, known)
        else:
            return _decide(chains, kind, what, packet, known)
    return ""


def _decide(chains: Chains, kind: str, what: object, packet: Packet, known: dict[str, str]) -> str:
    if kind in (ACCEPT, DROP, REJECT, _RETURN):
        return kind
    target = what.get("target") if isinstance(what, dict) else None
    if kind not in ("jump", "goto") or not isinstance(target, str):
        return ""  # a limit, a mark, a queue: not for us to tell
    found = _walk(chains, target, packet, known)
    if found in (_END, _RETURN):
        return _RETURN if kind == "goto" else ""
    return found


def _mapped(chains: Chains, what: object, packet: Packet, known: dict[str, str]) -> str:
    """A verdict map over the names of links, such as firewalld's of zones."""
    if not isinstance(what, dict):
        return ""
    data, link = what.get("data"), _link(what.get("key"), packet)
    elements = data.get("set") if isinstance(data, dict) else None
    if link is None or not isinstance(elements, list):
        return ""
    for element in elements:
        if isinstance(element, list) and len(element) == 2 and _is_named(element[0], link):
            decided: Json = element[1] if isinstance(element[1], dict) else {}
            for kind, target in decided.items():
                return _decide(chains, kind, target, packet, known)
    return ""


def _matches(match: object, packet: Packet) -> bool:
    """Whether the condition holds; one that can't be told does not."""
    if not isinstance(match, dict):
        return False
    left, right, operator = match.get("left"), match.get("right"), match.get("op")
    link = _link(left, packet)
    if link is not None:
        if operator == "!=":
            return not any(_is_named(name, link, unknown=True) for name in _each(right))
        return operator in ("==", "in") and any(_is_named(name, link) for name in _each(right))
    asked = left.get("ct") if isinstance(left, dict) else None
    key = asked.get("key") if isinstance(asked, dict) else None
    if key == "state" and operator in ("==", "in"):
        return "new" in _each(right)
    if key == "status" and operator in ("==", "in"):
        return packet.dnat and "dnat" in _each(right)
    return False


def _link(expression: object, packet: Packet) -> str | None:
    """The name of the packet's link that the expression means; None where it means something else."""
    meta = expression.get("meta") if isinstance(expression, dict) else None
    key = meta.get("key") if isinstance(meta, dict) else None
    if key in ("iifname", "iif"):
        return packet.iif
    return packet.oif if key in ("oifname", "oif") else None


def _each(right: object) -> Iterable[object]:
    inner = right.get("set", [right]) if isinstance(right, dict) else right
    return inner if isinstance(inner, list) else [inner]


def _is_named(name: object, link: str, *, unknown: bool = False) -> bool:
    """Whether a link has this name, which may end in `*`; `unknown` where that can't be told."""
    if not isinstance(name, str):
        return unknown
    if not link:
        return name == "*" or (unknown and not name.startswith(_INNER))
    return link.startswith(name[:-1]) if name.endswith("*") else link == name
