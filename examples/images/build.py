#!/usr/bin/env python3
"""Build the example image: compile page/ for amd64 and arm64 and write the OCI image layout in layout/.

    build.py            write layout/ and compiler.json
    build.py --check    write nothing; exit 1 unless the same compilers make the committed layout

The result is a function of the sources and of the programs recorded in compiler.json: no clock, no user, no path of this
machine gets in. The layout is committed, because the apps in specs/ must run where there is neither a compiler nor a
network; this script is how anybody checks what was committed. It needs gcc for both platforms (Debian: gcc and
gcc-aarch64-linux-gnu, or the other way round on arm64) and only Python's standard library.
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAME = "reconciler.example/page:1"  # .example is reserved (RFC 2606): no registry will ever answer for it
CREATED = "2026-01-01T00:00:00Z"

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

FLAGS = (
    "-std=gnu11 -Os -Wall -Wextra -Wconversion -Werror -ffreestanding -fno-pie -fno-stack-protector"
    " -fno-asynchronous-unwind-tables -fno-unwind-tables -fno-tree-loop-distribute-patterns -fno-ident"
    " -ffunction-sections -fdata-sections -static -nostdlib -no-pie -s"
    " -Wl,--build-id=none,--gc-sections,-z,noexecstack,-z,noseparate-code,-z,norelro"
).split()

PASSWD = b"root:x:0:0:root:/:/page\npage:x:1000:1000:page:/data:/page\nnobody:x:65534:65534:nobody:/:/page\n"
GROUP = b"root:x:0:\npage:x:1000:\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class Platform:
    """One platform: its OCI name, the compiler that makes it, and what that compiler needs to be told beside FLAGS."""

    architecture: str
    compiler: str
    flags: tuple[str, ...] = ()
    variant: str | None = None


PLATFORMS = (
    Platform("amd64", "x86_64-linux-gnu-gcc", ("-fcf-protection=none",)),
    Platform("arm64", "aarch64-linux-gnu-gcc", (), "v8"),
)


def first_line(*command: str) -> str:
    """Return the first line that `command` prints, or "" when there is no such program."""
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.partition("\n")[0]


def tools(platform: Platform) -> dict[str, str]:
    """Name the programs whose output ends up in the binary of `platform`, by what they say of themselves."""
    linker = platform.compiler.removesuffix("gcc") + "ld"
    return {"compiler": first_line(platform.compiler, "--version"), "linker": first_line(linker, "--version")}


def compile_page(platform: Platform) -> bytes:
    """Return the static program for `platform`."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "page"
        command = [platform.compiler, *FLAGS, *platform.flags, "-o", str(target), "page.c"]
        subprocess.run(command, cwd=HERE / "page", check=True)
        return target.read_bytes()


def root_tar(program: bytes) -> bytes:
    """Return the root file system as an uncompressed tar: the program, the accounts, /data and /tmp."""
    entries: list[tuple[str, int, int, bytes | None]] = [
        ("data", 0o755, 1000, None),
        ("etc", 0o755, 0, None),
        ("etc/group", 0o644, 0, GROUP),
        ("etc/passwd", 0o644, 0, PASSWD),
        ("page", 0o755, 0, program),
        ("tmp", 0o1777, 0, None),
    ]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode, owner, content in entries:
            info = tarfile.TarInfo(name if content is not None else f"{name}/")
            info.type = tarfile.REGTYPE if content is not None else tarfile.DIRTYPE
            info.mode, info.uid, info.gid, info.size = mode, owner, owner, len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def sha256(content: bytes) -> str:
    """Return the OCI digest of `content`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def document(value: Mapping[str, Any]) -> bytes:
    """Return `value` as the JSON text that is stored and hashed."""
    return json.dumps(value, indent=2, sort_keys=True).encode() + b"\n"


def describe(media_type: str, content: bytes, **more: Any) -> dict[str, Any]:
    """Return the OCI descriptor of `content`."""
    return {"mediaType": media_type, "digest": sha256(content), "size": len(content), **more}


def build_platform(platform: Platform, program: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return the descriptor of the manifest for one platform, and its blobs."""
    tar = root_tar(program)
    layer = gzip.compress(tar, compresslevel=9, mtime=0)
    names = {"architecture": platform.architecture, "os": "linux"}
    names |= {"variant": platform.variant} if platform.variant else {}
    config = document(
        {
            **names,
            "created": CREATED,
            "config": {
                "Entrypoint": ["/page"],
                "Env": ["PATH=/"],
                "ExposedPorts": {"8080/tcp": {}},
                "StopSignal": "SIGTERM",
                "User": "1000:1000",
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [sha256(tar)]},
            "history": [{"created": CREATED, "created_by": "examples/images/build.py"}],
        }
    )
    manifest = document(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(CONFIG, config),
            "layers": [describe(LAYER, layer)],
        }
    )
    return describe(MANIFEST, manifest, platform=names), [layer, config, manifest]


def build() -> dict[str, bytes]:
    """Return the whole layout: path below layout/ -> content."""
    manifests, blobs = [], []
    for platform in PLATFORMS:
        descriptor, more = build_platform(platform, compile_page(platform))
        manifests.append(descriptor)
        blobs += more
    image = document({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
    blobs.append(image)
    named = describe(INDEX, image, annotations={"org.opencontainers.image.ref.name": NAME})
    files = {
        "oci-layout": document({"imageLayoutVersion": "1.0.0"}),
        "index.json": document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}),
    }
    return files | {f"blobs/{sha256(blob).replace(':', '/')}": blob for blob in blobs}


def recorded() -> dict[str, Any]:
    """Name every program that has a say in the digests; zlib because it chooses the bytes of the gzip stream."""
    return {"zlib": zlib.ZLIB_RUNTIME_VERSION, **{p.architecture: tools(p) for p in PLATFORMS}}


def committed(layout: Path) -> dict[str, bytes]:
    """Return what is in `layout`, in the form of `build`."""
    return {str(path.relative_to(layout)): path.read_bytes() for path in sorted(layout.rglob("*")) if path.is_file()}


def main() -> int:
    """Build, or check; print the reference that specs pin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed layout, write nothing")
    check = parser.parse_args().check
    layout = HERE / "layout"
    if missing := [p.compiler for p in PLATFORMS if shutil.which(p.compiler) is None]:
        print(f"build.py: no {' and no '.join(missing)} on this machine", file=sys.stderr)
        return 1
    files = build()
    image = json.loads(files["index.json"])["manifests"][0]["digest"]
    if check:
        if files == committed(layout):
            print(f"same: {NAME}@{image}")
            return 0
        print(f"layout/ differs from what these compilers make ({image}); recorded: compiler.json", file=sys.stderr)
        return 1
    shutil.rmtree(layout, ignore_errors=True)
    for path, content in files.items():
        (layout / path).parent.mkdir(parents=True, exist_ok=True)
        (layout / path).write_bytes(content)
    (HERE / "compiler.json").write_bytes(document(recorded()))
    print(f"{NAME}@{image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
