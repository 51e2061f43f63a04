"""Root file systems compared exactly: what layers look like through a real overlay mount, and what others unpack.

`merged` mounts in a private mount namespace of a child process, so that nothing is ever mounted on the machine. Run as
a program, it prints a tree as JSON lines. Works on bytes, by descriptors, and never follows a symlink.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Tree = Mapping[str, dict[str, Any]]

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFSOCK: "socket",
}


def _name(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _xattrs(path: bytes) -> dict[str, str]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return {name: os.getxattr(path, name, follow_symlinks=False).hex() for name in names}


def scan(root: Path) -> Tree:
    """Describe every path below `root`: kind, mode, owner, times in ns, content, target, xattrs, hard-link set."""
    found: dict[str, dict[str, Any]] = {}
    inodes: dict[tuple[int, int], list[str]] = {}
    todo = [b""]
    top = os.fsencode(root)
    while todo:
        directory = todo.pop()
        paths = [b""] if not directory and not found else []
        paths += [directory + b"/" + name for name in sorted(os.listdir(top + directory))]
        for path in paths:
            full = top + path
            try:
                status = os.lstat(full)
            except (
                FileNotFoundError
            ):  # overlayfs lists a whiteout that hides nothing, but there is no such file
                found[_name(path)] = {"kind": "ghost"}
                continue
            kind = _KINDS[stat.S_IFMT(status.st_mode)]
            entry: dict[str, Any] = {
                "kind": kind,
                "mode": stat.S_IMODE(status.st_mode) if kind != "symlink" else None,
                "owner": [status.st_uid, status.st_gid],
                "mtime": status.st_mtime_ns,
                "xattrs": _xattrs(full),
            }
            if kind == "file":
                entry["size"] = status.st_size
                entry["sha256"] = hashlib.sha256(Path(os.fsdecode(full)).read_bytes()).hexdigest()
            elif kind == "symlink":
                entry["target"] = _name(os.readlink(full))
            elif kind in ("character", "block"):
                entry["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
            elif kind == "directory" and path:
                todo.append(path)
            if kind != "directory" and status.st_nlink > 1:
                inodes.setdefault((status.st_dev, status.st_ino), []).append(_name(path))
            found[_name(path)] = entry
    for names in inodes.values():
        for name in names:
            found[name]["links"] = sorted(names)
    return found


def merged(layers: Sequence[Path], scratch: Path) -> Tree:
    """Describe what a container sees of `layers`, lowest first, without a writable layer."""
    empty = scratch / "empty-layer"
    empty.mkdir(exist_ok=True)
    mount = scratch / "merged"
    mount.mkdir(exist_ok=True)
    # An overlay without an upper needs two lowers; the empty one at the bottom adds nothing. Short names, because all
    # of them together have to fit into one page.
    short = scratch / "names"
    shutil.rmtree(short, ignore_errors=True)
    short.mkdir()
    for number, layer in enumerate([*reversed(layers), empty]):
        (short / str(number)).symlink_to(layer)
    lowers = ":".join(str(number) for number in range(len(layers) + 1))
    script = 'cd "$1" && mount -t overlay check -o "lowerdir=$2" "$3" && cd "$5" && exec "$4" -m "$6" "$3"'
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh"]
    project = Path(__file__).resolve().parents[2]
    arguments = [str(short), lowers, str(mount), sys.executable, str(project), __name__]
    done = subprocess.run([*command, *arguments], check=True, capture_output=True)
    return {path: entry for path, entry in map(json.loads, done.stdout.splitlines())}


def unpacked_by_umoci(layout: Path, tag: str, scratch: Path) -> Tree:
    """Describe the root file system that umoci makes of an image."""
    bundle = scratch / "umoci-bundle"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle)], check=True, capture_output=True
    )
    return scan(bundle / "rootfs")


def differences(ours: Tree, theirs: Tree, *, ignore: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """List what differs, one line each. `ignore` names fields not to compare, by path; "*" for all paths."""
    found = []
    ignored = dict(ignore or {})
    for path in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(path), theirs.get(path)
        if mine is None or other is None:
            found.append(f"{path}: only {'theirs' if mine is None else 'ours'}")
            continue
        skipped = {*ignored.get("*", ()), *ignored.get(path, ())}
        for key in sorted((mine.keys() | other.keys()) - skipped):
            if mine.get(key) != other.get(key):
                found.append(f"{path}: {key}: ours {mine.get(key)}, theirs {other.get(key)}")
    return found


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        for item in scan(Path(sys.argv[1])).items():
            print(json.dumps(item))
