"""Proxies, as the environment names them: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in small letters too.

The rules are those that Docker and containerd go by (golang.org/x/net/http/httpproxy), but that small letters go first
where both are there, and that ALL_PROXY stands in for the first two, as it does for curl and git. What a variable holds
may have a password in it and is never shown. Pure.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from reconciler.engine.registry.errors import RefusedError

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy at `url` (no user part), with the credentials for it if any; `variable` named it."""

    url: str
    variable: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The values of the variables; what they mean is found out when it is asked for."""

    values: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> "Proxies":
        """Those variables of `environment` that are about proxies."""
        names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
        found = {name: environment.get(name) or environment.get(name.upper(), "") for name in names}
        return cls({name: value for name, value in found.items() if value})

    def of(self, url: str) -> Proxy | None:
        """The proxy through which `url` is asked for, or None; RefusedError where the variable names none."""
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        variable = f"{parts.scheme}_proxy"
        if variable not in self.values:
            variable = "all_proxy"
        value = self.values.get(variable)
        if not value or self._excepted(host, parts.port or _PORTS.get(parts.scheme, 0)):
            return None
        return _parse(value, variable.upper())

    def _excepted(self, host: str, port: int) -> bool:
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(
            _matches(rule, host, address, port)
            for rule in self.values.get("no_proxy", "").lower().replace(",", " ").split()
        )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _matches(
    rule: str, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address | None, port: int
) -> bool:
    """Whether an entry of NO_PROXY is about `host`: *, a name with all below it, .name for what is below, CIDR."""
    if rule == "*":
        return True
    if "/" in rule:
        try:
            return address is not None and address in ipaddress.ip_network(rule, strict=False)
        except ValueError:
            return False
    name, colon, wanted = rule.rpartition(":") if _address(rule) is None else (rule, "", "")
    if colon and wanted.isdigit():
        if int(wanted[:6]) != port:
            return False
        rule = name
    rule = rule.strip("[]")
    if address is not None:
        return _address(rule) == address
    below = rule.removeprefix("*")
    return host.endswith(below if below.startswith(".") else f".{below}") or host == below


def _parse(value: str, variable: str) -> Proxy:
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        raise RefusedError(variable, "not of the form http://HOST:PORT") from None
    if parts.scheme not in _PORTS or not host or not value.isascii() or not value.isprintable():
        raise RefusedError(
            variable, "not of the form http://HOST:PORT", hint="socks proxies are not supported"
        )
    name = f"[{host}]" if ":" in host else host
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    return Proxy(f"{parts.scheme}://{name}:{port}", variable, user, password)
