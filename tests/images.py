"""Images for tests, made in pure Python: tar entries to layers, layers to OCI image layouts, and real ones from Debian.

`busybox` is built in milliseconds. `debian_base`, `nginx`, `redis` and `postgres` are made from Debian packages with
mmdebstrap, which takes a network and some seconds, and kept under $RECONCILER_TEST_CACHE (default: .cache/images in the
clone).
"""

import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.engine.image import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from reconciler.spec.reference import Digest

EPOCH = 1_700_000_000
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def sha256(data: bytes) -> Digest:
    """The digest of `data`."""
    return Digest("sha256", hashlib.sha256(data).hexdigest())


# --- tar -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """One tar entry. `kind` is tarfile's type flag; `xattrs` become SCHILY.xattr records."""

    name: str
    kind: bytes = tarfile.REGTYPE
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = EPOCH
    target: str = ""
    xattrs: Mapping[str, str] = field(default_factory=dict)
    pax: Mapping[str, str] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)


def directory(name: str, mode: int = 0o755, **more: int) -> Item:
    return Item(name, tarfile.DIRTYPE, mode=mode, **more)  # type: ignore[arg-type]


def file(name: str, data: bytes | str = b"", mode: int = 0o644, **more: int) -> Item:
    return Item(name, data=data.encode() if isinstance(data, str) else data, mode=mode, **more)  # type: ignore[arg-type]


def symlink(name: str, target: str) -> Item:
    return Item(name, tarfile.SYMTYPE, target=target, mode=0o777)


def hard_link(name: str, target: str) -> Item:
    return Item(name, tarfile.LNKTYPE, target=target)


def tar(items: Iterable[Item]) -> bytes:
    """Return a pax archive with `items`, whatever their names are."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for item in items:
            info = tarfile.TarInfo(item.name)
            info.type = item.kind
            info.mode, info.uid, info.gid = item.mode, item.uid, item.gid
            info.mtime = item.mtime
            info.linkname = item.target
            info.devmajor, info.devminor = item.device
            info.size = len(item.data)
            info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in item.xattrs.items()} | dict(
                item.pax
            )
            archive.addfile(info, io.BytesIO(item.data))
    return out.getvalue()


# --- layouts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerBlob:
    """A layer ready for a layout: the packed bytes, what they claim to be, and the digest of the archive."""

    data: bytes
    media_type: str
    diff_id: Digest


def layer(items: Iterable[Item] | bytes, *, packed: bool = True, level: int = 6) -> LayerBlob:
    """Pack entries, or an archive, into a layer: gzip, or plain with `packed` false."""
    archive = items if isinstance(items, bytes) else tar(items)
    if packed:
        return LayerBlob(gzip.compress(archive, level, mtime=0), OCI_LAYER + "+gzip", sha256(archive))
    return LayerBlob(archive, OCI_LAYER, sha256(archive))


class OciLayout:
    """An OCI image layout directory under construction; whatever is put in is there at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifests: list[dict[str, object]] = []
        (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = path / "index.json"
        if index.exists():
            self._manifests = json.loads(index.read_text())["manifests"]

    def blob_path(self, digest: Digest) -> Path:
        return self.path / "blobs" / digest.algorithm / digest.hex

    def blob(self, data: bytes) -> Digest:
        digest = sha256(data)
        path = self.blob_path(digest)
        if not path.exists():
            path.write_bytes(data)
        return digest

    def json(self, value: object) -> tuple[Digest, int]:
        data = json.dumps(value, separators=(",", ":")).encode()
        return self.blob(data), len(data)

    def image(
        self,
        layers: Sequence[LayerBlob],
        *,
        config: Mapping[str, object] | None = None,
        architecture: str = ARCHITECTURE,
        variant: str = "",
        tag: str = "latest",
        manifest: Mapping[str, object] | None = None,
    ) -> Digest:
        """Add an image and return the digest of its manifest. `config` is the inner object (Cmd, Env, ...)."""
        document: dict[str, object] = {
            "architecture": architecture,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [str(item.diff_id) for item in layers]},
        }
        if variant:
            document["variant"] = variant
        config_digest, config_size = self.json(document)
        value = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": str(config_digest), "size": config_size},
            "layers": [
                {"mediaType": item.media_type, "digest": str(self.blob(item.data)), "size": len(item.data)}
                for item in layers
            ],
        } | dict(manifest or {})
        digest, size = self.json(value)
        self.name(digest, size, OCI_MANIFEST, tag)
        return digest

    def index(self, manifests: Mapping[str, Digest], *, tag: str = "latest") -> Digest:
        """Add an index of `manifests` by platform (linux/arm64/v8) and return its digest."""
        entries = []
        for platform, digest in manifests.items():
            system, architecture, *variant = platform.split("/")
            described = {"os": system, "architecture": architecture} | (
                {"variant": variant[0]} if variant else {}
            )
            size = self.blob_path(digest).stat().st_size
            entries.append(
                {"mediaType": OCI_MANIFEST, "digest": str(digest), "size": size, "platform": described}
            )
        digest, size = self.json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
        self.name(digest, size, OCI_INDEX, tag)
        return digest

    def name(self, digest: Digest, size: int, media_type: str, tag: str) -> None:
        """Give a manifest a tag in index.json, where skopeo and umoci look for it."""
        self._manifests = [
            item
            for item in self._manifests
            if item.get("annotations") != {"org.opencontainers.image.ref.name": tag}
        ]
        self._manifests.append(
            {
                "mediaType": media_type,
                "digest": str(digest),
                "size": size,
                "annotations": {"org.opencontainers.image.ref.name": tag},
            }
        )
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self._manifests}))


