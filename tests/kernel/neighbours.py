"""Other people's network programs as a device may have them: Docker, firewalld, ufw and NetworkManager of Debian.

They live in a Debian root file system in memory, with their own D-Bus, in mount and PID namespaces of their own, and
see the network namespace of the test: nothing of them is installed on, or started for, the machine that tests.
"""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from tests.images import neighbours_archive
from tests.kernel.netns import Namespace

PATIENCE = 30.0  # seconds
_SETUP = """
set -e
mount -t tmpfs tmpfs "$1" && tar -C "$1" -xf "$2" && cd "$1"
mount -t proc proc proc && mount --rbind /dev dev && mount -t tmpfs tmpfs run && mkdir -p run/dbus run/NetworkManager
rm -r usr/share/dbus-1/system-services  # it starts nothing that a test does not
chroot . dbus-daemon --system --fork --nopidfile && echo ready && exec sleep infinity
"""


class Neighbours:
    """The root file system with its namespaces; `close` ends every process in it, and all of it goes."""

    def __init__(self, directory: Path) -> None:
        self._root = directory
        archive = neighbours_archive()
        self._process = subprocess.Popen(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"),
                *("sh", "-c", _SETUP, "sh", str(directory), str(archive)),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._inside = _child(self._process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # and with it its child, the first process of the PID namespace, and so all of them
        self._process.communicate()

    def run(self, host: Namespace, *command: str, check: bool = True) -> str:
        """Run a program of theirs in the network namespace `host`, and return its output."""
        done = subprocess.run(
            self._enter(host, *command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}"
        return done.stdout

    def start(self, host: Namespace, *command: str, ready: tuple[str, ...]) -> "Daemon":
        """Start a daemon and wait until the program `ready` succeeds."""
        log = f"/run/{Path(command[0]).name}.log"
        daemon = Daemon(
            subprocess.Popen(
                self._enter(host, "sh", "-c", f'exec "$@" >>{log} 2>&1', "sh", *command),
                stdin=subprocess.DEVNULL,
            )
        )
        deadline = time.monotonic() + PATIENCE
        while subprocess.run(self._enter(host, *ready), capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or daemon.ended:
                daemon.close()
                raise AssertionError(f"{command[0]} did not come up: {self.run(host, 'tail', '-n20', log)}")
            time.sleep(0.05)
        return daemon

    def _enter(self, host: Namespace, *command: str) -> list[str]:
        """The command line that runs it there, with a sysfs of that network namespace."""
        net = f"--net=/proc/{os.getpid()}/fd/{host.fd}"
        enter = ["nsenter", f"--target={self._inside}", "--mount", "--pid", net, "--", "unshare", "--mount"]
        inner = 'mount -t sysfs sysfs "$1/sys" && mount --rbind /sys/fs/cgroup "$1/sys/fs/cgroup" && exec chroot "$@"'
        return [*enter, "sh", "-c", inner, "sh", str(self._root), *command]


def _child(pid: int) -> int:
    """The one child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


class Daemon:
    """A program of theirs that runs until it is closed."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        if not self.ended:
            os.kill(_child(self._process.pid), signal.SIGTERM)  # nsenter waits for it, but hands no signal on
        self._process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
