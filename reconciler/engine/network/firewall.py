"""The nftables tables of this instance in the kernel: listed, compared, replaced in one transaction, removed.

What the table says is rendered by `ruleset`; whoever calls decides when. Other tables are read, never changed. That of
the family ip6 is there only with a network that has IPv6; both are one thing to those who ask.
Safe to use from several threads.
"""

import dataclasses
import errno
import threading
from collections.abc import Callable, Mapping, Sequence

from reconciler.engine.network import listing, ruleset
from reconciler.engine.network.diagnose import explain, kernel
from reconciler.engine.network.names import TABLE_PREFIX, table_name
from reconciler.engine.network.ruleset import FAMILIES, IP, Family, Json
from reconciler.errors import UnsupportedError
from reconciler.linux import netlink, nftables

_SUBJECT = "nftables"


class Firewall:
    """The table, and a memory of its last listing, valid for as long as the kernel's generation number stands."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._lock = threading.RLock()
        self._context: nftables.Context | None = None
        # Kept open: closing any netfilter socket right after a transaction waits some 15 ms until the kernel has freed
        # what was replaced (nft_rcv_nl_event, Linux 5.14).
        self._socket: netlink.Socket | None = None
        self._listed: tuple[int, listing.Table | None] | None = None
        self._there: frozenset[Family] = frozenset()  # by that listing

    def observe(self) -> listing.Table | None:
        """The table as it is, or None where there is none. One small message where nothing changed since last time."""
        with self._lock, kernel(_SUBJECT):
            while True:
                before = self._generation()
                if self._listed is not None and self._listed[0] == before:
                    return self._listed[1]
                listed = {family: self._list_table(family) for family in FAMILIES}
                if self._generation() == before:
                    self._keep(
                        before, {family: found for family, found in listed.items() if found is not None}
                    )

    def replace(
        self,
        rendered: Mapping[Family, Sequence[Json]],
        settle: Callable[[netlink.Socket], object] = lambda _: None,
    ) -> bool:
        """Put the rendered tables in place, unless they are there, unchanged; return whether they were not.

        `settle` runs between the change and the mark that says that the table is as it was put there, with a netfilter
        socket: where it fails, or a crash comes before it ends, the whole is done again next time.
        """
        with self._lock, kernel(_SUBJECT):
            found = self.observe()
            if found is not None and found.sealed and found.fingerprint == listing.fingerprints(rendered):
                return False
            left_over = [family for family in FAMILIES if family in self._there and family not in rendered]
            self._run(
                [command for commands in rendered.values() for command in commands]
                + [command for family in left_over for command in ruleset.removal(self._instance, family)]
            )
            settle(self._netfilter())
            before = self._generation()
            listed = {family: self._list_table(family) or [] for family in rendered}
            if all(listed.values()):
                seals = [listing.seal(self._instance, found, family) for family, found in listed.items()]
                self._run([command for commands in seals for command in commands])
                after = self._generation()
                if after == before + 1:  # only the seals came in between
                    self._keep(after, listed, sealed=True)
            return True

    def remove(self) -> bool:
        """Take the tables away; return whether one was there."""
        with self._lock, kernel(_SUBJECT):
            if self.observe() is None:
                return False
            there = [family for family in FAMILIES if family in self._there]
            self._run([command for family in there for command in ruleset.removal(self._instance, family)])
            return True

    def generation(self) -> int:
        """A number that grows with every change to any table of this network namespace."""
        with self._lock, kernel(_SUBJECT):
            return self._generation()

    def chains(self) -> list[Json]:
        """Every chain of every table on this host, ours included, as libnftables describes them."""
        with self._lock, kernel(_SUBJECT):
            self._generation()
            listed = self._run([{"list": {"chains": {}}}])
        return [chain for entry in listed if isinstance(chain := entry.get("chain"), dict)]

    def rules_by_chain(self, family: str, table: str) -> dict[str, list[Json]]:
        """The rules of any table, in their order, by the name of their chain; nothing where it is gone."""
        with self._lock, kernel(_SUBJECT):
            try:
                listed = self._run([{"list": {"table": {"family": family, "name": table}}}])
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return {}
                raise
        chains: dict[str, list[Json]] = {}
        for entry in listed:
            if isinstance(chain := entry.get("chain"), dict):
                chains.setdefault(str(chain.get("name")), [])
            elif isinstance(rule := entry.get("rule"), dict):
                chains.setdefault(str(rule.get("chain")), []).append(rule)
        return chains

    def table(self, name: str, family: Family = IP) -> list[Json]:
        """What the table `name` of a family holds, as libnftables lists it; nothing where it is gone."""
        with self._lock, kernel(_SUBJECT):
            return self._list_table(family, name) or []

    def other_instances(self) -> dict[str, list[str]]:
        """The names of the chains of every other instance's tables, by their name."""
        found: dict[str, list[str]] = {}
        for chain in self.chains():
            table = str(chain.get("table", ""))
            if table.startswith(TABLE_PREFIX) and table != table_name(self._instance):
                found.setdefault(table, []).append(str(chain.get("name", "")))
        return found

    def close(self) -> None:
        with self._lock:
            if self._context is not None:
                self._context.close()
                self._context = None
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._listed = None

    # --- with the lock held -----------------------------------------------------------------------------------------

    def _netfilter(self) -> netlink.Socket:
        if self._socket is None:
            self._socket = netlink.Socket(netlink.NETFILTER)
        return self._socket

    def _generation(self) -> int:
        try:
            return nftables.generation(self._netfilter())
        except OSError as error:
            if error.errno == errno.EINVAL:  # what nfnetlink says of a subsystem that is not there
                raise UnsupportedError(
                    "nftables: this kernel has no nf_tables",
                    hint="load it: modprobe nf_tables, or use a kernel with CONFIG_NF_TABLES",
                ) from error
            raise explain(error, _SUBJECT) from error

    def _keep(self, generation: int, listed: Mapping[Family, list[Json]], *, sealed: bool = False) -> None:
        tables = {family: listing.read(found, family) for family, found in listed.items()}
        table = listing.joined(tables)
        if table is not None and sealed:
            table = dataclasses.replace(table, sealed=True)
        self._listed, self._there = (generation, table), frozenset(tables)

    def _list_table(self, family: Family, name: str = "") -> list[Json] | None:
        wanted = {"family": family.name, "name": name or table_name(self._instance)}
        try:
            return self._run([{"list": {"table": wanted}}])
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _run(self, commands: Sequence[Json]) -> list[Json]:
        if self._context is None:
            self._context = nftables.Context()
        return self._context.run(list(commands))
