"""A course in Docker's fundamentals, line by line: whoever learnt it finds everything where it was, and kept."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.e2e.course import COURSE
from tests.e2e.device import PATIENCE, PROGRAM, Device
from tests.e2e.test_verbs import on_terminal, terminal
from tests.e2e.world import Registry
from tests.images import Built, busybox, nginx, redis

pytestmark = [pytest.mark.e2e, pytest.mark.kernel, pytest.mark.network]

NOUNS = ("container", "image", "volume", "system", "network")


class Course:
    """The command lines in their order; each is run as it stands, with this test's registry and directory."""

    def __init__(self, device: Device, images: dict[str, str], directory: Path) -> None:
        self.device = device
        self.directory = directory
        self._images = images
        self._left = [line for line, _ in COURSE]

    def words(self, line: str) -> list[str]:
        """The command line as a shell in our directory would pass it on, with the places of this device."""
        expected = self._left.pop(0)
        assert line == expected, "the test and the course go different ways"
        words = shlex.split(line.replace("$PWD", str(self.directory)))
        words = [self._images.get(word.removeprefix("registry.example/"), word) for word in words]
        verb = 2 if words[0] in NOUNS else 1
        return [*PROGRAM, *words[:verb], *self.device.places, *words[verb:]]

    def __call__(self, line: str, *, code: int = 0) -> str:
        """Run the next line; return what it prints, or complains."""
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.device.namespace}", "--", *self.words(line)],
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == code, f"{line}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return (done.stdout if code == 0 else done.stderr).strip()

    def finished(self) -> None:
        assert self._left == []

    # --- the world around ----------------------------------------------------------------------------------------

    def page(self, port: int) -> str:
        return self.device.until(lambda: self.device.curl(f"http://127.0.0.1:{port}/"))

    def container(self, name: str) -> dict[str, object]:
        return self.device.ps()[name]

    def limit(self, identity: str, *names: str) -> str:
        """A limit as the kernel has it, in the file of either version of cgroups."""
        parent = f"reconciler-{self.device.instance}"
        found = [p for n in names for p in Path("/sys/fs/cgroup").glob(f"**/{parent}/{identity}/{n}")]
        return found[0].read_text().strip()


@pytest.fixture
def course(device: Device, tmp_path: Path) -> Course:
    device.configure(registries={"insecure": ["127.0.0.1:5000"]}, allowed_binds=[str(tmp_path)])
    registry = Registry(device, device.root / "registry")
    images: dict[str, Built] = {"nginx": nginx(), "redis": redis(), "busybox": busybox(tmp_path / "box")}
    names = {name: registry.push(built, name).partition("@")[0] for name, built in images.items()}
    device.start()
    device.logged("converged")
    (tmp_path / "page.html").write_text("a page of our own\n")
    names["registry.example"] = registry.name
    return Course(device, names, tmp_path)


def test_the_course(course: Course) -> None:
    device = course.device
    the_images(course)
    box = the_containers(course)
    the_life(course, box)
    the_data(course)
    the_room(course)
    assert "credentials removed" in course("logout registry.example")
    assert "reconciler" in course("version")
    assert "overlay" in course("doctor")
    course.finished()
    assert device.ps() == {}


def the_images(course: Course) -> None:
    assert "login succeeded" in course("login -u student -p secret registry.example")
    for name in ("nginx", "busybox"):
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", course(f"pull registry.example/{name}"))
    listed = course("images")
    assert "/nginx" in listed
    assert "/busybox" in listed


