"""The way to a registry: its certificates, this device's own, and proxies; each with what must not pass that way."""

import base64
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from reconciler.config import Registries
from reconciler.engine.registry.errors import CertificateError, RefusedError, RegistryError
from reconciler.engine.registry.proxy import Proxies, Proxy
from reconciler.spec.reference import Reference
from reconciler.spec.registries import ANY, Certificates
from tests.accounts import SECRET, USER
from tests.hostile.test_registry_behaviour import Device, redirect
from tests.kernel.workshop import remove, scratch
from tests.registry import FakeRegistry, certificate, client_certificate

pytestmark = [pytest.mark.kernel, pytest.mark.hostile]


@pytest.fixture
def device() -> Iterator[Device]:
    path = scratch("ways")
    with FakeRegistry() as fake:
        made = Device(path, fake)
        yield made
        made.images.close()
    remove(path)


def pull(device: Device, registry: FakeRegistry, settings: Registries, **environment: str) -> None:
    """Pull from `registry` with a client of its own."""
    device.images.close()
    device.images = device.with_settings(settings, **environment)
    device.reference = Reference.parse(registry.add(device.built))
    device.check_whole(device.pull())


# --- certificates -----------------------------------------------------------------------------------------------------


def test_authorities_are_those_of_the_registry_and_no_others(device: Device) -> None:
    context, ca = certificate(device.path)
    own = Certificates(ca=str(ca))
    with FakeRegistry(tls=context) as secure:
        with pytest.raises(CertificateError, match="self-signed"):
            pull(device, secure, Registries(ca={"other.example": own}))
        assert secure.requests == []
        pull(device, secure, Registries(ca={secure.name: own, "other.example": Certificates(ca="/nowhere")}))


