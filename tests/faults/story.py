"""A short life of a device that passes every step boundary of the program, to be interrupted at any of them.

Two apps are created, one is updated (new image, new limits, another subnet, another alias), a container is run by hand
and removed, one is held, an app is removed, garbage is collected. Whatever happens on the way, the end is the same:
`golden` says what must be there, `nothing_left` what must not once everything is deleted.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from reconciler.agent import client
from reconciler.engine.layout import Layout
from reconciler.errors import ReconcilerError
from tests.e2e.device import PATIENCE, Device
from tests.images import Built, busybox, directory, file, layer

CONVERGES = 30.0 * PATIENCE  # seconds that any fault may take to be recovered from


def images(path: Path) -> tuple[Built, Built]:
    """Two versions of an image: the same base, one small layer each."""
    first, second = (
        busybox(
            path / f"v{number}",
            more=[layer([directory("./site"), file("./site/index.html", f"version {number}\n")])],
        )
        for number in (1, 2)
    )
    return first, second


def _web(image: Built, base: Built, *, pids: int, size: str, subnet: str) -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: web
volumes: {{data: {{}}}}
networks: {{back: {{subnet: {subnet}}}}}
containers:
  page:
    image: box.example/page:1@{image.digest}
    command: [httpd, -f, -p, "80", -h, /site]
    ports: ["8080:80"]
    networks: [back, default]
    volumes: ["data:/data"]
    stop_grace_period: 1s
    limits: {{memory: 16Mi}}
  side:
    image: box.example/box:1@{base.digest}
    command: [sleep, "100000"]
    init: true
    networks: {{default: {{aliases: [pids-{pids}]}}}}
    stop_grace_period: 0s
    limits: {{pids: {pids}, memory: 16Mi}}
    logging: {{max_size: {size}}}
  guest:
    image: box.example/box:1@{base.digest}
    command: [sleep, "100000"]
    network_mode: container:page
    stop_grace_period: 0s
    limits: {{memory: 16Mi}}
"""


def _job(base: Built) -> str:
    return f"""
apiVersion: reconciler/v1
kind: App
name: job
containers:
  once:
    image: box.example/box:1@{base.digest}
    command: [echo, done]
    restart: {{policy: "no"}}
    limits: {{memory: 16Mi}}
"""


