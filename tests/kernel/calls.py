"""System calls by number, as a program makes them that does not ask libc, and children under a filter to make them."""

import ctypes
import mmap
import os
import signal
from collections.abc import Callable
from typing import Any

from reconciler.linux import process
from reconciler.linux.seccomp import load
from reconciler.linux.seccomp.compile import compile, flags

_libc = ctypes.CDLL(None, use_errno=True)
_PATIENCE = 20  # seconds after which a child that waits is ended by SIGALRM

# For int $0x80 out of a 64-bit program: push %rbx; mov %edi,%eax; mov %esi,%ebx; xchg %ecx,%edx; mov %r8d,%esi;
# mov %r9d,%edi; int $0x80; pop %rbx; ret
_INT_80 = bytes.fromhex("53 89f8 89f3 87d1 4489c6 4489cf cd80 5b c3")


def syscall(number: int, *args: int) -> int:
    """Make a call; give its result, or -errno."""
    full = (*args, *(0,) * (6 - len(args)))
    result = int(_libc.syscall(ctypes.c_long(number), *map(ctypes.c_ulong, full)))
    return -ctypes.get_errno() if result < 0 else result


def syscall_32(number: int, *args: int) -> int:
    """Make a call of 32-bit x86 by int $0x80; give its result, or -errno."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(_INT_80)
    kind = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_uint,) * 6)
    function = kind(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
    return int(function(number, *(*args, *(0,) * (5 - len(args)))))


def run(section: dict[str, Any], work: Callable[[], object]) -> tuple[int, str]:
    """Do `work` under a filter in a child; give its wait status, and what `work` gave as text."""
    program = compile(section)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(_PATIENCE)
            process.set_no_new_privs()
            load.load(program, flags(section))
            os.write(write, str(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        said = file.read().decode()
    return os.waitpid(pid, 0)[1], said
