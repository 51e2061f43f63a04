"""Giving up what the program must not have: limits, keyring, capabilities, groups, user, calls. The order is the point.

Serves the container's own program and every program that `exec` adds. Runs inside the container's root, so it opens no
file and looks up no name. It gives exactly what the bundle says; defaults are the engine's.
"""

import array
import errno
import os
import resource
import socket

from reconciler.linux import capability, process
from reconciler.linux.seccomp import load
from reconciler.shim.program import Process
from reconciler.shim.step import Step, StepError
from reconciler.shim.user import User

_ADMIN = capability.mask(("CAP_SYS_ADMIN",))


def set_limits(wanted: Process) -> None:
    """Set the rlimits; raise StepError where one that was asked for by name can't be had.

    Without CAP_SYS_RESOURCE a hard limit can only be lowered. A limit that nobody asked for (an engine's default) is
    then clamped to the hard limit that there is.
    """
    for name, soft, hard in wanted.rlimits:
        number: int = getattr(resource, name)
        try:
            resource.setrlimit(number, (soft, hard))
        except (ValueError, OSError) as error:
            have = resource.getrlimit(number)[1]
            if wanted.rlimits_requested is None or name in wanted.rlimits_requested:
                reason = f"{_limit(soft)}:{_limit(hard)} is above the hard limit {_limit(have)} of the agent"
                raise StepError("rlimit", name, errno.EPERM, reason) from error
            with Step("rlimit", name):
                resource.setrlimit(number, (_lower(soft, have), _lower(hard, have)))


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else str(value)


def _lower(one: int, other: int) -> int:
    if one == resource.RLIM_INFINITY:
        return other
    return one if other == resource.RLIM_INFINITY else min(one, other)


def fresh_keyring() -> None:
    """Leave the session keyring for a new one, as root, so that no user's key quota (200 keys) is used up by it."""
    with Step("keyring"):
        try:
            process.join_session_keyring()
        except OSError as error:
            if error.errno != errno.ENOSYS:  # a kernel without keyrings has none to leak
                raise


def drop(wanted: Process, user: User) -> None:
    """Become `user` with exactly the capabilities of `wanted`; raise StepError, after which only exit is safe.

    One more is left, out of effect, where `confine` needs it and takes it away. Afterwards this process can't come
    back, except that a program executed as uid 0 gets the bounding set (capabilities(7), "Capabilities and execution of
    programs by root").
    """
    have = capability.capget()[1]
    needed = wanted.bounding | wanted.permitted | wanted.effective | wanted.inheritable
    lacking = (needed | _held(wanted)) & ~have
    if lacking:
        names = ", ".join(capability.names(lacking))
        raise StepError("capabilities", names, errno.EPERM, "the agent itself does not have this")
    with Step("capabilities", "bounding"):
        for number in range(64):
            if not wanted.bounding >> number & 1:
                try:
                    capability.drop_bounding(number)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    break  # beyond the last one of this kernel; what is wanted beyond it was lacking above
    with Step("groups", str(user.gid)):
        process.set_keep_capabilities(True)
        process.setgroups(user.groups)
        process.setresgid(user.gid)
    with Step("user", str(user.uid)):
        process.setresuid(user.uid)
        process.set_keep_capabilities(False)
    effective, permitted = _sets(wanted, user.uid)
    with Step("capabilities", "sets"):
        capability.clear_ambient()
        capability.capset(effective, permitted | _held(wanted), wanted.inheritable)
        for number in range(wanted.ambient.bit_length()):
            if wanted.ambient >> number & 1:
                capability.raise_ambient(number)
    if wanted.no_new_privileges:
        with Step("no_new_privs"):
            process.set_no_new_privs()


def confine(wanted: Process) -> None:
    """Load the filter, if there is to be one; raise StepError. Call it last: what follows is filtered.

    A filter needs no_new_privs, or CAP_SYS_ADMIN (seccomp(2)), which `drop` has left within reach for that, out of
    effect: runc instead loads it before it gives up anything, and so fails under profiles without getcwd or the like.
    """
    if not wanted.filtered:
        return
    if wanted.filter is None:
        raise StepError("seccomp", "", 0, "config.json asks for a filter, and none has been compiled")
    program, flags = wanted.filter
    with Step("seccomp"):
        effective, permitted = _sets(wanted, os.getuid())
        if held := _held(wanted):
            capability.capset(effective | held, permitted | held, wanted.inheritable)
        listener = load.load(program, flags)
        if listener >= 0 and wanted.supervisor is not None:
            _hand_over(listener, *wanted.supervisor)
        if held:
            capability.capset(effective, permitted, wanted.inheritable)


def _hand_over(listener: int, supervisor: int, message: bytes) -> None:
    """Send a filter's listener to whoever is to answer its questions (config-linux.md, "Seccomp", listenerPath)."""
    with socket.socket(fileno=supervisor) as channel:
        channel.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
    os.close(listener)


def _sets(wanted: Process, uid: int) -> tuple[int, int]:
    """Give the effective and the permitted capabilities that the program will have."""
    if uid == 0:
        return wanted.effective, wanted.permitted
    # What the exec would leave anyway: a user other than root keeps ambient capabilities only. Done before it as well,
    # because everything from there on, the search for the program too, must see what the program will see.
    return wanted.effective & wanted.ambient, wanted.permitted & wanted.ambient


def _held(wanted: Process) -> int:
    """Give what stays permitted until the filter is loaded."""
    return _ADMIN if wanted.filtered and not wanted.no_new_privileges else 0
