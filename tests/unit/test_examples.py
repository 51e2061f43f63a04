"""The example image is what its sources make, is a valid OCI layout, is what specs/ pin, and behaves as it says.

The program is taken out of the committed layout and run as it is; the arm64 one runs under qemu's user emulation.
"""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

CLONE = Path(__file__).resolve().parents[2]
IMAGES = CLONE / "examples" / "images"
LAYOUT = IMAGES / "layout"
EMULATOR = {"amd64": "qemu-x86_64-static", "arm64": "qemu-aarch64-static"}
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine())
ARCHITECTURES = ("amd64", "arm64")


def load_build() -> ModuleType:
    """Import examples/images/build.py, which is a script and not part of a package."""
    spec = importlib.util.spec_from_file_location("build_page", IMAGES / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()


def blob(descriptor: dict[str, Any]) -> bytes:
    """Return what `descriptor` names, having checked its size and digest."""
    algorithm, _, hexadecimal = descriptor["digest"].partition(":")
    content: bytes = (LAYOUT / "blobs" / algorithm / hexadecimal).read_bytes()
    assert len(content) == descriptor["size"]
    assert hashlib.new(algorithm, content).hexdigest() == hexadecimal
    return content


def image_index() -> dict[str, Any]:
    """Return the descriptor of the one image in the layout."""
    (descriptor,) = json.loads((LAYOUT / "index.json").read_bytes())["manifests"]
    found: dict[str, Any] = descriptor
    return found


def manifest(architecture: str) -> dict[str, Any]:
    """Return the manifest for `architecture`."""
    index = json.loads(blob(image_index()))
    (found,) = [m for m in index["manifests"] if m["platform"]["architecture"] == architecture]
    value: dict[str, Any] = json.loads(blob(found))
    return value


def layer(architecture: str) -> bytes:
    """Return the only layer for `architecture`, unpacked."""
    (descriptor,) = manifest(architecture)["layers"]
    return gzip.decompress(blob(descriptor))


# --- the image ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_descriptor_of_the_layout_holds(architecture: str) -> None:
    found = manifest(architecture)
    config = json.loads(blob(found["config"]))
    assert config["architecture"] == architecture
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer(architecture)).hexdigest()}"]
    assert config["config"]["User"] == "1000:1000"


def test_the_layout_holds_nothing_else() -> None:
    wanted = {image_index()["digest"]} | {m["digest"] for m in json.loads(blob(image_index()))["manifests"]}
    for architecture in ARCHITECTURES:
        found = manifest(architecture)
        wanted |= {found["config"]["digest"], *(d["digest"] for d in found["layers"])}
    assert {f"sha256:{path.name}" for path in (LAYOUT / "blobs" / "sha256").iterdir()} == wanted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_root_file_system_has_a_writable_place_for_the_user_it_runs_as(architecture: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer(architecture))) as tar:
        entries = {member.name: member for member in tar}
    assert (entries["data"].uid, entries["data"].gid, entries["data"].mode) == (1000, 1000, 0o755)
    assert entries["tmp"].mode == 0o1777
    assert entries["page"].mode == 0o755
    assert entries["page"].size < 16 * 1024


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_recorded_compiler_makes_the_committed_program(architecture: str) -> None:
    recorded = json.loads((IMAGES / "compiler.json").read_bytes())
    (target,) = [p for p in build.PLATFORMS if p.architecture == architecture]
    here = build.tools(target)
    if here != recorded[architecture]:
        pytest.skip(
            f"compiler.json records {recorded[architecture]['compiler']}; here: {here['compiler'] or 'none'}"
        )
    assert build.root_tar(build.compile_page(target)) == layer(architecture)
    if recorded["zlib"] != build.recorded()["zlib"]:
        pytest.skip(f"compiler.json records zlib {recorded['zlib']}; here: {build.recorded()['zlib']}")
    descriptor, _ = build.build_platform(target, build.compile_page(target))
    assert descriptor in json.loads(blob(image_index()))["manifests"]