def the_containers(course: Course) -> str:
    for number in (1, 2):
        line = f"run -d --name web{number} -p 808{number}:80 registry.example/nginx"
        assert re.fullmatch(r"[0-9a-f]{32}", course(line))
        assert "Welcome to nginx" in course.page(8080 + number)
    shown = course("ps").splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["web1", "web2"]
    assert "0.0.0.0:8082->80/tcp" in shown[2]
    assert course("port web1") == "80/tcp -> 0.0.0.0:8081"
    course("logs web1")
    assert course("inspect --format '{{.State.Status}}' web1") == "running"
    course("cp ./page.html web1:/var/www/html/index.html")
    assert "a page of our own" in course.page(8081)
    assert "Welcome to nginx" in course.page(8082)
    course("cp web1:/etc/nginx/nginx.conf ./nginx.conf")
    assert "worker_processes" in (course.directory / "nginx.conf").read_text()
    line = "run --rm --pull=never -e GREETING=hello registry.example/busybox sh -c 'echo $GREETING'"
    assert course(line) == "hello"
    box = course(
        "run -d --name box --memory 64m --cpus 0.5 registry.example/busybox "
        "sh -c 'trap \"echo bye; exit 3\" TERM; echo ready; while :; do usleep 20000; done'"
    )
    assert course.limit(box, "memory.limit_in_bytes", "memory.max") == str(64 << 20)
    assert course.limit(box, "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    return box


def the_life(course: Course, box: str) -> None:
    device = course.device
    follower = subprocess.Popen(course.words("logs -f box"), stdout=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    assert follower.stdout.readline() == "ready\n"
    assert course("exec box sh -c 'echo inside > /note; id -u'") == "0"
    course.words("exec -it box sh")
    with terminal(device, "-it", "box", "sh") as screen:
        screen.expect("# ")
        screen.type("busybox tty; cat /note; exit 5\n")
        screen.expect("/dev/(pts/[0-9]+|console)")
        screen.expect("inside")
        assert screen.process.wait(10 * PATIENCE) == 5
    with on_terminal(device, course.words("run -it --rm --name shell registry.example/busybox sh")) as screen:
        screen.expect("# ")
        screen.type("\x10\x11")
        screen.expect("left: ")
        assert screen.process.wait(10 * PATIENCE) == 0
    with on_terminal(device, course.words("attach shell")) as screen:
        screen.type("echo $((40 + 2)) is it; exit 6\n")
        screen.expect("42 is it")
        assert screen.process.wait(10 * PATIENCE) == 6
    assert "sh -c trap" in course("top box")
    assert "/ 64.0MiB" in course("stats --no-stream box")
    assert course("diff box").split() == ["A", "/note"]
    assert course("stop box") == "box"
    assert follower.stdout.read() == "bye\n"
    assert follower.wait(10 * PATIENCE) == 0
    follower.stdout.close()
    assert re.search(r"^box +Exited \(3\)", course("ps -a"), re.MULTILINE)
    assert course("wait box") == "3"
    assert course("start box") == "box"
    first = device.pid("box")
    assert device.reconciler("exec", "box", "cat", "/note").stdout == "inside\n"
    course("pause box")
    assert course.container("box")["state"] == "paused"
    course("unpause box")
    assert course.container("box")["state"] == "running"
    course("update --memory 96m box")
    assert course.limit(box, "memory.limit_in_bytes", "memory.max") == str(96 << 20)
    assert device.pid("box") == first
    course("restart -t 1 box")
    assert device.pid("box") not in (0, first)
    assert device.reconciler("exec", "box", "cat", "/note").stdout == "inside\n"
    course("rename web2 second")
    assert course.container("second")["state"] == "running"
    assert course.page(8082)
    course("rename second web2")
    course("kill -s KILL web2")
    assert course.container("web2")["exit_code"] == 137
    assert device.curl("http://127.0.0.1:8082/") == ""
    course("rm web2")
    assert "is running" in course("rm box", code=5)
    course("rm -f box")
    identity = course("create --name later registry.example/busybox true")
    assert course.container("later")["state"] == "created"
    assert identity[:12] in course("container ls -a -q").split()
    assert set(device.ps()) == {"web1", "later"}


def the_data(course: Course) -> None:
    device = course.device
    course("volume create data")
    (found,) = json.loads(course("volume inspect data"))
    assert Path(found["Mountpoint"]).is_dir()
    course("run --rm -v data:/data registry.example/busybox sh -c 'echo kept > /data/file'")
    assert course("run --rm -v data:/data registry.example/busybox cat /data/file") == "kept"
    refused = course("run --rm -v data:/data:ro registry.example/busybox touch /data/other", code=1)
    assert "Read-only file system" in refused
    page = "run --rm -v $PWD:/host:ro registry.example/busybox cat /host/page.html"
    assert course(page) == "a page of our own"
    refused = course("run --rm -v $PWD:/host:ro registry.example/busybox touch /host/other", code=1)
    assert "Read-only file system" in refused
    assert not (course.directory / "other").exists()
    mode = "registry.example/busybox grep Seccomp: /proc/self/status"
    assert course(f"run --rm {mode}").split() == ["Seccomp:", "2"]
    assert course(f"run --rm --security-opt seccomp=unconfined {mode}").split() == ["Seccomp:", "0"]

    start = "run -d --name db -v dbdata:/data registry.example/redis"
    course(start)
    device.until(lambda: "PONG" in device.reconciler("exec", "db", "redis-cli", "ping").stdout)
    assert course("exec db redis-cli set answer 42") == "OK"
    course("rm -f db")
    course(start)
    device.until(lambda: "PONG" in device.reconciler("exec", "db", "redis-cli", "ping").stdout)
    assert course("exec db redis-cli get answer") == "42"
    assert course("run --rm registry.example/redis redis-cli -h db get answer") == "42"
    assert [line.split()[0] for line in course("network ls").splitlines()[1:]] == ["adhoc"]
    (network,) = json.loads(course("network inspect adhoc"))
    assert "db" in {one["Name"] for one in network["Containers"].values()}
    assert len(course("run -d --name scratch -v /scratch registry.example/busybox sleep 1000")) == 32
    assert course("rm -f -v scratch") == "scratch"
    assert {line.split()[0] for line in course("volume ls").splitlines()[1:]} == {
        "adhoc/data",
        "adhoc/dbdata",
    }
    assert "in use by adhoc/db" in course("volume rm dbdata", code=5)


def the_room(course: Course) -> None:
    device = course.device
    course("tag registry.example/busybox localhost/mybox:v1")
    (tagged,) = json.loads(course("image inspect localhost/mybox:v1"))
    assert any("/busybox" in name for name in tagged["RepoTags"])
    course("save -o mybox.tar localhost/mybox:v1")
    assert course("load -i mybox.tar") == "Loaded image: localhost/mybox:v1"
    course("rmi localhost/mybox:v1")
    assert "adhoc/web1" in course("rmi registry.example/nginx", code=5)
    assert "start adhoc/web1" in course("events -n 200")
    assert re.search(r"^volumes +2 +1 ", course("system df"), re.MULTILINE)
    course("kill db")
    course("rm db")
    course("rm -f web1 later")
    assert device.ps() == {}
    course("image prune -f")
    left = device.reconciler("images").stdout
    assert "/nginx" in left
    assert "/busybox" in left
    assert "/redis" not in left
    course("image prune -a -f")
    course("volume prune -f")
    assert len(device.reconciler("volume", "ls", "-q").stdout.split()) == 2
    course("volume rm dbdata")
    course("volume prune -a -f")
    assert device.reconciler("volume", "ls", "-q").stdout == ""
    assert course("container prune -f") == "nothing to remove"
    assert course("system prune -f") == "nothing to remove"
    assert course("images").splitlines()[1:] == []
