"""An interpreter of classic BPF as seccomp has it: it checks a program as the kernel does, then runs it on one call."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

_LOAD, _JUMP, _AND, _RETURN = 0x20, 0x05, 0x54, 0x06
_TESTS: dict[int, Callable[[int, int], bool]] = {
    0x15: lambda word, value: word == value,
    0x25: lambda word, value: word > value,
    0x35: lambda word, value: word >= value,
    0x45: lambda word, value: bool(word & value),
}
KILL_PROCESS, KILL_THREAD, ALLOW, ERRNO = 0x80000000, 0, 0x7FFF0000, 0x00050000
X86_64, X86, AARCH64, ARM = 0xC000003E, 0x40000003, 0xC00000B7, 0x40000028


@dataclass(frozen=True)
class Answer:
    """What a filter returns, and how many instructions that took."""

    value: int
    instructions: int


class Filter:
    """A program, checked: only what seccomp allows, only jumps forward and inside, a return at every end."""

    def __init__(self, program: bytes) -> None:
        assert len(program) % 8 == 0
        self.code = [struct.unpack("=HBBI", program[at : at + 8]) for at in range(0, len(program), 8)]
        assert 0 < len(self.code) <= 4096
        for number, (code, true, false, value) in enumerate(self.code):
            rest = len(self.code) - number - 1
            if code in _TESTS:
                assert max(true, false) < rest
            elif code == _JUMP:
                assert value < rest
            elif code == _LOAD:
                assert value % 4 == 0
                assert value < 64
            else:
                assert code in (_AND, _RETURN)
        assert self.code[-1][0] == _RETURN

    def run(self, number: int, arch: int = X86_64, args: tuple[int, ...] = ()) -> Answer:
        """Ask about one call."""
        full = (*args, *(0,) * (6 - len(args)))
        data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *full)
        word = at = steps = 0
        while True:
            code, true, false, value = self.code[at]
            steps += 1
            at += 1
            if code == _RETURN:
                return Answer(value, steps)
            if code == _LOAD:
                (word,) = struct.unpack_from("=I", data, value)
            elif code == _AND:
                word &= value
            elif code == _JUMP:
                at += value
            else:
                at += true if _TESTS[code](word, value) else false
