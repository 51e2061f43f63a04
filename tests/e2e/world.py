"""What is around a device: a real registry in its network, a machine outside of it, and clients that answer in JSON.

Nothing of the program under test is used here, so that a fault of it can't hide.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.device import PATIENCE, Device
from tests.images import Built, Item, LayerBlob, OciLayout, layer

_CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{name}"}}
"""


# The spec of an app `web` with one container `main` that does nothing, of the image `image`.
SLEEPER = """
apiVersion: reconciler/v1
kind: App
name: web
containers:
  main:
    image: {image}
    command: [sleep, "100000"]
    stop_grace_period: 0s
"""


class Registry:
    """Debian's docker-registry inside the network of a device; pushed to by skopeo, byte by byte."""

    def __init__(self, device: Device, storage: Path, *, name: str = "127.0.0.1:5000") -> None:
        self.name = name
        self.storage = storage
        self._device = device
        self._config = device.root / f"registry-{name.rpartition(':')[2]}.yml"
        self._config.write_text(_CONFIG.format(data=storage, name=name))
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = self._device.spawn(["docker-registry", "serve", str(self._config)], **quiet)
        self._device.until(lambda: self._device.curl(f"http://{self.name}/v2/") == "{}")

    def stop(self) -> None:
        """Take it down; what was pushed stays."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    def push(self, built: Built, repository: str) -> str:
        """Push an image and return the reference that pins it."""
        options = ["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"]
        target = f"docker://{self.name}/{repository}:{built.tag}"
        self._device.inside(["skopeo", *options, f"oci:{built.layout}:{built.tag}", target])
        return f"{self.name}/{repository}:{built.tag}@{built.digest}"

    def lose(self, built: Built, repository: str) -> None:
        """Forget the manifest of an image, as registries do that clean up."""
        for path in self.storage.glob(f"**/repositories/{repository}/_manifests"):
            shutil.rmtree(path)


class Outside:
    """Another machine, joined to the device by a cable: 198.51.100.2 there, 198.51.100.1 here."""

    here = "198.51.100.1"

    def __init__(self, device: Device) -> None:
        self._device = device
        self._namespace = f"{device.namespace}-out"
        subprocess.run(["ip", "netns", "add", self._namespace], check=True)
        peer = f"netns {self._namespace}".split()
        device.inside(["ip", "link", "add", "cable", "type", "veth", "peer", "name", "cable", *peer])
        device.inside(["ip", "address", "add", f"{self.here}/24", "dev", "cable"])
        device.inside(["ip", "link", "set", "cable", "up"])
        self.inside(["ip", "address", "add", "198.51.100.2/24", "dev", "cable"])
        self.inside(["ip", "link", "set", "cable", "up"])

    def inside(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command on the other machine."""
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self._namespace}", "--", *command],
            capture_output=True,
            text=True,
            timeout=30 * PATIENCE,
            check=False,
        )

    def curl(self, port: int) -> str:
        return self.inside(["curl", "-s", "-m", "5", f"http://{self.here}:{port}/"]).stdout

    def datagram(self, port: int, text: str) -> str:
        """Send `text` in a datagram and return the answer; "" after a second without one."""
        return self.inside([sys.executable, "-c", _DATAGRAM, self.here, str(port), text]).stdout

    def close(self) -> None:
        subprocess.run(["ip", "netns", "del", self._namespace], check=True)


_DATAGRAM = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.sendto(sys.argv[3].encode(), (sys.argv[1], int(sys.argv[2])))
try:
    print(s.recv(2048).decode(), end="")
except OSError:
    pass
"""


def upon(base: Built, path: Path, items: Sequence[Item], *, tag: str = "latest") -> Built:
    """An image of `base` with one more layer, which holds `items`; nothing of `base` is packed again."""
    shutil.copytree(base.layout / "blobs", path / "blobs", copy_function=_link)
    layout = OciLayout(path)
    manifest = json.loads(layout.blob_path(base.digest).read_bytes())
    config = json.loads((path / "blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes())
    more: LayerBlob = layer(items)
    config["rootfs"]["diff_ids"].append(str(more.diff_id))
    digest, size = layout.json(config)
    manifest["config"] |= {"digest": str(digest), "size": size}
    manifest["layers"].append(
        {"mediaType": more.media_type, "digest": str(layout.blob(more.data)), "size": len(more.data)}
    )
    found, size = layout.json(manifest)
    layout.name(found, size, manifest["mediaType"], tag)
    return Built(path, found, tag)


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copyfile(source, target)
