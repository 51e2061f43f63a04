"""An app as people run it, of nginx, redis and PostgreSQL: what they keep outlives containers and a reboot."""

import pytest

from tests.e2e.device import Device
from tests.e2e.world import Registry
from tests.images import nginx, postgres, redis

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

SHOP = """
apiVersion: reconciler/v1
kind: App
name: shop
containers:
  web:
    image: {nginx}
    environment: {{VERSION: "{web}"}}
    ports: ["8080:80"]
    networks: [back, front]
    depends_on: [cache, db]
    limits: {{memory: 64Mi}}
    stop_grace_period: 5s
  cache:
    image: {redis}
    environment: {{VERSION: "{cache}"}}
    volumes: ["cache:/data"]
    networks: [back]
    limits: {{memory: 128Mi}}
    stop_grace_period: 5s
  db:
    image: {postgres}
    environment: {{VERSION: "{db}"}}
    volumes: ["db:/data"]
    networks: {{back: {{aliases: [database], ipv4_address: 10.77.0.5}}}}
    limits: {{memory: 256Mi}}
    stop_grace_period: 10s
volumes: {{cache: {{}}, db: {{}}}}
networks:
  front: {{}}
  back: {{internal: true, subnet: 10.77.0.0/24}}
"""
PSQL = ("/usr/lib/postgresql/15/bin/psql", "-h", "db", "-U", "postgres", "-Atc")


class Shop:
    """The app, and somebody who looks after it."""

    def __init__(self, device: Device, images: dict[str, str]) -> None:
        self.device = device
        self.versions = {"web": 1, "cache": 1, "db": 1}
        self._images = images
        self._write()

    def _write(self) -> None:
        self.device.spec("shop", SHOP.format(**self._images, **self.versions))

    def redis(self, *words: str) -> str:
        return self._exec("cache", "redis-cli", *words)

    def sql(self, query: str) -> str:
        return self._exec("db", *PSQL, query)

    def _exec(self, container: str, *words: str) -> str:
        done = self.device.reconciler("exec", f"shop/{container}", *words, check=False)
        return done.stdout.strip()

    def healthy(self) -> None:
        """Each of the three answers, and the names of the others are known in each."""
        self.device.until(lambda: self.redis("-h", "cache", "ping") == "PONG")
        self.device.until(lambda: self.sql("select 1") == "1")
        self.device.until(lambda: "Welcome to nginx" in self.device.curl("http://127.0.0.1:8080/"))
        for name in ("db", "cache"):
            assert name in self._exec("web", "getent", "ahostsv4", name)
        assert self._exec("cache", "getent", "ahostsv4", "database").split()[0] == "10.77.0.5"

    def kept(self) -> bool:
        return (self.redis("get", "cart"), self.sql("select name from goods order by 1")) == (
            "full",
            "bread\nmilk",
        )

    def replace(self, container: str) -> None:
        """Have a newer version of one of them; the others are left alone."""
        before = {name: self.device.pid(f"shop/{name}") for name in self.versions}
        self.versions[container] += 1
        self._write()
        self.device.until(lambda: self.device.pid(f"shop/{container}") not in (0, before[container]))
        for name, pid in before.items():
            assert (self.device.pid(f"shop/{name}") == pid) is (name != container), name


def test_what_redis_and_postgres_keep_outlives_containers_and_a_reboot(device: Device) -> None:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]}, interval="1s")
    registry = Registry(device, device.root / "registry")
    built = {"nginx": nginx(), "redis": redis(), "postgres": postgres()}
    shop = Shop(device, {name: registry.push(image, name) for name, image in built.items()})
    device.start()
    for name in shop.versions:
        device.running(f"shop/{name}", timeout=60)
    shop.healthy()
    assert shop.redis("set", "cart", "full") == "OK"
    shop.sql("create table goods (name text); insert into goods values ('milk'), ('bread')")
    assert shop.kept()
    shown = device.reconciler(
        "network", "inspect", "shop/back", "--format", "{{.Internal}} {{len .Containers}}"
    )
    assert shown.stdout.split() == ["true", "3"]

    for name in shop.versions:
        shop.replace(name)
        shop.healthy()
        assert shop.kept(), name

    registry.stop()  # after the reboot nothing needs it
    device.reboot()
    for name in shop.versions:
        device.running(f"shop/{name}")
    shop.healthy()
    assert shop.kept()
    assert device.status()["shop"]["health"] == "healthy"
