"""Images of a real registry become containers: Debian, redis and nginx, as people run them, and their updates.

The images are made from Debian's packages; nothing is asked of any other registry.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.device import Device
from tests.e2e.world import Outside, Registry, upon
from tests.images import Built, busybox, debian_base, file, nginx, redis

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


@pytest.fixture(scope="session")
def storage() -> Iterator[Path]:
    """Where registries keep the large images, so that each is pushed once."""
    path = Path(tempfile.mkdtemp(prefix="rct-registry-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def registry(device: Device, tmp_path: Path) -> Registry:
    """A registry of this test alone."""
    device.configure(registries={"insecure": ["127.0.0.1:5000"]})
    return Registry(device, tmp_path / "registry")


@pytest.fixture
def outside(device: Device) -> Iterator[Outside]:
    machine = Outside(device)
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Built]:
    """Two versions of an image that share their lowest layer and differ in another."""
    first, second = (
        busybox(tmp_path_factory.mktemp("version") / "layout", tag=f"{number}") for number in (1, 2)
    )
    return (
        upon(first, tmp_path_factory.mktemp("one") / "layout", [file("./etc/version", "one\n")], tag="1"),
        upon(second, tmp_path_factory.mktemp("two") / "layout", [file("./etc/version", "two\n")], tag="2"),
    )


def sleeper(name: str, image: str) -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: {name}
containers:
  main:
    image: {image}
    command: [sleep, "100000"]
    init: true
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
"""


REDIS = """
apiVersion: reconciler/v1
kind: App
name: store
containers:
  redis:
    image: {image}
    command: [redis-server, --bind, 0.0.0.0, --protected-mode, "no", --dir, /data, --appendonly, "yes"{extra}]
    ports: ["6379:6379"]
    volumes: ["data:/data"]
    limits: {{memory: 128Mi, cpus: 1, pids: 64}}
    stop_grace_period: 5s
volumes: {{data: {{}}}}
"""


def test_redis_keeps_its_data_in_a_volume_when_its_container_is_replaced(
    device: Device, storage: Path
) -> None:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]})
    image = Registry(device, storage).push(redis(), "redis")
    device.spec("store", REDIS.format(image=image, extra=""))
    device.start()
    device.running("store/redis", timeout=60)

    def client(*command: str) -> str:
        return device.inside(["redis-cli", "-h", "127.0.0.1", *command], check=False).stdout.strip()

    device.until(lambda: client("ping") == "PONG")
    assert client("set", "greeting", "still here") == "OK"
    before = device.ps()["store/redis"]
    device.spec("store", REDIS.format(image=image, extra=', --maxclients, "123"'))
    device.until(
        lambda: (
            device.ps().get("store/redis", {}).get("id") not in (None, before["id"])
            and client("get", "greeting") == "still here"
        )
    )
    assert client("config", "get", "maxclients").split() == ["maxclients", "123"]
    # The command line inside sees the same server, by its own name, and runs within the same image.
    inside = device.reconciler("exec", "store/redis", "redis-cli", "-h", "redis", "get", "greeting")
    assert inside.stdout == "still here\n"


SITE = """
apiVersion: reconciler/v1
kind: App
name: site
containers:
  web:
    image: {nginx}
    ports: ["8080:80"]
    configs: [{{source: server, target: /etc/nginx/sites-enabled/default, mode: "0444"}}]
    volumes: ["{pages}:/srv/pages:ro"]
    limits: {{memory: 64Mi, cpus: 1, pids: 32}}
  client:
    image: {debian}
    command: [perl, -MIO::Socket::INET, -e, '{echo}']
    ports: ["7007:7/udp"]
    limits: {{memory: 64Mi, pids: 32}}
    init: true
    stop_grace_period: 0s
configs:
  server:
    content: |
      server {{
        listen 80;
        root /srv/pages;
        location /config {{ return 200 "from the config\\n"; }}
      }}
"""
# An echo server of ten words: what Debian's smallest system has is perl.
ECHO = (
    '$s = IO::Socket::INET->new(LocalPort => 7, Proto => "udp") or die; '
    '$s->send("echo:$m") while $s->recv($m, 2048);'
)
GET = (
    '$s = IO::Socket::INET->new(PeerAddr => shift, Timeout => 5) or die "no connection: $@"; '
    'print $s "GET / HTTP/1.0\\r\\n\\r\\n"; print <$s>;'
)


