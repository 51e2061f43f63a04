"""Registries for tests: Debian's docker-registry as a process, and a scriptable one in this process, for faults.

Both listen on a free port of 127.0.0.1. Images are pushed byte by byte, so that digests stay what they are.
"""

import http.client
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from reconciler.engine.image import OCI_INDEX, OCI_MANIFEST
from reconciler.spec.reference import Digest
from tests.images import Built, sha256


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the real one -----------------------------------------------------------------------------------------------

_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{host}:{port}"{http}}}
{more}
"""


class DockerRegistry:
    """docker-registry with its own data directory. Use it as a context manager, or `start` and `stop` it.

    `http` and `more` are added to its configuration: to what is under http, and at the top level.
    """

    def __init__(
        self, data: Path, *, host: str = "127.0.0.1", port: int = 0, http: str = "", more: str = ""
    ) -> None:
        self._data = data
        self._host = host
        self._http = http
        self._more = more
        self._port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def available() -> bool:
        return shutil.which("docker-registry") is not None

    @property
    def name(self) -> str:
        """host:port, as it stands in references and in registries.insecure."""
        return f"{self._host}:{self._port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._data.mkdir(parents=True, exist_ok=True)
        config = self._data / f"config-{self._port}.yml"
        text = _CONFIG.format(
            data=self._data / "storage", host=self._host, port=self._port, http=self._http, more=self._more
        )
        config.write_text(text)
        log = (self._data / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                if self._http:  # TLS
                    socket.create_connection((self._host, self._port), 1).close()
                    return
                if _request(self.name, "GET", "/v2/")[0] in (200, 401):
                    return
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)
        raise AssertionError(f"docker-registry does not answer: {(self._data / 'log').read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop it; what was pushed stays for the next start."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def __enter__(self) -> "DockerRegistry":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def push(self, built: Built, repository: str) -> str:
        """Push an image with everything it refers to and return the reference that pins it."""
        return push(self.name, built, repository)


def _request(
    registry: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(registry, timeout=60)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        response.read()
        return response.status, {key.lower(): value for key, value in response.getheaders()}
    finally:
        connection.close()


def put_blob(registry: str, repository: str, digest: Digest, data: bytes) -> None:
    """Push one blob, unless it is there."""
    if _request(registry, "HEAD", f"/v2/{repository}/blobs/{digest}")[0] == 200:
        return
    status, headers = _request(registry, "POST", f"/v2/{repository}/blobs/uploads/")
    assert status == 202, status
    where = urlsplit(headers["location"])
    target = f"{where.path}?{where.query}{'&' if where.query else ''}digest={digest}"
    status, _ = _request(registry, "PUT", target, data, {"Content-Type": "application/octet-stream"})
    assert status == 201, status


def put_manifest(registry: str, repository: str, reference: str, kind: str, data: bytes) -> str:
    """Push one manifest by digest or tag; returns the digest that it has there."""
    path = f"/v2/{repository}/manifests/{reference}"
    status, headers = _request(registry, "PUT", path, data, {"Content-Type": kind})
    assert status == 201, status
    return headers["docker-content-digest"]


def push(registry: str, built: Built, repository: str) -> str:
    """Push `built` over the distribution protocol, unchanged; returns `registry/repository:tag@digest`."""

    def blob(digest: Digest) -> bytes:
        return (built.layout / "blobs" / digest.algorithm / digest.hex).read_bytes()

    def push_blob(digest: Digest) -> None:
        put_blob(registry, repository, digest, blob(digest))

    def push_manifest(digest: Digest, reference: str) -> None:
        data = blob(digest)
        document = json.loads(data)
        for item in document.get("manifests", []):
            inner = Digest.parse(item["digest"])
            push_manifest(inner, str(inner))
        for item in [*document.get("layers", []), *([document["config"]] if "config" in document else [])]:
            push_blob(Digest.parse(item["digest"]))
        kind = document.get("mediaType") or (OCI_INDEX if "manifests" in document else OCI_MANIFEST)
        assert put_manifest(registry, repository, reference, kind, data) == str(digest)

    push_manifest(built.digest, built.tag)
    return f"{registry}/{repository}:{built.tag}@{built.digest}"


# --- the scriptable one -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One request as it came in; header names in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


class Wire:
    """The answering side of one connection, for a script."""

    def __init__(self, connection: socket.socket, stopped: threading.Event) -> None:
        self._connection = connection
        self._stopped = stopped

    def send(self, data: bytes) -> None:
        """Send raw bytes, whatever they are."""
        self._connection.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait, unless the registry is stopped meanwhile."""
        if self._stopped.wait(seconds):
            raise ConnectionAbortedError

    def hang(self) -> None:
        """Say nothing more until the registry is stopped."""
        self._stopped.wait()
        raise ConnectionAbortedError

    def reset(self) -> None:
        """End the connection with a reset instead of an orderly close."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()
        raise ConnectionAbortedError

    def respond(
        self,
        status: int,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        """Send a whole answer; `length` is the Content-Length to claim, if not the true one."""
        fields = {"Content-Length": str(len(body) if length is None else length), **(headers or {})}
        head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{key}: {value}\r\n" for key, value in fields.items())
        self.send(head.encode("latin-1") + b"\r\n" + body)


Script = Callable[[Request, Wire], None]


@dataclass
class FakeRegistry:
    """Serves what is in `blobs` and `manifests`, except where `scripts` has something else for a path.

    `scripts` maps a path, or the start of one that ends in `*`, to what answers it; it may use up `once` first. Every
    request is kept in `requests`. `ranges` says whether Range is honoured.
    """

    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    ranges: bool = True
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    scripts: dict[str, Script] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    peers: list[object] = field(default_factory=list)  # the certificates that clients have shown

    def __enter__(self) -> "FakeRegistry":
        self._stopped = threading.Event()
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        accepting = threading.Thread(target=self._accept, daemon=True)
        accepting.start()
        self._threads.append(accepting)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.name}"

    def add(self, built: Built, repository: str = "app") -> str:
        """Serve every blob of a layout, the image's manifests by digest and tag; returns the pinning reference."""
        for path in (built.layout / "blobs" / "sha256").iterdir():
            data = path.read_bytes()
            self.blobs[f"sha256:{path.name}"] = data
            if data.startswith(b"{") and len(data) < 1 << 20:
                document = json.loads(data)
                if "manifests" in document or "layers" in document:
                    kind = document.get("mediaType", OCI_INDEX if "manifests" in document else OCI_MANIFEST)
                    self.manifests[f"sha256:{path.name}"] = (kind, data)
        self.manifests[built.tag] = self.manifests[str(built.digest)]
        return f"{self.name}/{repository}:{built.tag}@{built.digest}"

    def asked(self, part: str) -> list[Request]:
        """The requests whose path contains `part`."""
        return [request for request in self.requests if part in request.path]

    # --- serving ----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError), connection:
            stream = connection if self.tls is None else self.tls.wrap_socket(connection, server_side=True)
            if isinstance(stream, ssl.SSLSocket):
                self.peers.append(stream.getpeercert(binary_form=True))
            wire = Wire(stream, self._stopped)
            while not self._stopped.is_set():
                request = _read_request(stream)
                if request is None:
                    return
                self.requests.append(request)
                self._script(request.path)(request, wire)

    def _script(self, path: str) -> Script:
        path = path.partition("?")[0]
        if path in self.scripts:
            return self.scripts[path]
        for pattern, script in self.scripts.items():
            if pattern.endswith("*") and path.startswith(pattern[:-1]):
                return script
        return self.answer

    def answer(self, request: Request, wire: Wire) -> None:
        """The well-behaved answer, for scripts that misbehave only now and then."""
        _, _, rest = request.path.partition("/v2/")
        _, kind, key = rest.rsplit("/", 2) if rest.count("/") >= 2 else ("", "", "")
        if kind == "manifests" and key in self.manifests:
            media_type, data = self.manifests[key]
            wire.respond(200, data, {"Content-Type": media_type, "Docker-Content-Digest": str(sha256(data))})
        elif kind == "blobs" and key in self.blobs:
            data = self.blobs[key]
            wanted = request.headers.get("range", "")
            if self.ranges and wanted.startswith("bytes="):
                first, _, last = wanted[6:].partition("-")
                start, end = int(first), min(int(last or len(data)), len(data) - 1)
                place = {"Content-Range": f"bytes {start}-{end}/{len(data)}"}
                wire.respond(206, data[start : end + 1], place)
            else:
                wire.respond(200, data)
        elif rest == "":
            wire.respond(200, b"{}")
        else:
            unknown = {"errors": [{"code": "UNKNOWN", "message": f"{kind.rstrip('s') or 'path'} unknown"}]}
            wire.respond(404, json.dumps(unknown).encode())


