"""README's first command, on a fresh clone: pages that answer, an agent that can leave, and nothing left behind."""

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import killed
from tests.e2e.device import PATIENCE, REPOSITORY
from tests.kernel.leaks import LeakCheck

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


class Clone:
    """A fresh clone with its environment installed, and a network namespace to run it in."""

    def __init__(self, path: Path, namespace: str) -> None:
        self.path = path
        self.namespace = namespace
        self.output = path.with_name("output")

    def inside(self, *command: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *command],
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=timeout * PATIENCE,
            check=False,
        )

    def curl(self, port: int) -> str:
        return self.inside("curl", "-s", "-m", "2", f"http://localhost:{port}/").stdout

    def until(self, port: int, text: str) -> None:
        deadline = time.monotonic() + 30 * PATIENCE
        while text not in self.curl(port):
            assert time.monotonic() < deadline, self.output.read_text()[-4000:]
            time.sleep(0.05)


@pytest.fixture
def clone() -> Iterator[Clone]:
    token = secrets.token_hex(4)
    root = killed.make_root(token)
    path = root / "clone"
    check = LeakCheck(token)
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(path)], check=True)
    # What `make run` would install from a package index is this environment's own; the code is the clone's.
    project = hashlib.sha256((path / "pyproject.toml").read_bytes()).hexdigest()[:12]
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", str(path / ".venv")], check=True)
    site = next((path / ".venv/lib").glob("python3*")) / "site-packages"
    (site / "project.pth").write_text(
        f"{path}\n{next((REPOSITORY / '.venv/lib').glob('python3*'))}/site-packages\n"
    )
    program = path / ".venv/bin/reconciler"
    program.write_text(
        f"#!{path}/.venv/bin/python\nimport sys\nfrom reconciler.__main__ import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    (path / ".venv/bin/pip").touch()
    (path / f".venv/installed-{project}").touch()
    run = f"/run/reconciler-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    check.own(run)
    namespace = f"rct-{token}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    made = Clone(path, namespace)
    made.inside("ip", "link", "set", "lo", "up")
    try:
        yield made
    finally:
        made.inside("make", "clean-run")
        subprocess.run(["ip", "netns", "del", namespace], check=True)
        killed.let_go(root)
        shutil.rmtree(root)
    assert not Path(run).exists()
    assert check.leaks(3.0 * PATIENCE) == []


def test_make_run_serves_pages_from_containers_and_clean_run_leaves_nothing(clone: Clone) -> None:
    with clone.output.open("wb") as output:
        agent = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{clone.namespace}", "--", "make", "run"],
            cwd=clone.path,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    clone.until(8080, "Hello from a container.")
    clone.until(8081, "visits")
    clone.until(8082, "back:8080 says")
    said = clone.output.read_text()
    for word in ("http://localhost:8080/", "/metrics", "logs -f web/page", "make clean-run"):
        assert word in said

    # Editing changes what runs, at once.
    greeting = clone.path / "specs/web.yaml"
    greeting.write_text(greeting.read_text().replace("Hello from a container.", "Hello again."))
    clone.until(8080, "Hello again.")

    # Breaking it changes nothing and says where.
    good = greeting.read_text()
    greeting.write_text(good.replace("    ports:", "    prots:"))
    deadline = time.monotonic() + 20 * PATIENCE
    while "web.yaml:" not in clone.output.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "Hello again." in clone.curl(8080)
    greeting.write_text(good)

    # Ctrl-C leaves the containers running.
    os.killpg(agent.pid, signal.SIGINT)
    agent.wait(20 * PATIENCE)
    assert "containers keep running" in clone.output.read_text()
    assert "Hello again." in clone.curl(8080)

    done = clone.inside("make", "clean-run")
    assert done.returncode == 0, done.stderr
    assert clone.curl(8080) == ""
    assert not (clone.path / ".run").exists()
    assert clone.inside("nft", "list", "tables").stdout == ""
    assert "rc-" not in clone.inside("ip", "-o", "link").stdout
    assert clone.inside("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "0\n"


def test_make_run_without_privileges_says_what_is_missing_and_fails_at_once(clone: Clone) -> None:
    began = time.monotonic()
    done = clone.inside("setpriv", "--bounding-set=-all", "--inh-caps=-all", "make", "run")
    assert done.returncode == 2, "make's own status for every error; deploy/preflight.sh says 1"
    assert "capabilities: " in done.stdout + done.stderr
    os.chmod(clone.path.parent, 0o755)
    unprivileged = clone.inside("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "make", "run")
    assert unprivileged.returncode != 0
    assert "root: running as uid 65534" in unprivileged.stdout + unprivileged.stderr
    assert time.monotonic() - began < 5 * 2 * PATIENCE
