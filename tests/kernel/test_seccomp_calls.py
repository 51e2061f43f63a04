"""The default profile on the real kernel: every call there is, in children of the test, and what decides by arguments.

What the table in docs/security.md says of a call is what the kernel does with it.
"""

import ast
import ctypes
import errno
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine.bundle import CAPABILITIES
from reconciler.engine.seccomp import default
from reconciler.linux.seccomp import numbers
from tests.kernel.calls import run, syscall, syscall_32

MACHINE = os.uname().machine
pytestmark = [pytest.mark.kernel]
x86_64_only = pytest.mark.skipif(MACHINE != "x86_64", reason="calls of x86")

PAGE = Path(__file__).resolve().parents[2] / "docs/security.md"
NATIVE = default.TABLES[MACHINE][0]
DEFAULT = default.section(CAPABILITIES, MACHINE)
ADMIN = default.section((*CAPABILITIES, "CAP_SYS_ADMIN", "CAP_NET_RAW"), MACHINE)
_ALL_ONES = (2**64 - 1,) * 6

# Calls that end the process, wait or fork, whatever their arguments, or return to where nobody is
_UNTRIED = frozenset(
    ("exit", "exit_group", "fork", "vfork", "pause", "rt_sigreturn", "clone", "execve", "execveat")
)
# The kernel's own way back from a probe, for which it asks no filter since Linux 6.14 (__secure_computing)
_UNASKED = frozenset(("uprobe", "uretprobe"))
_REFUSED, _UNKNOWN = 3001, 3002  # errors that no call of the kernel's has: who sees them was filtered


def table() -> dict[str, str]:
    """Read the verdict on each call from the page."""
    found: dict[str, str] = {}
    for line in PAGE.read_text().partition("| What | Calls |")[2].partition("<!-- end -->")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) != 2 or set(cells[0]) <= set("-|"):
            continue
        what, names = cells
        if what.startswith("`"):
            found[what.strip("`")] = "arguments"
        elif what.startswith("allowed with"):
            capability = "CAP_" + what.split()[-1]
            for name in names.split():
                if capability in CAPABILITIES:
                    found[name] = "allowed"
                elif name not in found and name not in default.ABSENT:
                    found[name] = "refused"
        else:
            verdict = "allowed" if what.startswith("allowed") else "absent" if "ENOSYS" in what else "refused"
            found.update(dict.fromkeys(names.split(), verdict))
    return found


def marked(section: dict[str, Any]) -> dict[str, Any]:
    """Have the same profile refuse with errors that are nobody else's."""
    rules = [{**rule, "errnoRet": _REFUSED} if "errnoRet" in rule else rule for rule in section["syscalls"]]
    return {**section, "defaultErrnoRet": _UNKNOWN, "syscalls": rules}


def outcome(section: dict[str, Any], number: int) -> str:
    status, said = run(section, lambda: syscall(number, *_ALL_ONES))
    return said if status == 0 else f"signal {os.WTERMSIG(status)}"


def test_s4_every_call_does_what_the_table_says() -> None:
    verdicts = table()
    names = {number: name for name, number in NATIVE.items()}
    wrong = {}
    for number in range(max(NATIVE.values()) + 60):
        name = names.get(number, "")
        verdict = verdicts[name] if name else "absent"
        if verdict == "arguments" or name in _UNTRIED | _UNASKED:
            continue
        said = outcome(marked(DEFAULT), number)
        filtered = {f"-{_REFUSED}": "refused", f"-{_UNKNOWN}": "absent"}.get(said, "allowed")
        if filtered != verdict or (verdict == "allowed" and said.startswith("signal")):
            wrong[number] = (name, verdict, said)
    assert wrong == {}
    assert verdicts.keys() == {name for tables in default.TABLES.values() for one in tables for name in one}


def test_s4_a_refused_call_is_eperm_and_an_unknown_one_enosys() -> None:
    verdicts = table()
    refused = [n for name, n in NATIVE.items() if verdicts[name] == "refused" and name not in _UNASKED]
    unknown = [
        *(n for name, n in NATIVE.items() if verdicts[name] == "absent"),
        max(NATIVE.values()) + 1,
        5000,
        -1,
    ]

    def each() -> tuple[set[int], set[int]]:
        return {syscall(number) for number in refused}, {syscall(number) for number in unknown}

    _, said = run(DEFAULT, each)
    assert said == f"({{{-errno.EPERM}}}, {{{-errno.ENOSYS}}})"
    assert len(refused) > 50


@pytest.mark.parametrize("high", [0, 1 << 32, 0xFFFFFFFF << 32])
def test_s4_typing_into_a_terminal_is_refused_whatever_the_high_bits(high: int) -> None:
    master, slave = os.openpty()
    ioctl = NATIVE["ioctl"]
    size, linux, again = 0x5413, 0x541C, 0x5412
    held = ctypes.create_string_buffer(64)
    at = ctypes.addressof(held)

    def each() -> list[int]:
        return [syscall(ioctl, slave, request | high, at) for request in (again, linux, size)]

    _, said = run(DEFAULT, each)
    assert said == f"[{-errno.EPERM}, {-errno.EPERM}, 0]"
    os.close(master)
    os.close(slave)


