"""The kernel door where it needs no privilege: each call does what its one line says, and fails as an OSError."""

import ctypes
import errno
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.linux import capability, namespace, path, process, syscall


def in_child(body: str) -> str:
    """Run Python in a process of its own and give its output: for calls that change the caller."""
    imports = "import os, signal\nfrom reconciler.linux import capability, namespace, path, process\n"
    return subprocess.check_output([sys.executable, "-c", imports + body], text=True).strip()


def test_a_failed_call_is_an_oserror_with_call_text_and_path() -> None:
    ctypes.set_errno(errno.ENOENT)
    with pytest.raises(FileNotFoundError) as caught:
        syscall.check(-1, "openat2", b"/x")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, "/x")
    assert caught.value.strerror == "openat2: No such file or directory"
    assert syscall.check(3, "openat2") == 3


def test_an_unknown_architecture_is_said_and_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscall, "_MACHINE", "sparc64")
    with pytest.raises(OSError, match="sparc64"):
        syscall.number("openat2")


def test_clone3_forks_with_a_pidfd_and_a_right_thread_id() -> None:
    body = """
pid, pidfd = namespace.clone3()
if pid == 0:
    signal.signal(signal.SIGUSR1, lambda *_: print("signalled", flush=True))
    signal.raise_signal(signal.SIGUSR1)  # goes through libc's cached thread id
    os._exit(7)
print(os.get_inheritable(pidfd), os.waitid(os.P_PIDFD, pidfd, os.WEXITED).si_status)
"""
    assert in_child(body).splitlines() == ["signalled", "False 7"]


def test_clone3_runs_the_interpreters_fork_hooks() -> None:
    body = """
os.register_at_fork(before=lambda: print("before", flush=True), after_in_child=lambda: print("child", flush=True))
pid, pidfd = namespace.clone3()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
"""
    assert in_child(body).split() == ["before", "child"]


def test_a_failed_clone3_leaves_the_parent_whole() -> None:
    body = """
try:
    namespace.clone3(cgroup=12345)
except OSError as error:
    print(error.errno, error.strerror.split(":")[0])
"""
    assert in_child(body) == f"{errno.EBADF} clone3"


def test_close_except_keeps_exactly_what_it_is_told() -> None:
    body = """
fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
process.close_except((0, 1, 2, fds[3], fds[7]))
left = [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")]
os.write(1, str(left == [fds[3], fds[7]]).encode())
process.close_from(3)
os._exit(os.path.exists(f"/proc/self/fd/{fds[3]}"))
"""
    assert in_child(body) == "True"


def test_the_title_is_cut_to_its_room_and_shows_in_cmdline() -> None:
    body = """
area = process.title_area()
process.set_title(area, "reconciler shim web/app")
print(open("/proc/self/cmdline").read().rstrip("\\0"))
process.set_title(area, "x" * 100000)
print(len(open("/proc/self/cmdline").read().rstrip("\\0")) == area[1] - area[0] - 1)
process.set_name("shim-of-a-long-name")
print(open("/proc/self/comm").read())
"""
    assert in_child(body).split("\n") == ["reconciler shim web/app", "True", "shim-of-a-long-"]


def test_dumpable_and_no_new_privileges_are_set() -> None:
    body = """
print(process.dumpable()); process.set_dumpable(False); print(process.dumpable())
process.set_no_new_privs()
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")][0])
"""
    assert in_child(body).split() == ["True", "False", "1"]


def test_signalfd_delivers_blocked_signals() -> None:
    body = """
import struct, select
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGRTMAX})
fd = process.signalfd({signal.SIGUSR1, signal.SIGRTMAX})
for number in (signal.SIGUSR1, signal.SIGRTMAX):
    os.kill(os.getpid(), number)
    print(struct.unpack_from("I", os.read(fd, process.SIGNALFD_SIGINFO_SIZE))[0] == number, os.get_inheritable(fd))
"""
    assert in_child(body).splitlines() == ["True False"] * 2


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("15", 15),
        ("SIGRTMIN", 34),
        ("SIGRTMIN+3", 37),
        ("RTMAX-1", 63),
        (" SIGKILL ", 9),
    ],
)
def test_signals_by_any_of_their_names(name: str, number: int) -> None:
    assert process.signal_number(name) == number


