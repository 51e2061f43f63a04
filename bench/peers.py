"""The peers: other people's engines, each confined to the run's own place, and what is missing of them.

A peer is asked through its command line, as people ask it. Nothing is known of versions but what the programs print.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeVar

from bench.measure import BenchError, Sample, end, run, timed, until
from bench.place import Place


def version(program: str, *arguments: str) -> str:
    """`NAME VERSION` as a program tells it, or BenchError where it is not installed."""
    if shutil.which(program) is None:
        raise BenchError(f"{program}: not installed")
    said = run([program, *(arguments or ("--version",))])
    found = re.search(r"\d+\.\d[\w.+~-]*", said)
    return f"{os.path.basename(program)} {found[0] if found else '?'}"


_T = TypeVar("_T")


class Podman:
    """podman with its storage on the run's disk. cgroups by cgroupfs: there is no systemd in the place."""

    program = "podman"

    def __init__(self, place: Place) -> None:
        self._place = place
        self.label = version("podman")
        # On a hybrid of cgroup versions crun refuses; runc does not, and is what both engines then have in common.
        self.runtime = "runc" if shutil.which("runc") else "crun"

    def command(self, *arguments: str, store: str = "podman") -> list[str]:
        place = self._place
        return [
            *("podman", "--root", str(place.disk / store), "--runroot", str(place.root / f"{store}-run")),
            *("--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", self.runtime),
            *("--events-backend", "file", "--log-level", "error", *arguments),
        ]

    def pull(self, reference: str, *, store: str = "podman") -> Sample:
        return timed(self.command("pull", "--quiet", "--tls-verify=false", reference, store=store))

    def cold_pull(self, reference: str) -> Sample:
        """Pull into a store that does not exist yet, and let it vanish afterwards."""
        sample = self.pull(reference, store="cold")
        overlay = self._place.disk / "cold" / "overlay"
        if os.path.ismount(overlay):  # podman mounts it on itself, to make it private
            run(["umount", "--recursive", str(overlay)])
        self._place.clear(self._place.disk / "cold")
        shutil.rmtree(self._place.root / "cold-run")
        return sample

    def run(self, image: str, *options: str, arguments: Sequence[str]) -> list[str]:
        """The command that runs a container in the run's cgroup."""
        common = ("--log-driver", "k8s-file", "--cgroup-parent", f"/{self._place.cgroup}")
        return self.command("run", *common, *options, image, *arguments)

    def remove_all(self) -> None:
        run(self.command("rm", "--all", "--force", "--time", "1"))

    def close(self) -> None:
        """Nothing of it runs on its own."""


class Docker:
    """A dockerd of the run's own: its data on the run's disk, its sockets in the place, its bridge in our namespace."""

    program = "docker"

    def __init__(self, place: Place) -> None:
        self._place = place
        if shutil.which("docker") is None or shutil.which("dockerd") is None:
            raise BenchError("docker: not installed (docker and dockerd)")
        self._socket = f"unix://{place.root}/docker.sock"
        self.sockets = place.root / "docker-run"
        config = place.root / "docker.json"
        config.write_text("{}")
        self._log = place.root / "docker.log"
        command = [
            *("dockerd", "--data-root", str(place.disk / "docker"), "--exec-root", str(self.sockets)),
            *(
                "--host",
                self._socket,
                "--pidfile",
                str(place.root / "docker.pid"),
                "--config-file",
                str(config),
            ),
            *("--cgroup-parent", f"/{place.cgroup}", "--log-level", "error"),
        ]
        with self._log.open("wb") as log:
            self._daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            until(self._answers, timeout=30, message="dockerd", step=0.2)
            ours = json.loads(run(self.command("version", "--format", "{{json .}}")))
        except BenchError:
            self.close()
            raise
        self.label = f"docker {ours['Server']['Version']}"
        self.client = ours["Client"]["Version"]

    def _answers(self) -> bool:
        if self._daemon.poll() is not None:
            raise BenchError(f"docker: dockerd did not start: {self._log.read_text()[-1000:]}")
        done = subprocess.run(self.command("version"), capture_output=True, check=False)
        return done.returncode == 0

    @property
    def pid(self) -> int:
        return self._daemon.pid

    def command(self, *arguments: str) -> list[str]:
        return ["docker", "--host", self._socket, *arguments]

    def pull(self, reference: str) -> Sample:
        return timed(self.command("pull", "--quiet", reference), daemon=self.pid)

    def cold_pull(self, reference: str) -> Sample:
        """Pull what is not there, and remove it afterwards with every layer."""
        sample = self.pull(reference)
        run(self.command("rmi", "--force", reference))
        self._place.settle()
        return sample

    def run(self, image: str, *options: str, arguments: Sequence[str]) -> list[str]:
        return self.command("run", *options, image, *arguments)

    def remove_all(self) -> None:
        found = run(self.command("ps", "--all", "--quiet")).split()
        if found:
            run(self.command("rm", "--force", *found))

    def close(self) -> None:
        end(self._daemon, timeout=60)


class Containerd:
    """The containerd that a dockerd has started, asked by ctr."""

    def __init__(self, place: Place, docker: Docker) -> None:
        self._place = place
        self._docker = docker
        self._address = str(docker.sockets / "containerd" / "containerd.sock")
        version("ctr")
        said = run(["ctr", "--address", self._address, "version"])
        found = re.search(r"Server:\s+Version:\s+(\S+)", said)
        self.label = f"ctr {found[1] if found else '?'}"

    def cold_pull(self, reference: str) -> Sample:
        images = ["ctr", "--address", self._address, "--namespace", "rcbench", "images"]
        sample = timed([*images, "pull", "--plain-http", reference], daemon=self._docker.pid)
        run([*images, "rm", "--sync", reference])
        self._place.settle()
        return sample


class Peers:
    """The peers of a run, each started when it is first asked for. `missing` says why one is not here."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.missing: list[str] = []

    @cached_property
    def podman(self) -> Podman | None:
        return self._get(lambda: Podman(self._place))

    @cached_property
    def docker(self) -> Docker | None:
        return self._get(lambda: Docker(self._place))

    @cached_property
    def containerd(self) -> Containerd | None:
        docker = self.docker
        return self._get(lambda: Containerd(self._place, docker)) if docker is not None else None

    @property
    def engines(self) -> list[Podman | Docker]:
        return [peer for peer in (self.docker, self.podman) if peer is not None]

    def runtime(self, program: str) -> str | None:
        """The label of an OCI runtime, None where it is missing."""
        return self._get(lambda: version(program))

    def _get(self, make: Callable[[], _T]) -> _T | None:
        try:
            return make()
        except BenchError as error:
            self.missing.append(str(error))
            return None

    def close(self) -> None:
        for name in ("docker", "podman"):
            peer = self.__dict__.get(name)
            if peer is not None:
                peer.close()
