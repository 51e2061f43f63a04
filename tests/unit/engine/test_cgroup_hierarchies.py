"""Which hierarchies a machine has, read from the mount tables of machines of every kind."""

import os
import subprocess
from pathlib import Path

import pytest

from reconciler.engine.cgroup import Hierarchies, open_existing
from reconciler.engine.hierarchies import read
from reconciler.errors import UnsupportedError

_HYBRID = """\
31 23 0:28 / {root} rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / {root}/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / {root}/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / {root}/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / {root}/unified rw,relatime shared:7 - cgroup2 cgroup2 rw,nsdelegate
42 31 0:38 /x /somewhere/else rw,relatime - cgroup2 cgroup2 rw
"""
_V2 = "30 23 0:26 / {root}\\040with\\134space rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def detect(tmp_path: Path, table: str) -> Hierarchies:
    file = tmp_path / "mountinfo"
    file.write_text(table.format(root=tmp_path))
    return Hierarchies.detect(file)


def test_a_hybrid_machine(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified/cgroup.controllers").write_text("hugetlb\n")
    found = detect(tmp_path, _HYBRID)
    assert str(found) == "hybrid"
    assert found.v2 == tmp_path / "unified"
    assert found.v2_controllers == frozenset({"hugetlb"})
    shared = tmp_path / "cpu,cpuacct"
    assert found.v1 == {"cpu": shared, "cpuacct": shared, "memory": tmp_path / "memory"}
    assert [found.version(name) for name in ("cpu", "hugetlb", "pids")] == [1, 2, 0]


def test_a_version_2_machine_with_an_odd_mount_point(tmp_path: Path) -> None:
    root = tmp_path.with_name(tmp_path.name + " with\\space")
    root.mkdir()
    (root / "cgroup.controllers").write_text("cpu memory pids io\n")
    found = detect(tmp_path, _V2)
    assert (str(found), found.v2) == ("v2", root)
    assert found.version("memory") == 2
    assert found.v1 == {}


def test_no_hierarchy_at_all_is_said_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        detect(tmp_path, "30 23 0:26 / / rw - ext4 /dev/vda rw\n")
    assert "mount -t cgroup2" in caught.value.hint


def test_directories_of_controllers_that_are_mounted_together_are_named_once(tmp_path: Path) -> None:
    found = detect(tmp_path, _HYBRID)
    (tmp_path / "memory/reconciler-x/id").mkdir(parents=True)
    group = open_existing(found, "reconciler-x", "id")
    assert group is not None
    assert group.annotation() == {
        "v2": str(tmp_path / "unified/reconciler-x/id"),
        "v1": [str(tmp_path / "cpu,cpuacct/reconciler-x/id"), str(tmp_path / "memory/reconciler-x/id")],
    }
    assert group.path == "/reconciler-x/id"
    assert open_existing(found, "reconciler-x", "other") is None


def test_a_scope_that_systemd_delegated_is_found_by_its_name(tmp_path: Path) -> None:
    found = detect(tmp_path, _HYBRID)
    (tmp_path / "unified/system.slice/reconciler-x.scope/id").mkdir(parents=True)
    group = open_existing(found, "reconciler-x", "id")
    assert group is not None
    assert group.v2 == tmp_path / "unified/system.slice/reconciler-x.scope/id"
    assert group.path == "/system.slice/reconciler-x.scope/id"
    assert group.v1["memory"] == tmp_path / "memory/reconciler-x/id"


def test_what_a_process_that_just_ended_was_in_reads_as_nothing() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        fd = os.open(f"/proc/{process.pid}/cgroup", os.O_RDONLY)
    try:
        with pytest.raises(ProcessLookupError):
            os.read(fd, 1)
        assert read(Path(f"/proc/self/fd/{fd}")) == ""
    finally:
        os.close(fd)
