"""A port that replicas share, with the whole agent: spread, a change without a refused connection, a crash, an end."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import PATIENCE, Device
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]
NAMES = ("shop/web", "shop/web.2", "shop/web.3")

# Asks until its input ends, each time by a new connection; prints who answered how often, and what went wrong.
CLIENT = """
import json, select, socket, sys
from collections import Counter
answers, wrong = Counter(), Counter()
count = int(sys.argv[1])
while sum(answers.values()) + sum(wrong.values()) < count if count else not select.select([0], [], [], 0)[0]:
    try:
        with socket.create_connection(("127.0.0.1", 8080), 5) as sock:
            sock.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            answer = b""
            while chunk := sock.recv(4096):
                answer += chunk
        answers[answer.decode().rpartition("\\n\\r\\n")[2].strip() or answer.decode()] += 1
    except OSError as error:
        wrong[type(error).__name__] += 1
print(json.dumps([answers, wrong]))
"""


def app(image: str, replicas: int, greeting: str = "hello") -> str:
    # The server goes on for a moment after it was told to end, as one that ends in good order does.
    serve = "mkdir /www; echo $GREETING $(hostname) >/www/index.html; sleep .2; httpd -p 80 -h /www"
    wait = "trap 'sleep .3; exit' TERM; while :; do sleep 60 & wait; done"
    return f"""
apiVersion: reconciler/v1
kind: App
name: shop
containers:
  web:
    image: {image}
    command: [sh, -c, "{serve}; {wait}"]
    environment: {{GREETING: {greeting}}}
    replicas: {replicas}
    ports: [{{published: 8080, target: 80, balance: true}}]
    limits: {{memory: 32Mi}}
    stop_grace_period: 5s
    restart: {{policy: always, delay: 3s}}
"""


def asking(device: Device, count: int = 0) -> subprocess.Popen[bytes]:
    return device.spawn(
        [sys.executable, "-c", CLIENT, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def heard(client: subprocess.Popen[bytes]) -> tuple[Counter[str], dict[str, int]]:
    said, _ = client.communicate(b"!", timeout=60 * PATIENCE)
    answers, wrong = json.loads(said)
    return Counter(answers), wrong


def ask(device: Device, count: int) -> tuple[Counter[str], dict[str, int]]:
    return heard(asking(device, count))


def even(greeting: str, *hosts: str, times: int = 3) -> tuple[Counter[str], dict[str, int]]:
    return Counter({f"{greeting} {host}": times for host in hosts}), {}


def test_a_shared_port_is_served_by_those_that_can_and_never_by_one_that_is_away(
    device: Device, box: Built
) -> None:
    all_three = ("shop-web", "shop-web-2", "shop-web-3")
    device.configure(bundles=[str(box.layout)])
    device.spec("shop", app(reference(box), 3))
    device.start()
    for name in NAMES:
        device.running(name)
    device.logged("converged", timeout=60)
    device.until(lambda: ask(device, 9) == even("hello", *all_three) or None)

    # a change reaches all, one after another, and nobody who connects meanwhile hears of it
    client = asking(device)
    device.spec("shop", app(reference(box), 3, "bye"))
    device.logged(r"start shop/web\.3(.|\n)*start shop/web\.3", timeout=60)
    device.until(lambda: set(ask(device, 9)[0]) == {f"bye {host}" for host in all_three} or None)
    answers, wrong = heard(client)
    assert wrong == {}
    assert answers.keys() <= {f"{greeting} {host}" for greeting in ("hello", "bye") for host in all_three}
    assert {answer.partition(" ")[0] for answer in answers} == {"hello", "bye"}

    # one that is kept stopped gets nothing, and takes its part again
    device.reconciler("stop", "shop/web.2")
    device.until(lambda: ask(device, 6) == even("bye", "shop-web", "shop-web-3") or None)
    device.reconciler("start", "shop/web.2")
    device.until(lambda: ask(device, 9) == even("bye", *all_three) or None)

    # one that is paused gets nothing new either, though its sockets listen
    device.reconciler("pause", "shop/web.3")
    device.until(lambda: ask(device, 6) == even("bye", "shop-web", "shop-web-2") or None)
    device.reconciler("unpause", "shop/web.3")
    device.until(lambda: ask(device, 9) == even("bye", *all_three) or None)

    # one that crashes is left out until it is back
    before = device.output.count("configure network")
    os.kill(device.pid("shop/web"), signal.SIGKILL)
    device.until(lambda: device.output.count("configure network") > before or None)
    device.until(lambda: ask(device, 6) == even("bye", "shop-web-2", "shop-web-3") or None)
    device.until(lambda: ask(device, 9) == even("bye", *all_three) or None)

    # who empties the table has it mended; more of them take part, and fewer; without any the device refuses at once
    device.inside(["nft", "flush", "ruleset"])
    device.reconciler("apply")
    device.until(lambda: ask(device, 9) == even("bye", *all_three) or None)
    device.spec("shop", app(reference(box), 2, "bye"))
    device.until(lambda: ask(device, 6) == even("bye", "shop-web", "shop-web-2") or None)
    device.spec("shop", app(reference(box), 0, "bye"))
    device.until(lambda: not device.ps() or None)
    assert ask(device, 1) == (Counter(), {"ConnectionRefusedError": 1})
