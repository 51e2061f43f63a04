"""Whether this device can have networks with IPv6: by its settings, and by a trial that leaves nothing behind.

One table that the kernel refuses would hold up the other too, which is changed in the same transaction; so it is known
before whether it would.
"""

import threading
from ipaddress import IPv6Network

from reconciler.engine.network import ruleset
from reconciler.engine.network.diagnose import explain
from reconciler.engine.network.firewall import Firewall
from reconciler.engine.network.ports import PortTable
from reconciler.engine.network.sysctl import ipv6_fault
from reconciler.errors import ReconcilerError
from reconciler.linux.namespace import CLONE_NEWNET, unshare

_NOBODY = "0" * 16


def lacking() -> tuple[str, str]:
    """What is missing and what to do, or two empty strings."""
    if fault := ipv6_fault():
        return fault, "sysctl net.ipv6.conf.all.disable_ipv6=0, or boot without ipv6.disable=1"
    if error := _tried():
        return (
            f"this device can't filter IPv6: {error}",
            "modprobe -a nf_tables nft_nat nft_masq nft_fib_ipv6",
        )
    return "", ""


def _tried() -> str:
    """Put the table of IPv6 into a network namespace that ends with its thread; return the error, or ""."""
    said = ["the trial broke off"]

    def run() -> None:
        try:
            unshare(CLONE_NEWNET)
            _make_table()
            said[0] = ""
        except PermissionError:
            said[0] = ""  # who may not try makes no network either: somebody who only wants to see a plan
        except OSError as error:
            said[0] = str(explain(error, "nftables"))
        except ReconcilerError as error:
            said[0] = str(error)

    thread = threading.Thread(target=run, name="try-ipv6")
    thread.start()
    thread.join()
    return said[0]


def _make_table() -> None:
    firewall = Firewall(_NOBODY)
    subnets = {"trial": IPv6Network("2001:db8::/64")}
    try:
        firewall.replace({ruleset.IP6: ruleset.render(_NOBODY, subnets, PortTable([]), family=ruleset.IP6)})
    finally:
        firewall.close()
