"""Namespaces and clone3: making a process in new namespaces, joining existing ones, naming the host.

clone3 here is a fork with arguments. It is only for a process with one thread (the zygote, a shim, a test): the
child is a copy of the calling thread, and any lock that another thread held would stay locked in it for ever.
"""

import ctypes
import os
import signal

from reconciler.linux.process import thread_id_address
from reconciler.linux.syscall import address_of, bind, bind_libc, check

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

CLONE_VM = 0x00000100
CLONE_FILES = 0x00000400
CLONE_PIDFD = 0x00001000
CLONE_CHILD_CLEARTID = 0x00200000
CLONE_CHILD_SETTID = 0x01000000
CLONE_INTO_CGROUP = 0x200000000


class _CloneArgs(ctypes.Structure):
    """struct clone_args, version 2 (88 bytes, with the cgroup of Linux 5.7)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("pidfd", ctypes.c_uint64),
        ("child_tid", ctypes.c_uint64),
        ("parent_tid", ctypes.c_uint64),
        ("exit_signal", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("stack_size", ctypes.c_uint64),
        ("tls", ctypes.c_uint64),
        ("set_tid", ctypes.c_uint64),
        ("set_tid_size", ctypes.c_uint64),
        ("cgroup", ctypes.c_uint64),
    )


_clone3 = bind("clone3", ctypes.POINTER(_CloneArgs), ctypes.c_size_t, locked=True)
_unshare = bind_libc("unshare", ctypes.c_int)
_setns = bind_libc("setns", ctypes.c_int, ctypes.c_int)
_clone = bind_libc("clone", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_sethostname = bind_libc("sethostname", ctypes.c_char_p, ctypes.c_size_t)
_setdomainname = bind_libc("setdomainname", ctypes.c_char_p, ctypes.c_size_t)

_exit = address_of("_exit")
_STACK = 16384

_before_fork = ctypes.pythonapi.PyOS_BeforeFork
_after_fork_parent = ctypes.pythonapi.PyOS_AfterFork_Parent
_after_fork_child = ctypes.pythonapi.PyOS_AfterFork_Child
for _hook in (_before_fork, _after_fork_parent, _after_fork_child):
    _hook.argtypes = ()
    _hook.restype = None


def clone3(flags: int = 0, *, cgroup: int | None = None, exit_signal: int = 17) -> tuple[int, int]:
    """Fork into new namespaces: (0, -1) in the child, (pid, pidfd) in the parent; the pidfd is close-on-exec.

    `cgroup` is a descriptor of a cgroup v2 directory that the child is born in (Linux 5.7). The interpreter's own
    fork hooks run as they do in os.fork. libc's cached thread id is renewed where the kernel tells its address
    (CONFIG_CHECKPOINT_RESTORE); elsewhere raise() in the child must not be relied on.
    """
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(flags=flags | CLONE_PIDFD, pidfd=ctypes.addressof(pidfd), exit_signal=exit_signal)
    if cgroup is not None:
        args.flags |= CLONE_INTO_CGROUP
        args.cgroup = cgroup
    address = thread_id_address()
    if address:
        args.flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID
        args.child_tid = address
    pointer, size = ctypes.byref(args), ctypes.sizeof(args)
    _before_fork()
    pid = _clone3(pointer, size)
    if pid == 0:
        _after_fork_child()
        return 0, -1
    code = ctypes.get_errno()
    _after_fork_parent()
    if pid < 0:
        ctypes.set_errno(code)
    return check(pid, "clone3"), pidfd.value


class Ending:
    """A process in new namespaces that does nothing but end, perhaps before it is looked at.

    Until it is waited for, /proc/PID has the maps of its ids, to be written, and its ns/user, to be opened. It has no
    memory of its own and no descriptors, which are what a fork of the interpreter costs (0.9 ms beside 0.1), and what
    others would wait for; the caller may have threads.
    """

    def __init__(self, flags: int) -> None:
        self._stack = ctypes.create_string_buffer(_STACK)  # it is the process's until its end
        top = ctypes.addressof(self._stack) + _STACK
        pid = _clone(_exit, top, flags | CLONE_VM | CLONE_FILES | signal.SIGCHLD, None)
        self.pid = check(pid, "clone")

    def wait(self) -> None:
        """Wait for it; it must be done."""
        os.waitpid(self.pid, 0)


def unshare(flags: int) -> None:
    """unshare(2)."""
    check(_unshare(flags), "unshare")


def setns(fd: int, kind: int = 0) -> None:
    """Join the namespace `fd`, which must be of `kind` (a CLONE_NEW* flag) unless that is 0."""
    check(_setns(fd, kind), "setns")


def sethostname(name: str) -> None:
    """sethostname(2): EINVAL beyond 64 bytes."""
    data = os.fsencode(name)
    check(_sethostname(data, len(data)), "sethostname", name)


def setdomainname(name: str) -> None:
    """setdomainname(2): EINVAL beyond 64 bytes."""
    data = os.fsencode(name)
    check(_setdomainname(data, len(data)), "setdomainname", name)