@dataclass(frozen=True)
class Built:
    """An image in a layout: what to give as a bundle, or to push, and the digest to pin."""

    layout: Path
    digest: Digest
    tag: str = "latest"


# --- images --------------------------------------------------------------------------------------------------------

_APPLETS = """
sh cat echo ls sleep true false env id hostname mkdir rm mv cp ln chmod chown touch stat test wc
grep sed awk head tail cut sort uniq tr date ps kill top free df du mount umount nc wget httpd ping
ip ifconfig route nslookup vi find xargs tee dd sha256sum md5sum tar gzip gunzip seq yes printf expr
timeout usleep sync uname whoami readlink realpath dirname basename mkfifo mknod
"""


def busybox_layer() -> LayerBlob:
    """A root file system of busybox-static: /bin/busybox, links to it, passwd, group, /tmp and an empty /etc/hosts."""
    binary = Path("/usr/bin/busybox") if Path("/usr/bin/busybox").exists() else Path("/bin/busybox")
    items = [
        directory("./"),
        *(
            directory(f"./{name}")
            for name in ("bin", "etc", "proc", "sys", "dev", "usr", "usr/bin", "var", "root", "home")
        ),
        Item("./tmp", tarfile.DIRTYPE, mode=0o1777),
        file("./bin/busybox", binary.read_bytes(), 0o755),
        *(symlink(f"./bin/{name}", "busybox") for name in _APPLETS.split()),
        file(
            "./etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        file("./etc/group", "root:x:0:\napp:x:1000:\nextra:x:1001:app\nnogroup:x:65534:\n"),
        file("./etc/hosts", ""),
    ]
    return layer(items, level=1)


def busybox(
    path: Path,
    *,
    config: Mapping[str, object] | None = None,
    more: Sequence[LayerBlob] = (),
    tag: str = "latest",
) -> Built:
    """Build a busybox image into the layout directory `path`, with `more` layers on top."""
    layout = OciLayout(path)
    inner = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin"], **(config or {})}
    return Built(path, layout.image([busybox_layer(), *more], config=inner, tag=tag), tag)


def cache() -> Path:
    """Where images that take long to build are kept."""
    default = Path(__file__).resolve().parent.parent / ".cache" / "images"
    path = Path(os.environ.get("RECONCILER_TEST_CACHE", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _building(path: Path) -> Iterator[bool]:
    """Hold the lock for `path` and tell whether it still has to be built; what is built becomes visible at the end."""
    with open(f"{path}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not path.exists()


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """Return the directory `name` among what is kept; `build` fills it where it is not there yet."""
    path = cache() / name
    with _building(path) as needed:
        if needed:
            partial = path.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            build(partial)
            partial.rename(path)
    return path


def _bootstrap(
    packages: Sequence[str], into: Path, variant: str = "minbase", upon: Path | None = None
) -> None:
    """Install Debian packages into a new root file system, or `upon` another's archive, and write it to `into`.

    The tree is in memory: disks create files slowly. It and whatever is left mounted when this is interrupted go with
    the mount namespace.
    """
    command = ["mmdebstrap", "--quiet", f"--variant={variant}", "--mode=root", "--format=tar"]
    command += [f"--include={','.join(packages)}"] if packages else []
    command += ["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*"]
    command += [f'--setup-hook=tar -C "$1" -xf {shlex.quote(str(upon))}'] if upon is not None else []
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH), "TMPDIR": str(into.parent / "tree")}
    (into.parent / "tree").mkdir()
    inside = 'mount -t tmpfs tmpfs "$TMPDIR" && exec "$@"'
    subprocess.run(
        [
            *("unshare", "--mount", "--propagation=private", "sh", "-c", inside, "sh"),
            *(*command, "bookworm", str(into)),
        ],
        check=True,
        env=environment,
    )
    (into.parent / "tree").rmdir()


def _base_archive() -> Path:
    return (
        cached("debian.rootfs-2", lambda path: _bootstrap(["ca-certificates"], path / "root.tar"))
        / "root.tar"
    )


def _root_archive(name: str, packages: Sequence[str]) -> Path:
    """The archive of the base with these packages on it."""
    base = _base_archive()
    return (
        cached(f"{name}.rootfs-2", lambda path: _bootstrap(packages, path / "root.tar", "custom", base))
        / "root.tar"
    )


def neighbours_archive() -> Path:
    """The archive of a root file system with Docker, firewalld, ufw and NetworkManager, for tests beside them."""
    return _root_archive(
        "neighbours", ["dbus", "docker.io", "firewalld", "iproute2", "iptables", "network-manager", "ufw"]
    )


_Fingerprint = tuple[object, ...]


def _members(archive: Path) -> Iterator[tuple[tarfile.TarInfo, bytes, _Fingerprint]]:
    """Yield what may be in an image: everything but device nodes, which containers get from the engine."""
    with tarfile.open(archive, "r|") as members:
        for info in members:
            if info.isdev():
                continue
            found = members.extractfile(info) if info.isreg() else None
            data = found.read() if found is not None else b""
            yield (
                info,
                data,
                (
                    info.type,
                    info.mode,
                    info.uid,
                    info.gid,
                    info.linkname,
                    None if info.isdir() else info.mtime,
                    hashlib.sha256(data).digest(),
                    tuple(sorted(info.pax_headers.items())),
                ),
            )


def _difference(base: Path | None, archive: Path) -> bytes:
    """Return the layer, as an archive, that turns `base` into `archive`."""
    before = {} if base is None else {info.name: known for info, _, known in _members(base)}
    kept: set[str] = set()
    changed: set[str] = set()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as layer_archive:
        for info, data, known in _members(archive):
            kept.add(info.name)
            # A hard link goes with its target: one that stayed behind would still be the old file.
            if before.get(info.name) != known or (info.islnk() and info.linkname in changed):
                changed.add(info.name)
                layer_archive.addfile(info, io.BytesIO(data))
        for name in sorted(set(before) - kept):
            parent, _, base_name = name.rstrip("/").rpartition("/")
            if parent in kept:
                layer_archive.addfile(tarfile.TarInfo(f"{parent}/.wh.{base_name}"))
    return out.getvalue()


_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _debian(name: str, packages: Sequence[str], config: Mapping[str, object]) -> Built:
    def build(path: Path) -> None:
        base = _base_archive()
        layers = [layer(_difference(None, base), level=1)] if not packages else [*layers_of(debian_base())]
        if packages:
            layers.append(layer(_difference(base, _root_archive(name, packages)), level=1))
        layout = OciLayout(path)
        digest = layout.image(layers, config={"Env": [_PATH], **config}, tag=name)
        (path / "digest").write_text(str(digest))

    path = cached(f"{name}.oci-2", build)
    return Built(path, Digest.parse((path / "digest").read_text()), name)


def layers_of(built: Built) -> Iterator[LayerBlob]:
    """The layers of an image in a layout, as they were packed."""
    layout = OciLayout(built.layout)
    manifest = json.loads(layout.blob_path(built.digest).read_bytes())
    config = json.loads(layout.blob_path(Digest.parse(manifest["config"]["digest"])).read_bytes())
    for entry, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        data = layout.blob_path(Digest.parse(entry["digest"])).read_bytes()
        yield LayerBlob(data, entry["mediaType"], Digest.parse(diff_id))


def debian_base() -> Built:
    """Debian 12, minimal, in one layer: about 60 MB packed."""
    return _debian("debian", [], {"Cmd": ["/bin/bash"]})


def nginx() -> Built:
    """nginx from Debian on `debian_base`; listens on port 80, logs to its standard output."""
    command = ["nginx", "-g", "daemon off; error_log /dev/stderr info;"]
    config = {"Cmd": command, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT"}
    return _debian("nginx", ["nginx-light"], config)


def redis() -> Built:
    """redis from Debian on `debian_base`; listens on port 6379 without protection, keeps its data in /data."""
    command = [
        "redis-server",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--dir",
        "/data",
        "--appendonly",
        "yes",
    ]
    config = {"Cmd": command, "ExposedPorts": {"6379/tcp": {}}, "Volumes": {"/data": {}}}
    return _debian("redis", ["redis-server"], config)


_WANTED = re.compile(
    r"\./usr/(lib/postgresql|share/postgresql|share/zoneinfo|lib/[a-z0-9_]+-linux-gnu/lib[^/]+\.so)"
)
_UNWANTED = re.compile(r"/(bitcode|llvmjit|libLLVM|libz3|libperl|locale/)")
_POSTGRES = """
set -e
export PATH=/usr/lib/postgresql/15/bin:$PATH
if [ ! -s /data/db/PG_VERSION ]; then
  rm -rf /data/new
  initdb -D /data/new -U postgres -A trust --locale=C --no-sync >/dev/null
  echo 'host all all 0.0.0.0/0 trust' >>/data/new/pg_hba.conf
  mv /data/new /data/db
fi
exec postgres -D /data/db -c listen_addresses='*' -c unix_socket_directories=/tmp -c jit=off
"""


def postgres() -> Built:
    """PostgreSQL 15 from Debian on `debian_base`; trusts everybody on port 5432, keeps its data in /data.

    Its packages are only extracted: to configure them takes longer, and what that makes is not used.
    """

    def build(path: Path) -> None:
        everything = path / "everything.tar"
        _bootstrap(["postgresql-15"], everything, "extract")
        base = _base_archive()
        with tarfile.open(base) as archive:
            there = set(archive.getnames())
            passwd = archive.extractfile("./etc/passwd")
            users = passwd.read() if passwd is not None else b""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
            with tarfile.open(everything, "r|") as members:
                for info in members:
                    info.name = re.sub(
                        r"^\./lib/", "./usr/lib/", info.name
                    )  # where /lib leads on `debian_base`
                    if info.name in there or not _WANTED.match(info.name) or _UNWANTED.search(info.name):
                        continue
                    made.addfile(info, members.extractfile(info) if info.isreg() else None)
            users += b"postgres:x:999:999::/data:/bin/sh\n"
            for name, kind, content in (
                ("./etc/passwd", tarfile.REGTYPE, users),
                ("./data", tarfile.DIRTYPE, b""),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.size = kind, len(content)
                info.mode, info.uid, info.gid = (
                    (0o755, 999, 999) if kind == tarfile.DIRTYPE else (0o644, 0, 0)
                )
                made.addfile(info, io.BytesIO(content))
        everything.unlink()
        layers = [*layers_of(debian_base()), layer(out.getvalue(), level=1)]
        config = {
            "Env": [_PATH],
            "Cmd": ["/bin/sh", "-c", _POSTGRES],
            "User": "postgres",
            "StopSignal": "SIGINT",
        }
        digest = OciLayout(path).image(layers, config=config, tag="postgres")
        (path / "digest").write_text(str(digest))

    path = cached("postgres.oci-2", build)
    return Built(path, Digest.parse((path / "digest").read_text()), "postgres")