def test_a_registry_is_shown_this_devices_certificate_and_who_it_redirects_to_is_not(device: Device) -> None:
    context, ca = certificate(device.path)
    cert, key = client_certificate(device.path)
    context.load_verify_locations(ca)
    context.verify_mode = ssl.CERT_REQUIRED
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    asking.load_cert_chain(ca, device.path / "key.pem")
    asking.load_verify_locations(ca)
    asking.verify_mode = ssl.CERT_OPTIONAL
    with FakeRegistry(tls=context) as secure, FakeRegistry(tls=asking) as other:
        files = Certificates(str(ca), str(cert), str(key))
        without = Certificates(ca=str(ca))
        with pytest.raises(RegistryError) as caught:
            pull(device, secure, Registries(ca={secure.name: without}))
        assert isinstance(caught.value, CertificateError)
        assert "registries: {ca: {" in caught.value.hint
        other.blobs.update(secure.blobs)
        secure.scripts[device.blob_path] = redirect(f"{other.url}{device.blob_path}")
        pull(device, secure, Registries(ca={secure.name: files}))
        assert all(secure.peers)
        assert other.peers == [None]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ("missing", "No such file"),
        ("empty", "no certificate"),
        ("text", "no certificate"),
        ("directory", "can't be used"),
        ("mismatch", "key values mismatch"),
        ("readable", "others may read it (mode 0644)"),
        ("encrypted", "is encrypted, and nobody is there to ask"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(device: Device, broken: str, said: str) -> None:
    _, ca = certificate(device.path)
    cert, key = client_certificate(device.path)
    files = Certificates(str(ca), str(cert), str(key))
    named = str(ca)
    match broken:
        case "missing":
            ca.unlink()
        case "empty":
            ca.write_text("")
        case "text":
            ca.write_text("not a certificate\n")
        case "directory":
            ca.unlink()
            ca.mkdir()
        case "mismatch":
            files, named = Certificates(str(ca), str(cert), str(device.path / "key.pem")), str(cert)
            (device.path / "key.pem").chmod(0o600)
        case "readable":
            key.chmod(0o644)
            named = str(key)
        case "encrypted":
            secret = device.path / "secret.key"
            command = [
                "openssl",
                "ec",
                "-aes128",
                "-passout",
                "pass:secret",
                "-in",
                str(key),
                "-out",
                str(secret),
            ]
            subprocess.run(command, check=True, capture_output=True)
            secret.chmod(0o600)
            files, named = Certificates(str(ca), str(cert), str(secret)), str(secret)
    with pytest.raises(CertificateError) as caught:
        pull(device, device.fake, Registries(insecure=(), ca={device.fake.name: files}))
    assert f"registries.ca {named}" in str(caught.value)
    assert said.lower() in str(caught.value).lower()
    assert not caught.value.transient


# --- proxies ----------------------------------------------------------------------------------------------------------


@dataclass
class ForwardingProxy:
    """An HTTP proxy that dials `leads_to` whatever it is asked for; `asked` are the first lines, `headers` the rest."""

    leads_to: int
    authorization: str = ""
    tls: ssl.SSLContext | None = None
    asked: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)

    def __enter__(self) -> "ForwardingProxy":
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.tls is not None:
                    client = self.tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            head = b""
            while b"\r\n\r\n" not in head:
                part = client.recv(65536)
                if not part:
                    return
                head += part
            first, _, rest = head.decode("latin-1").partition("\r\n")
            self.asked.append(first)
            self.headers.append(rest)
            if self.authorization and self.authorization not in rest:
                client.sendall(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", self.leads_to)) as server:
                if first.startswith("CONNECT "):
                    client.sendall(b"HTTP/1.1 200 Go on\r\n\r\n")
                else:
                    method, url, version = first.split(" ")
                    path = "/" + url.partition("://")[2].partition("/")[2]
                    server.sendall(
                        f"{method} {path} {version}\r\nConnection: close\r\n{rest}".encode("latin-1")
                    )
                answering = threading.Thread(target=_pump, args=(server, client), daemon=True)
                answering.start()
                if first.startswith("CONNECT "):
                    _pump(client, server)
                answering.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_a_plain_registry_is_asked_through_the_proxy_of_the_environment(
    device: Device, variable: str
) -> None:
    """By a name that only the proxy can resolve."""
    with ForwardingProxy(device.fake.port) as proxy:
        device.images.close()
        settings = Registries(insecure=("registry.invalid",))
        device.images = device.with_settings(settings, **{variable: proxy.url})
        device.reference = Reference.parse(f"registry.invalid/app@{device.built.digest}")
        device.check_whole(device.pull())
        assert all(line.startswith("GET http://registry.invalid/v2/app/") for line in proxy.asked)


def test_a_registry_under_tls_is_reached_by_a_tunnel_with_the_proxys_own_password(device: Device) -> None:
    directory = device.path / "tls"
    directory.mkdir()
    context, ca = certificate(directory, name="registry.invalid")
    basic = base64.b64encode(f"{USER}:{SECRET}".encode()).decode()
    with FakeRegistry(tls=context) as secure, ForwardingProxy(secure.port, f"Basic {basic}") as proxy:
        secure.add(device.built)
        url = proxy.url.replace("//", f"//{USER}:{SECRET}@")
        device.images.close()
        settings = Registries(ca={ANY: Certificates(ca=str(ca))})
        device.images = device.with_settings(settings, HTTPS_PROXY=proxy.url)
        device.reference = Reference.parse(f"registry.invalid/app@{device.built.digest}")
        with pytest.raises(RegistryError, match="the proxy says: 407"):
            device.pull()
        device.images.close()
        device.images = device.with_settings(settings, HTTPS_PROXY=url)
        device.check_whole(device.pull())
        assert {line.split()[:2] == ["CONNECT", "registry.invalid:443"] for line in proxy.asked} == {True}
        assert not any("proxy-authorization" in request.headers for request in secure.requests)


@pytest.mark.parametrize(
    "value",
    [
        "socks5://u:hunter2@h:1080",
        "http://",
        "http://h:99999",
        "ftp://hunter2@h",
        "http://[::1",
        "hunter2\x07",
    ],
)
def test_a_proxy_that_is_none_is_named_by_its_variable_and_not_shown(device: Device, value: str) -> None:
    device.images.close()
    settings = Registries(insecure=("registry.invalid",))
    device.images = device.with_settings(settings, http_proxy=value)
    device.reference = Reference.parse(f"registry.invalid/app@{device.built.digest}")
    with pytest.raises(RefusedError, match=r"^HTTP_PROXY: ") as caught:
        device.pull()
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_a_proxy_may_be_under_tls_and_is_believed_by_our_authorities(device: Device) -> None:
    context, ca = certificate(device.path)
    reference = Reference.parse(f"registry.invalid/app@{device.built.digest}")
    with ForwardingProxy(device.fake.port, tls=context) as proxy:
        for files in ({}, {ANY: Certificates(ca=str(ca))}):
            device.images.close()
            settings = Registries(insecure=("registry.invalid",), ca=files)
            device.images = device.with_settings(settings, http_proxy=proxy.url)
            if files:
                device.images.resolve_without_storing(reference)
            else:
                with pytest.raises(CertificateError, match="self-signed"):
                    device.images.resolve_without_storing(reference)
        assert len(proxy.asked) == 2  # manifest and config


def test_a_proxy_that_is_down_is_a_transient_failure(device: Device) -> None:
    device.images.close()
    settings = Registries(insecure=("registry.invalid",))
    device.images = device.with_settings(settings, http_proxy="http://127.0.0.1:1")
    device.reference = Reference.parse(f"registry.invalid/app@{device.built.digest}")
    with pytest.raises(RegistryError, match="refused") as caught:
        device.pull()
    assert caught.value.transient


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "10.0.0.1",
        "127.0.0.1:1",
        "localhost:1",
        "x.localhost",
        "[::1]",
        "[fd00::1]",
        "0.0.0.0",
    ],
)
def test_g3_a_redirect_to_a_private_address_is_refused_behind_a_proxy_too(device: Device, host: str) -> None:
    """What the address is of a name, only the proxy knows; one that is written down is looked at here."""
    with ForwardingProxy(device.fake.port) as proxy:
        device.images.close()
        settings = Registries(insecure=("registry.invalid",))
        device.images = device.with_settings(settings, http_proxy=proxy.url)
        device.reference = Reference.parse(f"registry.invalid/app@{device.built.digest}")
        device.fake.scripts[device.blob_path] = redirect(f"http://{host}/latest/")
        with pytest.raises(RefusedError, match="refused"):
            device.pull()
        assert all(" http://registry.invalid/" in line for line in proxy.asked)
    device.check_untouched()