def test_nginx_is_reached_from_outside_and_by_a_sibling_and_serves_a_config_and_a_bind_mount(
    device: Device, storage: Path, outside: Outside
) -> None:
    pages = device.root / "pages"
    pages.mkdir()
    (pages / "index.html").write_text("from the device\n")
    device.configure(registries={"insecure": ["127.0.0.1:5000"]}, allowed_binds=[str(device.root)])
    registry = Registry(device, storage)
    images = {"nginx": registry.push(nginx(), "nginx"), "debian": registry.push(debian_base(), "debian")}
    device.spec("site", SITE.format(pages=pages, echo=ECHO, **images))
    device.start()
    device.until(lambda: device.curl("http://127.0.0.1:8080/") == "from the device\n", timeout=60)
    assert device.curl("http://127.0.0.1:8080/config") == "from the config\n"

    # From another machine, over both protocols.
    assert outside.curl(8080) == "from the device\n"
    device.until(lambda: outside.datagram(7007, "hello") == "echo:hello")

    # From a sibling: by its name, by the published port of the device, and of itself.
    def get(address: str) -> str:
        return device.reconciler(
            "exec", "site/client", "perl", "-MIO::Socket::INET", "-e", GET, address
        ).stdout

    assert get("web:80").endswith("\r\n\r\nfrom the device\n")
    assert get(f"{outside.here}:8080").endswith("\r\n\r\nfrom the device\n")

    # What changes on the device is seen inside; nothing inside can change it.
    (pages / "index.html").write_text("changed\n")
    assert device.curl("http://127.0.0.1:8080/") == "changed\n"
    refused = device.reconciler("exec", "site/web", "sh", "-c", "echo x > /srv/pages/index.html", check=False)
    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr
    assert device.reconciler("exec", "site/client", "cat", "/etc/debian_version").stdout.startswith("12.")


def test_an_update_replaces_exactly_the_changed_container_and_its_old_image_is_collected(
    device: Device, registry: Registry, versions: tuple[Built, Built]
) -> None:
    device.configure(
        registries={"insecure": [registry.name]},
        gc={"keep_generations": 1, "min_age": "0s"},
        interval="1s",
    )
    first, second = (registry.push(version, "app") for version in versions)
    device.spec("changing", sleeper("changing", first))
    device.spec("staying", sleeper("staying", first).replace("memory", "pids: 9, memory"))
    device.start()
    device.logged("converged")
    before = device.ps()
    images = {item["digest"] for item in _images(device)}
    assert images == {str(versions[0].digest)}

    device.spec("changing", sleeper("changing", second))
    device.until(
        lambda: (
            device.ps()["changing/main"]["id"] != before["changing/main"]["id"]
            and device.pid("changing/main")
        )
    )
    assert _version(device, "changing") == "two\n"
    after = device.ps()
    assert {key: after["staying/main"][key] for key in ("id", "pid", "started")} == {
        key: before["staying/main"][key] for key in ("id", "pid", "started")
    }
    # The first image is in use by the app that stayed: both are there, whatever the collector does.
    device.until(lambda: {item["digest"] for item in _images(device)} == {str(v.digest) for v in versions})

    device.spec("staying", sleeper("staying", second))
    device.until(
        lambda: {item["digest"] for item in _images(device)} == {str(versions[1].digest)}, timeout=30
    )
    assert _version(device, "staying") == "two\n"
    assert device.pid("changing/main") == after["changing/main"]["pid"]
    chains = {layer for item in _images(device) for layer in item["layers"]}
    assert {path.name for path in (device.state / "layers").iterdir() if path.is_dir()} == chains


def _images(device: Device) -> list[dict[str, Any]]:
    return list(json.loads(device.reconciler("images", "-o", "json").stdout)["items"])


def _version(device: Device, app: str) -> str:
    return device.reconciler("exec", f"{app}/main", "cat", "/etc/version").stdout


