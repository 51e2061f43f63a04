"""The user namespace of a container: a range of the device's ids that is its alone, root's among them.

The namespace is made first and joined last. Made first, because mounts take the mapping of ids from it (id-mapped
mounts: what is on disk keeps the ids that it has, and no tree is given to anybody else). Joined last, once everything
is mounted, because then the namespaces for mounts, network, IPC and host name stay the device's: root inside has power
over its own files and processes, and over nothing that a user namespace of its own would have handed it (most holes of
recent years began there: CVE-2022-0185, CVE-2023-32233, CVE-2024-1086).
"""

import os

from reconciler.linux import capability, namespace, process
from reconciler.shim.step import Step

Ids = tuple[int, int]  # the device's id that 0 is inside, and how many follow
Mapping = tuple[tuple[int, int, int], ...]  # first id inside, first id of the device, how many


def begin(uids: Mapping, gids: Mapping) -> tuple[int, namespace.Ending]:
    """Make a user namespace with these ids, in which nobody is; give its descriptor. Raise StepError.

    Wait for the process that began it when there is time: on a busy device the kernel lets it end late. The caller must
    see its own processes in /proc.
    """
    with Step("user namespace", str(uids[0][1])):
        ending = namespace.Ending(namespace.CLONE_NEWUSER)
        try:
            for name, ids in (("gid_map", gids), ("uid_map", uids)):
                write(f"/proc/{ending.pid}/{name}", lines(ids))
            return os.open(f"/proc/{ending.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC), ending
        except BaseException:
            ending.wait()
            raise


def make(uids: Mapping, gids: Mapping) -> int:
    """`begin` it, and wait."""
    fd, ending = begin(uids, gids)
    ending.wait()
    return fd


def lines(ids: Mapping) -> str:
    """Write a mapping as uid_map and gid_map take it."""
    return "".join(f"{inside} {outside} {size}\n" for inside, outside, size in ids)


def write(file: str, text: str) -> None:
    """Write a file of /proc in one call, as those want it."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def begin_for(ids: Ids) -> tuple[int, namespace.Ending]:
    """`begin` one with one range, the same for users and groups."""
    mapping = ((0, *ids),)
    return begin(mapping, mapping)


def make_for(ids: Ids) -> int:
    """`begin_for` it, and wait."""
    fd, ending = begin_for(ids)
    ending.wait()
    return fd


def make_files_as(first: int) -> None:
    """Have what this process makes belong to the device's id `first`, its power over files unchanged.

    What is made on an id-mapped mount must belong to somebody whom its mapping knows, be it a directory for a mount or
    what overlayfs makes for itself, which remembers who mounted it.
    """
    effective, permitted, inheritable = capability.capget()
    process.set_file_ids(first, first)
    # An id other than 0 takes them away (capabilities(7))
    capability.capset(effective, permitted, inheritable)


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