def _read_request(stream: socket.socket) -> Request | None:
    head = b""
    while b"\r\n\r\n" not in head:
        part = stream.recv(65536)
        if not part:
            return None
        head += part
        if not head[:1].isalpha():  # the start of a TLS handshake, say
            stream.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return None
    before, _, body = head.partition(b"\r\n\r\n")
    first, *lines = before.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {
        key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    while len(body) < int(headers.get("content-length", "0")):
        part = stream.recv(65536)
        if not part:
            return None
        body += part
    return Request(method, path, headers, body)


def certificate(
    directory: Path, *, name: str = "127.0.0.1", expired: bool = False
) -> tuple[ssl.SSLContext, Path]:
    """Make a self-signed certificate with openssl; returns the server's side and the file that clients trust."""
    key, request, cert = directory / "key.pem", directory / "request.pem", directory / "cert.pem"
    kind = "IP" if name.replace(".", "").isdigit() else "DNS"
    config = directory / "openssl.cnf"
    config.write_text(_AUTHORITY.format(directory=directory, kind=kind, name=name))
    (directory / "index.txt").touch()
    (directory / "serial").write_text("01\n")
    new = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    new += ["-config", str(config), "-keyout", str(key), "-out", str(request)]
    # Only `openssl ca` takes dates in the past.
    end = "20000201000000Z" if expired else "20490101000000Z"
    sign = ["openssl", "ca", "-batch", "-selfsign", "-notext", "-config", str(config), "-keyfile", str(key)]
    sign += ["-in", str(request), "-out", str(cert), "-startdate", "20000101000000Z", "-enddate", end]
    for command in (new, sign):
        subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert


def client_certificate(directory: Path) -> tuple[Path, Path]:
    """A client's certificate and key, signed by the authority that `certificate` has made in `directory`."""
    key, request, cert = directory / "client.key", directory / "client.req", directory / "client.pem"
    config = directory / "openssl.cnf"
    new = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    new += ["-config", str(config), "-subj", "/CN=device", "-keyout", str(key), "-out", str(request)]
    sign = ["openssl", "ca", "-batch", "-notext", "-config", str(config), "-extensions", "client"]
    sign += ["-keyfile", str(directory / "key.pem"), "-cert", str(directory / "cert.pem")]
    sign += [
        "-in",
        str(request),
        "-out",
        str(cert),
        "-startdate",
        "20000101000000Z",
        "-enddate",
        "20490101000000Z",
    ]
    for command in (new, sign):
        subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    return cert, key


_AUTHORITY = """
[req]
prompt = no
distinguished_name = name
[name]
CN = {name}
[ca]
default_ca = here
[here]
dir = {directory}
database = {directory}/index.txt
serial = {directory}/serial
new_certs_dir = {directory}
default_md = sha256
policy = any
x509_extensions = server
[any]
commonName = supplied
[server]
subjectAltName = {kind}:{name}
basicConstraints = CA:TRUE
[client]
extendedKeyUsage = clientAuth
"""
