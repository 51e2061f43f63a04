"""A copy of the interpreter that nobody can change, for every process that is going to enter a container.

What is inside a container can reach the program of a process that joins it through /proc/PID/exe, and open that for
writing once it ended (CVE-2019-5736). What it reaches here is a copy in memory.
"""

import os
import sys

from reconciler.linux.path import seal

_FIRST = 64  # descriptors from 3 on may be the caller's own, to be handed on


def sealed_interpreter() -> int:
    """Copy the interpreter that runs here into a sealed memfd and give its descriptor."""
    source = os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fd = os.memfd_create("reconciler", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            while os.sendfile(fd, source, None, 1 << 24):
                pass
            os.fchmod(fd, 0o500)
            seal(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd
    finally:
        os.close(source)


def execute(file: str, arguments: list[str]) -> None:
    """Become `file FD PATHS arguments...` on a sealed copy of this interpreter; never return.

    `file` belongs to this program and sets its sys.path from PATHS; FD is the copy, for it to close. The environment is
    passed on: what it says to the interpreter is ignored there.
    """
    import fcntl  # the one who calls this starts anew in a moment: nothing else of its own is loaded for it

    copy = sealed_interpreter()
    fd = fcntl.fcntl(copy, fcntl.F_DUPFD, _FIRST)
    os.close(copy)
    program = os.readlink("/proc/self/exe").removesuffix(" (deleted)")
    library = os.path.dirname(os.__file__)
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = os.pathsep.join((library, f"{library}/lib-dynload", package))
    options = ("-I", "-S", "-E", "-X", "utf8", "-X", "no_debug_ranges")
    environment = dict(os.environ)
    shared = _shared_library()
    if shared:  # an interpreter in a memfd can't find it by its own place
        environment["LD_LIBRARY_PATH"] = shared
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(f"/proc/self/fd/{fd}", [program, *options, file, str(fd), paths, *arguments], environment)


def _shared_library() -> str:
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if "/libpython3" in line:
                return os.path.dirname(line[line.index("/") :].rstrip("\n"))
    return ""