@pytest.mark.parametrize("name", ["web", "counter", "pair"])
def test_the_example_apps_pin_the_committed_image(name: str) -> None:
    app = yaml.safe_load((CLONE / "specs" / f"{name}.yaml").read_text())
    images = {container["image"] for container in app["containers"].values()}
    assert app["name"] == name
    assert images == {f"{build.NAME}@{image_index()['digest']}"}


# --- the program ----------------------------------------------------------------------------------------------------


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Page:
    """A running page server: asked over real sockets, ended at the end of the test."""

    def __init__(self, command: list[str], directory: Path, options: tuple[str, ...]) -> None:
        self.command = command
        self.port = free_port()
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port), *options],
            cwd=directory,
            stdout=subprocess.PIPE,
            text=True,
            env={},
        )
        assert self.process.stdout is not None
        self.lines = self.process.stdout
        assert self.lines.readline().endswith(f"answers on port {self.port}\n")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send(self, request: bytes) -> tuple[int, str, str]:
        """Send `request` as it is; return status, head and body of the answer, status 0 for none."""
        with self.connect() as connection:
            connection.sendall(request)
            data = b""
            while piece := connection.recv(65536):
                data += piece
        head, _, body = data.decode().partition("\r\n\r\n")
        return int(head.split(" ")[1]) if head else 0, head, body

    def get(self, path: str = "/", *headers: str) -> tuple[int, str, str]:
        return self.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode())

    def ask(self, where: str) -> subprocess.CompletedProcess[str]:
        """Run the client half, as `exec` in a container would."""
        return subprocess.run([*self.command, "ask", where], capture_output=True, text=True, check=False)

    def end(self) -> int:
        self.process.terminate()
        code = self.process.wait(timeout=20)
        self.lines.close()
        return code


Start = Callable[..., Page]


