"""What somebody else's firewall does to us: why forwarded traffic may not reach containers, for `doctor` and the plan.

Reads only. Accepting a packet in our table does not help where another table at the same hook drops it, so the only
remedy is in that other firewall, by its owner's tools.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reconciler.engine.network.diagnose import kernel
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.listeners import Listener
from reconciler.engine.network.listing import read
from reconciler.engine.network.names import TABLE_PREFIX
from reconciler.engine.network.ruleset import FAMILIES, Json
from reconciler.linux import iptables

_OLD_TABLES = Path(
    "/proc/thread-self/net/ip_tables_names"
)  # thread-self: /proc/net is that of the first thread
_POLICY_DROP = "policy drop: what it does not accept by a rule is dropped"


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
    """The chains that may drop forwarded traffic of containers: a policy of drop, or a last rule without a condition.

    Those that see nothing but IPv6 only count with `ipv6`.
    Whether an earlier rule of that chain lets our traffic through can't be told from here, so each is a possibility.
    """
    families = ("ip", "inet", "ip6") if ipv6 else ("ip", "inet")
    found = []
    for chain in firewall.chains():
        family, table, name = (str(chain.get(key, "")) for key in ("family", "table", "name"))
        if chain.get("hook") != "forward" or family not in families or table.startswith(TABLE_PREFIX):
            continue
        reason, what = "", "also IPv6" if family == "ip6" else "also"
        if chain.get("policy") == "drop":
            reason = f"{_POLICY_DROP}, {what} on its way to containers"
        elif verdict := last_verdict(firewall.rules(family, table, name)):
            reason = f"its last rule is {verdict} for everything, {what} on its way to containers"
        if reason:
            found.append(ForwardBlocker(family, table, name, reason, _hint(table, family)))
    if _old_policy_drops():
        reason = f"{_POLICY_DROP}, also on its way to containers"
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


def _old_policy_drops() -> bool:
    """Whether the older iptables has a FORWARD policy of drop; it is asked only where it has such a table."""
    try:
        tables = _OLD_TABLES.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return False
    with kernel("iptables"):
        return "filter" in tables and iptables.policy("filter", iptables.FORWARD) == iptables.DROP


def last_verdict(rules: Sequence[Json]) -> str:
    """`drop` or `reject` where the last rule is that and has no condition, else an empty string."""
    if not rules:
        return ""
    expression = rules[-1].get("expr")
    statements = [
        kind
        for statement in (expression if isinstance(expression, list) else [])
        if isinstance(statement, dict)
        for kind in statement
        if kind not in ("counter", "log", "comment")
    ]
    return statements[0] if statements in (["drop"], ["reject"]) else ""


def _hint(table: str, family: str = "ip") -> str:
    if table == "firewalld":
        return "put the bridges into its trusted zone: firewall-cmd --permanent --zone=trusted --add-interface=rc-NAME"
    if table == "filter":
        tool = "ip6tables" if family == "ip6" else "iptables"
        return (
            f"accept it there: {tool} -I FORWARD -o 'rc-+' -j ACCEPT; {tool} -I FORWARD -i 'rc-+' -j ACCEPT "
            "(with Docker: in DOCKER-USER instead of FORWARD)"
        )
    return "accept traffic of interfaces named rc-* in that chain"