def test_a_pull_that_fails_leaves_the_old_container_running_and_holds_up_no_other_app(
    device: Device, registry: Registry, versions: tuple[Built, Built]
) -> None:
    first, second = (registry.push(version, "app") for version in versions)
    device.spec("app", sleeper("app", first))
    device.start()
    device.logged("converged")
    pid = device.pid("app/main")

    # Its newest layer is damaged: everything about the image is known, only it can't be brought here.
    newest = _newest_layer(versions[1])
    data = next(registry.storage.glob(f"**/blobs/sha256/{newest[:2]}/{newest}/data"))
    whole = data.read_bytes()
    data.write_bytes(bytes(len(whole)))
    device.spec("app", sleeper("app", second))
    device.spec("new", sleeper("new", first))
    device.running("new/main")
    device.logged(rf"app: pull .*sha256:{newest[:12]}")
    assert device.pid("app/main") == pid
    assert device.status()["app"]["sync"] == "out_of_sync"
    assert device.status()["new"]["sync"] == "synced"

    # Once the registry is whole again, the app follows when it is told to try.
    data.write_bytes(whole)
    assert device.reconciler("apply", "--wait").returncode == 0
    assert _version(device, "app") == "two\n"


def _newest_layer(built: Built) -> str:
    manifest = json.loads((built.layout / "blobs/sha256" / built.digest.hex).read_bytes())
    return str(manifest["layers"][-1]["digest"]).removeprefix("sha256:")


def test_an_image_that_the_registry_does_not_have_holds_up_its_own_app_alone(
    device: Device, registry: Registry, versions: tuple[Built, Built]
) -> None:
    here = registry.push(versions[0], "app")
    missing = here[: here.index("@")] + f"@sha256:{'5' * 64}"
    device.spec("bad", sleeper("bad", missing))
    device.spec("good", sleeper("good", here))
    device.start()
    device.running("good/main")
    said = device.logged(r"bad/main: .*")
    assert f"{registry.name}: GET /v2/app/manifests/sha256:{'5' * 64}: 404" in said
    assert device.status()["bad"]["containers"][0]["state"] == "waiting"


def test_what_is_here_starts_while_the_registry_is_down(
    device: Device, registry: Registry, versions: tuple[Built, Built]
) -> None:
    image = registry.push(versions[0], "app")
    device.reconciler("pull", image)
    registry.stop()
    device.spec("app", sleeper("app", image))
    device.start()
    device.running("app/main", timeout=5)
    device.logged("converged")


def test_images_are_pulled_listed_looked_up_and_collected_by_hand(
    device: Device, registry: Registry, versions: tuple[Built, Built]
) -> None:
    device.configure(registries={"insecure": [registry.name]}, gc={"keep_generations": 1, "min_age": "0s"})
    first, second = (registry.push(version, "app") for version in versions)
    assert device.reconciler("digest", f"{registry.name}/app:1").stdout == f"{first}\n"
    unknown = device.reconciler("digest", f"{registry.name}/app:9", check=False)
    assert unknown.returncode == 8
    assert f"{registry.name}: GET /v2/app/manifests/9: 404" in unknown.stderr
    for image, built in ((first, versions[0]), (second, versions[1])):
        assert device.reconciler("pull", image).stdout == f"{built.digest}\n"
    items = {item["digest"]: item for item in _images(device)}
    assert set(items) == {str(version.digest) for version in versions}
    assert all(item["complete"] and item["users"] == [] for item in items.values())
    short = device.reconciler("images", "-q").stdout.split()
    assert sorted(short) == sorted(version.digest.hex[:12] for version in versions)

    device.spec("app", sleeper("app", first))
    assert device.reconciler("apply", str(device.specs), "--wait").returncode == 0
    listing = device.reconciler("images").stdout
    assert re.search(rf"{registry.name}/app:1\s.*\byes\s+app/main\n", listing), listing
    assert versions[1].digest.hex[:12] not in listing, "garbage is collected as soon as it may be"

    device.reconciler("pull", second)
    dry = json.loads(device.reconciler("gc", "--dry-run", "-o", "json").stdout)["items"]
    going = {(item["kind"], item["name"]) for item in dry if not item["kept"]}
    assert ("blob", str(versions[1].digest)) in going
    assert ("blob", str(versions[0].digest)) not in going
    assert all(item["reason"] for item in dry)
    pid = device.pid("app/main")
    done = device.reconciler("gc")
    assert re.fullmatch(rf"removed {len(going)} objects, [0-9.]+ ?\S*\n", done.stdout)
    assert [item["digest"] for item in _images(device)] == [str(versions[0].digest)]
    again = json.loads(device.reconciler("gc", "--dry-run", "-o", "json").stdout)["items"]
    assert all(item["kept"] for item in again)
    assert device.pid("app/main") == pid
