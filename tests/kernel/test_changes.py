"""`diff`: what a real overlay leaves in its upper directory, read without mounting it again."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from reconciler.engine.changes import Change, changes

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("leak_check")]


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory on a tmpfs, which may be an upper even where /tmp is on an overlay."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def overlaid(root: Path, lowers: list[dict[str, str | None]], script: str) -> list[Path]:
    """Make lower layers (topmost first; None is a directory), and run `script` inside an overlay of them."""
    made = []
    for number, files in enumerate(lowers):
        directory = root / f"lower{number}"
        directory.mkdir()
        for name, content in files.items():
            path = directory / name
            if content is None:
                path.mkdir(parents=True, exist_ok=True)
            elif content == "WHITEOUT":
                path.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["mknod", str(path), "c", "0", "0"], check=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        made.append(directory)
    for name in ("upper", "work", "merged"):
        (root / name).mkdir()
    options = f"lowerdir={':'.join(map(str, made))},upperdir={root}/upper,workdir={root}/work"
    mount = f"mount -t overlay overlay -o {options} {root}/merged && cd {root}/merged && {{ {script}\n}}"
    subprocess.run(["unshare", "-m", "sh", "-ec", mount], check=True)
    return made


def seen(root: Path, made: list[Path], mounted: tuple[str, ...] = ()) -> list[str]:
    return [f"{change.kind} {change.path}" for change in changes(root / "upper", made, mounted)]


def test_added_changed_and_deleted_are_told_apart(root: Path) -> None:
    lowers: list[dict[str, str | None]] = [
        {"etc/top": "1", "etc/gone": "WHITEOUT", "opt": None},
        {
            "etc/passwd": "root",
            "etc/gone": "x",
            "etc/deep/one": "1",
            "usr/bin/a": "a",
            "opt/kept": "1",
            "link": "file",
        },
    ]
    script = """
        echo new > etc/new; echo more >> etc/passwd; rm usr/bin/a; mkdir -p var/lib/x; echo 1 > var/lib/x/f
        rm -r etc/deep; mkdir etc/deep; echo 2 > etc/deep/two
        echo back > etc/gone; chmod 700 opt; rm link; ln -s /etc link; : > etc/top; rm etc/top
    """
    made = overlaid(root, lowers, script)
    assert seen(root, made) == [
        "C /etc",
        "C /etc/deep",
        "D /etc/deep/one",
        "A /etc/deep/two",
        "A /etc/gone",
        "A /etc/new",
        "C /etc/passwd",
        "D /etc/top",
        "C /link",
        "C /opt",
        "C /usr",
        "C /usr/bin",
        "D /usr/bin/a",
        "A /var",
        "A /var/lib",
        "A /var/lib/x",
        "A /var/lib/x/f",
    ]
    sizes = {change.path: change.size for change in changes(root / "upper", made)}
    assert sizes["/etc/passwd"] == len("rootmore\n")


def test_what_is_only_copied_up_or_holds_a_mount_is_no_change(root: Path) -> None:
    made = overlaid(
        root,
        [{"etc/hosts": "", "data/sub/x": "1"}],
        "touch -c etc; mkdir -p run/secrets/deep mnt; : > run/secrets/deep/s; : > etc/resolv.conf; chmod 755 data/sub",
    )
    mounted = ("/run/secrets/deep/s", "/etc/resolv.conf", "/mnt")
    assert seen(root, made, mounted) == []
    assert seen(root, made) == ["C /etc", "A /etc/resolv.conf", "A /mnt", "A /run", "A /run/secrets",
                                "A /run/secrets/deep", "A /run/secrets/deep/s"]  # fmt: skip


def test_nothing_that_a_container_makes_leads_out_of_its_layer_or_stops_the_listing(root: Path) -> None:
    script = """
        ln -s / out; mkdir -p "$(printf 'a\\nb')"; rm -r dir; ln -s /etc dir
        mkdir -p n; for i in $(seq 300); do mkdir -p n/xxxxxxxxxxxxxxxxxxxx; mv n m; mkdir n; mv m n/y; done
    """
    made = overlaid(root, [{"dir/passwd": "1"}], script)
    found = seen(root, made)
    assert {"A /out", "C /dir", "A /a\nb"} <= set(found)
    assert not [line for line in found if "passwd" in line or line.startswith("A /out/")]
    assert sum("/y" in line for line in found) > 200
    subprocess.run(["rm", "-rf", str(root / "upper")], check=True)


def test_the_layers_may_be_many_and_the_change_sorts_by_path(root: Path) -> None:
    lowers: list[dict[str, str | None]] = [{f"f{number}": "x", "same": str(number)} for number in range(20)]
    made = overlaid(root, lowers, "rm f7 same; echo 1 > f19")
    assert seen(root, made) == ["C /f19", "D /f7", "D /same"]
    assert Change("/a", "D") < Change("/b", "A")