@pytest.fixture(params=ARCHITECTURES)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts the program of the committed image, natively or emulated."""
    architecture: str = request.param
    emulator: list[str] = []
    if architecture != NATIVE:
        found = shutil.which(EMULATOR[architecture])
        if found is None:
            pytest.skip(f"{EMULATOR[architecture]} (package qemu-user-static) is not installed")
        emulator = [found]
    program = tmp_path / "page"
    with tarfile.open(fileobj=io.BytesIO(layer(architecture))) as tar:
        member = tar.extractfile("page")
        assert member is not None
        program.write_bytes(member.read())
    program.chmod(0o755)
    with ExitStack() as stack:

        def begin(*options: str) -> Page:
            page = Page([*emulator, str(program)], tmp_path, options)
            stack.callback(lambda: page.process.poll() is None and page.end())
            return page

        yield begin


def test_it_says_which_container_answers(start: Start) -> None:
    page = start()
    status, head, body = page.get()
    assert status == 200
    assert "Content-Type: text/plain" in head
    assert f"container  {socket.gethostname()}\n" in body
    assert page.lines.readline() == f"127.0.0.1 GET / 200 {len(body)}\n"


def test_it_ends_at_once_when_told_to(start: Start) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        page = start()
        page.process.send_signal(number)
        assert page.process.wait(timeout=20) == 0


def test_a_browser_gets_html_in_which_nothing_foreign_is_markup(start: Start, tmp_path: Path) -> None:
    (tmp_path / "greeting").write_text("<script>alert('x')</script> & \x1b[31m\n")
    page = start("--greeting", "greeting")
    _, head, body = page.get("/", "Accept: text/html,*/*")
    assert "Content-Type: text/html" in head
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; ?[31m" in body
    assert "?[31m" in page.get()[2]


def test_visits_outlive_the_program(start: Start, tmp_path: Path) -> None:
    page = start("--count", "visits")
    assert "visits     1\n" in page.get()[2]
    assert "visits     2\n" in page.get()[2]
    page.send(b"HEAD / HTTP/1.0\r\n\r\n")
    assert page.end() == 0
    assert (tmp_path / "visits").read_text() == "2\n"
    assert "visits     3\n" in start("--count", "visits").get()[2]


def test_a_count_that_is_not_one_is_reported_and_kept(start: Start, tmp_path: Path) -> None:
    (tmp_path / "visits").write_text("many\n")
    page = start("--count", "visits")
    assert "visits     hold no number\n" in page.get()[2]
    assert (tmp_path / "visits").read_text() == "many\n"


def test_it_asks_its_sibling_by_name_and_says_when_it_is_gone(start: Start) -> None:
    back = start()
    front = start("--sibling", f"localhost:{back.port}")
    assert f"sibling    localhost:{back.port} says: hello from {socket.gethostname()}\n" in front.get()[2]
    back.end()
    assert f"sibling    localhost:{back.port} is unreachable\n" in front.get()[2]


def test_a_sibling_that_never_answers_is_given_up_while_others_are_served(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        page = start("--sibling", f"localhost:{silent.getsockname()[1]}")
        with page.connect() as waiting:
            waiting.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert page.get("/healthz")[0] == 200
            assert b"unreachable" in waiting.recv(65536)


def test_the_client_prints_the_answer_and_exits_by_its_status(start: Start) -> None:
    page = start()
    good = page.ask(f"localhost:{page.port}/hello")
    assert (good.returncode, good.stdout) == (0, f"hello from {socket.gethostname()}\n")
    assert page.ask(f"127.0.0.1:{page.port}/nothing").returncode == 1
    assert "nobody knows that name" in page.ask("no-such-name:80/").stderr
    assert page.ask("localhost").returncode == 1


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET /healthz?deep=1 HTTP/1.0\r\n\r\n", 200),
        (b"GET http://elsewhere/hello HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET / HTTP/1.0\n\n", 200),
        (b"GET /other HTTP/1.0\r\n\r\n", 404),
        (b"GET /../etc/passwd HTTP/1.0\r\n\r\n", 404),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.0\r\n\r\n", 400),
        (b"GET / HTTP/1.0\rX: y\r\n\r\n", 400),
        (b"get / HTTP/1.0\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  HTTP/1.0\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
        (b"\r\n\r\n", 400),
        (b"GET /" + b"a" * 5000, 431),
    ],
)
def test_every_request_gets_the_status_it_deserves(start: Start, request_bytes: bytes, status: int) -> None:
    found, head, body = start().send(request_bytes)
    assert found == status
    assert ("Allow: GET, HEAD" in head) == (status == 405)
    assert bool(body) == (not request_bytes.startswith(b"HEAD"))


def test_clients_that_send_nothing_hold_up_nobody(start: Start) -> None:
    page = start()
    with ExitStack() as stack:
        for _ in range(150):  # more than the table has room for
            stack.enter_context(page.connect()).sendall(b"GET /")
        assert page.get("/healthz")[0] == 200


def test_noise_does_not_end_it(start: Start) -> None:
    page = start()
    noise = random.Random(7)
    pieces = [
        b"GET ",
        b"/",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"Host:",
        b"Accept: text/html",
        b"\x00",
        b"\xff",
        b"http://",
        b"?",
        b" ",
    ]
    for _ in range(200):
        request = b"".join(noise.choice(pieces) for _ in range(noise.randrange(1, 40)))
        with page.connect() as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert page.get("/healthz")[0] == 200
    assert page.process.poll() is None


def test_bad_options_are_a_usage_error(start: Start) -> None:
    page = start()
    for options in (["--port"], ["--colour", "red"], ["ask"]):
        done = subprocess.run(
            [*page.command, *options], capture_output=True, env=dict(os.environ), check=False
        )
        assert done.returncode == 64
        assert done.stderr.startswith(b"usage: page")
