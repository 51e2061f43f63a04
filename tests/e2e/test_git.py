"""Following a branch: commits become containers, and nothing that goes wrong with the remote stops anything."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.e2e.test_loop import sleeper
from tests.images import Built

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]


class Remote:
    """A repository that somebody pushes to."""

    def __init__(self, root: Path) -> None:
        self.work = root / "work"
        self.bare = root / "fleet.git"
        self.git("init", "-q", "-b", "main", str(self.work), cwd=root)
        self.git("init", "-q", "--bare", "-b", "main", str(self.bare), cwd=root)

    def git(self, *args: str, cwd: Path | None = None) -> None:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *args], cwd=cwd or self.work, check=True, capture_output=True)

    def commit(self, files: dict[str, str | None]) -> None:
        for name, content in files.items():
            path = self.work / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "change")
        self.git("push", "-q", "-f", str(self.bare), "HEAD:main")


@pytest.fixture
def remote(device: Device) -> Remote:
    return Remote(device.root)


def follow(device: Device, remote: Remote) -> None:
    device.start("--git", str(remote.bare), "--branch", "main", "--path", "site", "--poll", "500ms")


def test_commits_become_containers_and_the_commit_is_shown(
    device: Device, remote: Remote, box: Built
) -> None:
    device.configure(bundles=[str(box.layout)])
    remote.commit({"site/web.yaml": sleeper("web", reference(box)), "other/no.yaml": "{"})
    follow(device, remote)
    pid = device.running("web/main")
    remote.commit({"site/second.yaml": sleeper("second", reference(box))})
    device.running("second/main")
    assert device.pid("web/main") == pid
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=remote.work, check=True, capture_output=True, text=True
    ).stdout.strip()
    assert f'revision="{head}"' in device.curl("http://127.0.0.1:9470/metrics")
    remote.commit({"site/second.yaml": None})
    device.until(lambda: "second/main" not in device.ps())
    assert device.pid("web/main") == pid


@pytest.mark.parametrize("trouble", ["gone", "emptied", "branch deleted", "force-pushed", "garbage"])
def test_trouble_with_the_remote_stops_nothing(
    device: Device, remote: Remote, box: Built, trouble: str
) -> None:
    device.configure(bundles=[str(box.layout)])
    remote.commit(
        {"site/web.yaml": sleeper("web", reference(box)), "site/b.yaml": sleeper("b", reference(box))}
    )
    follow(device, remote)
    pid = device.running("web/main")
    match trouble:
        case "gone":
            remote.bare.rename(device.root / "away.git")
        case "emptied":
            remote.commit({"site/web.yaml": None, "site/b.yaml": None})
        case "branch deleted":
            remote.git("push", "-q", str(remote.bare), "HEAD:other")
            remote.git("symbolic-ref", "HEAD", "refs/heads/other", cwd=remote.bare)
            remote.git("branch", "-D", "main", cwd=remote.bare)
        case "force-pushed":
            remote.git("checkout", "-q", "--orphan", "fresh")
            remote.commit(
                {
                    "site/web.yaml": sleeper("web", reference(box)),
                    "site/extra.yaml": sleeper("x", reference(box)),
                }
            )
            device.running("x/main")
        case "garbage":
            for file in (remote.bare / "objects").rglob("*"):
                if file.is_file():
                    file.chmod(0o644)
                    file.write_bytes(b"garbage")
            remote.work.joinpath("site/new.yaml").write_text(sleeper("new", reference(box)))
    if trouble != "force-pushed":
        errors = 'reconciler_source_fetch_total{source="[^"]*",result="error"} [1-9]'
        if trouble == "emptied":
            device.logged("refusing|has no directory")
        else:
            device.until(
                lambda: (
                    re.search(errors, device.curl("http://127.0.0.1:9470/metrics")) or trouble == "garbage"
                )
            )
    assert device.pid("web/main") == pid
    # An agent that starts anew uses the commit that was fetched last.
    device.stop()
    follow(device, remote)
    device.logged("converged|keeps running its last good")
    assert device.pid("web/main") == pid


def test_a_url_that_runs_a_program_is_refused(device: Device) -> None:
    for url in ("ext::sh -c touch% /tmp/pwned", "--upload-pack=touch /tmp/pwned", "fd::17"):
        refused = device.reconciler("plan", f"--git={url}", check=False)
        assert refused.returncode == 64, refused.stderr
