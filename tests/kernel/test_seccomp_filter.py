"""Filters on the real kernel: what the compiler says, the kernel does; what can't be loaded raises."""

import errno
import os
import signal
from typing import Any

import pytest

from reconciler.linux import process
from reconciler.linux.seccomp import load
from reconciler.linux.seccomp.compile import compile, flags
from tests.kernel.calls import run, syscall

pytestmark = pytest.mark.kernel
_GETPPID, _CLONE3 = 110, 435


def deny(name: str, action: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    rule = {"names": [name], "action": action, **more}
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}


def test_the_kernel_answers_with_the_number_of_the_rule() -> None:
    work = lambda: (syscall(_GETPPID), syscall(_CLONE3), load.mode())  # noqa: E731
    status, said = run(deny("getppid", errnoRet=errno.ENOSYS), work)
    assert status == 0
    assert said == "(-38, -22, 2)"


@pytest.mark.parametrize("action", ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_TRAP"])
def test_what_kills_kills_with_sigsys(action: str) -> None:
    status, said = run(deny("getppid", action), lambda: syscall(_GETPPID))
    assert os.WTERMSIG(status) == signal.SIGSYS
    assert said == ""


def test_the_high_half_of_an_argument_counts() -> None:
    condition = {"index": 1, "op": "SCMP_CMP_EQ", "value": 1 << 32 | 7}
    values = (1 << 32 | 7, 7, 1 << 32, 2 << 32 | 7)
    _, said = run(
        deny("getppid", args=[condition]), lambda: [syscall(_GETPPID, 0, value) for value in values]
    )
    first, *others = map(int, said.strip("[]").split(", "))
    assert first == -errno.EPERM
    assert all(other > 0 for other in others)


def test_a_call_of_x32_ends_the_process_whatever_the_profile_says() -> None:
    section = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32"]}
    status, _ = run(section, lambda: syscall(0x40000000 | _GETPPID))
    assert os.WTERMSIG(status) == signal.SIGSYS


def test_a_supervisor_gets_a_listener() -> None:
    section = deny("getppid", "SCMP_ACT_NOTIFY")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            process.set_no_new_privs()
            listener = load.load(compile(section), flags(section))
            link = os.readlink(f"/proc/self/fd/{listener}")
            os.write(write, f"{link} {os.get_inheritable(listener)}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == b"anon_inode:seccomp notify False"
    os.waitpid(pid, 0)


def test_without_privileges_and_no_new_privs_there_is_no_filter() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            process.setresuid(65534)
            load.load(compile({"defaultAction": "SCMP_ACT_ALLOW"}))
        except OSError as error:
            os.write(write, f"{error.errno} {error.strerror}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        assert file.read() == f"{errno.EACCES} seccomp(SECCOMP_SET_MODE_FILTER): Permission denied".encode()
    os.waitpid(pid, 0)


@pytest.mark.parametrize("program", [b"", b"\x06\0\0\0\0\0", b"\xff" * 8, b"\x05\0\0\0\xff\0\0\0"])
def test_what_is_no_program_is_refused(program: bytes) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            load.load(program)
        except OSError as error:
            code = 0 if error.errno == errno.EINVAL else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_this_kernel_has_filters() -> None:
    assert load.available()
