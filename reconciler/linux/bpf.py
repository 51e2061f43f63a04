"""bpf(2), as far as a cgroup's device filter goes (BPF_PROG_TYPE_CGROUP_DEVICE, since Linux 4.15).

`device_program` is pure: rules in, instructions out. The others are one call each.
"""

import ctypes
import os
import struct

from reconciler.linux.syscall import bind, check

_PROG_LOAD = 5
_PROG_ATTACH = 8
_TYPE_CGROUP_DEVICE = 15
_CGROUP_DEVICE = 6
_ALLOW_MULTI = 2  # the programs of all cgroups above must allow it too

# Instructions of class BPF_LDX|BPF_MEM|BPF_W, BPF_ALU|..., BPF_JMP|BPF_JNE (linux/bpf.h, linux/bpf_common.h)
_LOAD = 0x61
_AND = 0x54
_SHIFT_RIGHT = 0x74
_COPY = 0xBC
_SET = 0xB7
_IF_EQUAL = 0x15
_UNLESS_EQUAL = 0x55
_UNLESS_SAME = 0x5D
_EXIT = 0x95

_KINDS = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

_bpf = bind("bpf", ctypes.c_int, ctypes.c_void_p, ctypes.c_uint)


def _instruction(code: int, to: int = 0, source: int = 0, jump: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, to | source << 4, jump, value)


# 2: the kind, 3: the access that is asked for, 4 and 5: major and minor
_HEAD = (
    _instruction(_LOAD, 2, 1, 0)
    + _instruction(_COPY, 3, 2)
    + _instruction(_AND, 2, value=0xFFFF)
    + _instruction(_SHIFT_RIGHT, 3, value=16)
    + _instruction(_LOAD, 4, 1, 4)
    + _instruction(_LOAD, 5, 1, 8)
)


def device_program(allowed: tuple[tuple[str, int | None, int | None, str], ...]) -> bytes:
    """Give the program that allows exactly `allowed`: kind (c or b), major and minor (None: any), access (of r, w, m).

    The kernel's question is struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor.
    """
    code = _HEAD
    for kind, major, minor, access in allowed:
        tests: list[tuple[int, int, int, int]] = [(_UNLESS_EQUAL, 2, 0, _KINDS[kind])]
        if major is not None:
            tests.append((_UNLESS_EQUAL, 4, 0, major))
        if minor is not None:
            tests.append((_UNLESS_EQUAL, 5, 0, minor))
        bits = sum(_ACCESS[letter] for letter in set(access))
        before = b""
        if bits != 7:
            before = _instruction(_COPY, 6, 3) + _instruction(_AND, 6, value=bits)
            tests.append((_UNLESS_SAME, 6, 3, 0))
        end = _instruction(_SET, 0, value=1) + _instruction(_EXIT)
        total = len(tests) + len(before + end) // 8
        # Each test that fails jumps over the rest of its rule
        rule = before
        for to, (instruction, left, right, value) in enumerate(tests, len(before) // 8):
            rule += _instruction(instruction, left, right, total - to - 1, value)
        code += rule + end
    return code + _instruction(_SET, 0, value=0) + _instruction(_EXIT)


def device_rules(rules: tuple[tuple[bool, str, int | None, int | None, str], ...]) -> bytes:
    """Give the program for rules of which a later one beats an earlier: allow or deny, kind (a, b, c), major and minor.

    Of each kind of access the last rule that speaks of it decides, as in the lists of version 1; none means no.
    """
    code = _HEAD
    for allow, kind, major, minor, access in reversed(rules):
        bits = sum(_ACCESS[letter] for letter in set(access))
        if allow:  # what is asked for, less what this grants
            body = _instruction(_AND, 3, value=~bits & 7) + _instruction(_UNLESS_EQUAL, 3, jump=2)
        else:
            body = _instruction(_COPY, 6, 3) + _instruction(_AND, 6, value=bits)
            body += _instruction(_IF_EQUAL, 6, jump=2)
        body += _instruction(_SET, 0, value=int(allow)) + _instruction(_EXIT)
        tests = [] if kind == "a" else [(2, _KINDS[kind])]
        tests += [(register, number) for register, number in ((4, major), (5, minor)) if number is not None]
        for index, (register, number) in enumerate(tests):
            jump = len(tests) - index - 1 + len(body) // 8
            code += _instruction(_UNLESS_EQUAL, register, jump=jump, value=number)
        code += body
    return code + _instruction(_SET, 0, value=0) + _instruction(_EXIT)


def load_device_program(code: bytes) -> int:
    """Load a program and give its descriptor; EPERM without CAP_BPF or CAP_SYS_ADMIN, EINVAL where it is not built."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        *(_TYPE_CGROUP_DEVICE, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence)),
        *(0, 0, 0, 0, 0, b"devices", 0, _CGROUP_DEVICE),
    )
    fd = _call(_PROG_LOAD, attributes, "bpf(BPF_PROG_LOAD)")
    os.set_inheritable(fd, False)
    return fd


def attach_device_program(cgroup: int, program: int) -> None:
    """Have the program decide for the version 2 cgroup `cgroup` (a descriptor); it stays as long as the cgroup does."""
    attributes = struct.pack("=IIII", cgroup, program, _CGROUP_DEVICE, _ALLOW_MULTI)
    _call(_PROG_ATTACH, attributes, "bpf(BPF_PROG_ATTACH)")


def _call(command: int, attributes: bytes, name: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return check(_bpf(command, ctypes.addressof(buffer), len(attributes)), name)


def guard_devices(directory: str, code: bytes) -> None:
    """Have the program `code` decide about devices in the cgroup v2 `directory`, instead of one from before."""
    program = load_device_program(code)
    try:
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attach_device_program(cgroup, program)
        finally:
            os.close(cgroup)
    finally:
        os.close(program)
