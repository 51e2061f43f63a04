"""Our side: one instance of the program on the run's disk, its agent as a process, and the images that it is given.

The same commands, files and directories as anybody uses. `parts` opens the engine in this process instead, for what is
measured below the command line.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.measure import BenchError, Moments, end, run, until
from bench.place import Place
from reconciler.agent.parts import Parts, open_parts
from reconciler.config import load_device
from reconciler.engine.instance import StateLock
from reconciler.engine.layout import Layout
from reconciler.engine.process import ShimRecord, read_shim
from tests.images import Built, Item, OciLayout, directory, file, layer

PROGRAM = (sys.executable, "-m", "reconciler")
REFERENCE = "bench.example/first"
_SOURCE = Path(__file__).with_name("first.c")
_FREESTANDING = ("-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector")


def build_first(directory_: Path) -> Path:
    """Compile the measured program."""
    compiler = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), None)
    if compiler is None:
        raise BenchError("no C compiler: the measured program can't be built (Debian: apt install gcc)")
    include = Path(__file__).parents[1] / "examples" / "images" / "page"
    binary = directory_ / "first"
    run([compiler, *_FREESTANDING, "-I", str(include), "-o", str(binary), str(_SOURCE)])
    return binary


def build_image(path: Path, binary: Path) -> Built:
    """The image with the measured program and nothing else."""
    items: list[Item] = [directory(f"./{name}") for name in ("etc", "proc", "sys", "dev", "out")]
    items.append(file("./first", binary.read_bytes(), 0o755))
    layout = OciLayout(path)
    return Built(path, layout.image([layer(items)], config={"Entrypoint": ["/first"]}))


def app(
    name: str, digest: str, out: Path, *, command: Sequence[str], port: int | None = None, extra: str = ""
) -> str:
    """The spec of an app with one container, called main. `extra` is YAML of further fields of the container."""
    published = f'    ports: ["{port}:80"]\n' if port is not None else ""
    return (
        f"apiVersion: reconciler/v1\nkind: App\nname: {name}\ncontainers:\n  main:\n"
        f"    image: {REFERENCE}:1@{digest}\n"
        f"    command: {json.dumps(list(command))}\n"
        f'    volumes: ["{out}:/out"]\n'
        f"{published}    limits: {{memory: 16Mi, pids: 16}}\n{extra}"
    )


class Instance:
    """An instance with its own state; every name it has in the kernel is noted for removal before it is made."""

    def __init__(self, place: Place, name: str, bundles: Sequence[Path], moments: Moments) -> None:
        self.place = place
        self.moments = moments
        self.root = place.disk / name
        self.layout = Layout(self.root / "state", place.root / f"{name}-run")
        self.specs = self.root / "specs"
        self.log = place.root / f"{name}.log"
        self._device = self.root / "device.yaml"
        self._agent: subprocess.Popen[bytes] | None = None
        self.specs.mkdir(parents=True)
        self.layout.state.mkdir(mode=0o700)
        identity = secrets.token_hex(8)
        place.own_cgroup(f"reconciler-{identity}")
        self.layout.instance.write_text(f"{identity}\n", encoding="ascii")
        self._device.write_text(
            f"apiVersion: reconciler/v1\nkind: Device\nname: {name}\n"
            f"bundles: {json.dumps([str(path) for path in bundles])}\n"
            f"allowed_binds: {json.dumps([str(moments.directory)])}\n"
        )

    @property
    def places(self) -> list[str]:
        return [
            *("--state", str(self.layout.state), "--run", str(self.layout.run)),
            *("--device", str(self._device)),
        ]

    def spec(self, name: str, text: str) -> None:
        """Write a spec atomically, as an editor or git does."""
        partial = self.root / f"{name}.partial"
        partial.write_text(text)
        partial.rename(self.specs / f"{name}.yaml")

    def verb(self, *arguments: str) -> str:
        """Run a verb of the program, not measured."""
        return run([*PROGRAM, *arguments, *self.places])

    def start(self) -> None:
        """Start the agent on the specs; returns before it does anything."""
        with self.log.open("ab") as log:
            self._agent = subprocess.Popen(
                [*PROGRAM, "agent", str(self.specs), *self.places],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def agent(self) -> int:
        """The agent's pid."""
        if self._agent is None or self._agent.poll() is not None:
            raise BenchError(f"the agent does not run: {self.said()}")
        return self._agent.pid

    def said(self) -> str:
        """The end of the agent's output."""
        return self.log.read_text()[-1500:]

    def serving(self) -> None:
        """Wait until the agent answers verbs."""
        until(lambda: self.agent > 0 and self.layout.agent_record.exists(), timeout=30, message="the agent")

    def stop(self) -> None:
        """End the agent; the containers stay."""
        if self._agent is not None:
            end(self._agent)
            self._agent = None

    def shims(self) -> dict[str, ShimRecord]:
        """The records of all shims, by container id."""
        found = {}
        for name in sorted(os.listdir(self.layout.run_containers)):
            record = read_shim(self.layout.shim_record(name))
            if record is not None:
                found[name] = record
        return found

    @contextmanager
    def parts(self) -> Iterator[Parts]:
        """The engine in this process, with the state lock held."""
        device = load_device(str(self._device), self._device.read_bytes())
        parts = open_parts(self.layout, device, lambda _: None)
        try:
            with StateLock(self.layout, "bench"):
                parts.prepare_host()
                yield parts
        finally:
            parts.close()

    def warm(self, digest: str) -> None:
        """Bring the image here."""
        self.verb("pull", f"{REFERENCE}:1@{digest}")

    def close(self) -> None:
        """Remove everything of the instance with its own verb; what that can't, the end of the place does."""
        try:
            if self._agent is not None and self._agent.poll() is None:
                self._agent.send_signal(signal.SIGTERM)
            self.stop()
            self.verb("uninstall", "--yes")
        finally:
            self.place.clear(self.root)
