"""The user namespace of a container: a range of the device's ids that is its alone, root's among them.

The namespace is made first and joined last. Made first, because mounts take the mapping of ids from it (id-mapped
mounts: what is on disk keeps the ids that it has, and no tree is given to anybody else). Joined last, once everything
is mounted, because then the namespaces for mounts, network, IPC and host name stay the device's: root inside has power
over its own files and processes, and over nothing that a user namespace of its own would have handed it (most holes of
recent years began there: CVE-2022-0185, CVE-2023-32233, CVE-2024-1086).
"""

import os
import signal

from reconciler.linux import capability, namespace, process
from reconciler.shim.step import Step

Ids = tuple[int, int]  # the device's id that 0 is inside, and how many follow


def make(ids: Ids) -> int:
    """Make a user namespace with the range `ids` for users and groups; give its descriptor. Raise StepError.

    A process of its own holds it until the descriptor does. The caller must have one thread, and see its own processes
    in /proc.
    """
    with Step("user namespace", str(ids[0])):
        waiting, end = os.pipe2(os.O_CLOEXEC)
        try:
            pid, pidfd = namespace.clone3(namespace.CLONE_NEWUSER)
            if pid == 0:
                os.close(end)
                os.read(waiting, 1)
                os._exit(0)
        finally:
            os.close(waiting)
        try:
            for name in ("uid_map", "gid_map"):
                fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, b"0 %d %d\n" % ids)
                finally:
                    os.close(fd)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(end)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            os.waitpid(pid, 0)


def make_files_as(first: int) -> None:
    """Have what this process makes belong to the device's id `first`, its power over files unchanged.

    What is made on an id-mapped mount must belong to somebody whom its mapping knows, be it a directory for a mount or
    what overlayfs makes for itself, which remembers who mounted it.
    """
    effective, permitted, inheritable = capability.capget()
    process.set_file_ids(first, first)
    capability.capset(
        effective, permitted, inheritable
    )  # an id other than 0 takes them away (capabilities(7))


def join(fd: int) -> None:
    """Enter the user namespace `fd`, close it, and become its root; raise StepError.

    The bounding set is full afterwards, as are the others (setns(2)): give up what is not wanted.
    """
    with Step("user namespace"):
        namespace.setns(fd, namespace.CLONE_NEWUSER)
        os.close(fd)
        process.setgroups(())
        process.setresgid(0)
        process.setresuid(0)
