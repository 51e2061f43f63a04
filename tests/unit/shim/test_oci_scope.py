"""What systemd is told of a container's cgroup."""

import pytest

from reconciler.shim.oci_scope import directory_of, place, properties
from reconciler.shim.oci_state import OciError


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("system.slice", "/system.slice"),
        ("machine-libpod_pod_1.slice", "/machine.slice/machine-libpod_pod_1.slice"),
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
        ("-.slice", ""),
    ],
)
def test_a_slice_is_below_those_that_its_name_begins_with(name: str, path: str) -> None:
    assert directory_of(name) == path


@pytest.mark.parametrize("name", ["", "system", ".slice", "a--b.slice", "-a.slice", "a-.slice", "--.slice"])
def test_what_is_no_slice_is_refused(name: str) -> None:
    with pytest.raises(OciError, match="no name of a slice"):
        directory_of(name)


def test_systemd_is_told_of_what_it_writes_itself() -> None:
    writes = [
        ("memory", "memory.max", "1048576", ""),
        ("memory", "memory.swap.max", "max", ""),
        ("cpu", "cpu.max", "15000 10000", ""),
        ("cpu", "cpu.weight", "39", ""),
        ("cpuset", "cpuset.cpus", "0-1,3", ""),
        ("pids", "pids.max", "max", ""),
        ("io", "io.max", "8:0 rbps=1", ""),
        ("hugetlb", "hugetlb.2MB.max", "0", ""),
        ("v2 memory", "memory.high", "4096", ""),
    ]
    assert properties(writes) == [
        *("MemoryMax=1048576", "MemorySwapMax=infinity", "CPUQuota=150%", "CPUQuotaPeriodSec=10000us"),
        *("CPUWeight=39", "AllowedCPUs=0-1,3", "TasksMax=infinity", "MemoryHigh=4096"),
    ]
    assert properties([("cpu", "cpu.max", "max", "")]) == ["CPUQuota=", "CPUQuotaPeriodSec=100000us"]
    assert properties([("cpu", "cpu.max", "333", "")])[0] == "CPUQuota=1%"


@pytest.mark.parametrize("path", ["/absolute", "a:b", "a:b:c:d", "system.slice:x:"])
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(OciError, match="expected SLICE:PREFIX:NAME"):
        place(path, "one")