class Story:
    """One device's story. `restart` is how the agent comes back when a chapter finds it dead."""

    def __init__(self, device: Device, first: Built, second: Built, base: Built) -> None:
        self.device = device
        self.first, self.second, self.base = first, second, base
        self.layout = Layout(device.state, device.run)
        self.deaths = 0
        device.configure(
            bundles=[str(built.layout) for built in (first, second, base)],
            gc={"keep_generations": 1, "min_age": "0s", "min_free": "0"},
            interval="2s",
        )

    def chapters(self) -> Iterator[Callable[[], None]]:
        """What the user does, one after the other; each is followed by convergence."""
        yield self.begin
        yield self.update
        yield self.remove_job
        yield self.settle

    def begin(self) -> None:
        self.device.spec("web", _web(self.first, self.base, pids=32, size="1Mi", subnet="10.77.0.0/24"))
        self.device.spec("job", _job(self.base))

    def update(self) -> None:
        kept = self.device.state / "volumes/web/data/data/kept"
        kept.write_text("by hand\n")
        self.device.spec("web", _web(self.second, self.base, pids=33, size="2Mi", subnet="10.78.0.0/24"))

    def by_hand(self, died: Callable[[], None]) -> None:
        """Somebody runs a container beside the apps, starts it again, removes it, and holds one that a spec has."""
        image = f"box.example/box:1@{self.base.digest}"
        run = ("run", "-d", "--name", "hand", "--stop-timeout", "0", "-v", "/data", image, "sleep", "100000")
        self._ask(died, lambda: self._state("hand") == "running", *run)
        self._ask(died, lambda: self._state("palm") == "running", "rename", "hand", "palm")
        self._ask(died, lambda: self._state("hand") == "running", "rename", "palm", "hand")
        self._ask(died, lambda: self._state("hand") == "exited", "stop", "-t", "0", "hand")
        self._ask(died, lambda: self._state("hand") == "running", "start", "hand")
        self._ask(died, lambda: self._state("hand") == "none", "rm", "-f", "-v", "hand")
        self._ask(died, lambda: self._state("job/once") == "held", "stop", "job/once")

    def names(self, died: Callable[[], None]) -> None:
        """Somebody gives an image a name, and takes it away again."""
        image = f"box.example/box:1@{self.base.digest}"
        self._ask(died, lambda: len(os.listdir(self.layout.tags)) == 1, "tag", image, "mine:1")
        self._ask(died, lambda: os.listdir(self.layout.tags) == [], "rmi", "-f", "mine:1")

    def damage(self, died: Callable[[], None]) -> None:
        """The disk loses the record of a container that runs."""
        path = self.layout.identity(str(self.device.ps()["web/page"]["id"]))
        path.write_bytes(b"{")
        self.wait_for(died, lambda: path.exists() and len(path.read_bytes()) > 1, "the record to be mended")

    def _ask(self, died: Callable[[], None], done: Callable[[], bool], *words: str) -> None:
        """Ask again and again, of a living agent, until it is so."""

        def asked() -> bool:
            if not client.running(self.layout):
                return False  # it is only starting: the verb would do the work itself, and take its lock
            self.device.reconciler(*words, check=False)
            return self.device.alive and done()

        self.wait_for(died, asked, " ".join(words))

    def _state(self, name: str) -> str:
        return str(self.device.ps().get(name, {}).get("state", "none"))

    def remove_job(self) -> None:
        (self.device.specs / "job.yaml").unlink()

    def settle(self) -> None:
        """Nothing more is asked for: garbage goes."""

    def remove_all(self) -> None:
        (self.device.specs / "web.yaml").unlink()

    # --- driving ---------------------------------------------------------------------------------------------------

    def start(self, points: str = "") -> None:
        """Start the agent with these fail points armed."""
        under = ["env", f"RECONCILER_FAILPOINT={points}"] if points else []
        self.device.start(under=under)

    def tell(self, died: Callable[[], None]) -> None:
        """Go through all chapters; `died` is called whenever the agent is found dead, and starts it again."""
        for chapter in self.chapters():
            if chapter == self.remove_job:
                self.by_hand(died)
                self.names(died)
                self.damage(died)
            chapter()
            self.converge(died)
            if chapter == self.begin:
                self.wait_for(died, lambda: any(self.layout.containers.glob("*/exit.json")), "the job's exit")
        self.wait_for(died, lambda: len(self._layers()) == 2, "old layers to be collected")

    def converge(self, died: Callable[[], None]) -> None:
        """Wait until everything is as the specs say, through deaths of the agent."""
        self.wait_for(died, self._converged, "convergence")

    def wait_for(self, died: Callable[[], None], done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + CONVERGES
        while True:
            if not self.device.alive:
                self.deaths += 1
                died()
                deadline = time.monotonic() + CONVERGES
            if done():
                return
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.device.output[-6000:]}"
            time.sleep(0.05)

    def _converged(self) -> bool:
        try:
            body = {"wait": "converged", "timeout": 1.5 * PATIENCE, "allow_empty": True}
            answer = client.request(self.layout, "POST", "/v1/reconcile", body, timeout=CONVERGES)
        except ReconcilerError:
            return False
        return bool(answer["converged"])

    def _layers(self) -> list[str]:
        return [name for name in os.listdir(self.layout.layers) if name.endswith(".json")]

    # --- looking ---------------------------------------------------------------------------------------------------

    def golden(self) -> None:
        """Assert what a device that nothing happened to looks like at the end."""
        device = self.device
        found = {name: (item["state"], item["image"]) for name, item in device.ps().items()}
        assert found == {
            "web/guest": ("running", f"box.example/box:1@{self.base.digest}"),
            "web/page": ("running", f"box.example/page:1@{self.second.digest}"),
            "web/side": ("running", f"box.example/box:1@{self.base.digest}"),
        }, found
        device.until(
            lambda: device.curl("http://127.0.0.1:8080/") == "version 2\n",
            message=f"for version 2, not {device.curl('http://127.0.0.1:8080/')!r}",
        )
        assert (device.state / "volumes/web/data/data/kept").read_text() == "by hand\n"
        pids = [device.pid(name) for name in ("web/page", "web/guest")]
        assert len({os.stat(f"/proc/{pid}/ns/net").st_ino for pid in pids}) == 1
        side = device.ps()["web/side"]["id"]
        limit = next(Path("/sys/fs/cgroup").glob(f"**/reconciler-{device.instance}/{side}/pids.max"))
        assert limit.read_text() == "33\n"
        plan = device.reconciler("plan", str(device.specs), "--detailed-exitcode", check=False)
        assert plan.returncode == 0, plan.stdout
        assert sorted(os.listdir(self.layout.volumes)) == ["web"]
        assert len(self._processes()) == 3, self._processes()

    def golden_at_first(self) -> None:
        """Assert what the first chapter asks for."""
        found = {name: item["state"] for name, item in self.device.ps().items()}
        assert found.pop("job/once") in ("running", "exited")
        assert found == {"web/guest": "running", "web/page": "running", "web/side": "running"}

    def _processes(self) -> list[str]:
        """The shims of this device that live, whether or not anybody knows of them."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    title = (entry / "cmdline").read_bytes()
                    where = os.readlink(entry / "ns/net")
                except OSError:
                    continue
                if title.startswith(b"reconciler shim") and where == self._namespace():
                    found.append(title.rstrip(b"\0 ").decode())
        return sorted(found)

    def _namespace(self) -> str:
        """The device's network namespace as /proc names it."""
        return f"net:[{os.stat(f'/run/netns/{self.device.namespace}').st_ino}]"

    def nothing_left(self, died: Callable[[], None]) -> None:
        """Delete everything and assert that nothing remains of it, long before `uninstall` would clear it away."""
        self.remove_all()
        self.converge(died)
        try:
            self.wait_for(died, lambda: not self.left(), "nothing to be left")
        except AssertionError as error:
            raise AssertionError(f"{self.left()}\n{error}") from error

    def left(self) -> list[str]:
        """What is there although no app is."""
        device, layout = self.device, self.layout
        found = [f"process {title}" for title in self._processes()]
        for path in (layout.containers, layout.run_containers, layout.partial, layout.trash):
            found += [f"{path.name}/{name}" for name in os.listdir(path)] if path.exists() else []
        for path in Path("/sys/fs/cgroup").glob(f"*/reconciler-{device.instance}/*/"):
            found.append(f"cgroup {path}")
        links = device.inside(["ip", "-o", "link"]).stdout
        found += re.findall(r"\d+: (r[cv][^:@]*)", links)
        ports = device.inside(["nft", "list", "ruleset"]).stdout
        found += ["a published port"] if "8080" in ports else []
        if layout.leases.exists():
            found += [f"lease {app}" for app in json.loads(layout.leases.read_text()).get("apps", {})]
        mounts = Path("/proc/self/mountinfo").read_text()
        found += [f"mount {line}" for line in mounts.splitlines() if str(device.root) in line]
        names = (f"{where}/{name}" for where, _, names in os.walk(device.state) for name in names)
        return found + [f"temporary {name}" for name in names if "/." in name and "/trash/" not in name]
