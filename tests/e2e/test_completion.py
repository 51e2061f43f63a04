"""Completion as people have it: real shells, on real terminals, that ask the program about a real device."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.device import PATIENCE, Device
from tests.e2e.test_watching import ready

__all__ = ["ready"]  # the fixture
pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]
PROGRAMS = Path(sys.executable).parent  # where this clone's `reconciler` is
SHELLS = {
    "bash": ("bash --norc --noprofile -i", "source <(reconciler completion bash)"),
    "zsh": ("zsh -f -i", "autoload -U compinit; compinit -D; source <(reconciler completion zsh)"),
}


class Shell:
    """An interactive shell on a terminal, with this clone's program in its path."""

    def __init__(self, name: str) -> None:
        command, source = SHELLS[name]
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            command.split(),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={
                "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
                "TERM": "xterm",
                "HOME": "/nonexistent",
                "COLUMNS": "400",
            },
            start_new_session=True,
        )
        os.close(slave)
        self._seen = ""
        os.write(self._master, f"stty cols 400; {source}; echo re''ady\n".encode())
        self.expect("ready\\r?\\n")

    def expect(self, pattern: str) -> None:
        """Read until `pattern` was seen, and forget everything before."""
        deadline = time.monotonic() + 30 * PATIENCE
        while (found := re.search(pattern, self._seen)) is None:
            assert time.monotonic() < deadline, (pattern, self._seen)
            if select.select([self._master], [], [], 0.1)[0]:
                self._seen += os.read(self._master, 65536).decode(errors="replace")
                self._seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x07", "", self._seen)
        self._seen = self._seen[found.end() :]

    def completes(self, typed: str, expected: str) -> None:
        """Type, press Tab, and see `expected` come; then throw the line away."""
        os.write(self._master, f"{typed}\t".encode())
        self.expect(re.escape(typed + expected))
        os.write(self._master, b"\x15echo ne''xt\n")
        self.expect("next\\r?\\n")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)


@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_completes_verbs_options_and_names(ready: Device, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    state = f"--state {ready.state}"
    shell = Shell(name)
    try:
        shell.completes("reconciler val", "idate ")
        shell.completes("reconciler ps --no-tr", "unc ")
        shell.completes(f"reconciler logs {state} shop/w", "eb ")
        shell.completes(f"reconciler volume rm {state} sh", "op/data ")
        shell.completes(f"reconciler inspect {state} box.example/b", "ox:1 ")
        shell.completes(f"reconciler inspect {state} box.example/box:", "1 ")
        shell.completes(f"reconciler plan {ready.root}/sp", "ecs")
        # Where nothing can be had nothing is said, either.
        shell.completes("reconciler logs --state /nonexistent/x shop/w", "")
    finally:
        shell.close()


def test_fish_completes_verbs_options_and_names(ready: Device) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")

    def completed(line: str) -> list[str]:
        script = f"reconciler completion fish | source; complete -C '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", script],
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
            env={"PATH": f"{PROGRAMS}:{os.environ['PATH']}", "HOME": str(ready.root), "TERM": "dumb"},
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [entry.partition("\t")[0] for entry in done.stdout.splitlines()]

    state = f"--state {ready.state}"
    assert completed("reconciler val") == ["validate"]
    assert completed("reconciler ps --no-tr") == ["--no-trunc"]
    assert completed(f"reconciler logs {state} shop/") == ["shop/job", "shop/web"]
    assert completed(f"reconciler volume rm {state} ") == ["shop/data"]
    assert completed(f"reconciler inspect {state} box") == ["box.example/box:1"]
    assert completed(f"reconciler status {state} sh") == ["shop"]
