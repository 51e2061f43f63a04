"""linux.resources and device rules as the OCI command line writes them, the rules as the kernel would run them."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.linux import bpf
from reconciler.shim import oci_cgroup, oci_resources
from reconciler.shim.fields import ConfigError, Section
from reconciler.shim.oci_state import OciError

V2 = oci_cgroup.Cgroup("/c", {}, frozenset(("cpu", "cpuset", "memory", "pids", "io", "hugetlb")))
V1 = oci_cgroup.Cgroup(
    "", {name: f"/{name}" for name in ("cpu", "cpuset", "memory", "pids", "blkio", "hugetlb")}, frozenset()
)


def plan(resources: dict[str, Any], group: oci_cgroup.Cgroup) -> dict[str, str]:
    writes = oci_resources.plan(Section({"resources": resources}, "resources"), group)
    return {file: text for _, file, text, _ in writes}


def test_limits_of_version_2() -> None:
    assert plan(
        {
            "memory": {"limit": 100, "swap": 150, "reservation": 50},
            "cpu": {"shares": 1024, "quota": 5, "period": 10, "burst": 2, "cpus": "0-1", "mems": "0"},
            "pids": {"limit": -1},
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 9}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 7}],
            "unified": {"memory.high": "99"},
        },
        V2,
    ) == {
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "memory.max": "100",
        "memory.swap.max": "50",
        "memory.low": "50",
        "cpu.weight": "39",
        "cpu.max": "5 10",
        "cpu.max.burst": "2",
        "pids.max": "max",
        "io.max": "8:0 rbps=9",
        "hugetlb.2MB.max": "7",
        "memory.high": "99",
    }


def test_limits_of_version_1() -> None:
    assert plan(
        {
            "memory": {"limit": 100, "swap": -1, "swappiness": 0, "disableOOMKiller": True},
            "cpu": {"shares": 7, "quota": -1, "period": 10, "realtimeRuntime": 3},
            "pids": {"limit": 0},
            "blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 1, "rate": 9}]},
        },
        V1,
    ) == {
        "memory.limit_in_bytes": "100",
        "memory.memsw.limit_in_bytes": "-1",
        "memory.swappiness": "0",
        "memory.oom_control": "1",
        "cpu.shares": "7",
        "cpu.rt_runtime_us": "3",
        "cpu.cfs_period_us": "10",
        "cpu.cfs_quota_us": "-1",
        "blkio.throttle.write_iops_device": "8:1 9",
    }


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        ({"memory": {"limit": 100, "swap": 50}}, "less than the limit"),
        ({"memory": {"swap": 50}}, "needs a limit"),
        ({"memory": {"disableOOMKiller": True}}, "cgroup version 2 can't do this"),
        ({"memory": {"kernel": 5}}, "no kernel since 5.16"),
        ({"cpu": {"realtimePeriod": 5}}, "cgroup version 2 can't do this"),
        ({"blockIO": {"leafWeight": 5}}, "no kernel since 5.0"),
        ({"unified": {"cgroup.procs": "1"}}, "expected a file of a controller"),
        ({"unified": {"a/b.c": "1"}}, "expected a file of a controller"),
        ({"rdma": {"mlx": {"hcaHandles": 1}}}, "not supported"),
        ({"pids": {"limit": "5"}}, "expected a whole number"),
    ],
)
def test_what_version_2_can_not_do_is_refused(resources: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(resources, V2)


def test_a_controller_that_is_nowhere_is_an_error() -> None:
    with pytest.raises(OciError, match="the cgroup controller pids is in no mounted hierarchy"):
        oci_resources.apply(
            Section({"resources": {"pids": {"limit": 5}}}, "resources"),
            oci_cgroup.Cgroup("", {}, frozenset()),
        )


# --- devices ----------------------------------------------------------------------------------------------------------

Rule = oci_resources.Rule


def run(code: bytes, kind: int, access: int, major: int, minor: int) -> bool:
    """Run a device program as the kernel's interpreter would: the few instructions that it is made of."""
    memory = (access << 16 | kind, major, minor)
    registers = [0] * 10
    at = 0
    while True:
        opcode, both, jump, value = struct.unpack_from("=BBhi", code, at * 8)
        to, source = both & 15, both >> 4
        at += 1
        match opcode:
            case 0x61:
                registers[to] = memory[jump // 4]
            case 0xBC:
                registers[to] = registers[source]
            case 0x54:
                registers[to] &= value & 0xFFFFFFFF
            case 0x74:
                registers[to] >>= value
            case 0xB7:
                registers[to] = value
            case 0x15:
                at += jump if registers[to] == value else 0
            case 0x55:
                at += jump if registers[to] != value else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"instruction {opcode:#x}")


def allowed(rules: tuple[Rule, ...], kind: str, access: str, major: int, minor: int) -> bool:
    """What the rules mean: of each letter the last rule about it decides."""
    for letter in access:
        verdict = False
        for allow, of, first, second, letters in rules:
            matches = of in ("a", kind) and first in (None, major) and second in (None, minor)
            if matches and letter in letters:
                verdict = allow
        if not verdict:
            return False
    return True


_ACCESS = st.sets(st.sampled_from("rwm"), min_size=1).map(lambda found: "".join(sorted(found)))
_RULE = st.tuples(
    st.booleans(),
    st.sampled_from("abc"),
    st.none() | st.integers(0, 2),
    st.none() | st.integers(0, 2),
    _ACCESS,
)


@given(
    st.lists(_RULE, max_size=8).map(tuple),
    st.sampled_from("bc"),
    _ACCESS,
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_the_program_decides_as_the_rules_say(
    rules: tuple[Rule, ...], kind: str, access: str, major: int, minor: int
) -> None:
    bits = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access)
    code = bpf.device_rules(rules)
    assert run(code, {"b": 1, "c": 2}[kind], bits, major, minor) == allowed(rules, kind, access, major, minor)


def test_every_container_has_the_nodes_of_the_specification() -> None:
    denied = Section({"resources": {"devices": [{"allow": False, "access": "rwm"}]}}, "resources")
    rules = oci_resources.rules(denied)
    assert all(allowed(rules, "c", "rw", *numbers) for numbers in ((1, 3), (1, 9), (5, 0), (136, 7)))
    assert not allowed(rules, "b", "r", 8, 0)
    assert allowed(rules, "b", "m", 8, 0), "a node alone is harmless"
