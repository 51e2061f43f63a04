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
cgroups, cgroup namespace, read-only root, pivot_root, host name, user lookup, stdio, rlimits, keyring, capabilities,
groups, user, no_new_privs, chdir, search for the program, b"c", wait for b"g", PDEATHSIG, signals, close_range, seccomp
filter, exec.

After the clone nothing is imported, no lock is taken, and no path string is used on the root before pivot_root.
"""

import errno
import os
import select
import signal

from reconciler.linux import mount, namespace, path, process
from reconciler.shim import device, init, mounts, privilege, rootfs, start, user, volume
from reconciler.shim.config import Prepared, prepare
from reconciler.shim.fields import ConfigError
from reconciler.shim.step import Step, StepError

__all__ = ["ConfigError", "Prepared", "join_cgroups", "prepare", "run", "spawn"]


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
        if cgroup is not None:
            os.close(cgroup)
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
) -> None:
    """Turn this freshly cloned process into the container's program; never return. See the module's text."""
    code = 125
    try:
        _isolate((0, 1, 2, go_fd, sync_fd, error_fd, *stdio, *((console_fd,) if console_fd >= 0 else ())))
        file = _create(prepared, stdio, console_fd, (go_fd, sync_fd, error_fd))
        _tell(sync_fd, b"c")
        os.close(sync_fd)
        _await(go_fd)
        _die_with_parent(death_signal, go_fd)
        os.close(go_fd)
        start.reset_signals()
        if prepared.init:
            privilege.confine(prepared.process)
            code = init.serve(lambda: _become(prepared, file, error_fd))
        else:
            _become(prepared, file, error_fd)
    except BaseException as error:  # noqa: BLE001 - the error pipe is the only way out of here
        code = _report(error, error_fd)
    os._exit(code)


def _become(prepared: Prepared, file: bytes, error_fd: int) -> None:
    try:
        start.execute(file, prepared.process, error_fd, confined=prepared.init)
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


def _create(prepared: Prepared, stdio: tuple[int, int, int], console_fd: int, keep: tuple[int, ...]) -> bytes:
    """Do everything up to the exec; give the program's file."""
    wanted = prepared.process
    for flag, name in prepared.joins:
        with Step("namespace", name):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            namespace.setns(fd, flag)
            os.close(fd)
    sources = mounts.take(prepared)
    root = rootfs.make(prepared)
    for destination, directory, subpath, copy in prepared.volumes:
        if copy:
            volume.settle(root, destination, directory)
        if subpath:
            volume.make(directory, subpath)
    done = mounts.mount_all(prepared, root, sources)
    _write_proc(prepared, done.proc)
    device.make(prepared, root)
    mounts.mask(prepared, root)
    with Step("cwd", wanted.cwd):
        os.close(root.target(wanted.cwd, directory=True))
    terminal = device.console(root, done.devpts, wanted.console_size) if wanted.terminal else None
    mounts.finish(done)
    join_cgroups(prepared.cgroup_v1)
    if prepared.new_cgroup_namespace:
        with Step("namespace", "cgroup"):
            namespace.unshare(namespace.CLONE_NEWCGROUP)
    if prepared.read_only:
        with Step("rootfs", "/"):
            mount.mount_setattr(root.fd, set_=mount.MOUNT_ATTR_RDONLY)
    rootfs.enter(root)
    with Step("hostname", prepared.hostname):
        if prepared.hostname:
            namespace.sethostname(prepared.hostname)
        if prepared.domainname:
            namespace.setdomainname(prepared.domainname)
    who = user.resolve(root.fd, wanted)
    wanted.environment.setdefault(b"HOME", who.home)
    if terminal is not None:
        master, slave = terminal
        os.fchown(slave, who.uid, -1)
        device.send_master(console_fd, master)
        device.take_terminal(slave)
    else:
        start.set_stdio(stdio, who.uid)
    with Step("descriptors"):
        process.close_except((0, 1, 2, *keep))
    privilege.set_limits(wanted)
    privilege.fresh_keyring()
    privilege.drop(wanted, who)
    os.umask(wanted.umask)
    start.change_directory(wanted.cwd)
    return start.find_program(wanted)


def _write_proc(prepared: Prepared, proc: int) -> None:
    """Write sysctls and oom_score_adj through a fresh procfs that nobody else can have touched (CVE-2025-52881).

    That is the container's own, `proc`, by the descriptor that its making gave, or one made for this if there is none.
    """
    adjust = prepared.process.oom_score_adj
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
