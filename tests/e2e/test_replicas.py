"""Several of one container: named, found by their siblings, changed one after another, each without the others."""

import os
import re
import signal

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PROGRAM, Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


def app(image: str, replicas: int, greeting: str = "hello") -> str:
    serve = "mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www"
    return f"""
apiVersion: reconciler/v1
kind: App
name: shop
containers:
  web:
    image: {image}
    command: [sh, -c, "echo $GREETING from $(hostname); {serve}"]
    environment: {{GREETING: {greeting}}}
    replicas: {replicas}
    volumes: ["data:/data"]
    limits: {{memory: 32Mi}}
    stop_grace_period: 0s
    init: true
  client:
    image: {image}
    command: [sleep, "100000"]
    depends_on: [web]
    limits: {{memory: 16Mi}}
    stop_grace_period: 0s
    init: true
volumes: {{data: {{}}}}
"""


def test_replicas_have_names_addresses_and_lives_of_their_own(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)])
    device.spec("shop", app(reference(box), 3))
    device.start()
    names = ["shop/web", "shop/web.2", "shop/web.3"]
    pids = {name: device.running(name) for name in names}
    client = device.running("shop/client")

    def inside(*command: str) -> str:
        return device.reconciler("exec", "shop/client", "--", *command).stdout

    # each is found by its own name, and all by the container's
    assert [inside("wget", "-qO-", f"http://{name}/").strip() for name in ("web", "web.2", "web.3")] == [
        "shop-web",
        "shop-web-2",
        "shop-web-3",
    ]
    lines = [line.split() for line in inside("cat", "/etc/hosts").splitlines()]
    assert len({line[0] for line in lines if "web" in line[1:]}) == 3

    # verbs take their names, and they share the volume
    assert device.reconciler("logs", "shop/web.2").stdout == "hello from shop-web-2\n"
    device.reconciler("exec", "shop/web.2", "--", "sh", "-c", "echo shared >/data/file")
    assert device.reconciler("exec", "shop/web.3", "--", "cat", "/data/file").stdout == "shared\n"

    listed = device.inside([*PROGRAM, "__complete", "restart", *device.places, "shop/web."]).stdout
    assert [line.partition("\t")[0] for line in listed.splitlines()] == names[1:]
    said = device.reconciler("inspect", "--format", "{{.Name}} {{.State.Pid}}", "shop/web.2").stdout
    assert said.split() == ["shop/web.2", str(pids["shop/web.2"])]
    assert re.search(
        r"^shop/web\.2 .*MiB", device.reconciler("stats", "--no-stream", "shop/web.2").stdout, re.M
    )

    # what is done to one by hand is done to that one alone
    device.reconciler("restart", "shop/web.2")
    assert device.running("shop/web.2") != pids["shop/web.2"]
    device.reconciler("stop", "shop/web.2")
    assert (device.pid("shop/web.2"), device.status()["shop"]["health"]) == (0, "suspended")
    assert [device.pid(name) for name in names[::2]] == [pids[name] for name in names[::2]]
    device.reconciler("start", "shop/web.2")
    pids["shop/web.2"] = device.running("shop/web.2")

    os.kill(pids["shop/web.2"], signal.SIGKILL)
    pids["shop/web.2"] = device.until(
        lambda: device.pid("shop/web.2") if device.pid("shop/web.2") not in (0, pids["shop/web.2"]) else None
    )
    assert {name: device.pid(name) for name in names} == pids

    # fewer and more touch no other
    device.spec("shop", app(reference(box), 2))
    device.until(lambda: "shop/web.3" not in device.ps() or None)
    assert "web.3" not in device.until(lambda: inside("cat", "/etc/hosts"))
    assert [device.pid(name) for name in names[:2]] == [pids[name] for name in names[:2]]
    device.spec("shop", app(reference(box), 3))
    device.running("shop/web.3")
    assert [device.pid(name) for name in names[:2]] == [pids[name] for name in names[:2]]
    assert device.pid("shop/client") == client

    # a change reaches one after another: of the others at least one runs at any time
    device.spec("shop", app(reference(box), 3, "bye"))
    device.until(lambda: "bye" in device.reconciler("logs", "shop/web.3", check=False).stdout or None)
    device.logged(r"start shop/web\.3(.|\n)*start shop/web\.3(.|\n)*start shop/web\.3")
    steps = re.findall(r"(stop|start) (shop/web\S*)", device.output)[-6:]
    assert steps == [(step, name) for name in names for step in ("stop", "start")]

    device.spec("shop", app(reference(box), 0).replace("    depends_on: [web]\n", ""))
    device.until(lambda: set(device.ps()) == {"shop/client"} or None)
    assert device.status()["shop"]["health"] == "healthy"
    assert device.status()["shop"]["replicas"] == {"client": 1, "web": 0}
