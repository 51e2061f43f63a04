"""What somebody else's firewall does to us: why forwarded traffic does not pass, for `doctor`, the plan and `status`.

Reads only. Accepting a packet in our table does not help where another table at the same hook drops it, so the only
remedy is in that other firewall, by its owner's tools.
"""

import socket
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.listeners import Listener
from reconciler.engine.network.listing import read
from reconciler.engine.network.names import TABLE_PREFIX
from reconciler.engine.network.passing import ACCEPT, DROP, Chains, inbound, outbound, verdict
from reconciler.engine.network.ruleset import FAMILIES
from reconciler.linux import iptables

_OLD_TABLES = Path(
    "/proc/thread-self/net/ip_tables_names"
)  # thread-self: /proc/net is that of the first thread
# The bridge that stands for those to come: nobody's rule can name it.
_ANY_BRIDGE: Final = "rc-000000000000"
_OUT: Final = "what containers send out"
_IN: Final = "what comes to published ports from outside"


@dataclass(frozen=True, slots=True)
class ForwardBlocker:
    """A chain of somebody else's at the forward hook that drops what nothing before it accepted."""

    family: str
    table: str
    chain: str
    reason: str
    hint: str

    def __str__(self) -> str:
        return f"firewall: {self.family} {self.table} {self.chain}: {self.reason}"


def forward_blockers(firewall: Firewall, *, ipv6: bool = False) -> tuple[ForwardBlocker, ...]:
    """The chains that drop new connections of containers, for all that can be told: see `passing`.

    Asked for the bridges that are here and for one to come. Chains that see nothing but IPv6 only count with `ipv6`.
    """
    families = ("ip", "inet", "ip6") if ipv6 else ("ip", "inet")
    bases = [
        chain
        for chain in firewall.chains()
        if chain.get("hook") == "forward"
        and chain.get("family") in families
        and not str(chain.get("table", "")).startswith(TABLE_PREFIX)
    ]
    bridges = [_ANY_BRIDGE, *sorted(name for _, name in socket.if_nameindex() if name.startswith("rc-"))]
    found = []
    for chain in bases:
        family, table, name = (str(chain[key]) for key in ("family", "table", "name"))
        chains = firewall.rules_by_chain(family, table)
        policy = str(chain.get("policy", ACCEPT))
        dropped = [
            what
            for what, packet in ((_IN, inbound), (_OUT, outbound))
            if any(verdict(chains, name, policy, packet(bridge)) != ACCEPT for bridge in bridges)
        ]
        if dropped:
            how = "policy drop" if policy == DROP else "by its rules"
            reason = f"{how}: {' and '.join(dropped)} is dropped"
            found.append(ForwardBlocker(family, table, name, reason, _hint(table, family, chains)))
    if old_policy_drops():
        reason = f"policy drop: {_IN} and {_OUT} is dropped, but for what a rule of its accepts"
        found.append(ForwardBlocker("iptables-legacy", "filter", "FORWARD", reason, _hint("filter")))
    return tuple(found)


def ports_of_others(firewall: Firewall) -> tuple[Listener, ...]:
    """The ports that other instances of this program publish, as if each were a socket: two can't have one port."""
    return tuple(
        Listener(
            mapping.protocol,
            mapping.host_ip,
            mapping.published,
            mapping.version == 6,
            0,
            None,
            f"{mapping.owner} of {table}",
        )
        for table in sorted(firewall.other_instances())
        for family in FAMILIES
        for mapping in read(firewall.table(table, family), family).ports
    )


def old_policy_drops() -> bool:
    """Whether the older iptables has a FORWARD policy of drop; it is asked only where it has such a table."""
    try:
        tables = _OLD_TABLES.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return False
    with kernel("iptables"):
        return "filter" in tables and iptables.policy("filter", iptables.FORWARD) == iptables.DROP


def _hint(table: str, family: str = "ip", chains: Chains = MappingProxyType({})) -> str:
    """What its owner says there to let our bridges through, in the words of the tool that made the table."""
    if table == "firewalld":
        say = "firewall-cmd --zone=trusted --add-interface=rc-+"
        return f"put the bridges into its trusted zone: {say}, and once more with --permanent"
    if table != "filter":
        return "accept traffic of interfaces named rc-* in that chain"
    if any(name.startswith(("ufw-", "ufw6-")) for name in chains):
        return "let them through: ufw route allow in on rc-+; ufw route allow out on rc-+"
    tool = "ip6tables" if family == "ip6" else "iptables"
    chain = "DOCKER-USER" if "DOCKER-USER" in chains else "FORWARD"
    return (
        f"accept it there: {tool} -I {chain} -o rc-+ -j ACCEPT; {tool} -I {chain} -i rc-+ -j ACCEPT "
        "(at each boot, before containers are used)"
    )