@pytest.mark.parametrize("name", ["", "SIG", "NOPE", "0", "65", "-1", "RTMIN+99", "RTMIN+", "9" * 50, "١"])
def test_what_is_no_signal_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match="no such signal"):
        process.signal_number(name)


@given(st.sampled_from(sorted(signal.valid_signals())))
def test_every_signals_name_leads_back_to_it(number: int) -> None:
    assert process.signal_number(process.signal_name(number)) == number


@given(st.sets(st.sampled_from(capability.NAMES)))
def test_capability_names_and_bits_are_the_same_thing(names: set[str]) -> None:
    assert set(capability.names(capability.mask(tuple(names)))) == names


def test_there_are_41_capabilities_and_the_kernel_agrees_on_the_last() -> None:
    assert len(capability.NAMES) == 41
    with open("/proc/sys/kernel/cap_last_cap") as file:
        assert int(file.read()) >= 40
    assert capability.names(1 << 50) == ["CAP_50"]


def test_capabilities_can_be_read_and_set_to_themselves() -> None:
    effective, permitted, inheritable = capability.capget()
    capability.capset(effective, permitted, inheritable)
    assert capability.capget() == (effective, permitted, inheritable)
    assert effective & ~permitted == 0
    assert capability.ambient() & ~permitted == 0
    assert capability.bounding().bit_length() <= 64


def test_openat2_stays_in_its_root(tmp_path: os.PathLike[str]) -> None:
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.symlink("/etc/passwd", "out", dir_fd=root)
        os.symlink("../../../../etc", "up", dir_fd=root)
        for name in ("out", "up/passwd", "/etc/passwd", "../../etc/passwd"):
            with pytest.raises(FileNotFoundError):
                path.openat2(root, name, os.O_PATH, resolve=path.RESOLVE_IN_ROOT)
        with pytest.raises(OSError, match="openat2") as caught:
            path.openat2(root, "out", os.O_RDONLY, resolve=path.RESOLVE_NO_SYMLINKS)
        assert caught.value.errno == errno.ELOOP
        fd = path.openat2(
            root, "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, resolve=path.RESOLVE_BENEATH, mode=0o640
        )
        assert not os.get_inheritable(fd)
        os.close(fd)
    finally:
        os.close(root)


def test_renameat2_exchanges_and_does_not_replace(tmp_path: os.PathLike[str]) -> None:
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.mkdir("a", dir_fd=root)
        os.symlink("x", "b", dir_fd=root)
        path.renameat2(root, "a", root, "b", path.RENAME_EXCHANGE)
        assert os.readlink("a", dir_fd=root) == "x"
        with pytest.raises(FileExistsError):
            path.renameat2(root, "a", root, "b", path.RENAME_NOREPLACE)
        path.syncfs(root)
    finally:
        os.close(root)


def test_a_sealed_memfd_cannot_be_changed() -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.write(fd, b"content")
        path.seal(fd)
        assert path.seals(fd) == path.SEAL_ALL
        with pytest.raises(PermissionError):
            os.write(fd, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
        with pytest.raises(PermissionError):
            os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC)
    finally:
        os.close(fd)


def test_the_file_system_of_a_descriptor_is_known() -> None:
    fd = os.open("/proc/self", os.O_PATH)
    try:
        assert path.filesystem_type(fd) == path.PROC_SUPER_MAGIC
    finally:
        os.close(fd)


def test_unshare_without_a_flag_that_exists_is_refused() -> None:
    with pytest.raises(OSError, match="unshare"):
        namespace.unshare(1)
    with pytest.raises(OSError, match="setns"):
        namespace.setns(-1)
