"""A device for one test: its own directories, its own network namespace, the agent as a process, and people's clients.

Everything is asked through the command line and through sockets, as a user would; nothing of the agent is
imported. `close` removes the instance with the program's own `uninstall` and then lets the leak check have
the last word.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tests.e2e import killed

PROGRAM = [sys.executable, "-m", "reconciler"]
REPOSITORY = Path(__file__).parents[2]
PATIENCE = 10.0 if os.environ.get("IN_VM") else 1.0
_T = TypeVar("_T")


def _stat(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""


class Device:
    """One device. `root` should be on a fast file system; its path is kept short for the sake of unix sockets."""

    def __init__(self, root: Path, name: str, *, namespace: str = "") -> None:
        """A device on `root`; in a network namespace of its own, or in `namespace`, which is another's."""
        self.root = root
        self.namespace = namespace or f"rct-{name}"
        self._borrowed = bool(namespace)
        self.specs = root / "specs"
        self.state = root / "state"
        self.run = root / "run"
        self.device_yaml = root / "device.yaml"
        self.log = root / "agent.log"
        self.specs.mkdir(parents=True)
        self.configure()
        self._agent: subprocess.Popen[bytes] | None = None
        self._helpers: list[subprocess.Popen[bytes]] = []
        if not self._borrowed:
            subprocess.run(["ip", "netns", "add", self.namespace], check=True)
        self.inside(["ip", "link", "set", "lo", "up"])

    # --- commands ----------------------------------------------------------------------------------------------

    def inside(
        self, command: list[str], *, check: bool = True, timeout: float = 60.0, input: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the device's network namespace (and in no other namespace of its own)."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *command],
            capture_output=True,
            timeout=timeout * PATIENCE,
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            cwd=REPOSITORY,
            check=False,
        )
        text = subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )
        if check and text.returncode != 0:
            raise AssertionError(f"{command}: exit {text.returncode}\n{text.stdout}\n{text.stderr}")
        return text

    @property
    def places(self) -> list[str]:
        return ["--state", str(self.state), "--run", str(self.run), "--device", str(self.device_yaml)]

    def reconciler(
        self, verb: str, *args: str, check: bool = True, timeout: float = 60.0, input: bytes | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb of the program on this device."""
        sub: list[str] = []
        rest = list(args)
        if verb in ("volume", "image", "container", "network", "system", "bundle"):
            sub = [rest.pop(0)]
        return self.inside(
            [*PROGRAM, verb, *sub, *self.places, *rest], check=check, timeout=timeout, input=input
        )

    def spawn(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a helper (a registry, a server) in the device's network; it is ended with the device."""
        process = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *command], **options
        )
        self._helpers.append(process)
        return process

    # --- device.yaml ---------------------------------------------------------------------------------------------

    def configure(self, **settings: Any) -> None:
        """Write device.yaml (JSON is YAML)."""
        self.device_yaml.write_text(json.dumps({"metrics": {"listen": "127.0.0.1:9470"}, **settings}))

    @property
    def instance(self) -> str:
        """The random part of every kernel name of this device."""
        return (self.state / "instance").read_text().strip()

    # --- specs and the agent -----------------------------------------------------------------------------------

    def spec(self, name: str, text: str) -> Path:
        """Write specs/NAME.yaml, atomically, as an editor or git would."""
        path = self.specs / f"{name}.yaml"
        partial = self.specs / f".{name}.partial"
        partial.write_text(text)
        partial.rename(path)
        return path

    def start(self, *args: str, under: Sequence[str] = ()) -> None:
        """Start the agent on specs/ (or as `args` say), `under` another program that takes something away from it."""
        with self.log.open("ab") as log:
            self._agent = subprocess.Popen(
                [
                    "nsenter",
                    f"--net=/run/netns/{self.namespace}",
                    "--",
                    *under,
                    *PROGRAM,
                    "agent",
                    *(args or (str(self.specs),)),
                    *self.places,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
            )

    @property
    def agent_pid(self) -> int:
        assert self._agent is not None
        return self._agent.pid

    @property
    def alive(self) -> bool:
        """Whether the agent runs."""
        return self._agent is not None and self._agent.poll() is None

    def stop(self, number: int = signal.SIGTERM, *, timeout: float = 20.0) -> int:
        """End the agent by a signal and return its exit code."""
        assert self._agent is not None
        self._agent.send_signal(number)
        return self.ended(timeout=timeout)

    def ended(self, *, timeout: float = 20.0) -> int:
        """Wait until the agent has ended by itself and return its exit code."""
        assert self._agent is not None
        code = self._agent.wait(timeout * PATIENCE)
        self._agent = None
        return code

    def reboot(self) -> None:
        """Take away all that a reboot takes: processes, run directory, network; then start the agent."""
        self.stop(signal.SIGKILL)
        shims = [json.loads(path.read_text()) for path in self.run.glob("containers/*/shim.json")]
        for shim in shims:
            try:
                os.kill(shim["init"]["pid"], signal.SIGKILL)
            except ProcessLookupError:
                pass  # it had ended
        self.until_gone(shim["shim"]["pid"] for shim in shims)
        shutil.rmtree(self.run)
        self.inside(["nft", "flush", "ruleset"])
        self.start()
        self.logged("converged")

    # --- looking -------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, dict[str, Any]]:
        """The status document's items, by app."""
        text = self.reconciler("status", "-o", "json").stdout
        return {item["name"]: item for item in json.loads(text)["items"]}

    def ps(self) -> dict[str, dict[str, Any]]:
        """The containers, by full name."""
        text = self.reconciler("ps", "-a", "-o", "json").stdout
        return {item["name"]: item for item in json.loads(text)["items"]}

    def pid(self, name: str) -> int:
        """The host pid of a running container's first process, or 0."""
        return int(self.ps().get(name, {}).get("pid") or 0)

    def curl(self, url: str, *options: str) -> str:
        """What curl gets from inside the device's network; "" on any failure."""
        return self.inside(["curl", "-s", "-m", "5", *options, url], check=False).stdout

    def until(self, what: Callable[[], _T | None], *, timeout: float = 20.0, message: str = "") -> _T:
        """Wait until `what` returns something true, and return it."""
        deadline = time.monotonic() + timeout * PATIENCE
        while True:
            try:
                value = what()
            except (AssertionError, KeyError, ValueError) as error:
                value = None
                message = message or str(error)
            if value:
                return value
            ended = self._agent.poll() if self._agent is not None else None
            if time.monotonic() > deadline or ended is not None:
                why = f"waited {timeout} s in vain" if ended is None else f"the agent ended with {ended}"
                raise AssertionError(f"{why} {message}\n--- agent log ---\n{self.output[-4000:]}")
            time.sleep(0.05)

    def until_gone(self, pids: Iterable[int]) -> None:
        """Wait until none of these processes is there, or only as a zombie."""
        left = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
        deadline = time.monotonic() + 10 * PATIENCE
        while left:
            assert time.monotonic() < deadline, f"still there: {left}"
            left = {pid for pid in left if " Z " not in _stat(pid) and _stat(pid)}
            time.sleep(0.01)

    def running(self, name: str, *, timeout: float = 20.0) -> int:
        """Wait until the container runs, and return its pid."""
        return self.until(lambda: self.pid(name), timeout=timeout, message=f"for {name} to run")

    @property
    def output(self) -> str:
        """What the agent has said so far, over all its starts."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def reason(self, app: str) -> str:
        """The one sentence of `status` about an app, with the last failed step and its hint."""
        item = self.status()[app]
        failure = item["failure"] or {}
        return f"{item['reason']} {failure.get('error', '')} {failure.get('hint', '')}".strip()

    def logged(self, pattern: str, *, timeout: float = 20.0) -> str:
        """Wait until the agent's output matches `pattern`."""
        found = self.until(
            lambda: re.search(pattern, self.output),
            timeout=timeout,
            message=f"for {pattern!r} in the agent's output",
        )
        return found[0]

    # --- the end -------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Kill the agent and remove the instance with its own program."""
        if self._agent is not None:
            self._agent.kill()
            self._agent.wait()
            self._agent = None
        if (self.state / "instance").exists():
            self.reconciler("uninstall", "--yes", timeout=120)

    def close(self) -> None:
        """Remove the instance with its own program, then the namespace.

        Fails if anything would not go, or if the agent ever printed a traceback.
        """
        try:
            self.finish()
        finally:
            for helper in self._helpers:
                helper.terminate()
                helper.wait(10)
            if not self._borrowed:
                subprocess.run(["ip", "netns", "del", self.namespace], check=False)
            said = self.output
            left = self._processes()
            killed.let_go(self.root)
            shutil.rmtree(self.root, ignore_errors=True)
        assert not left
        assert not self.state.exists()
        assert not self.run.exists()
        assert "Traceback" not in said, said[-8000:]

    def _processes(self) -> list[str]:
        """What still runs with a file of this device open, wherever init has adopted it to; given a moment to end."""
        deadline = time.monotonic() + 5 * PATIENCE
        while True:
            found = []
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    links = [os.readlink(link) for link in (process / "fd").iterdir()]
                    title = (
                        (process / "cmdline")
                        .read_bytes()
                        .replace(b"\0", b" ")
                        .decode(errors="replace")
                        .strip()
                    )
                except OSError:
                    continue
                if process.name != str(os.getpid()) and any(str(self.root) in link for link in links):
                    found.append(f"{process.name} {title[:80]}")
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.05)


def cgroups(instance: str) -> list[Path]:
    """The cgroups of a device's containers, in whatever hierarchies, while those of others come and go."""
    return [
        Path(at) / name
        for at, names, _ in os.walk("/sys/fs/cgroup")  # ignores what has just gone, which glob does not
        if os.path.basename(at).startswith(f"reconciler-{instance}")
        for name in names
    ]
