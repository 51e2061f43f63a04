"""From clone to exec: what happens in a container's first process. The monitor's author reads the contract here.

    prepared = child.prepare(config, bundle)      # before the clone; raises ConfigError
    pid, pidfd = child.spawn(prepared, go_fd=..., sync_fd=..., error_fd=..., stdio=(0, 1, 2), ...)

`spawn` clones (into the v2 cgroup) and runs `run` in the child, which joins the v1 cgroups by itself. The caller then
talks to the child through three pipes:

  go_fd     the child reads. Write b"g" to start the program. EPIPE means that the child has failed: read the error
            pipe. End of file means that the shim died: the child exits silently. Keep the write end open, and only in
            the shim, until the error pipe reports: after asking for PDEATHSIG the child looks whether it is still
            there. (An OCI `create` gives a FIFO opened for reading and writing here, and death_signal=0.)
  sync_fd   the child writes b"c" when the container is created: everything is done but PDEATHSIG and the exec, and the
            program's file has been found. End of file without it: read the error pipe.
  error_fd  the child writes one JSON line {"errno", "message", "path", "step"} (shim.step) and exits with 127 (ENOENT,
            ENOTDIR at exec), 126 (another failure of exec) or 125 (anything else). End of file without a byte means
            that the program runs, or that the child was killed. All three must be close-on-exec in the caller.

The steps, in their order: namespaces to join, propagation, root file system, copy-up of volumes, mounts, devices,
masked and read-only paths (sysctls and oom_score_adj before them, by the new procfs), working directory, console, v1
cgroups, cgroup namespace, read-only root, pivot_root, host name, user lookup, stdio, rlimits, keyring, user namespace,
capabilities, groups, user, no_new_privs, chdir, search for the program, b"c", wait for b"g", PDEATHSIG, signals,
close_range, seccomp filter, exec.

After the clone nothing is imported, no lock is taken, and no path string is used on the root before pivot_root.
"""

import errno
import os
import select
import signal

from reconciler.linux import mount, namespace, path, process
from reconciler.shim import config, device, init, mounts, privilege, rootfs, start, user, users, volume
from reconciler.shim.config import Prepared, prepare
from reconciler.shim.fields import ConfigError
from reconciler.shim.step import Step, StepError

__all__ = ["ConfigError", "Extras", "Prepared", "join_cgroups", "prepare", "run", "spawn"]


class Extras:
    """What a bundle of somebody else's may ask for beyond the engine's own: each method is one point of the way.

    Here none of them does anything; shim.oci_child has those that do. `keep` are descriptors that stay open until the
    root is entered, `late` those until the exec; `preserved` is how many from 3 on the program itself gets. `sources`
    are binds that are detached mounts already, `tree` is the root file system as one, -1 where there is none.
    """

    keep: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    preserved = 0
    sources: dict[config.Mount, int] = {}  # noqa: RUF012 - never changed
    tree = -1
    placed = False  # in its cgroups already
    fresh_keyring = True
    own_stdio = True  # its pipes and terminals become its user's here

    def enter(self, prepared: Prepared) -> None:
        """Before anything of the container is made."""

    def write_proc(self, prepared: Prepared, proc: int) -> bool:
        """With the container's procfs, -1 where it has none; whether oom_score_adj is seen to already."""
        return False

    def mounted(self, root: rootfs.Root) -> None:
        """Everything is mounted; this process still has the runtime's root."""

    def entered(self) -> None:
        """The container's root is this process's own."""

    def tune(self) -> None:
        """Before the limits are set and the capabilities go."""

    def confine(self) -> None:
        """Everything else has been given up."""

    def start(self, keep: tuple[int, ...]) -> None:
        """The program is to be started."""


_NOTHING = Extras()


