"""Containers with ids of their own: real programs run, files keep their ids, and everything by hand goes on working."""

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import reference
from tests.e2e.device import Device
from tests.images import Built, debian_base, nginx, postgres, redis

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

APP = """
apiVersion: reconciler/v1
kind: App
name: own
containers:
  web: {{image: {nginx}, ports: ["8080:80"], limits: {{memory: 64Mi}}, userns: auto, stop_grace_period: 5s}}
  cache: {{image: {redis}, volumes: ["cache:/data"], limits: {{memory: 128Mi}}, userns: auto}}
  db: {{image: {postgres}, volumes: ["db:/data"], limits: {{memory: 256Mi}}, userns: {userns}, stop_grace_period: 10s}}
volumes: {{cache: {{}}, db: {{}}}}
"""
PSQL = ("/usr/lib/postgresql/15/bin/psql", "-h", "127.0.0.1", "-U", "postgres", "-Atc")


def first_id(device: Device, name: str) -> int:
    inside, first, count = Path(f"/proc/{device.pid(name)}/uid_map").read_text().split()
    assert (inside, count) == ("0", "65536")
    return int(first)


def test_real_programs_run_with_ids_of_their_own_and_their_data_stays_theirs(device: Device) -> None:
    built = {"nginx": nginx(), "redis": redis(), "postgres": postgres(), "debian": debian_base()}
    device.configure(bundles=[str(image.layout) for image in built.values()], interval="1s")
    images = {name: reference(image) for name, image in built.items()}
    device.spec("own", APP.format(**images, userns="host"))
    device.start()

    def sql(query: str) -> str:
        return device.reconciler("exec", "own/db", *PSQL, query, check=False).stdout.strip()

    device.until(lambda: sql("select 1") == "1", timeout=60)
    sql("create table goods (name text); insert into goods values ('bread')")
    device.until(lambda: "Welcome to nginx" in device.curl("http://127.0.0.1:8080/"))
    (version, *_) = (device.state / "volumes/own/db/data").rglob("PG_VERSION")
    owner = version.stat().st_uid
    before = device.pid("own/db")
    device.spec("own", APP.format(**images, userns="auto"))
    device.until(
        lambda: device.running("own/db") != before and sql("select name from goods") == "bread", timeout=60
    )
    assert version.stat().st_uid == owner
    ranges = {first_id(device, f"own/{name}") for name in ("web", "cache", "db")}
    assert len(ranges) == 3
    assert all(0x70000000 <= first < 1 << 31 for first in ranges)
    ping = device.reconciler("exec", "own/cache", "redis-cli", "set", "cart", "full").stdout
    assert ping == "OK\n"
    done = device.reconciler(
        "run", "--rm", "--userns", "auto", images["debian"], "sh", "-c", "id -u; apt-get --version"
    )
    assert done.stdout.startswith("0\napt ")
    assert device.reconciler("inspect", "own/db", "--format", "{{.HostConfig.UsernsMode}}").stdout == "auto\n"


def test_ids_of_its_own_are_the_default_where_nothing_of_the_devices_is_asked_for(
    device: Device, box: Built
) -> None:
    image = reference(box)
    fields = f"image: {image}, command: [sleep, '100000'], stop_signal: SIGKILL"
    device.configure(bundles=[str(box.layout)], interval="1s", allowed_binds=[str(device.specs)])
    containers = {
        "own": fields,
        "asked": f"{fields}, userns: host",
        "bind": f"{fields}, volumes: ['{device.specs}:/specs:ro']",
    }
    spec = "".join(f"  {name}: {{{text}}}\n" for name, text in containers.items())
    head = "apiVersion: reconciler/v1\nkind: App\nname: ids\ncontainers:\n"
    device.spec("ids", head + spec)
    device.start()
    device.until(lambda: all(device.running(f"ids/{name}") for name in containers))
    first = first_id(device, "ids/own")
    for name in ("asked", "bind"):
        assert Path(f"/proc/{device.pid(f'ids/{name}')}/uid_map").read_text().split() == [
            "0",
            "0",
            "4294967295",
        ]
    (item,) = json.loads(device.reconciler("top", "ids/own", "-o", "json").stdout)["items"]
    assert (item["uid"], item["host_uid"]) == (0, first)
    # Said by the device's own file it is the other way, for this one alone
    pids = {name: device.pid(f"ids/{name}") for name in containers}
    device.stop()
    device.configure(
        bundles=[str(box.layout)],
        interval="1s",
        allowed_binds=[str(device.specs)],
        defaults={"userns": "host"},
    )
    device.start()
    device.until(lambda: device.running("ids/own") not in (0, pids["own"]))
    assert Path(f"/proc/{device.pid('ids/own')}/uid_map").read_text().split() == ["0", "0", "4294967295"]
    assert [device.pid(f"ids/{name}") for name in ("asked", "bind")] == [pids["asked"], pids["bind"]]


def test_files_go_in_and_out_with_the_ids_that_they_have_inside(
    device: Device, box: Built, tmp_path: Path
) -> None:
    device.configure(bundles=[str(box.layout)])
    device.start()
    image = reference(box)
    run = ("run", "-d", "--userns", "auto", "-v", "data:/data", "--tmpfs", "/scratch")
    device.reconciler(*run, "--name", "own", image, "sleep", "100000")
    source = tmp_path / "file"
    source.write_text("in\n")
    for state in ("running", "stopped"):
        for place in ("/data", "/etc"):
            device.reconciler("cp", str(source), f"own:{place}/{state}")
            device.reconciler("cp", f"own:{place}/{state}", str(tmp_path / "out"))
            assert (tmp_path / "out").read_text() == "in\n"
            assert (tmp_path / "out").stat().st_uid == 0
        if state == "running":
            script = (
                "mkdir /d && echo x >/d/f && chown 1000:1001 /d/f && stat -c %u:%g /etc/running /data/running"
            )
            assert device.reconciler("exec", "own", "sh", "-c", script).stdout == "0:0\n" * 2
        archive = tmp_path / "archive.tar"
        archive.write_bytes(device.reconciler("cp", "own:/d", "-").stdout.encode())
        listed = device.inside(["tar", "--numeric-owner", "-tvf", str(archive)]).stdout
        assert "1000/1001" in listed
        assert f"A   /etc/{state}" in device.reconciler("diff", "own").stdout.splitlines()
        if state == "running":
            device.reconciler("stop", "-t", "0", "own")
    before = (device.state / "volumes/adhoc/data/data/stopped").stat()
    assert (before.st_uid, before.st_gid) == (0, 0)
    device.reconciler("start", "own")
    script = "stat -c %u:%g /etc/stopped /data/stopped /d/f"
    assert device.reconciler("exec", "own", "sh", "-c", script).stdout == "0:0\n0:0\n1000:1001\n"


def test_what_does_not_go_with_ids_of_its_own_is_refused(device: Device, box: Built) -> None:
    device.configure(bundles=[str(box.layout)], allowed_caps=["NET_ADMIN"])
    device.start()
    for options, said in (
        (("--cap-add", "NET_ADMIN"), "NET_ADMIN gives nothing with userns: auto"),
        (("--network", "host"), "userns: auto does not go with network_mode: host"),
        (("-u", "70000"), "with userns: auto there are ids below 65536 only, not 70000"),
    ):
        done = device.reconciler("run", "--userns", "auto", *options, reference(box), "true", check=False)
        assert done.returncode == 125
        assert said in done.stderr
