"""Where a container's first process is born: in namespaces of others, if need be, and with ids that its parent maps."""

import os

from reconciler.linux import namespace
from reconciler.shim import child, oci_child
from reconciler.shim.oci_config import Bundle
from reconciler.shim.step import Step, StepError
from reconciler.shim.users import write

_CLONE_PARENT = 0x00008000


class Arguments:
    """What the first process is born with."""

    __slots__ = ("console", "error", "extras", "go", "sync")

    def __init__(self, go: int, sync: int, error: int, console: int, extras: oci_child.Extras) -> None:
        self.go = go
        self.sync = sync
        self.error = error
        self.console = console
        self.extras = extras

    def run(self, prepared: child.Prepared) -> None:
        """Become the container's program; never return."""
        child.run(
            prepared,
            go_fd=self.go,
            sync_fd=self.sync,
            error_fd=self.error,
            stdio=(0, 1, 2),
            console_fd=self.console,
            death_signal=0,
            extras=self.extras,
        )


def help_out(bundle: Bundle, arguments: Arguments, report: int) -> None:
    """Enter what is to be joined, clone the first process as the caller's own child, tell its pid, and end."""
    prepared = bundle.prepared
    try:
        if bundle.new_time:
            with Step("namespace", "time"):
                namespace.unshare(namespace.CLONE_NEWTIME)
                for clock, seconds, nanoseconds in bundle.time_offsets:
                    write("/proc/self/timens_offsets", f"{clock} {seconds} {nanoseconds}")
        joins = list(prepared.joins)
        if bundle.joined_pid:
            joins.append((namespace.CLONE_NEWPID, bundle.joined_pid))
        opened = []
        for flag, name in joins:
            with Step("namespace", name):
                opened.append((flag, os.open(name, os.O_RDONLY | os.O_CLOEXEC)))
        if bundle.joined_user:
            with Step("namespace", bundle.joined_user):
                fd = os.open(bundle.joined_user, os.O_RDONLY | os.O_CLOEXEC)
                namespace.setns(fd, namespace.CLONE_NEWUSER)
            oci_child.become_root()
        for (flag, fd), (_, name) in zip(opened, joins, strict=True):
            with Step("namespace", name):
                namespace.setns(fd, flag)
        prepared.joins = ()
        with Step("clone", prepared.name):
            # CLONE_PARENT takes over this one's exit signal and allows no other (clone(2))
            pid, _ = namespace.clone3(prepared.clone_flags | _CLONE_PARENT, exit_signal=0)
        if pid == 0:
            arguments.run(prepared)
        os.write(report, str(pid).encode())
    except StepError as error:
        os.write(report, error.line())
    finally:
        os._exit(0)
