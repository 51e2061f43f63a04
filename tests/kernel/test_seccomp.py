"""Filters of containers: on every process of them, loaded last, and never left out."""

import errno
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from reconciler.engine.process import CommandError, StepError
from reconciler.shim.filter import FILE, pack
from tests.kernel.box import Bundle, make_bundle, run
from tests.kernel.shims import Case, Host, host

__all__ = ["host"]
pytestmark = pytest.mark.kernel

MACHINE = os.uname().machine
_SHOWN = "grep -E '^(Seccomp|NoNewPrivs|CapPrm|CapEff)' /proc/self/status"


def fields(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@pytest.fixture
def bundle(tmp_path: Path, busybox: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle", [busybox], "/bin/sh", "-c", _SHOWN)


def deny(*names: str, default: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    rule = {"names": list(names), "action": "SCMP_ACT_ERRNO", **more}
    return {"defaultAction": default, "syscalls": [rule]}


def test_s4_s14_start_and_exec_are_under_one_filter(host: Host) -> None:
    case = host.shell(f"{_SHOWN}; echo up; sleep 1000").start()
    case.until(b"up")
    own = fields(b"\n".join(case.output()).decode())
    assert (own["Seccomp"], own["Seccomp_filters"]) == ("2", "1")
    assert fields(case.exec("/bin/sh", "-c", _SHOWN)) == own
    assert fields(case.exec("/bin/sh", "-c", _SHOWN, user="1000"))["Seccomp"] == "2"
    code, text = case.exec_code("/bin/unshare", "-n", "true")
    assert (code, "not permitted" in text) == (1, True)


def test_s4_init_is_under_it_as_its_program_is(bundle: Bundle) -> None:
    bundle.annotate("init", "true").config["process"]["args"][2] = (
        "grep -h ^Seccomp /proc/1/status /proc/self/status; ls /proc/1/exe; true"
    )
    result = run(bundle)
    assert result.error is None
    assert [line.split()[1] for line in result.lines() if line.startswith("Seccomp")] == ["2", "1", "2", "1"]
    assert result.code == 0


@pytest.mark.parametrize("user", ["0", "1000"])
def test_s4_without_no_new_privs_the_capability_that_it_takes_is_given_up(bundle: Bundle, user: str) -> None:
    bundle.annotate("user", user).config["process"]["noNewPrivileges"] = False
    capabilities = {"0": "00000000000405fb", "1000": "0" * 16}[user]
    result = run(bundle)
    assert result.error is None
    said = fields(result.output)
    assert (said["Seccomp"], said["NoNewPrivs"]) == ("2", "0")
    assert (said["CapPrm"], said["CapEff"]) == (capabilities, capabilities)


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_s4_nothing_but_the_exec_comes_after_it(bundle: Bundle, no_new_privileges: bool) -> None:
    # What everything before the exec needs, and runc after it (getcwd, openat2, prctl, setresuid ...), is refused here
    forbidden = (
        "getcwd",
        "openat2",
        "chdir",
        "fchdir",
        "prctl",
        "setresuid",
        "setgroups",
        "close_range",
        "poll",
        "read",
    )
    bundle.config["process"]["noNewPrivileges"] = no_new_privileges
    bundle.config["process"]["args"] = ["/bin/true"]
    bundle.config["linux"]["seccomp"] = deny(*forbidden, errnoRet=errno.EIO)
    result = run(bundle)
    assert (result.error, result.code) == (None, 0)


def test_s4_a_program_that_the_filter_keeps_from_being_executed_is_told(bundle: Bundle) -> None:
    bundle.config["linux"]["seccomp"] = deny("execve")
    error = run(bundle).error
    assert error is not None
    assert (error["step"], error["errno"]) == ("exec", errno.EPERM)


def test_s4_what_kills_is_an_end_by_sigsys(bundle: Bundle) -> None:
    bundle.config["linux"]["seccomp"] = deny("getppid", "getpid", "getuid")
    bundle.config["linux"]["seccomp"]["syscalls"][0]["action"] = "SCMP_ACT_KILL_PROCESS"
    assert run(bundle).code == -31


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2 + 3])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "refused by the kernel":
        path.write_bytes(pack(struct.pack("=HBBI", 0xFFFF, 0, 0, 0), 0))
    else:
        path.write_bytes(pack(data[12:], 8))


@pytest.mark.parametrize("how", ["missing", "damaged", "cut", "empty", "refused by the kernel", "supervised"])
def test_s4_a_filter_that_can_not_be_loaded_starts_nothing(host: Host, how: str) -> None:
    case = host.shell("echo ran; sleep 1000")
    case.bundle.compile()
    (case.bundle.directory / "config.json").write_text(json.dumps(case.bundle.config))
    spoil(case.bundle.directory / FILE, how)
    with pytest.raises(StepError, match="seccomp") as caught:
        begin(host, case)
    assert caught.value.step == "seccomp"
    assert case.output() == []


def begin(host: Host, case: Case) -> None:
    case.created = host.zygote.create(case.bundle.directory, case.run, timeout=10)
    with case.control() as control:
        control.start()


def test_s4_an_exec_is_refused_when_the_filter_is_gone(host: Host) -> None:
    case = host.shell("echo up; sleep 1000").start()
    case.until(b"up")
    (case.bundle.directory / FILE).unlink()
    with pytest.raises(CommandError, match=f"seccomp: {FILE}") as caught:
        case.exec("true")
    assert caught.value.code == 125


def test_s4_a_32_bit_program_runs_and_is_filtered(bundle: Bundle, tmp_path: Path) -> None:
    if shutil.which("gcc") is None or MACHINE != "x86_64":
        pytest.skip("no compiler for 32-bit x86 here")
    source = tmp_path / "old.S"
    source.write_text(_OLD)
    layer = tmp_path / "layer"
    layer.mkdir()
    subprocess.run(["gcc", "-m32", "-nostdlib", "-static", "-o", layer / "old", source], check=True)
    program = make_bundle(tmp_path / "old-bundle", [layer], "/old")
    result = run(program)
    assert (result.error, result.output) == (None, "hello from 32 bits\n")
    assert result.code == errno.ENOSYS  # of socketcall(SYS_SOCKET)


# write(1, ...), then socketcall(SYS_SOCKET, ...), whose error is the exit code
_OLD = """
.code32
.globl _start
_start: mov $4, %eax
        mov $1, %ebx
        mov $text, %ecx
        mov $19, %edx
        int $0x80
        mov $102, %eax
        mov $1, %ebx
        mov $words, %ecx
        int $0x80
        neg %eax
        mov %eax, %ebx
        mov $1, %eax
        int $0x80
.data
text:   .ascii "hello from 32 bits\\n"
words:  .long 2, 1, 0
"""