def test_s4_every_other_request_passes() -> None:
    requests = [number ^ 1 << bit for number in (0x5412, 0x541C) for bit in range(32)]
    requests = [request for request in requests if request not in (0x5412, 0x541C)]
    ioctl = NATIVE["ioctl"]
    _, said = run(marked(DEFAULT), lambda: {syscall(ioctl, 2**31 - 1, request) for request in requests})
    assert said == f"{{{-errno.EBADF}}}"


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_s4_only_four_families_of_sockets_exist(call: str) -> None:
    number = NATIVE[call]

    def made() -> list[int]:
        return [family for family in range(64) if syscall(number, family, socket.SOCK_STREAM) != -_UNKNOWN]

    assert run(marked(DEFAULT), made)[1] == "[1, 2, 10, 16]"
    assert run(marked(ADMIN), made)[1] == "[1, 2, 10, 16, 17]"
    # The kernel takes 32 bits of the family; with others set it is none of the four
    _, said = run(DEFAULT, lambda: [syscall(number, family | 1 << 32, 1) for family in (1, 38)])
    assert said == f"[{-errno.ENOSYS}, {-errno.ENOSYS}]"


def test_s4_new_namespaces_need_the_capability() -> None:
    flags = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
    clone, unshare, clone3 = NATIVE["clone"], NATIVE["unshare"], NATIVE["clone3"]

    def each() -> tuple[set[int], int, int]:
        return {syscall(clone, flag | signal.SIGCHLD) for flag in flags}, syscall(unshare, 0), syscall(clone3)

    _, said = run(DEFAULT, each)
    assert said == f"({{{-errno.EPERM}}}, {-errno.EPERM}, {-errno.ENOSYS})"
    _, said = run(ADMIN, lambda: (syscall(unshare, 0x4000000), syscall(clone3)))
    assert said == f"(0, {-errno.EINVAL})"


def test_s4_a_program_of_libc_makes_threads_and_children() -> None:
    def work() -> tuple[int, int]:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(7))
        thread.start()
        thread.join()
        pid = os.posix_spawn("/bin/true", ["true"], {})
        return found[0], os.waitpid(pid, 0)[1]

    assert run(DEFAULT, work) == (0, "(7, 0)")


def test_s4_personalities_that_lift_protections_are_refused() -> None:
    number = NATIVE["personality"]
    values = (0xFFFFFFFF, 0, 8, 0x40000, 0x400000, 1 << 32)
    _, said = run(marked(DEFAULT), lambda: [syscall(number, value) == -_UNKNOWN for value in values])
    assert said == "[False, False, False, True, True, True]"


def test_s6_no_key_of_any_ring_can_be_reached() -> None:
    names = ("add_key", "keyctl", "request_key")
    _, said = run(DEFAULT, lambda: {syscall(NATIVE[name]) for name in names})
    assert said == f"{{{-errno.EPERM}}}"


@x86_64_only
def test_s4_calls_by_int_80_are_under_the_same_profile() -> None:
    table = numbers.X86

    def each() -> list[int]:
        return [
            syscall_32(table["getppid"]) == os.getppid(),
            *(
                syscall_32(table[name])
                for name in ("keyctl", "clone3", "mount", "clock_settime64", "io_uring_setup")
            ),
            *(syscall_32(table["socket"], family, 1) for family in (38, 40, 17)),
            syscall_32(table["socket"], 1, 1) > 2,
            syscall_32(table["ioctl"], 0, 0x5412),
            syscall_32(9999),
        ]

    _, said = run(DEFAULT, each)
    assert said == "[True, -1, -38, -1, -1, -38, -38, -38, -38, True, -1, -38]"


@x86_64_only
def test_s4_socketcall_makes_no_sockets_and_serves_those_that_there_are() -> None:
    call = numbers.X86["socketcall"]
    _, said = run(marked(DEFAULT), lambda: [syscall_32(call, number) for number in range(24)])
    results = [int(result) for result in said.strip("[]").split(", ")]
    assert [number for number, result in enumerate(results) if result == -_UNKNOWN] == [0, 1, 8]


@x86_64_only
def test_s4_every_32_bit_call_does_what_the_table_says() -> None:
    verdicts = table()
    names = {number: name for name, number in numbers.X86.items()}
    tried = [n for n in range(520) if verdicts.get(names.get(n, ""), "absent") in ("absent", "refused")]

    def each() -> list[tuple[int, int]]:
        return [(number, syscall_32(number)) for number in tried]

    _, said = run(marked(DEFAULT), each)
    found: list[tuple[int, int]] = ast.literal_eval(said)
    wanted = {"refused": -_REFUSED, "absent": -_UNKNOWN}
    assert found == [(n, wanted[verdicts.get(names.get(n, ""), "absent")]) for n in tried]
