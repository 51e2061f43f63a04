"""A bundle of ours in another runtime's hands: runc and crun, too, make a container of it, confined as ours are.

Only what runc can't have is taken away: the overlay is in annotations (here a plain root file system), and the cgroup
and network are the agent's.
"""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.engine import bundle
from reconciler.engine.bundle import CAPABILITIES
from reconciler.engine.layout import Layout
from reconciler.engine.seccomp import filter
from reconciler.spec.reference import Digest
from reconciler.state.desired import (
    ConfigMount,
    Container,
    Identity,
    Limits,
    Settings,
    TmpfsMount,
    VolumeMount,
)
from reconciler.state.image import Image
from tests.kernel.workshop import remove, scratch

pytestmark = [pytest.mark.kernel, pytest.mark.cgroup]

ID = "0123456789abcdef0123456789abcdef"
DIGEST = Digest("sha256", "a" * 64)
_PROBE = (
    "grep -E '^(Cap|NoNewPrivs|Groups|Seccomp:)' /proc/self/status; hostname; echo $GREETING; pwd; "
    "cat /etc/db.conf; echo; "
    "stat -c %a:%u /etc/db.conf; touch /data/x && stat -f -c %T /cache; cat /etc/hosts; ls /proc/kcore /proc/acpi; "
    "touch /sys/x || echo sealed; unshare -u true || echo filtered"
)


@pytest.fixture
def place() -> Iterator[Path]:
    path = scratch("other")
    yield path
    remove(path)


def wanted() -> Container:
    mounts = (
        VolumeMount("data", "/data"),
        TmpfsMount("/cache", 1 << 20),
        ConfigMount("conf", "/etc/db.conf", "c" * 64, uid=0, mode=0o440),
    )
    identity = Identity(
        image=str(DIGEST),
        arguments=("/bin/sh", "-c", _PROBE),
        environment=("GREETING=hello", "PATH=/bin"),
        working_dir="/tmp",
        hostname="other",
        mounts=mounts,
    )
    image = Image(DIGEST, DIGEST, DIGEST, (), "linux/amd64")
    settings = Settings(limits=Limits(cpus=500, memory=64 << 20, pids=50))
    return Container(
        "web", "db", identity, settings, image, "r.example/db@sha256:a", configs={"conf": b"content"}
    )


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_it_makes_a_container_of_it(place: Path, busybox: Path, runtime: str) -> None:
    if shutil.which(runtime) is None:
        pytest.skip(f"this machine has no {runtime}")
    desired, layout = wanted(), Layout(place / "state", place / "run")
    directory = layout.container(ID)
    for path in (layout.configs(ID), layout.run_container(ID), layout.volume_data("web", "data")):
        path.mkdir(parents=True)
    shutil.copytree(busybox, layout.rootfs(ID), symlinks=True)
    for path in (layout.hosts(ID), layout.resolv_conf(ID), layout.hostname(ID)):
        path.write_text("127.0.0.1 localhost\n")
    for name, mount in bundle.config_files(desired).items():
        (layout.configs(ID) / name).write_bytes(desired.configs[mount.config])
        (layout.configs(ID) / name).chmod(mount.mode)
    name = f"reconciler-{runtime}-{secrets.token_hex(4)}"
    config = bundle.render(
        desired,
        id=ID,
        layout=layout,
        layers=[],
        upper=layout.upper(ID),
        work=layout.work(ID),
        cgroup={"v2": None, "v1": []},
        cgroups_path=f"/{name}",
        nofile_hard=4096,
        seccomp=filter.section(desired, CAPABILITIES),
    )
    (directory / "config.json").write_text(json.dumps(config))
    command = [runtime, "--root", str(place / runtime), "run", "--bundle", str(directory), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, input="", check=False)
    if "cgroups in hybrid mode not supported" in done.stderr:
        pytest.skip("this kernel lacks what this needs: crun refuses version 1 and 2 of cgroups side by side")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    said = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {said[f"Cap{kind}"] for kind in ("Prm", "Eff", "Bnd")} == {"00000000000405fb"}
    assert {said[f"Cap{kind}"] for kind in ("Inh", "Amb")} == {"0" * 16}
    assert (said["NoNewPrivs"], said["Seccomp"]) == ("1", "2")
    assert lines[len(said) :] == [
        *(
            "other",
            "hello",
            "/tmp",
            "content",
            "440:0",
            "tmpfs",
            "127.0.0.1 localhost",
            "/proc/kcore",
            "sealed",
            "filtered",
        )
    ] or lines[-2:] == ["sealed", "filtered"]
    assert (layout.volume_data("web", "data") / "x").exists()
    assert not os.listdir(place / runtime)
