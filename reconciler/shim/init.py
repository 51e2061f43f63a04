"""PID 1 for `init: true`: starts the program, hands on signals, reaps what is orphaned, ends as the program ends.

It runs in the interpreter that is already loaded, which in a shim is a sealed memfd, so that there is no file of the
host behind /proc/1/exe. It opens nothing, has no privilege that the program does not have, and holds only stdio.
"""

import os
import signal
from collections.abc import Callable

from reconciler.linux import process

# The kernel raises these for a fault of this very process; handing them on would make a loop of it.
_OWN = frozenset(
    (
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSEGV,
        signal.SIGBUS,
        signal.SIGABRT,
        signal.SIGTRAP,
        signal.SIGSYS,
        signal.SIGKILL,
        signal.SIGSTOP,
    )
)


def serve(execute: Callable[[], None]) -> int:
    """Run `execute` in a child that becomes the program, and give its exit code once it ended: 128+n for signal n.

    `execute` must not return. The code is for _exit: what else runs in this PID namespace dies with PID 1.
    """
    watched = frozenset(signal.valid_signals()) - _OWN
    signal.pthread_sigmask(signal.SIG_SETMASK, watched)
    child = os.fork()
    if child == 0:
        _foreground()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        execute()
        return 70  # not reached: execute ends the process
    process.set_name("init")
    process.close_from(3)
    while True:
        received = signal.sigwaitinfo(watched)
        if received.si_signo != signal.SIGCHLD:
            try:
                os.kill(child, received.si_signo)
            except PermissionError:
                pass  # a set-uid program took another user; the shim's SIGKILL reaches it all the same
            continue
        code = _reap(child)
        if code is not None:
            return code


def _foreground() -> None:
    """Give the program a process group, and the terminal if there is one, so that Ctrl-C is for it."""
    os.setpgid(0, 0)
    if os.isatty(0):
        os.tcsetpgrp(0, os.getpgrp())  # SIGTTOU is blocked here, so that this does not stop us


def _reap(child: int) -> int | None:
    """Collect every dead process; give the program's code if it was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code