def spawn(
    prepared: Prepared,
    *,
    go_fd: int,
    sync_fd: int,
    error_fd: int,
    stdio: tuple[int, int, int],
    console_fd: int = -1,
    death_signal: int = signal.SIGKILL,
) -> tuple[int, int]:
    """Clone the container's first process; give (pid, pidfd). See the module's text.

    Raise StepError if it can't be made.
    """
    cgroup = None
    with Step("cgroup", prepared.cgroup_v2 or ""):
        if prepared.cgroup_v2:
            cgroup = os.open(prepared.cgroup_v2, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if prepared.process.ids is not None:
            prepared.users = users.make_for(prepared.process.ids)
        with Step("clone", prepared.name):
            pid, pidfd = namespace.clone3(prepared.clone_flags, cgroup=cgroup)
        if pid == 0:
            run(
                prepared,
                go_fd=go_fd,
                sync_fd=sync_fd,
                error_fd=error_fd,
                stdio=stdio,
                console_fd=console_fd,
                death_signal=death_signal,
            )
    finally:
        for fd in (cgroup if cgroup is not None else -1, prepared.users):
            if fd >= 0:
                os.close(fd)
    return pid, pidfd


def join_cgroups(directories: tuple[str, ...]) -> None:
    """Move this process, which has one thread, into the v1 cgroups of `directories`; raise StepError.

    A thread that moves itself (0 in `tasks`) is the one case in which the kernel need not keep all others from forking
    meanwhile, and for that wait for a grace period of RCU: some 10 ms (cgroup_procs_write_start, Linux 5.5).
    """
    for directory in directories:
        with Step("cgroup", directory):
            fd = os.open(f"{directory}/tasks", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)


def run(
    prepared: Prepared,
    *,
    go_fd: int,
    sync_fd: int,
    error_fd: int,
    stdio: tuple[int, int, int],
    console_fd: int = -1,
    death_signal: int = signal.SIGKILL,
    extras: Extras = _NOTHING,
) -> None:
    """Turn this freshly cloned process into the container's program; never return. See the module's text."""
    code = 125
    try:
        pipes = (go_fd, sync_fd, error_fd)
        optional = tuple(fd for fd in (console_fd, prepared.users) if fd >= 0)
        _isolate((0, 1, 2, *pipes, *stdio, *optional, *extras.keep, *extras.late))
        file = _create(prepared, stdio, console_fd, (*pipes, *extras.late), extras)
        _tell(sync_fd, b"c")
        os.close(sync_fd)
        _await(go_fd)
        _die_with_parent(death_signal, go_fd)
        os.close(go_fd)
        extras.start((error_fd, *extras.late))
        start.reset_signals()
        if prepared.init:
            privilege.confine(prepared.process)
            code = init.serve(lambda: _become(prepared, file, error_fd))
        else:
            _become(prepared, file, error_fd, extras.preserved)
    except BaseException as error:  # noqa: BLE001 - the error pipe is the only way out of here
        code = _report(error, error_fd)
    os._exit(code)


def _become(prepared: Prepared, file: bytes, error_fd: int, preserved: int = 0) -> None:
    try:
        start.execute(file, prepared.process, error_fd, preserved, confined=prepared.init)
    except BaseException as error:  # noqa: BLE001 - as above; in the child of init it is the end of the line as well
        os._exit(_report(error, error_fd))


def _report(error: BaseException, error_fd: int) -> int:
    if isinstance(error, SystemExit):
        return 0
    if not isinstance(error, StepError):
        number = error.errno or 0 if isinstance(error, OSError) else 0
        error = StepError("start", "", number, f"{type(error).__name__}: {error}")
    try:
        os.write(error_fd, error.line())
    except OSError:
        return 125  # nobody is there to be told
    if error.step != "exec":
        return 125
    return 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126


def _isolate(keep: tuple[int, ...]) -> None:
    with Step("isolate"):
        # Above all the other ends of the pipes: while this process held one, it would never see the end of file
        process.close_except(keep)
        process.set_dumpable(False)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # handlers of the shim's must not run here
        os.umask(0)
        os.setsid()


def _create(
    prepared: Prepared, stdio: tuple[int, int, int], console_fd: int, keep: tuple[int, ...], extras: Extras
) -> bytes:
    """Do everything up to the exec; give the program's file."""
    wanted = prepared.process
    extras.enter(prepared)
    for flag, name in prepared.joins:
        with Step("namespace", name):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            namespace.setns(fd, flag)
            os.close(fd)
    if wanted.ids is not None:
        users.make_files_as(wanted.ids[0])
    sources = extras.sources or mounts.take(prepared)
    root = rootfs.make(prepared, extras.tree)
    for destination, directory, subpath, copy in prepared.volumes:
        if copy:
            volume.settle(root, destination, directory, prepared.users)
        if subpath:
            volume.make(directory, subpath, prepared.users)
    done = mounts.mount_all(prepared, root, sources)
    adjust = None if extras.write_proc(prepared, done.proc) else wanted.oom_score_adj
    _write_proc(prepared, done.proc, adjust)
    device.make(prepared, root)
    mounts.mask(prepared, root)
    with Step("cwd", wanted.cwd):
        os.close(root.target(wanted.cwd, directory=True))
    terminal = device.console(root, done.devpts, wanted.console_size) if wanted.terminal else None
    mounts.finish(done)
    extras.mounted(root)
    if not extras.placed:
        join_cgroups(prepared.cgroup_v1)
    if prepared.new_cgroup_namespace:
        with Step("namespace", "cgroup"):
            namespace.unshare(namespace.CLONE_NEWCGROUP)
    if prepared.read_only:
        with Step("rootfs", "/"):
            mount.mount_setattr(root.fd, set_=mount.MOUNT_ATTR_RDONLY)
    rootfs.enter(root)
    extras.entered()
    with Step("hostname", prepared.hostname):
        if prepared.hostname:
            namespace.sethostname(prepared.hostname)
        if prepared.domainname:
            namespace.setdomainname(prepared.domainname)
    who = user.resolve(root.fd, wanted)
    wanted.environment.setdefault(b"HOME", who.home)
    owner = user.outside(who, wanted)
    if terminal is not None:
        master, slave = terminal
        os.fchown(slave, owner, -1)
        device.send_master(console_fd, master)
        device.take_terminal(slave)
    else:
        start.set_stdio(stdio, owner if extras.own_stdio else 0)
    with Step("descriptors"):
        process.close_except((0, 1, 2, *keep, *((prepared.users,) if prepared.users >= 0 else ())))
    extras.tune()
    privilege.set_limits(wanted)
    if extras.fresh_keyring:
        privilege.fresh_keyring()
    if wanted.ids is not None:
        users.join(prepared.users)
    privilege.drop(wanted, who)
    os.umask(wanted.umask)
    start.change_directory(wanted.cwd)
    file = start.find_program(wanted)
    extras.confine()
    return file


def _write_proc(prepared: Prepared, proc: int, adjust: int | None) -> None:
    """Write sysctls and oom_score_adj through a fresh procfs that nobody else can have touched (CVE-2025-52881).

    That is the container's own, `proc`, by the descriptor that its making gave, or one made for this if there is none.
    """
    if not prepared.sysctl and adjust is None:
        return
    if proc < 0:
        with Step("proc", "/proc"):
            proc = mounts.create("proc", (), 0)
    for name, value in prepared.sysctl:
        with Step("sysctl", name):
            _write_in(proc, f"sys/{name}", value)
    if adjust is not None:
        with Step("oom_score_adj", str(adjust)):
            _write_in(proc, f"{os.getpid()}/oom_score_adj", str(adjust))


def _write_in(proc: int, name: str, value: str) -> None:
    resolve = path.RESOLVE_BENEATH | path.RESOLVE_NO_SYMLINKS | path.RESOLVE_NO_XDEV
    fd = path.openat2(proc, name, os.O_WRONLY, resolve=resolve)
    try:
        if path.filesystem_type(fd) != path.PROC_SUPER_MAGIC:
            raise OSError(errno.EPERM, "not on procfs")
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _await(go_fd: int) -> None:
    """Read one byte; end of file means that the shim is gone, and this process goes too."""
    if not os.read(go_fd, 1):
        raise SystemExit


def _tell(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except BrokenPipeError:
        raise SystemExit from None


def _die_with_parent(number: int, go_fd: int) -> None:
    """Ask for `number` when the shim ends, and make sure that it has not ended before; it holds go_fd's other end."""
    if number == 0:
        return
    with Step("pdeathsig"):
        process.set_parent_death_signal(number)
    poll = select.poll()
    poll.register(go_fd, select.POLLHUP)
    if any(event & select.POLLHUP for _, event in poll.poll(0)):
        raise SystemExit