def test_a_registry_in_no_proxy_is_asked_directly(device: Device) -> None:
    with ForwardingProxy(1) as proxy:
        for environment in ({}, {"no_proxy": "127.0.0.0/8"}, {"NO_PROXY": "*"}):
            device.images.close()
            device.images = device.with_settings(
                Registries(insecure=(device.fake.name,)), http_proxy=proxy.url, **environment
            )
            assert device.images.digest(Reference.parse(f"{device.fake.name}/app:{device.built.tag}"))
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("", "http://r.example/", False),
        ("", "http://localhost:5000/", True),
        ("", "http://127.9.9.9/", True),
        ("", "http://[::1]:5000/", True),
        ("*", "http://r.example/", True),
        ("r.example", "http://r.example/", True),
        ("r.example", "http://R.EXAMPLE./", True),
        ("r.example", "http://a.r.example/", True),
        ("r.example", "http://xr.example/", False),
        (".r.example", "http://r.example/", False),
        (".r.example", "http://a.r.example/", True),
        ("*.r.example", "http://a.r.example/", True),
        ("a.example, r.example ", "http://r.example/", True),
        ("a.example r.example", "http://r.example/", True),
        ("r.example:80", "http://r.example/", True),
        ("r.example:5000", "http://r.example/", False),
        ("r.example:5000", "http://r.example:5000/", True),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://r.example/", False),
        ("10.1.2.3", "http://10.1.2.3:5000/", True),
        ("10.1.2.3:80", "http://10.1.2.3:5000/", False),
        ("fd00::/8", "http://[fd00::1]/", True),
        ("fd00::1", "http://[fd00::1]/", True),
        ("10.0.0.0/99,::/x,:,/", "http://10.1.2.3/", False),
    ],
)
def test_what_no_proxy_means(no_proxy: str, url: str, direct: bool) -> None:
    proxies = Proxies.of_environment({"http_proxy": "proxy.lan:3128", "no_proxy": no_proxy})
    assert (proxies.of(url) is None) is direct


def test_which_variable_counts() -> None:
    both = {"http_proxy": "http://a:1", "HTTP_PROXY": "http://b:2", "HTTPS_PROXY": "https://u%40x:p%3Aq@c"}
    proxies = Proxies.of_environment(both)
    assert proxies.of("http://r.example/") == Proxy("http://a:1", "HTTP_PROXY")
    assert proxies.of("https://r.example/") == Proxy("https://c:443", "HTTPS_PROXY", "u@x", "p:q")
    assert "p:q" not in repr(proxies.of("https://r.example/"))
    assert "%3A" not in repr(proxies)
    assert Proxies.of_environment({"http_proxy": ""}).of("http://r.example/") is None


def test_all_proxy_stands_in_for_what_is_not_set_and_socks_is_refused_by_name() -> None:
    proxies = Proxies.of_environment(
        {"ALL_PROXY": "http://a:1", "https_proxy": "http://b:2", "NO_PROXY": "in.lan"}
    )
    assert proxies.of("http://r.example/") == Proxy("http://a:1", "ALL_PROXY")
    assert proxies.of("https://r.example/") == Proxy("http://b:2", "HTTPS_PROXY")
    assert proxies.of("http://r.in.lan/") is None
    with pytest.raises(RefusedError, match="ALL_PROXY: not of the form http://HOST:PORT"):
        Proxies.of_environment({"all_proxy": "socks5h://a:1"}).of("https://r.example/")
