"""The seccomp filter of a bundle: compiled when the bundle is made, in a file beside its config.json.

So nobody compiles between a request and a program, and no shim holds a compiler. The file begins with a mark, the flags
for seccomp(2) and the CRC-32 of the program, which follows. A bundle whose config.json has a `linux.seccomp` and that
has no such file does not start: left out, a filter would be missed by nobody.
"""

import errno
import os
import struct
import zlib

from reconciler.linux.seccomp import load
from reconciler.shim.step import Step, StepError

FILE = "seccomp.bpf"
_MARK = b"RSF1"
_HEAD = struct.Struct("=4sII")
_LARGEST = _HEAD.size + 4096 * 8  # BPF_MAXINSNS

Filter = tuple[bytes, int]  # struct sock_filter[], and SECCOMP_FILTER_FLAG_*


def pack(program: bytes, flags: int) -> bytes:
    """Give the content of the file."""
    return _HEAD.pack(_MARK, flags, zlib.crc32(program)) + program


def read(directory: int, shown: str) -> Filter:
    """Read the file in the open bundle `directory`; raise StepError where it is missing or damaged.

    Also where it hands calls over to a supervisor (SCMP_ACT_NOTIFY): nobody here is one.
    """
    path = f"{shown}/{FILE}" if shown else FILE
    with Step("seccomp", path):
        try:
            fd = os.open(FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError as error:
            raise StepError("seccomp", path, errno.ENOENT, "the compiled filter is missing") from error
        try:
            data = os.read(fd, _LARGEST + 1)
        finally:
            os.close(fd)
    program = data[_HEAD.size :]
    if len(data) < _HEAD.size or len(data) > _LARGEST:
        raise StepError("seccomp", path, 0, "not a compiled filter")
    mark, flags, checksum = _HEAD.unpack_from(data)
    if mark != _MARK or checksum != zlib.crc32(program):
        raise StepError("seccomp", path, 0, "a damaged filter, or one of another release")
    if flags & load.FLAG_NEW_LISTENER:
        raise StepError("seccomp", path, 0, "SCMP_ACT_NOTIFY needs a supervisor, and there is none")
    return program, flags
